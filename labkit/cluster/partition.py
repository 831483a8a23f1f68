"""Network partitions without root: every route of a private cluster runs through a small TCP proxy
that can stop forwarding.

The proxies run in a process of their own (this file, which needs nothing but Python), so that a
busy cell cannot freeze them. A silent proxy forwards nothing and closes nothing, like a network
that drops packets: the servers find out by themselves. What was under way arrives when the
partition ends.
"""

import asyncio
import json
import subprocess
import sys


class RouteProxies:
    """Controls the proxy process of one cluster from the notebook. Start it before the nodes."""

    def __init__(self, routes):
        """routes: {(node, other): (port to listen on, port of the other's routes)}. Raises OSError
        if one of the ports is taken."""
        # Not at the top: as a program, this file does without labkit.
        from labkit.system.launching import launch

        self.ports = {pair: port for pair, (port, _) in routes.items()}
        self.child = launch(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._order([[*pair, *ports] for pair, ports in routes.items()])

    def silence(self, names):
        """From now on, these nodes (set of names) cannot reach the others, nor be reached by them.
        All other nodes reach each other."""
        self._order(sorted(names))

    def _order(self, order):
        """Sends an order to the process of the proxies, and waits until it is carried out."""
        self.child.stdin.write(json.dumps(order).encode() + b"\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline()
        if answer.strip() != b"done":
            self.end()
            raise OSError(f"the route proxies answered {answer!r}; wanted: done")

    def end(self):
        """Ends the process of the proxies."""
        self.child.kill()
        self.child.wait()


class Proxy:
    """One route: forwards connections that node `one` opens to node `other`, both ways, while
    neither of the two is cut off."""

    def __init__(self, one, other, target):
        """target: port of the other's routes."""
        self.nodes = {one, other}
        self.target = target
        self.forwards = asyncio.Event()  # not set while the proxy is silent
        self.forwards.set()

    def cut_off(self, names):
        """Falls silent if one of its nodes is among these names, else forwards."""
        if self.nodes & set(names):
            self.forwards.clear()
        else:
            self.forwards.set()

    async def serve(self, reader, writer):
        await self.forwards.wait()  # a connection that begins in a partition waits for its end
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:  # the other node is down: this connection is refused too
            writer.close()
            return
        await asyncio.gather(
            self.forward(reader, target_writer),
            self.forward(target_reader, writer),
            return_exceptions=True,
        )

    async def forward(self, reader, writer):
        try:
            while data := await reader.read(65536):
                await self.forwards.wait()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


async def start(routes):
    """Starts a proxy for each route: [node, other, port to listen on, port of the other's routes].
    Returns the list of Proxy."""
    proxies = []
    for one, other, port, target in routes:
        proxy = Proxy(one, other, target)
        await asyncio.start_server(proxy.serve, "127.0.0.1", port)
        proxies.append(proxy)
    return proxies


async def orders():
    """Yields the orders of the notebook's side. Ends when the notebook has ended."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        yield json.loads(line)


async def main():
    """The first order lists the routes, each later one the nodes that are cut off."""
    proxies = None
    async for order in orders():
        if proxies is None:
            proxies = await start(order)
        else:
            for proxy in proxies:
                proxy.cut_off(order)
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
