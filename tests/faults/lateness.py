"""How late the lines of a log are, and the answers to requests, while something else crosses the same connection.

The script prints `at SECONDS` lines, by the one clock that laptop and host share when both are this machine.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remote_train.session import Data, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BEGINNING = 2.0
"""Seconds while the rate of the link is still being found out."""


@dataclass
class Lateness:
    """What waited how long; only what was written while it was looked at."""

    lines: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    began: float = field(default_factory=lambda: time.monotonic() + BEGINNING)
    halt: threading.Event = field(default_factory=threading.Event)
    broken: list[Exception] = field(default_factory=list)

    def take_lines(self, session: Session) -> None:
        """Follow the log and note how late each line is."""
        held = b""
        while not self.halt.is_set():
            item = session.next_item(0.1)
            now = time.monotonic()
            if not isinstance(item, Data):
                continue
            *lines, held = (held + item.payload).split(b"\n")
            stamps = [float(line.split()[1]) for line in lines if line.startswith(b"at ")]
            self.lines += [now - stamp for stamp in stamps if stamp > self.began]

    def take_answers(self, session: Session) -> None:
        """Ask now and then, and note how late the answer is."""
        while not self.halt.wait(0.3):
            asked = time.monotonic()
            session.request("list")
            if asked > self.began:
                self.answers.append(time.monotonic() - asked)

    @contextlib.contextmanager
    def beside(self, session: Session) -> Iterator[None]:
        """Measure in threads until the block's end."""

        def guard(work: Callable[[Session], None]) -> None:
            try:
                work(session)
            except Exception as error:
                self.broken.append(error)
                raise

        threads = [
            threading.Thread(target=guard, args=(work,)) for work in (self.take_lines, self.take_answers)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.halt.set()
            for thread in threads:
                thread.join()


def pick_slowest(values: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return sorted(values)[-1 - len(values) // 100]
