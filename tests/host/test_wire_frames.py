"""Frames in any cutting, and every cap."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.host import wire

KINDS = (wire.CONTROL, wire.DATA, wire.END, wire.HEARTBEAT, wire.ACK)
frames = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.binary(max_size=300)), max_size=12
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(edges)]


@given(frames, st.lists(st.integers(0, 10**6), max_size=30))
def test_any_cutting_gives_the_same_frames(sent: list[wire.Frame], places: list[int]) -> None:
    data = b"".join(wire.make_frame(*frame) for frame in sent)
    decoder = wire.Decoder()
    received = [frame for piece in cut(data, places) for frame in decoder.feed(piece)]
    assert received == sent


@given(frames)
def test_byte_by_byte(sent: list[wire.Frame]) -> None:
    data = b"".join(wire.make_frame(*frame) for frame in sent)
    decoder = wire.Decoder()
    received = [frame for number in range(len(data)) for frame in decoder.feed(data[number : number + 1])]
    assert received == sent


@given(frames, st.integers(1, 300))
def test_an_unfinished_frame_is_kept_and_never_given(sent: list[wire.Frame], missing: int) -> None:
    data = b"".join(wire.make_frame(*frame) for frame in [*sent, (wire.DATA, 1, b"x" * 300)])
    decoder = wire.Decoder()
    assert decoder.feed(data[:-missing]) == sent
    assert decoder.feed(data[-missing:]) == [(wire.DATA, 1, b"x" * 300)]


def test_what_waits_for_the_rest_of_its_frame_does_not_hold_all_that_came_with_it() -> None:
    data = bytearray(wire.make_frame(wire.DATA, 1, b"x" * 300) * 2)
    decoder = wire.Decoder()
    assert decoder.feed(memoryview(data)[:-10]) == [(wire.DATA, 1, b"x" * 300)]
    data.clear()  # a BufferError where a view of it is held
    assert decoder.feed(b"y" * 10) == [(wire.DATA, 1, b"x" * 290 + b"y" * 10)]


def test_the_largest_frame_passes_and_one_byte_more_does_not() -> None:
    whole = b"x" * wire.MAX_PAYLOAD
    assert wire.Decoder().feed(wire.make_frame(wire.DATA, 1, whole)) == [(wire.DATA, 1, whole)]
    with pytest.raises(wire.FrameError, match="over the limit"):
        wire.make_frame(wire.DATA, 1, whole + b"x")
    with pytest.raises(wire.FrameError, match="not a frame"):
        wire.Decoder().feed(wire.HEADER.pack(wire.MAX_PAYLOAD + 1, wire.DATA, 1))


@pytest.mark.parametrize("kind", [0, 6, 7, 127, 255])
def test_an_unknown_type_is_refused(kind: int) -> None:
    with pytest.raises(wire.FrameError):
        wire.Decoder().feed(wire.HEADER.pack(0, kind, 0))


@given(st.binary(min_size=9, max_size=200))
def test_noise_is_refused_or_waited_for_and_never_another_error(data: bytes) -> None:
    try:
        for kind, _, payload in wire.Decoder().feed(data):
            if kind in (wire.CONTROL, wire.END):
                wire.parse_object(payload)
            elif kind == wire.ACK:
                wire.parse_ack(payload)
    except wire.FrameError:
        return


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b'"text"',
        b"null",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": [-Infinity]}',
        b'{"a": 1e400}',
        b'{"a": -1e999}',
        b'{"a": 1}x',
        b"\xff\xfe{}",
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"a": ' * 40 + b"1" + b"}" * 40,
        b'{"a": ' + b"[" * 400000,
    ],
)
def test_what_is_not_a_plain_object_is_refused(payload: bytes) -> None:
    with pytest.raises(wire.FrameError):
        wire.parse_object(payload)


def test_nesting_up_to_the_cap_passes() -> None:
    value: object = 1
    for _ in range(wire.MAX_DEPTH):
        value = [value]
    assert wire.parse_object(json.dumps({"a": value}).encode()) == {"a": value}
    with pytest.raises(wire.FrameError, match="nested"):
        wire.parse_object(json.dumps({"a": [value]}).encode())


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=5))
def test_what_is_sent_is_what_is_read(message: dict[str, object]) -> None:
    [(kind, stream, payload)] = wire.Decoder().feed(wire.make_control(message))
    assert (kind, stream) == (wire.CONTROL, 0)
    assert wire.parse_object(payload) == message
    [(kind, stream, payload)] = wire.Decoder().feed(wire.make_end(7, message))
    assert (kind, stream, wire.parse_object(payload)) == (wire.END, 7, message)


TOTALS = st.integers(0, 2**64 - 1)


@given(TOTALS, TOTALS, TOTALS)
def test_an_ack_carries_its_totals(received: int, outputs: int, files: int) -> None:
    [(kind, _, payload)] = wire.Decoder().feed(wire.make_ack(received, outputs, files))
    assert (kind, wire.parse_ack(payload)) == (wire.ACK, (received, outputs, files))


@pytest.mark.parametrize("payload", [b"", b"12345678", b"1" * 23, b"1" * 25])
def test_an_ack_of_another_size_is_refused(payload: bytes) -> None:
    with pytest.raises(wire.FrameError):
        wire.parse_ack(payload)
