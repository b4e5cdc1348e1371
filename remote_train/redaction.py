"""What this process must not show: the values of a run's secrets, in the forms in which programs print them.

For people's eyes only: the terminal, and our own messages wherever they go. A training's output that goes into a
file, a pipe, `--json` or the mirror stays exact, byte for byte. Values of fewer than SHORTEST characters are shown:
they are words that stand in any output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SHORTEST = 8
MASK = b"[hidden]"

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
    """Return `data` with a mask in the place of each form; they come the longest first."""
    for form in forms:
        if form in data:
            data = data.replace(form, MASK)
    return data


def redact_text(text: str) -> str:
    """Return a message of ours without what must not be shown."""
    if not _forms:
        return text
    return redact(text.encode("utf-8", "surrogatepass"), _forms).decode("utf-8", "surrogatepass")


class Redactor:
    """Take what must not be shown out of a stream, also where it arrives in pieces: what may be its beginning waits."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what may be shown by now."""
        if not _forms:
            return data
        data = redact(self._held + data, _forms)
        self._held = data[len(data) - count_begun(data, _forms) :]
        return data[: len(data) - len(self._held)]

    def flush(self) -> bytes:
        """Return what waited: nothing more comes."""
        held, self._held = self._held, b""
        return held


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
