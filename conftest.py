"""For each run of pytest, also of one notebook: a claim of a lesson that does not hold is an error,
and kernels get ports that nobody else takes meanwhile."""

import functools
import itertools
import os
import socket

from jupyter_client.connect import LocalPortCache

from labkit.system import ports

HELD = []  # sockets that hold a block of ports for this process, until its end

# See Lab.expect. The kernels that run the notebooks inherit this environment.
os.environ["LABKIT_STRICT"] = "1"


def pytest_configure():
    LocalPortCache.find_available_port = lambda cache, ip: next(
        filter(ports.is_free, ports_for_kernels())
    )


@functools.cache
def ports_for_kernels():
    """An endless round through ports that only this process gives to kernels. jupyter_client asks
    the system for five free ones, lets them go, and the kernel binds them up to a second later.
    Each process of a run does so, and the wires of lessons bind free ones, too: in about one run in
    twenty, two of them collided: "Address already in use"."""
    for base in range(9000, 10000, 50):
        held = socket.socket()
        try:
            held.bind(("127.0.0.1", base + 49))
        except OSError:  # another process has this block
            held.close()
        else:
            HELD.append(held)
            return itertools.cycle(range(base, base + 49))
    raise RuntimeError("all ports from 9000 to 9999 are in the hands of other runs of the tests")
