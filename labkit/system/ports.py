"""The TCP ports of loopback: who has one, and which are free."""

import json
import socket
import sys

import psutil


def holder(port):
    """Returns who has this TCP port of loopback: 'name (pid 123)', 'another program', the system
    itself, or None if it is free. A NATS server is named as it introduces itself."""
    if not listens(port):
        return holder_by_refusal(_bind_error(port), sys.platform)
    known = [_greeting(port), _listener(port)]
    return " = ".join(filter(None, known)) or "another program"


def holder_by_refusal(error, system):
    """Returns who has a port that nobody listens on and that could not be bound, or None.

    error: the OSError of the attempt, or None if it worked. system: the name in sys.platform."""
    if error is None:
        return None
    if not isinstance(error, PermissionError):
        return "another program"
    if system == "win32":  # error 10013: it reserves ranges of ports for Hyper-V, WSL or Docker
        return (
            "Windows itself, which reserves it: see netsh interface ipv4 show excludedportrange tcp"
        )
    return "the system, which does not let you have it"


def _greeting(port):
    """Returns 'nats-server 2.11.6 named n1' if a NATS server greets on this port, else None."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as probe:
            greeting = probe.recv(4096).decode(errors="replace")
        info = json.loads(greeting.removeprefix("INFO ").split("\r\n")[0])
        return f"nats-server {info['version']} named {info.get('server_name', '?')}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _listener(port):
    """Returns 'name (pid 123)' of the process that listens on this port, or None if the system does
    not tell."""
    try:
        for connection in psutil.net_connections("tcp"):
            is_listening = connection.status == psutil.CONN_LISTEN
            if is_listening and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:  # macOS and Windows tell only the administrator
        pass
    return None


def listens(port):
    """True if somebody accepts connections on this port of loopback.

    It binds nothing, so it may be asked while a server is about to take the port."""
    with socket.socket() as probe:
        # The system answers at once, except that Windows takes two seconds to refuse, and WSL
        # minutes.
        probe.settimeout(0.1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_free(port):
    """True if nobody listens on the port and it can be bound."""
    return not listens(port) and _bind_error(port) is None


def _bind_error(port):
    """Binds the port and lets it go again. Returns None, or the OSError if that fails."""
    with socket.socket() as probe:
        if sys.platform != "win32":
            # As nats-server does: a connection that has ended does not keep the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error
    return None


def free_port():
    """Returns a port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
