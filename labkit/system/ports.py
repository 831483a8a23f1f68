"""The TCP ports of loopback: who has one, and which are free."""

import json
import socket
import sys

import psutil


def holder(port):
    """Who has this TCP port of loopback: 'name (pid 123)', 'another program', the system itself, or
    None if it is free. A NATS server is named with its version, as it introduces itself."""
    if not listens(port):
        return who_refuses(_bound(port), sys.platform)
    return " = ".join(filter(None, [_greeting(port), _listener(port)])) or "another program"


def who_refuses(error, system):
    """Who has a port on which nobody listens, where binding it on this system (as sys.platform has
    it) ended in this OSError. None if it ended well (error is None)."""
    if error is None:
        return None
    if (
        isinstance(error, PermissionError) and system == "win32"
    ):  # 10013: whole ranges, for Hyper-V, WSL or Docker
        return (
            "Windows itself, which reserves it: see netsh interface ipv4 show excludedportrange tcp"
        )
    if isinstance(error, PermissionError):
        return "the system, which does not let you have it"
    return "another program"


def _greeting(port):
    """'nats-server 2.11.6 named n1' if a NATS server greets on this port, else None."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as probe:
            said = probe.recv(4096).decode(errors="replace")
        info = json.loads(said.removeprefix("INFO ").split("\r\n")[0])
        return f"nats-server {info['version']} named {info.get('server_name', '?')}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _listener(port):
    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.laddr.port == port
                and connection.status == psutil.CONN_LISTEN
                and connection.pid
            ):
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:  # macOS and Windows tell only the administrator
        pass
    return None


def listens(port):
    """True if somebody accepts connections on this port of loopback. It binds nothing, so it can be
    asked while a server is about to take the port."""
    with socket.socket() as probe:
        probe.settimeout(
            0.1
        )  # the system itself answers, at once; but Windows takes two seconds for a no, WSL minutes
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_free(port):
    """True if nobody listens on the port and it can be bound."""
    return not listens(port) and _bound(port) is None


def _bound(port):
    """Binds the port and lets it go. Returns None, or the OSError where that cannot be."""
    with socket.socket() as probe:
        if (
            sys.platform != "win32"
        ):  # as nats-server does: a connection that has ended does not hold the port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error


def free_port():
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
