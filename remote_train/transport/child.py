"""A child of this machine as a Channel: its stdin and stdout as one stream, its stderr's tail beside it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, Any

from remote_train.errors import ConnectionLost
from remote_train.transport.sink import Tail

if TYPE_CHECKING:
    from collections.abc import Sequence

READ_SIZE = 1 << 20
CLOSE_SECONDS = 0.5
TERM_SECONDS = 0.5  # after those


class Child:
    """A child's stdin and stdout as one socket: unlike a pipe's, its end can be shut under a thread that waits on it."""

    def __init__(self, name: str, argv: Sequence[str], **options: Any) -> None:  # noqa: ANN401 - Popen's own
        """Start it; `options` are Popen's and put it into a process group of its own. Raise OSError."""
        self._name = name
        ours, theirs = socket.socketpair()
        # As much as one read of ours takes, where the system lets it: else each 200 KB wake both processes.
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, READ_SIZE)
        try:
            self._child = subprocess.Popen(
                argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.PIPE, **options
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._socket = ours
        self._stderr = Tail()
        self._over = False
        self._closing = threading.Lock()
        self._drain = threading.Thread(target=self._drain_stderr, daemon=True)
        self._drain.start()

    def send(self, data: bytes) -> None:
        """Send all of `data`; raise ConnectionLost when the child reads no more."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ConnectionLost(f"{self._name}: {error.strerror}") from error

    def receive(self, timeout: float) -> bytes | None:
        """Return what has come, b"" at the end, None after `timeout` seconds of nothing."""
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            data = self._socket.recv(READ_SIZE) if poll.poll(timeout * 1000) else None
        except (OSError, ValueError):  # closed meanwhile, or reset by a child that left input unread
            data = b""
        self._over = self._over or data == b""
        return data

    def stderr_tail(self) -> bytes:
        """Return the last 8 KiB or less of the child's stderr."""
        if self._over or self._child.poll() is not None:  # its last words may still be on their way
            self._drain.join(CLOSE_SECONDS)
        return self._stderr.read()

    def close(self) -> None:
        """End the child's input; a child that goes on is terminated 1 s later."""
        if not self._closing.acquire(blocking=False):
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        ending = threading.Thread(target=self._end, daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)

    def _end(self) -> None:
        if not self._ended(CLOSE_SECONDS):
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            for number in (signal.SIGTERM, signal.SIGKILL):
                if not self._ended(TERM_SECONDS):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._child.pid, number)
            self._child.wait()
        self._socket.close()

    def _ended(self, seconds: float) -> bool:
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _drain_stderr(self) -> None:
        pipe = self._child.stderr
        assert pipe is not None, "stderr is a pipe"  # noqa: S101 - our own invariant
        with pipe:
            while data := os.read(pipe.fileno(), 65536):
                self._stderr.feed(data)
