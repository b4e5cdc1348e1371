"""What may reach a terminal: text and colours, nothing that the terminal would obey.

Pure: bytes or text in, the same out, no clock and no stream. Whatever a training prints, and every name, path
and error text that comes from a host, passes through here before a person's terminal sees it. The rule is
git's for sideband text (after CVE-2024-52005): colours pass, every other control is shown, not obeyed.

Strings of a terminal (OSC, DCS, APC, PM, SOS) need no parser: without the ESC or C1 that opens one, its content
is plain text. So the only thing ever held back is a possible colour or a character cut in two: under 100 bytes.
The terminal is taken to be a UTF-8 one.
"""

from __future__ import annotations

import codecs
import re
from collections import deque

RESET = b"\x1b[m"
LINE_LIMIT = 16 * 1024  # bytes of one line shown on a terminal; the mirror on disk has all of it

# The longest colour in use sets foreground and background in 24 bits: 35 characters between `[` and `m`.
_SGR_REST = r"(?<=\x1b)\[[0-9;:]{0,64}m"
_SGR_START = re.compile(r"\x1b(?:\[[0-9;:]{0,64})?")
_SGR_START_MAX = 66
_FULL_RESET = re.compile(r"\x1b\[0*m")
_FIRST_RESET = re.compile(r"\x1b\[0*;")

# Characters that are valid text and change the order or the look of what stands around them: bidi controls and
# marks, zero-width ones, line separators, interlinear notes, tags.
_UNSEEN = "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
# One character class leads, so that the search for it is a fast loop; a colour is an ESC with the right rest.
_STREAM_TOKEN = re.compile(f"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f{_UNSEEN}](?:{_SGR_REST})?")
_TEXT_TOKEN = re.compile(f"[\x00-\x1f\x7f-\x9f{_UNSEEN}\ud800-\udfff]")
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

_PLAIN = bytes([9, 10, 13, *range(32, 127)])
_LINE = re.compile(rb"([^\r\n]*)([\r\n]?)")
_CONTINUATION = re.compile(rb"[\x80-\xbf]{0,3}")


class Neutraliser:
    """Make a stream of output safe to show; how it is cut into chunks never changes the result."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        # backslashreplace shows each byte that is not UTF-8 as \xNN, which is the form wanted here
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._pending = False
        self._held = ""
        self._colours: deque[str] = deque(maxlen=16)

    @property
    def colours(self) -> bytes:
        """The colour sequences in force, to be written again after something else was written between."""
        return "".join(self._colours).encode()

    def feed(self, data: bytes) -> bytes:
        """Return what may be shown so far; the start of a character or colour at the end waits for its rest."""
        if not self._pending and not data.translate(None, _PLAIN):
            return bytes(data)
        text = self._held + self._decoder.decode(data)
        cut = _find_open_colour(text)
        self._held = text[cut:]
        self._pending = bool(self._held or self._decoder.getstate()[0])
        return self._show(text[:cut])

    def flush(self) -> bytes:
        """Return what was held back, with a colour reset if colours were set, and start anew."""
        shown = self._show(self._held + self._decoder.decode(b"", final=True))
        shown += RESET if self._colours else b""
        self._start()
        return shown

    def _show(self, text: str) -> bytes:
        return _STREAM_TOKEN.sub(self._show_token, text).encode()

    def _show_token(self, match: re.Match[str]) -> str:
        token = match[0]
        if len(token) == 1:
            return _spell(token)
        self._note_colour(token)
        return token

    def _note_colour(self, sgr: str) -> None:
        if _FIRST_RESET.match(sgr) or _FULL_RESET.fullmatch(sgr):
            self._colours.clear()
        if not _FULL_RESET.fullmatch(sgr):
            self._colours.append(sgr)


def _find_open_colour(text: str) -> int:
    """Return where a colour begins that may go on in the next chunk, or the length of the text."""
    start = text.rfind("\x1b", max(0, len(text) - _SGR_START_MAX))
    if start >= 0 and _SGR_START.fullmatch(text, start):
        return start
    return len(text)


def _spell(character: str) -> str:
    code = ord(character)
    if code < 0x80:
        return f"\\x{code:02x}"
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8, as os.fsdecode keeps it
        return f"\\x{code - 0xDC00:02x}"
    return f"<U+{code:04X}>"


def neutral_text(text: str) -> str:
    """Return one string (a name, a path, an error text) with every control shown, newlines and colours too.

    The result has no line break and can be encoded, whatever came from the host.
    """
    return _TEXT_TOKEN.sub(lambda match: _NAMED.get(match[0]) or _spell(match[0]), text)


class LineCap:
    r"""Shorten endless lines for the screen: after `limit` bytes of one line, the rest is counted, not shown.

    Stands before the neutraliser. \r starts a line as \n does, so a progress bar never runs into the limit.
    """

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._length = 0  # of the current line, so far
        self._kept = 0  # how much of it was shown

    def feed(self, data: bytes) -> bytes:
        """Return the data without the far ends of its long lines; each cut line ends in a note of its size."""
        start = self._find_last_line(data)
        if start is not None:
            self._length = self._kept = len(data) - start
            return data
        return b"".join(self._cut(match[1], match[2]) for match in _LINE.finditer(data))

    def flush(self) -> bytes:
        """Return the note of a cut line that never ended, and start anew."""
        return self._end_line()

    def _find_last_line(self, data: bytes) -> int | None:
        """Return where the last line starts (before 0: in earlier data), or None when any line is too long.

        Looks for the last line end within each `limit` bytes, so short lines cost no step each.
        """
        start = -self._length
        while len(data) - start > self._limit:
            end = _find_line_end(data, start, start + self._limit + 1)
            if end < 0:
                return None
            start = end + 1
        end = _find_line_end(data, start, len(data))
        return end + 1 if end >= 0 else start

    def _cut(self, body: bytes, end: bytes) -> bytes:
        shown = body[: self._room(body)]
        self._length += len(body)
        self._kept += len(shown)
        return shown + self._end_line() + end if end else shown

    def _room(self, body: bytes) -> int:
        """Return how many bytes of the body are shown: up to the limit, and to the end of that character."""
        if self._kept < self._length:
            return 0
        room = max(0, self._limit - self._kept)
        edge = self._limit + 3 - max(self._kept, self._limit)
        rest = _CONTINUATION.match(body, room, room + edge)
        return rest.end() if rest else room

    def _end_line(self) -> bytes:
        left_out = self._length - self._kept
        self._length = self._kept = 0
        if not left_out:
            return b""
        return RESET + f" … {left_out:,} more bytes of this line are in the log".encode()


def _find_line_end(data: bytes, start: int, stop: int) -> int:
    window = max(start, 0), max(stop, 0)
    return max(data.rfind(b"\n", *window), data.rfind(b"\r", *window))
