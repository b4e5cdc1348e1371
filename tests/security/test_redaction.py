"""What is not shown of a run's secrets: each form that programs print, however the output is cut."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
import shlex
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train import redaction
from remote_train.redaction import MASK, SHORTEST, Redactor, hide, redact_text
from remote_train.show.screen import Screen

SECRET = 's3cr3t/+ key\'s "é"\n'
MARK = MASK.decode()


ScreenAt = tuple[Screen, io.BytesIO]


@pytest.fixture
def screen_at() -> ScreenAt:
    """A terminal on which each look at the clock is a second later."""
    out, told, ticks = io.BytesIO(), io.TextIOWrapper(io.BytesIO(), "utf-8"), itertools.count()
    more: dict[str, Any] = {"stdout_is_terminal": True, "stderr_is_terminal": False, "colour": False}
    return Screen(out, told, width=lambda: 100, clock=lambda: float(next(ticks)), **more), out


def feed(pieces: list[bytes]) -> bytes:
    redactor = Redactor()
    return b"".join(map(redactor.feed, pieces)) + redactor.flush()


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        repr(SECRET)[1:-1],
        shlex.quote(SECRET)[1:-1],
        quote_plus(SECRET),
    ],
)
def test_each_form_is_hidden(form: str) -> None:
    hide([SECRET])
    assert redact_text(f"before {form}after") == f"before {MARK}after"


@pytest.mark.parametrize("user", ["", "u", "me", "bob"])
def test_base64_is_hidden_at_any_offset(user: str) -> None:
    hide([SECRET])
    encoded = base64.b64encode(f"{user}{SECRET}:more".encode()).decode()
    shown = redact_text(encoded)
    assert MARK in shown
    # What is left says less than two characters of it at either end.
    assert len(shown) - len(MARK) <= len(encoded) - len(SECRET.encode()) * 8 // 6 + 2


@given(st.text(min_size=SHORTEST, max_size=40), st.binary(max_size=60), st.lists(st.integers(1, 12)))
def test_the_cutting_never_shows_it(secret: str, noise: bytes, cuts: list[int]) -> None:
    raw = secret.encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redaction, "_forms", ())
        if "\ud800" <= max(secret) <= "\udfff":
            return  # no environment holds one
        hide([secret])
        whole = noise + raw + noise + raw
        pieces, place = [], 0
        for cut in [*cuts, len(whole)]:
            pieces.append(whole[place : place + cut])
            place += cut
        pieces.append(whole[place:])
        assert feed(pieces) == feed([whole])
        if raw not in MASK + noise + MASK:
            assert raw not in feed(pieces)


@given(st.data())
def test_no_part_of_overlapping_secrets_is_shown(data: st.DataObject) -> None:
    """Of values that begin, hold and overlap each other nothing stands there, however the output is cut."""
    letters = st.text("ab", min_size=SHORTEST, max_size=14)
    values = data.draw(st.lists(letters, min_size=1, max_size=4))
    output = data.draw(st.text("ab.", max_size=80)).encode()
    whole = bytearray(output)
    for value in values:
        place = output.find(value.encode())
        while place >= 0:
            whole[place : place + len(value)] = b"#" * len(value)
            place = output.find(value.encode(), place + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redaction, "_forms", ())
        hide(values)
        cuts = sorted({0, len(output), *data.draw(st.lists(st.integers(0, len(output))))})
        shown = feed([output[begin:end] for begin, end in itertools.pairwise(cuts)])
    # A mask for each stretch; of two that touch without overlapping each may have one.
    assert re.sub(rb"(\[hidden\])+", b"#", shown) == re.sub(rb"#+", b"#", bytes(whole))


def test_what_stands_still_is_shown_and_goes_on_hidden() -> None:
    hide(["s3cret-value"])
    redactor = Redactor()
    assert redactor.feed(b"it took 1.2s") == b"it took 1.2"
    assert redactor.settle() + redactor.settle() == b"s"
    assert redactor.feed(b"3cret-value, 3 s") == b", 3 "
    assert redactor.feed(b"3cret") == b""
    assert redactor.settle() == b""
    assert redactor.flush() == b"s3cret"


@pytest.mark.parametrize("value", ["p\udcffssword-long", "\udca9aaaaaaaa", "é-and-more"])
def test_a_message_with_bytes_that_are_no_text_neither_fails_nor_shows_it(value: str) -> None:
    hide([value])
    for text in (f"it is {value}.", "éaaaaaaaa", "\ud800 \udc00 é", "\udcff"):
        shown = redact_text(text)
        assert value not in shown
    assert redact_text(f"it is {value}.") == f"it is {MARK}."


def test_what_is_left_out_takes_the_beginning_of_a_secret_with_it(screen_at: ScreenAt) -> None:
    hide(["correct horse battery"])
    screen, out = screen_at
    screen.output(b"key: correct ho")
    screen.leave_out("4 lines skipped")
    screen.output(b"next\n")
    assert out.getvalue() == b"key: \n4 lines skipped\nnext\n"


def test_an_output_that_stands_still_is_whole_on_the_terminal(screen_at: ScreenAt) -> None:
    hide(["s3cret-value"])
    screen, out = screen_at
    screen.output(b"it took 1.2s")
    screen.tick()
    screen.tick()
    assert out.getvalue() == b"it took 1.2s"


def test_short_values_and_other_processes_hide_nothing() -> None:
    hide(["1234567", ""])
    assert redaction.hidden_forms() == ()
    assert feed([b"1234567"]) == b"1234567"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_does_not_see_it_and_a_pipe_is_exact(terminal: bool) -> None:
    hide(["correct horse battery"])
    out, told = io.BytesIO(), io.BytesIO()
    screen = Screen(
        out,
        io.TextIOWrapper(told, "utf-8"),
        stdout_is_terminal=terminal,
        stderr_is_terminal=False,
        width=lambda: 100,
        colour=False,
    )
    for piece in (b"key: correct ho", b"rse bat", b"tery.\n", b"corr"):
        screen.output(piece)
    screen.say("the host said: correct horse battery")
    screen.error("correct horse battery", "try correct horse battery")
    screen.close()
    exact = b"key: correct horse battery.\ncorr"
    assert out.getvalue() == (exact.replace(b"correct horse battery", MASK) if terminal else exact)
    assert b"correct horse" not in told.getvalue()
    assert told.getvalue().count(MASK) == 3


def test_a_stream_full_of_beginnings_comes_out_whole() -> None:
    hide(["abcabcabd" * 30])
    data = b"abcabcab" * 200_000 + os.urandom(1000)
    assert feed([data[i : i + 65536] for i in range(0, len(data), 65536)]) == data
