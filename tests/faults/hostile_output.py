"""A training that prints what no terminal, parser or buffer likes: `hostile_output.py KIND BYTES`.

Its last act is to say, in `out/sha256`, what it has written; shipped as a project's script by the tests beside it.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ESCAPES = (
    b"\x1b]0;owned\x07 \x1b]52;c;cm0gLXJmIH4K\x07 \x1b]8;;https://evil.invalid\x1b\\click\x1b]8;;\x1b\\ "
    b"\x1bP$qm\x1b\\ \x1b_Gf=24;AAAA\x1b\\ \x1b[2J\x1b[H\x1b[?1049h\x1b[?25l\x1b[6n\x1b[c\x1bc\x9b2J \x07\b\x0e "
    + "safe\u202egnp.exe \u2066b\u2069 \u200b\ufeff".encode()
    + b" \x1b[31mred\x1b[0m \x1b[38;2;1;2;3m24 bits\x1b[m \xff\xfe \xe2\x82\n"
)


def make_pieces(kind: str, size: int, noise: random.Random) -> Iterator[bytes]:
    """Yield pieces of about `size` bytes together."""
    done = number = 0
    while done < size:
        piece = PIECES[kind](number, noise)
        yield piece
        done += len(piece)
        number += 1


def make_lines(number: int, _noise: random.Random) -> bytes:
    """Lines so short that 10 million of them make 100 MB."""
    return b"".join(b"%09d\n" % line for line in range(number * 100_000, (number + 1) * 100_000))


def make_torn(number: int, noise: random.Random) -> bytes:
    """A piece of characters of several bytes; where it is cut is up to who writes it."""
    text = "żółw 图 🐢 é ".encode() * 40
    return text[noise.randrange(4) : len(text) - noise.randrange(4)] + (b"\n" if number % 7 == 0 else b"")


PIECES: dict[str, Callable[[int, random.Random], bytes]] = {
    "lines": make_lines,
    "line": lambda _number, _noise: b"x" * 65536,
    "binary": lambda _number, noise: noise.randbytes(65536),
    "torn": make_torn,
    "bars": lambda number, _noise: b"\r%3d%%|%-50s|" % (number % 101, b"#" * (number % 101 // 2)),
    "escapes": lambda _number, _noise: ESCAPES * 20,
}


def main() -> None:
    """Print, unbuffered, and note the hash."""
    kind, size = sys.argv[1], int(sys.argv[2])
    digest = hashlib.sha256()
    for piece in make_pieces(kind, size, random.Random(kind)):
        digest.update(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(1, view) :]
    Path("out").mkdir()
    Path("out/sha256").write_text(digest.hexdigest())


if __name__ == "__main__":
    main()
