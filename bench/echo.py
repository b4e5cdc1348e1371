"""How exact the delay proxy is: pings of one byte through it to an echo, on this machine as it is now."""

from __future__ import annotations

import socket
import threading
import time

from bench.line import DelayProxy


def measure_proxy(rtt_ms: float, pings: int = 10) -> list[float]:
    """Return how long each ping took, milliseconds; exact would be `rtt_ms`."""
    with socket.create_server(("127.0.0.1", 0)) as server, DelayProxy(server.getsockname()[1]) as proxy:
        proxy.set_rtt(rtt_ms)
        echo = threading.Thread(target=_echo, args=(server,), daemon=True)
        echo.start()
        with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
            _ping(connection)
            times = [_ping(connection) for _ in range(pings)]
        echo.join()
    return times


def _echo(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        while data := connection.recv(1):
            connection.sendall(data)


def _ping(connection: socket.socket) -> float:
    began = time.monotonic()
    connection.sendall(b"x")
    connection.recv(1)
    return (time.monotonic() - began) * 1e3
