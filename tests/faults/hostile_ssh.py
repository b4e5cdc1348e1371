"""SSH servers that misbehave: some of raw bytes, some of asyncssh with one thing twisted. Each is one named case.

A server that lets a command run runs it for real, so that our own agent comes up behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncssh

from tests.faults.hostile_cases import EVIL

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    Talk = Callable[[socket.socket], None]
    Process = asyncssh.SSHServerProcess[bytes]

BANNER = b"SSH-2.0-OpenSSH_9.9\r\n"
NAMES = (
    b"curve25519-sha256@libssh.org,ecdh-sha2-nistp256,diffie-hellman-group16-sha512", b"ssh-ed25519", b"aes128-gcm@openssh.com", b"aes128-gcm@openssh.com", b"hmac-sha2-256",
    b"hmac-sha2-256", b"none", b"none", b"", b"",
)  # fmt: skip


# ---- raw bytes ----


def packet(payload: bytes) -> bytes:
    """Return a binary packet as it is before encryption."""
    padding = 8 - (len(payload) + 5) % 8 + 8
    return struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding)


def kexinit(names: tuple[bytes, ...] = NAMES) -> bytes:
    """Return a KEXINIT with these algorithms."""
    lists = b"".join(struct.pack(">I", len(name)) + name for name in names)
    return packet(b"\x14" + bytes(16) + lists + b"\0" + bytes(4))


def say(*pieces: bytes, stay: bool = False) -> Talk:
    """Send this, and close, or stay silent until the other side leaves."""

    def talk(connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)
        while stay and connection.recv(65536):
            pass

    return talk


def pour(piece: bytes, start: bytes = b"") -> Talk:
    """Send the same for ever."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(piece)

    return talk


RAW: dict[str, tuple[Talk, set[int]]] = {
    "closed before the banner": (say(), {10}),
    "silence instead of a banner": (say(stay=True), {10}),
    "an HTTP server": (say(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n"), {10}),
    "noise instead of a banner": (say(bytes(range(256)) * 64, stay=True), {10}),
    "lines before the banner for ever": (pour(b"hello\r\n" * 1000), {10}),
    "a line without an end": (pour(b"x" * 65536), {10}),
    "a banner of 100,000 bytes": (say(b"SSH-2.0-" + b"x" * 100_000 + b"\r\n", stay=True), {10, 30, 60}),
    "SSH of 1995": (say(b"SSH-1.5-old\r\n", stay=True), {10, 13, 30, 60}),
    "a banner of escapes": (say(f"SSH-2.0-{EVIL}".replace("\n", "").encode() + b"\r\n"), {10, 12, 30}),
    "a banner, then the end": (say(BANNER), {12, 30}),
    "a banner, then silence": (say(BANNER, stay=True), {30}),
    "a banner, then noise": (say(BANNER, b"\xff" * 4096, stay=True), {30, 60}),
    "a banner, then text": (say(BANNER, b"GET / HTTP/1.1\r\n" * 100, stay=True), {30, 60}),
    "a packet of 2^32-1 bytes": (say(BANNER, b"\xff\xff\xff\xff" + b"x" * 4096, stay=True), {30, 60}),
    "a packet of no bytes": (say(BANNER, bytes(64), stay=True), {30, 60}),
    "a KEXINIT that is cut": (say(BANNER, kexinit()[:40]), {12, 30, 60}),
    "a KEXINIT with lists of 2^31": (say(BANNER, packet(b"\x14" + bytes(16) + b"\x7f\xff\xff\xff"), stay=True), {13, 30, 60}),
    "a KEXINIT of nothing we have": (say(BANNER, kexinit((b"x",) * 10), stay=True), {13}),
    "a KEXINIT, then silence": (say(BANNER, kexinit(), stay=True), {30}),
    "a KEXINIT twice": (say(BANNER, kexinit(), kexinit(), stay=True), {30, 60}),
    "a reply before its question": (say(BANNER, kexinit(), packet(b"\x1f" + bytes(200)), stay=True), {30, 60}),
    "an exchange with a point that is none": (say(BANNER, kexinit(), packet(
        b"\x1f" + struct.pack(">I", 4) + b"junk" + struct.pack(">I", 4) + b"junk" + struct.pack(">I", 4) + b"junk"), stay=True), {30, 60}),
    "let in before any key": (say(BANNER, packet(b"\x34"), stay=True), {30, 60}),
    "a channel before any key": (say(BANNER, packet(b"\x5b" + bytes(16)), stay=True), {30, 60}),
    "ignored packets for ever": (pour(packet(b"\x02" + struct.pack(">I", 30000) + bytes(30000)), BANNER), {30, 60}),
    "a farewell of escapes": (say(BANNER, packet(
        b"\x01" + struct.pack(">II", 2, len(EVIL.encode())) + EVIL.encode() + bytes(4))), {12, 30}),
    "a farewell of 30 kB": (say(BANNER, packet(b"\x01" + struct.pack(">II", 11, 30000) + b"x" * 30000 + bytes(4))), {12, 30}),
}  # fmt: skip
"""By name: what the server says, and the exit codes that are right."""


@contextlib.contextmanager
def serving_raw(talk: Talk) -> Iterator[int]:
    """Serve it on a port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threads: list[threading.Thread] = []
        connections: list[socket.socket] = []

        def play(connection: socket.socket) -> None:
            with contextlib.suppress(OSError), connection:
                talk(connection)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connections.append(server.accept()[0])
                    threads.append(threading.Thread(target=play, args=(connections[-1],)))
                    threads[-1].start()

        accepting = threading.Thread(target=serve)
        accepting.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            accepting.join(20)
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(20)


# ---- asyncssh ----


async def run_command(process: Process) -> None:
    """Run what was asked for, with this process's own environment, until it or the laptop has gone."""
    child = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", process.command or "exit 1", stdin=-1, stdout=-1, stderr=asyncio.subprocess.DEVNULL
    )
    assert child.stdin is not None
    assert child.stdout is not None
    feeding = asyncio.ensure_future(_feed(process, child.stdin))
    try:
        while data := await child.stdout.read(65536):
            process.stdout.write(data)
            await process.stdout.drain()
        process.exit(await child.wait())
    finally:
        feeding.cancel()
        if child.returncode is None:
            child.kill()
        child.stdin.close()
        await child.wait()
        while await child.stdout.read(65536):
            pass


async def _feed(process: Process, stdin: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncssh.Error, OSError):
        while data := await process.stdin.read(65536):
            stdin.write(data)
            await stdin.drain()
    stdin.close()


@dataclass
class Twisted:
    """What one server does otherwise than an honest one."""

    codes: set[int]
    process: Callable[[Process], Coroutine[Any, Any, None]] = run_command
    options: dict[str, Any] = field(default_factory=dict)
    auth: Callable[[], Coroutine[Any, Any, bool]] | None = None
    connected: Callable[[asyncssh.SSHServerConnection], None] = lambda _connection: None
    session: Callable[[], Any] | None = None


class Server(asyncssh.SSHServer):
    """Lets every key in, unless its case says otherwise."""

    def __init__(self, case: Twisted, ran: list[str], made: list[asyncssh.SSHServerConnection]) -> None:
        self.case = case
        self.ran = ran
        self.made = made

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.made.append(conn)
        self.case.connected(conn)

    def begin_auth(self, username: str) -> bool:
        del username
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_public_key(self, username: str, key: object) -> bool:
        del username, key
        return await self.case.auth() if self.case.auth else True

    def session_requested(self) -> Any:
        if self.case.session is not None:
            return self.case.session()

        async def handle(process: Process) -> None:
            self.ran.append(process.command or "")
            with contextlib.suppress(asyncssh.Error, OSError, asyncio.CancelledError):
                await self.case.process(process)

        return asyncssh.SSHServerProcess(handle, None, 3, False)


@contextlib.contextmanager
def serving(case: Twisted, key: asyncssh.SSHKey, port: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Serve a case; yields the port and the commands that were asked for."""
    loop = asyncio.new_event_loop()
    ran: list[str] = []
    made: list[asyncssh.SSHServerConnection] = []
    started = threading.Event()
    stop = asyncio.Event()
    found: list[int] = []

    async def serve() -> None:
        options: dict[str, Any] = {"encoding": None, **case.options}
        server = await asyncssh.listen(
            "127.0.0.1",
            port,
            server_host_keys=[key],
            server_factory=lambda: Server(case, ran, made),
            **options,
        )
        found.append(server.get_port())
        started.set()
        await stop.wait()
        server.close()
        for connection in made:
            connection.abort()
        await asyncio.wait([asyncio.ensure_future(c.wait_closed()) for c in made], timeout=5)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # what is closed is let go of in the loop's next rounds

    def run() -> None:
        loop.set_exception_handler(lambda _loop, _context: None)  # a laptop that leaves is no news
        loop.run_until_complete(serve())
        loop.run_until_complete(loop.shutdown_asyncgens())

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(20)
    try:
        yield found[0], ran
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()
        gc.collect()  # a connection that came as the server went: its warnings belong here, not to a later test


def write_key(path: Path) -> asyncssh.SSHKey:
    """Make a key and keep it in a file."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(str(path))
    path.chmod(0o600)
    return key
