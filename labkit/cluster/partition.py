"""Network partitions without root: every route of a private cluster runs through a small TCP proxy
that can go silent.

The proxies live in a process of their own (run this file; it needs nothing but Python), so that a
busy cell cannot freeze them. A silent link forwards nothing and breaks nothing, as a network that
drops packets: the servers find out by themselves. What was on its way arrives when the link is
    mended.
"""

import asyncio
import json
import subprocess
import sys


class RouteProxies:
    """The proxies of one cluster, seen from the notebook. Start them before the nodes."""

    def __init__(self, routes):
        """routes: {(node, other): (port to listen on, port of the other's routes)}."""
        self.ports = {pair: port for pair, (port, _) in routes.items()}
        from labkit.system.launching import (
            launch,
        )  # not above: as a process of its own, this file does without labkit

        self.child = launch(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._ask([[*pair, *ports] for pair, ports in routes.items()])

    def silence(self, names):
        """From now on, these nodes (set of names) can neither reach the others nor be reached;
        nobody else is cut off."""
        self._ask(sorted(names))

    def _ask(self, order):
        self.child.stdin.write(json.dumps(order).encode() + b"\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline()
        if answer != b"done\n":
            self.end()
            raise OSError(f"the proxies of the routes said {answer!r}; wanted: done")

    def end(self):
        """Ends the process of the proxies."""
        self.child.kill()
        self.child.wait()


class Proxy:
    """One link: connections that `one` opens to `other`, forwarded both ways while neither of them
    is cut off."""

    def __init__(self, one, other, target):
        self.names, self.target, self.open = {one, other}, target, asyncio.Event()
        self.open.set()

    async def serve(self, reader, writer):
        await (
            self.open.wait()
        )  # a connection that begins while the link is silent waits, as its packets would
        try:
            there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            return writer.close()  # the other node is down: refused
        await asyncio.gather(
            self.forward(reader, there[1]), self.forward(there[0], writer), return_exceptions=True
        )

    async def forward(self, reader, writer):
        try:
            while data := await reader.read(65536):
                await self.open.wait()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


async def main():
    loop = asyncio.get_running_loop()
    proxies = []
    while line := await loop.run_in_executor(
        None, sys.stdin.buffer.readline
    ):  # ends when the notebook has ended
        order = json.loads(line)
        if not proxies:
            proxies = [Proxy(one, other, target) for one, other, _, target in order]
            for proxy, (_, _, port, _) in zip(proxies, order):
                await asyncio.start_server(proxy.serve, "127.0.0.1", port)
        else:
            for proxy in proxies:
                (proxy.open.clear if proxy.names & set(order) else proxy.open.set)()
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
