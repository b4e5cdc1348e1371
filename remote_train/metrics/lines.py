"""Bytes in any chunking to whole lines of text. Only splitting and cleaning lives here, no meaning.

A 100 MB/s log must not wait for us, so a splitter may be given needles: byte strings of which a line must hold at
least one to come out. They are looked for in the chunk as a whole (about 2 GB/s each), so that a line without any
never becomes a Python object. Which lines come out, and how they read, never depends on the chunking.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LINE_CAP = 16 * 1024  # bytes of a line that are kept; the rest is counted in the offsets and dropped

# CSI (colours, cursor), OSC (titles, links) up to BEL or ST, and the two- and three-byte escapes.
_ANSI = re.compile(
    r"\x1b(?:\[[0-9;:?<=>]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[()*+][0-9A-Za-z]|[@-Z\\^_=>a-z0-9])"
)
# torchrun --tee writes "[default0]:", with --role rank "[rank0]:"; the number is the local rank.
_RANK = re.compile(r"\[[A-Za-z_]+(\d{1,6})\]:[ ]?")


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its text, the byte offset in the raw stream behind its end, and the rank torchrun wrote before it."""

    text: str
    end: int
    rank: int | None


class LineSplitter:
    r"""Cut a byte stream into lines at \n and at \r (progress bars); empty lines are left out.

    Escape sequences and torchrun's rank prefix are removed, bytes that are no UTF-8 become U+FFFD. With `needles`,
    only lines that hold one of them come out; `every`, which may be changed between two lines, lets all through, and
    `want` adds needles between two lines.
    """

    def __init__(self, needles: Sequence[bytes] = ()) -> None:
        self._needles = tuple(needles)
        self.every = not self._needles
        self._hits: _Hits | None = None
        self._tail = bytearray()  # the open line, at most LINE_CAP of it
        self._offset = 0  # of the next byte to come

    def feed(self, data: bytes) -> Iterator[Line]:
        """Yield the lines that `data` completes; read it to the end before the next call."""
        block = data.replace(b"\r", b"\n") if b"\r" in data else data
        base, self._offset = self._offset, self._offset + len(block)
        last = block.rfind(b"\n")
        if last < 0:
            self._keep(block, 0)
            return
        position = 0
        if self._tail:
            position = block.find(b"\n") + 1
            self._keep(block[: position - 1], 0)
            yield from self._take(base + position)
        yield from self._cut(block, position, last, base)
        self._keep(block, last + 1)

    def want(self, needles: Sequence[bytes]) -> None:
        """Let lines through from now on that hold one of these, beside those that came out before."""
        more = tuple(needle for needle in needles if needle not in self._needles)
        self._needles += more
        if self._hits is not None:
            self._hits.add(more)

    def skip_to(self, offset: int) -> None:
        """Go on at another byte of the stream, the first of a line; an open line is dropped."""
        self._tail.clear()
        self._offset = offset

    def flush(self) -> Iterator[Line]:
        """Yield the last line when the stream ends without a line end."""
        if self._tail:
            yield from self._take(self._offset)

    def _keep(self, block: bytes, start: int) -> None:
        self._tail += block[start : start + LINE_CAP - len(self._tail)]

    def _take(self, end: int) -> Iterator[Line]:
        raw = bytes(self._tail)
        self._tail.clear()
        if self._wanted(raw):
            yield from _make_line(raw, end)

    def _wanted(self, raw: bytes) -> bool:
        return self.every or any(needle in raw for needle in self._needles)

    def _cut(self, block: bytes, position: int, last: int, base: int) -> Iterator[Line]:
        hits = self._hits = _Hits(block, self._needles, last)
        while position <= last:
            if not self.every:
                hit = hits.first_from(position)
                if hit >= last:
                    return
                position = block.rfind(b"\n", position, hit) + 1 or position
            end = block.find(b"\n", position)
            raw = block[position : min(end, position + LINE_CAP)]
            # A hit in the part beyond the cap does not count: the same line in small chunks would not show it.
            if raw and (len(raw) < LINE_CAP or self._wanted(raw)):
                yield from _make_line(raw, base + end + 1)
            position = end + 1


class _Hits:
    """Where in a block the next needle stands, each needle searched only as far as its next hit."""

    def __init__(self, block: bytes, needles: tuple[bytes, ...], end: int) -> None:
        self._block = block
        self._end = end
        self._next = dict.fromkeys(needles, -1)

    def add(self, needles: tuple[bytes, ...]) -> None:
        """Look for more from the next position on."""
        self._next.update(dict.fromkeys(needles, -1))

    def first_from(self, position: int) -> int:
        """Tell the smallest hit at or after `position`; the block's end when there is none."""
        for needle, known in self._next.items():
            if known < position:
                found = self._block.find(needle, position, self._end)
                self._next[needle] = self._end if found < 0 else found
        return min(self._next.values())


def _make_line(raw: bytes, end: int) -> Iterator[Line]:
    text = raw.decode("utf-8", "replace")
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    rank = None
    if text.startswith("[") and (prefix := _RANK.match(text)):
        rank, text = int(prefix[1]), text[prefix.end() :]
    if text:
        yield Line(text, end, rank)
