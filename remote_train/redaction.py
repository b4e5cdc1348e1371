"""What this process must not show: the values of a run's secrets, in the forms in which programs print them.

For people's eyes only: the terminal, and our own messages wherever they go. A training's output that goes into a
file, a pipe, `--json` or the mirror stays exact, byte for byte. Values of fewer than SHORTEST characters are shown:
they are words that stand in any output.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SHORTEST = 8
MASK = b"[hidden]"
SETTLED = 2
"""Bytes at the end of an output that stands still which are shown although a form begins so: a prompt, the `s` of `1.2s`."""
_NO_BYTES = re.compile("[\ud800-\udc7f\udd00-\udfff]")

_forms: tuple[bytes, ...] = ()


def hide(values: Iterable[str]) -> None:
    """Show these values no more, from now on and as long as this process lives."""
    global _forms  # noqa: PLW0603  (screens are made where nobody knows of secrets yet: for errors, at exit)
    found = {form for value in values for form in make_forms(value)}
    _forms = tuple(sorted(found.union(_forms), key=len, reverse=True))


def hidden_forms() -> tuple[bytes, ...]:
    """Return what is not to be shown, the longest first; () in a process without secrets."""
    return _forms


def make_forms(value: str) -> set[bytes]:
    """Return a value as programs print it: plain, in JSON, quoted for a shell, a URL or Python, in base64 at any offset."""
    if len(value) < SHORTEST:
        return set()
    import json  # noqa: PLC0415  (these four: only a run with secrets pays)
    import shlex  # noqa: PLC0415
    from urllib.parse import quote, quote_plus  # noqa: PLC0415

    texts = {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    texts.add(shlex.quote(value).removeprefix("'").removesuffix("'"))
    raw = value.encode("utf-8", "surrogateescape")
    texts.update((quote(raw), quote(raw, safe=""), quote_plus(raw)))
    forms = {text.encode("utf-8", "surrogateescape") for text in texts}
    return forms.union(*(_encode_base64(raw, offset) for offset in range(3)))


def _encode_base64(raw: bytes, offset: int) -> set[bytes]:
    """Return the characters that stand for `raw` alone where it begins `offset` bytes behind a multiple of three."""
    import base64  # noqa: PLC0415  (as above)

    begin, end = -(-8 * offset // 6), 8 * (offset + len(raw)) // 6
    padded = bytes(offset) + raw
    return {encode(padded)[begin:end] for encode in (base64.b64encode, base64.urlsafe_b64encode)}


def redact(data: bytes, forms: Iterable[bytes]) -> bytes:
    """Return `data` with a mask in the place of each form, and one in the place of those that overlap."""
    return _mask(data, forms, len(data), 0)[0]


def _mask(data: bytes, forms: Iterable[bytes], cut: int, shown: int) -> tuple[bytes, int]:
    """Return what is to be shown up to `cut`, and how many bytes behind it are done with too; `shown` at the beginning are."""
    pieces, end = [], shown
    for begin, after in sorted(_find_spans(data, forms)):
        if begin >= cut:
            break
        if begin >= end:
            pieces += [data[end:begin], MASK]
        end = max(end, after)
    return b"".join((*pieces, data[end:cut])), max(0, end - cut)


def _find_spans(data: bytes, forms: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    for form in forms:
        place = data.find(form)
        while place >= 0:
            yield place, place + len(form)
            place = data.find(form, place + 1)


def redact_text(text: str) -> str:
    """Return a message of ours without what must not be shown."""
    if not _forms:
        return text
    raw = _NO_BYTES.sub("\ufffd", text).encode("utf-8", "surrogateescape")
    return redact(raw, _forms).decode("utf-8", "surrogateescape")


class Redactor:
    """Take what must not be shown out of a stream, also where it arrives in pieces: what may be its beginning waits."""

    def __init__(self) -> None:
        self._held = b""
        self._shown = 0  # bytes of what is held that were shown, or a mask for them

    def feed(self, data: bytes) -> bytes:
        """Return what may be shown by now."""
        if not _forms:
            return data
        data = self._held + data
        cut = len(data) - count_begun(data, _forms)
        seen, self._shown = _mask(data, _forms, cut, self._shown)
        self._held = data[cut:]
        return seen

    def settle(self) -> bytes:
        """Return what waits and is too little to tell anything: for an output that stands still. A form may go on all the same."""
        if len(self._held) > SETTLED:
            return b""
        seen, self._shown = self._held[self._shown :], len(self._held)
        return seen

    def flush(self) -> bytes:
        """Return what waited: nothing more comes."""
        seen, _ = _mask(self._held, _forms, len(self._held), self._shown)
        self.drop()
        return seen

    def drop(self) -> None:
        """Forget what waited: what follows is not what came next."""
        self._held, self._shown = b"", 0


def count_begun(data: bytes, forms: Iterable[bytes]) -> int:
    """Return how many bytes at the end of `data` may be the beginning of a form."""
    return max((_count_begun(data, form) for form in forms), default=0)


def _count_begun(data: bytes, form: bytes) -> int:
    place = data.find(form[:1], max(0, len(data) - len(form) + 1))
    while place >= 0:
        if form.startswith(data[place:]):
            return len(data) - place
        place = data.find(form[:1], place + 1)
    return 0
