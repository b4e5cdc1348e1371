"""What comes through the pipe of a side that is timed: when, how fast, and whether it is what was printed."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

from bench.sides import LINE_SECONDS, SideFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.resident import Resident
    from bench.sides import Timed

MB = 1_000_000
SETTLED = 0.5  # seconds after the first line; by then the backlog of the connection is through


def read_pieces(timed: Timed) -> Iterator[tuple[bytes, float]]:
    """Yield what comes through the pipe and when; raise SideFailed at its end, or when nothing comes."""
    assert timed.process.stdout is not None
    place = timed.process.stdout.fileno()
    while True:
        readable, _, _ = select.select([place], [], [], LINE_SECONDS)
        piece = os.read(place, 1 << 20) if readable else b""
        if not piece:
            raise SideFailed(f"{timed.argv} ended or fell silent\n{timed.read_errors()}")
        yield piece, time.monotonic()


def read_ticks(timed: Timed, count: int) -> list[float]:
    """Return the latency of each line in milliseconds, from half a second after the first on."""
    held, late, first = b"", [], None
    for piece, when in read_pieces(timed):
        *lines, held = (held + piece).split(b"\n")
        first = first or when
        stamps = [line.split() for line in lines]
        late += [(when - float(stamp)) * 1e3 for _, _, stamp in stamps if float(stamp) > first + SETTLED]
        if stamps and int(stamps[-1][1]) == count - 1:
            break
    return late


def read_flood(timed: Timed, size: int, resident: Resident) -> float:
    """Return MB/s from the first piece, which came before the clock ran, to the last."""
    pieces = read_pieces(timed)
    piece, first = next(pieces)
    resident.begin()
    begin = came = len(piece)
    last = first
    while came < size:
        piece, last = next(pieces)
        came += len(piece)
    if came != size:
        raise SideFailed(f"{timed.argv} printed {came} bytes, not {size}")
    return (came - begin) / MB / max(last - first, 1e-6)


def read_whole(timed: Timed, size: int, resident: Resident) -> float:
    """Return the seconds from the process's start to its last byte."""
    pieces = read_pieces(timed)
    came, last = 0, timed.began
    while came < size:
        piece, last = next(pieces)
        if not came:
            resident.begin()
        came += len(piece)
    timed.finish()
    return last - timed.began
