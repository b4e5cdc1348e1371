"""ssh's own log while it is written: a named pipe, so that it never mixes with what a host writes to stderr."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from remote_train.transport.openssh_words import LOGGED_IN, MAY_ASK, WENT_ON

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_LINE = 2000
MOST_LINES = 1000
LAST_WORDS_SECONDS = 0.5
TICK = 0.5


def make_lines(data: bytes) -> list[str]:
    """Return the lines of what a stranger may have had a part in: safe for a terminal, bounded in length."""
    text = data.decode("utf-8", "replace")
    lines = [line.rstrip("\r") for line in text.split("\n")]
    return ["".join(c if c.isprintable() else "?" for c in line[:LONGEST_LINE]) for line in lines if line]


@dataclass
class Limits:
    """The seconds that are left for a login, and those that a person may take meanwhile.

    ssh does not say when it asks: it may from the offer of an unknown key, or a method of logging in, until it goes on.
    What hosts on the way ask for stands in no log, but whoever asks for a secret hides what is typed (`is_hidden`).
    """

    seconds: float
    person: float = 0.0
    is_hidden: Callable[[], bool] | None = None
    """None: there is nobody to ask."""

    def count(self, passed: float, *, may_ask: bool) -> bool:
        """Take off what has passed; say whether anything is left."""
        if self.is_hidden and (may_ask or self.is_hidden()):
            self.person -= passed
        else:
            self.seconds -= passed
        return self.seconds > 0 and (self.person > 0 or not self.is_hidden)


class SshLog:
    """Reads the pipe in a thread until `end`; `listen` is given every line."""

    def __init__(self, listen: Callable[[str], object]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="remote-train-"))
        self.path = str(self._folder / "log")
        os.mkfifo(self.path, 0o600)
        self._reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._writer = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)  # before ssh opens it, it has not ended
        os.set_blocking(self._reader, True)
        self._listen = listen
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self._changed = threading.Condition()
        self._over = self._logged_in = self._may_ask = False
        self._thread = threading.Thread(target=self._read, name="ssh log", daemon=True)
        self._thread.start()

    @property
    def lines(self) -> list[str]:
        """What ssh has written, the last lines of it where that is much."""
        with self._changed:
            return list(self._lines)

    def wait_login(self, limits: Limits) -> bool | None:
        """Wait until ssh has logged in (True) or ended (False); None: neither within the limits."""
        with self._changed:
            while not (self._logged_in or self._over):
                before = time.monotonic()
                self._changed.wait(min(TICK, limits.seconds))
                if not limits.count(time.monotonic() - before, may_ask=self._may_ask):
                    return None
            return self._logged_in

    def end(self) -> None:
        """Take in ssh's last words, once it has ended."""
        os.close(self._writer)
        self._thread.join(LAST_WORDS_SECONDS)  # a command of ProxyCommand may keep the pipe open
        self._forget_path()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _read(self) -> None:
        rest = b""
        with contextlib.closing(os.fdopen(self._reader, "rb", buffering=0)) as pipe:
            while data := pipe.read(65536):
                self._forget_path()
                *complete, rest = (rest + data).split(b"\n")
                self._take(b"\n".join(complete))
                rest = rest[:LONGEST_LINE]
        self._take(rest)

    def _take(self, data: bytes) -> None:
        for line in make_lines(data):
            with self._changed:
                self._lines.append(line)
                self._may_ask = bool(MAY_ASK.match(line)) or (self._may_ask and not WENT_ON.match(line))
                if LOGGED_IN.match(line):
                    self._logged_in = True
                    self._changed.notify_all()
            self._listen(line)

    def _forget_path(self) -> None:
        if self._folder.exists():
            shutil.rmtree(self._folder, ignore_errors=True)
