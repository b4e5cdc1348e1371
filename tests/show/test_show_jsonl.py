"""Events as JSON lines; the standard library's parser, made strict, is the oracle."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train.show.jsonl import render_event, write_event
from remote_train.show.screen import OutputClosed

UNTIMED = settings(deadline=None)  # speed is no test's business, and the machine may be busy


def refuse(word: str) -> None:
    raise AssertionError(word)


def parse(line: str) -> dict[str, Any]:
    """Parse strictly: no NaN, no lone surrogate."""
    loaded: dict[str, Any] = json.loads(line, parse_constant=refuse)
    json.dumps(loaded, ensure_ascii=False).encode("utf-8")
    return loaded


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters()), st.binary(max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@UNTIMED
@given(st.dictionaries(st.text(st.characters(), max_size=8), VALUES, max_size=5))
def test_every_event_is_one_strict_line(data: dict[str, object]) -> None:
    stream = io.BytesIO()
    write_event(stream, "metric", data)
    lines = stream.getvalue().decode("ascii").splitlines()
    assert len(lines) == 1
    assert parse(lines[0])["event"] == "metric"


def test_event_and_time_come_first_and_the_rest_keeps_its_order() -> None:
    line = render_event("started", {"run": "b", "attempt": 1, "host": "a"}, time=12.5)
    assert line == '{"event": "started", "time": 12.5, "run": "b", "attempt": 1, "host": "a"}'


def test_a_metric_record_keeps_its_own_time() -> None:
    assert parse(render_event("metric", {"step": 1, "time": 3.5}, time=99.0)) == {
        "event": "metric",
        "time": 3.5,
        "step": 1,
    }


def test_data_cannot_rename_the_event() -> None:
    assert parse(render_event("metric", {"event": "done"})) == {"event": "metric"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_null(value: float) -> None:
    assert parse(render_event("metric", {"loss": value, "all": [value, {"deep": value}]})) == {
        "event": "metric",
        "loss": None,
        "all": [None, {"deep": None}],
    }


@UNTIMED
@given(st.binary())
def test_bytes_are_text_and_never_lost(data: bytes) -> None:
    event = parse(render_event("output", {"text": data}))
    exact = base64.b64decode(event["text_base64"]) if "text_base64" in event else event["text"].encode()
    assert exact == data
    assert event["text"] == data.decode("utf-8", "replace")


def test_a_name_that_is_not_utf8_keeps_its_bytes() -> None:
    name = os.fsdecode(b"ckpt-\xff.pt")
    for value in (name, Path(name)):
        event = parse(render_event("file", {"path": value}))
        assert event["path"] == "ckpt-\ufffd.pt"
        assert base64.b64decode(event["path_base64"]) == b"ckpt-\xff.pt"


def test_a_path_is_text() -> None:
    assert parse(render_event("file", {"path": Path("out/żółw.pt")}))["path"] == "out/żółw.pt"


def test_a_value_that_is_no_data_is_our_mistake() -> None:
    with pytest.raises(TypeError):
        render_event("metric", {"value": object()})


def test_a_reader_who_left_is_named() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as stream, pytest.raises(OutputClosed):
        write_event(stream, "metric", {})
