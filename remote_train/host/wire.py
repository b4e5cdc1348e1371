"""The frames both ends speak: `length u32 | type u8 | stream u32 | payload`, big-endian.

CONTROL carries JSON (requests, replies, events); DATA carries raw bytes of a stream; END closes a stream with its
total length and SHA-256; ACK tells the sender of DATA how many bytes of it have arrived, all streams together, and how many of outputs and of files were consumed;
HEARTBEAT is empty. Pure: bytes in, frames out. Every size is capped here, and no peer can raise a cap.
"""

from __future__ import annotations

import json
import struct

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Tuple, Union

    Frame = Tuple[int, int, bytes]

PROTOCOL = 1

CONTROL = 1
DATA = 2
END = 3
HEARTBEAT = 4
ACK = 5

HEADER = struct.Struct(">IBI")
TOTALS = struct.Struct(">QQQ")
MAX_PAYLOAD = 1 << 20
MAX_DEPTH = 16
MAX_DIGITS = 20
_INFINITY = float("inf")
CHUNK = 256 * 1024
"""Bytes of one DATA frame: long enough to be cheap, short enough that control does not wait for it."""

HEARTBEAT_SECONDS = 4.0
SILENCE_SECONDS = 14.0
"""A peer that said nothing for this long is dead: three heartbeats and the round trip of the last one."""


class FrameError(Exception):
    """The bytes are not this protocol, or break one of its caps."""


def make_frame(kind: int, stream: int, payload: bytes) -> bytes:
    """Return one frame; the payload is at most MAX_PAYLOAD bytes."""
    if len(payload) > MAX_PAYLOAD:
        raise FrameError("a frame of %d bytes is over the limit of %d" % (len(payload), MAX_PAYLOAD))
    return HEADER.pack(len(payload), kind, stream) + payload


def make_control(message: Dict[str, Any]) -> bytes:
    """Return a CONTROL frame for a JSON object."""
    return make_frame(CONTROL, 0, json.dumps(message, separators=(",", ":")).encode("ascii"))


def make_end(stream: int, summary: Dict[str, Any]) -> bytes:
    """Return the END frame of a stream: `length` and `sha256` of the whole source, or `error`."""
    return make_frame(END, stream, json.dumps(summary, separators=(",", ":")).encode("ascii"))


def make_ack(received: int, outputs: int, files: int) -> bytes:
    """Return an ACK: DATA bytes that have come since the connection began, and how many of each kind were consumed."""
    return make_frame(ACK, 0, TOTALS.pack(received, outputs, files))


def parse_ack(payload: bytes) -> Tuple[int, int, int]:
    """Return the totals of an ACK frame: received, consumed of outputs, consumed of files."""
    if len(payload) != TOTALS.size:
        raise FrameError("an ACK of %d bytes" % len(payload))
    received, outputs, files = TOTALS.unpack(payload)
    return int(received), int(outputs), int(files)


def _refuse_constant(name: str) -> object:
    raise FrameError("the number %s is not JSON" % name)


def _parse_float(text: str) -> float:
    value = float(text)
    if value in (_INFINITY, -_INFINITY):
        raise FrameError("the number %s is too large" % text[:40])
    return value


def _parse_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise FrameError("the number %s… is too large" % text[:MAX_DIGITS])
    return int(text)


def _check_depth(value: object, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise FrameError("JSON nested deeper than %d" % MAX_DEPTH)
    if isinstance(value, dict):
        for item in value.values():
            _check_depth(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, (dict, list)):
                _check_depth(item, depth + 1)


def parse_object(payload: bytes) -> Dict[str, Any]:
    """Return the JSON object of a CONTROL or END payload."""
    try:
        value = json.loads(
            payload.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_parse_float,
            parse_int=_parse_int,
        )
    except (ValueError, RecursionError) as error:
        raise FrameError("a control frame that is not JSON: %s" % str(error)[:200]) from None
    if not isinstance(value, dict):
        raise FrameError("a control frame that is not a JSON object")
    _check_depth(value, 0)
    return value


class Decoder:
    """Turn bytes, however they are cut, into frames; a payload that came in several pieces is joined once."""

    def __init__(self) -> None:
        self._head = b""
        self._pieces: List[Union[bytes, memoryview]] = []
        self._left = 0

    def feed(self, data: Union[bytes, memoryview]) -> List[Frame]:
        """Return the frames that `data` completes; raise FrameError at the first that is not one."""
        frames = []
        view = memoryview(data)
        while view:
            if len(self._head) < HEADER.size:
                view = self._take_head(view)
                if len(self._head) < HEADER.size:
                    break
            piece, view = view[: self._left], view[self._left :]
            self._left -= len(piece)
            # What waits is copied: a piece would hold all that came with it.
            self._pieces.append(bytes(piece) if self._left else piece)
            if not self._left:
                _, kind, stream = HEADER.unpack(self._head)
                frames.append((kind, stream, b"".join(self._pieces)))
                self._head, self._pieces = b"", []
        return frames

    def _take_head(self, view: memoryview) -> memoryview:
        """Take what a header lacks; return the rest."""
        missing = HEADER.size - len(self._head)
        self._head += view[:missing]
        if len(self._head) == HEADER.size:
            self._left, kind, _ = HEADER.unpack(self._head)
            if self._left > MAX_PAYLOAD or not CONTROL <= kind <= ACK:
                raise FrameError("not a frame: type %d, length %d" % (kind, self._left))
        return view[missing:]
