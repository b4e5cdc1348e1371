"""What is not shown of a run's secrets: each form that programs print, however the output is cut."""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train import redaction
from remote_train.redaction import MASK, SHORTEST, Redactor, hide, redact_text
from remote_train.show.screen import Screen

SECRET = 's3cr3t/+ key\'s "é"\n'
MARK = MASK.decode()


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
