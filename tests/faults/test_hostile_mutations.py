"""Any field of anything a host says, replaced by any other value; and bytes that mean nothing, for everything that reads."""

from __future__ import annotations

import itertools
import json
import shutil
import string
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remote_train.bootstrap import parse_verdict
from remote_train.errors import ProtocolError
from remote_train.host import wire
from remote_train.listed import parse_page, parse_row
from remote_train.metrics.clock import Clock
from remote_train.show.neutral import Neutraliser, neutral_text
from tests.faults.counts import PATIENT, is_nightly
from tests.faults.hostile_agent import HONEST, Case, Frame
from tests.faults.hostile_cases import EVIL
from tests.faults.hostile_talk import DOCUMENTED, check_screen, hurry, outcome, talk
from tests.host.account_kit import until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.faults.hostile_agent import Agent

Path_ = tuple[Any, ...]

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 7, 1.5, -0.0, 1e300, 2**31, 2**63, 10**19, -(10**19), "", "0", "x", "running", "ended",
    "lost", "../../x", "/etc/passwd", "x" * 70_000, EVIL, "\ud800", "\0", [], [None], ["x"] * 50, [[]], {}, {"x": None},
    {"state": "ended"}, [{}], list(range(3000)), {str(n): n for n in range(300)},
]  # fmt: skip
BENIGN = {1, 13, 14, 15, 20, 21, 22, 30, 31, 40, 41, 42, 50, 60, 0}
CHARACTERS = st.text(alphabet=string.printable + "\x1b\x9b\u202e\ud800\0", max_size=80)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | CHARACTERS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(CHARACTERS, inner, max_size=4),
    max_leaves=12,
)


def list_places(value: object, before: Path_ = ()) -> Iterator[Path_]:
    """Yield the path of every value inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from list_places(inner, (*before, key))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path_]]:
    """Every field of everything that is said in honest conversations, one of a failed training too."""
    found: dict[tuple[str, Path_], None] = {}
    for number, honest in enumerate((HONEST, Case("failing", "", HONEST.twist, failing=True))):
        with pytest.MonkeyPatch.context() as patch:
            held = talk(tmp_path_factory.mktemp(f"honest{number}"), honest, patch)
        for where, frame in held.link.said:
            if isinstance(frame.payload, dict):
                found.update(dict.fromkeys((where, path) for path in list_places(frame.payload)))
    assert len(found) > 150
    return list(found)


def replace(path: Path_, value: Any) -> Any:
    def twist(_agent: Agent, frame: Frame) -> Iterable[Frame | bytes]:
        place = frame.payload
        for step in path[:-1]:
            place = (
                place[step]
                if isinstance(place, dict) and step in place
                else place[step]
                if isinstance(place, list) and len(place) > step
                else {}
            )
        if isinstance(place, (dict, list)) and (isinstance(place, dict) or path[-1] < len(place)):
            place[path[-1]] = value
        yield frame

    return twist


def remove(folder: Path) -> bool:
    """Remove the folder; a thread that still keeps a package there may be in the way: tell whether something is left."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder.exists()


@PATIENT
@settings(
    max_examples=3000 if is_nightly() else 60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_field_may_be_anything(places: list[tuple[str, Path_]], data: st.DataObject) -> None:
    where, path = data.draw(st.sampled_from(places), "place")
    value = data.draw(st.sampled_from(VALUES) | JSON.filter(is_sayable), "value")
    folder = Path(tempfile.mkdtemp(prefix="talk-"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            hurry(patch)
            failing = data.draw(st.booleans(), "failing")
            held = talk(folder, Case("mutated", where, replace(path, value), failing=failing), patch)
    finally:
        until(lambda: not remove(folder), f"{folder} gone")
    assert set(held.codes.values()) <= DOCUMENTED & BENIGN, outcome(held)


def is_sayable(value: object) -> bool:
    """Tell whether a value fits into a frame."""
    return len(json.dumps(value)) < 100_000


FUZZ = settings(max_examples=20_000 if is_nightly() else 200)
PIECES = st.lists(st.binary(max_size=200), max_size=8)


@FUZZ
@given(PIECES)
def test_the_decoder_takes_any_bytes(pieces: list[bytes]) -> None:
    decoder = wire.Decoder()
    try:
        for kind, _stream, payload in itertools.chain.from_iterable(map(decoder.feed, pieces)):
            assert wire.CONTROL <= kind <= wire.ACK
            if kind in (wire.CONTROL, wire.END):
                assert isinstance(wire.parse_object(payload), dict)
            elif kind == wire.ACK:
                assert min(wire.parse_ack(payload)) >= 0
    except wire.FrameError:
        return


@FUZZ
@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_payload_is_an_object_or_an_error(payload: bytes) -> None:
    try:
        assert isinstance(wire.parse_object(payload), dict)
    except wire.FrameError:
        return


@FUZZ
@given(
    st.lists(
        st.sampled_from([b"\0RT1 ", b"abc", b"0f", b" READY", b" NEED", b" FAIL ", b"\n", b"\xff", b"\0"])
    )
)
def test_a_verdict_is_found_only_with_our_nonce(pieces: list[bytes]) -> None:
    verdict = parse_verdict(b"".join(pieces), "0f")
    assert verdict is None or verdict.word.startswith(("READY", "NEED", "FAIL"))


@FUZZ
@given(JSON | st.fixed_dictionaries({"path": JSON, "size": JSON, "mtime_ns": JSON}))
def test_a_row_is_a_place_below_the_target_or_an_error(value: Any) -> None:
    try:
        row = parse_row(value)
    except ProtocolError:
        return
    assert not Path(row["path"]).is_absolute()
    assert ".." not in Path(row["path"]).parts
    assert row["size"] >= 0


@FUZZ
@given(
    st.lists(st.text(alphabet="ab/.", min_size=1, max_size=5)),
    st.none() | st.text(alphabet="ab/.", max_size=5),
)
def test_a_page_goes_forward_or_is_an_error(paths: list[str], following: str | None) -> None:
    page = {"files": [{"path": path, "size": 1, "mtime_ns": 1} for path in paths], "next": following}
    try:
        rows = parse_page(page, "a", [])
    except ProtocolError:
        return
    found = [row["path"] for row in rows]
    assert found == sorted(set(found))
    assert all(path > "a" for path in found)
    assert following is None or following > "a"


@FUZZ
@given(PIECES)
def test_nothing_a_terminal_obeys_gets_past_the_neutraliser(pieces: list[bytes]) -> None:
    neutraliser = Neutraliser()
    shown = b"".join(map(neutraliser.feed, pieces)) + neutraliser.flush()
    check_screen(shown.decode())


@FUZZ
@given(CHARACTERS)
def test_a_text_is_one_line_of_nothing_but_text(text: str) -> None:
    shown = neutral_text(text)
    assert shown.encode().isascii() or shown.isprintable()
    check_screen(shown)
    assert "\n" not in shown


@FUZZ
@given(
    st.lists(
        st.binary(max_size=100)
        | st.builds(
            lambda size, mono: json.dumps({"mono": mono, "sizes": {"0": size}}).encode() + b"\n", JSON, JSON
        )
        | st.sampled_from(
            [b"\n", b"[" * 5000 + b"\n", b'{"mono": 1' + b"0" * 400 + b', "sizes": {"0": 5}}\n']
        )
    )
)
def test_a_clock_takes_any_lines_and_stays_in_order(pieces: list[bytes]) -> None:
    clock = Clock()
    for piece in pieces:
        clock.feed(piece)
    assert clock._offsets == sorted(clock._offsets)
    assert len(clock._offsets) == len(clock._times)
    clock.time_at(5)
