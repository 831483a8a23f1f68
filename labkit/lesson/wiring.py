"""Puts a lesson's connections on the wire, where that is possible."""

import asyncio
import contextlib
import json
import time
from urllib.parse import urlsplit

from labkit.cluster import tables
from labkit.wire.tap import Wire

PATIENCE = 2  # seconds that a server of the user's own may take for its first line


async def open_wire(lab):
    """Returns (Wire, "") or, where there can be none, (None, why). The wire leads to the nodes of
    this lab's cluster."""
    cluster = lab.cluster
    if not lab.attached:
        servers = {node.name: ("127.0.0.1", node.port) for node in cluster.nodes}
        since = time.time()
        wire = await asyncio.to_thread(
            Wire, servers, lambda: tables.off_the_wire(cluster, lab.topic, since)
        )
        return wire, ""
    if not all(_is_plain(url) for url in cluster.servers):
        return None, "your cluster is reached over TLS or WebSocket, which the wire cannot read"
    servers = {_name(url): _address(url) for url in cluster.servers}
    for address in servers.values():
        info = await _info(*address)
        if info is not None:
            break
    if not info or info.get("tls_required"):
        return None, "your cluster wants TLS, which the wire cannot read"
    return await asyncio.to_thread(Wire, servers), ""


def on_the_wire(wire, url):
    """The address on the wire of a server at this address, with the login in it."""
    login, at, _ = urlsplit(_whole(url)).netloc.rpartition("@")
    _, _, here = wire.url_of(*_address(url)).partition("://")
    return f"nats://{login}{at}{here}"


def _whole(url):
    return url if "://" in url else f"nats://{url}"


def _is_plain(url):
    return urlsplit(_whole(url)).scheme == "nats"


def _address(url):
    parts = urlsplit(_whole(url))
    return parts.hostname, parts.port or 4222


def _name(url):
    return "{}:{}".format(*_address(url))


async def _info(host, port):
    """The first line of this server (dict): INFO. None if it cannot be reached, or says nothing:
    some want TLS before they do."""
    with contextlib.suppress(OSError, ValueError, TimeoutError):
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                line = await reader.readline()
                return json.loads(line.removeprefix(b"INFO "))
            finally:
                writer.close()
    return None
