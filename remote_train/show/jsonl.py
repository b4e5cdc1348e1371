"""Events as JSON lines: what `--json` writes to stdout in place of the output.

Every line is ASCII and strict JSON: no NaN, no lone surrogate, no line break inside.
"""

from __future__ import annotations

import base64
import json
import math
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from remote_train.show.screen import write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remote_train.errors import RemoteTrainError


def write_event(
    stream: BinaryIO, kind: str, data: Mapping[str, object], *, time: float | None = None
) -> None:
    """Write one event as one line, at once. Raises OutputClosed when nobody reads the stream any more."""
    write_all(stream, f"{render_event(kind, data, time=time)}\n".encode("ascii"))


def render_event(kind: str, data: Mapping[str, object], *, time: float | None = None) -> str:
    """Return one event as one line of JSON, "event" first, then "time" if there is one.

    `time` is in seconds since the epoch; a `time` in the data (a metric record's, in seconds since the start)
    stands in its place. NaN and infinity become null. Bytes become text; where they are not UTF-8 the text has
    replacement characters and KEY_base64 beside it has the exact bytes. Text from undecodable names likewise.
    """
    head: dict[str, object] = {"event": kind} if time is None else {"event": kind, "time": time}
    plain = {key: value for key, value in data.items() if key != "event"}
    return json.dumps(_make_object(head | plain), allow_nan=False)


def _make_object(data: Mapping[str, object]) -> dict[str, object]:
    return dict(pair for key, value in data.items() for pair in _make_pairs(str(key), value))


def _make_pairs(key: str, value: object) -> Iterator[tuple[str, object]]:
    key = _replace(_encode(key))
    yield key, _make_value(value)
    exact = _get_inexact_bytes(value)
    if exact is not None:
        yield f"{key}_base64", base64.b64encode(exact).decode("ascii")


def _make_value(value: object) -> object:
    if isinstance(value, Mapping):
        return _make_object(value)
    if isinstance(value, (list, tuple)):
        return [_make_value(item) for item in value]
    if isinstance(value, (bytes, bytearray, str, os.PathLike)):
        return _replace(_make_bytes(value))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _get_inexact_bytes(value: object) -> bytes | None:
    """Return the bytes behind a text that is not UTF-8, else None."""
    if not isinstance(value, (bytes, bytearray, str, os.PathLike)):
        return None
    data = _make_bytes(value)
    return None if _replace(data).encode() == data else data


def _make_bytes(value: bytes | bytearray | str | os.PathLike[str]) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    return _encode(value if isinstance(value, str) else os.fspath(value))


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "surrogatepass")


def _replace(data: bytes) -> str:
    return data.decode("utf-8", "replace")


class JsonListener:
    """Tell everything as one JSON object per line on stdout."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def output(self, rank: int, data: bytes) -> None:
        """Write an `output` event."""
        write_event(self._stream, "output", {"rank": rank, "data": data}, time=time.time())

    def tell(self, kind: str, **facts: Any) -> None:  # noqa: ANN401  (facts differ by kind)
        """Write the event with the facts that JSON can hold."""
        if kind == "following":
            return  # a matter of terminals
        facts.pop("watch", None)
        facts = {**facts.pop("record", {}), **facts} if kind == "metric" else facts
        if "plan" in facts:
            facts["plan"] = facts["plan"].as_message()
        if "outcome" in facts:
            facts.update(facts.pop("outcome").__dict__)
        if "verdict" in facts and not isinstance(facts["verdict"], str):  # that of a host is a sentence
            facts["error"] = describe_error(facts.pop("verdict"))
        write_event(self._stream, kind, facts, time=time.time())


def describe_error(error: RemoteTrainError | None) -> dict[str, object] | None:
    """Return an error as JSON: its kind, exit code, message, hint and facts."""
    if error is None:
        return None
    head: dict[str, object] = {"kind": error.kind, "exit_code": error.exit_code}
    return {**head, "message": error.message, "hint": error.hint, **error.facts}
