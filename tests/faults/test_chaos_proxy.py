"""The proxy does what it says, byte for byte: a fault that was not injected proves nothing."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.chaos_proxy import (
    BLACKHOLE,
    CORRUPT,
    DOWN,
    FIN,
    HALF_BLACKHOLE,
    RST,
    UP,
    ChaosProxy,
    Cut,
    Program,
)
from tests.sshd import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = random.Random(1).randbytes(300_000)


@contextlib.contextmanager
def echo_server() -> Iterator[int]:
    """Send back whatever comes."""
    server = socket.create_server(("127.0.0.1", 0))

    def echo(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5.0)


def talk(port: int, data: bytes) -> tuple[bytes, str]:
    """Send, and return what came back and how it ended: `fin`, `rst`, or `silence` (0.5 s)."""
    heard = b""
    resets: list[OSError] = []
    with socket.create_connection(("127.0.0.1", port)) as connection:

        def send() -> None:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            except OSError as error:  # a reset is told to one of us two only
                resets.append(error)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        connection.settimeout(0.5)
        try:
            while piece := connection.recv(65536):
                heard += piece
        except TimeoutError:
            return heard, "silence"
        except ConnectionResetError:
            return heard, "rst"
        sender.join(5.0)
        return heard, "rst" if resets else "fin"


@pytest.mark.parametrize(
    "program", [Program(), Program(slice=1000), Program(delay=0.05), Program(rate=1_000_000.0)]
)
def test_everything_passes_unaltered(program: Program) -> None:
    with echo_server() as port, ChaosProxy(port, record=True) as proxy:
        proxy.program = lambda _number: program
        began = time.monotonic()
        assert talk(proxy.port, DATA) == (DATA, "fin")
        assert time.monotonic() - began >= 2 * program.delay
        (line,) = proxy.lines
        assert line.passed == {UP: len(DATA), DOWN: len(DATA)}
        assert line.said(UP) == line.said(DOWN) == DATA


def test_a_rate_is_kept() -> None:
    with echo_server() as port, ChaosProxy(port) as proxy:
        proxy.program = lambda _number: Program(rate=400_000.0)
        began = time.monotonic()
        assert talk(proxy.port, DATA)[0] == DATA
        assert time.monotonic() - began >= 0.7


def test_slices_of_one_byte() -> None:
    with echo_server() as port, ChaosProxy(port, record=True) as proxy:
        proxy.program = lambda _number: Program(slice=1)
        assert talk(proxy.port, DATA[:3000]) == (DATA[:3000], "fin")
        assert {len(data) for _, data in proxy.lines[0].record or ()} == {1}


@pytest.mark.parametrize("at", [0, 1, 4097, 65_536, 250_001])
@pytest.mark.parametrize("direction", [UP, DOWN])
def test_a_fin_lets_exactly_so_many_bytes_through(direction: str, at: int) -> None:
    with echo_server() as port, ChaosProxy(port) as proxy:
        proxy.program = lambda _number: Program(cuts=(Cut(direction, at, FIN),))
        heard, end = talk(proxy.port, DATA)
        assert end in ("fin", "rst")  # who goes on writing into a closed socket is reset
        assert proxy.lines[0].passed[direction] == at
        assert DATA.startswith(heard)
        assert proxy.lines[0].broken == FIN


def test_an_rst_is_an_rst() -> None:
    with echo_server() as port, ChaosProxy(port) as proxy:
        proxy.program = lambda _number: Program(cuts=(Cut(DOWN, 100_000, RST),))
        heard, end = talk(proxy.port, DATA)
        assert end == "rst"
        assert DATA.startswith(heard)


@pytest.mark.parametrize("kind", [BLACKHOLE, HALF_BLACKHOLE])
def test_a_blackhole_keeps_the_sockets_open(kind: str) -> None:
    with echo_server() as port, ChaosProxy(port) as proxy:
        proxy.program = lambda _number: Program(cuts=(Cut(DOWN, 70_000, kind),))
        assert talk(proxy.port, DATA) == (DATA[:70_000], "silence")
        if kind == HALF_BLACKHOLE:
            wait_until(lambda: proxy.lines[0].passed[UP] > 70_000, "the other direction to go on")


@pytest.mark.parametrize("at", [0, 5, 70_000])
def test_one_byte_is_corrupted(at: int) -> None:
    with echo_server() as port, ChaosProxy(port) as proxy:
        proxy.program = lambda _number: Program(cuts=(Cut(DOWN, at, CORRUPT),))
        heard, _ = talk(proxy.port, DATA)
        assert [place for place in range(len(DATA)) if heard[place] != DATA[place]] == [at]


def test_it_is_told_what_to_do_while_it_runs() -> None:
    with (
        echo_server() as port,
        ChaosProxy(port) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port)) as one,
    ):
        one.settimeout(5.0)
        one.sendall(b"before")
        assert one.recv(100) == b"before"
        proxy.silence(DOWN)
        one.sendall(b"meanwhile")
        wait_until(lambda: proxy.lines[0].passed[UP] == 15, "what was said to arrive")
        one.settimeout(0.2)
        with pytest.raises(TimeoutError):
            one.recv(100)
        proxy.heal()
        one.settimeout(5.0)
        assert one.recv(100) == b"meanwhile"
        proxy.refuse()
        assert talk(proxy.port, b"x") == (b"", "rst")
        assert proxy.break_all(RST) == 1
        with pytest.raises(ConnectionResetError):
            one.recv(100)
        proxy.heal()
        assert talk(proxy.port, b"again") == (b"again", "fin")
