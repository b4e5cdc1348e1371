"""Bytes in any chunking to the objects of JSON lines: one that is too long, or is none, costs nothing and is left out. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remote_train.metrics.numbers import parse_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LONGEST = 64 * 1024
WARM = 2
"""The first windows always stay: the warm-up, and the first without."""


def thin_windows(pieces: Iterable[bytes], stride: int) -> Iterator[bytes]:
    """Yield a meter's lines with only each `stride`-th of its windows, and the last: parsing all of a month's takes a minute."""
    held, last, seen = b"", b"", 0
    for piece in pieces:
        lines = (held + piece).split(b"\n")
        held = lines.pop()[-LONGEST - 1 :]
        kept = []
        for line in lines:
            if b'"steps"' in line[:20]:  # kind is first
                seen += 1
                last = line if seen > WARM and seen % stride else b""
                if last:
                    continue
            kept.append(line)
        yield b"\n".join(kept) + b"\n"
    yield last + b"\n"


class JsonLines:
    """One stream of JSON lines."""

    def __init__(self) -> None:
        self._open = bytearray()
        self._drops = False

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield the objects of the lines that `data` completes; read it to the end before the next call."""
        begin = 0
        while (end := data.find(b"\n", begin)) >= 0:
            line = self._close(data[begin:end])
            begin = end + 1
            if line:
                yield from parse_lines((line,))
        self._keep(data[begin:])

    def skip(self) -> None:
        """Go on somewhere in another line, which is left out."""
        self._open.clear()
        self._drops = True

    def _close(self, rest: bytes) -> bytes:
        self._keep(rest)
        line, dropped = bytes(self._open), self._drops
        self._open.clear()
        self._drops = False
        return b"" if dropped else line

    def _keep(self, piece: bytes) -> None:
        self._drops = self._drops or len(self._open) + len(piece) > LONGEST
        if self._drops:
            self._open.clear()
        else:
            self._open += piece
