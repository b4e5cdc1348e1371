"""The table of an attempt's life: whole, free of dead ends, drawn in the docs, and what real attempts go through."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.host import life
from tests.host.account_kit import until

if TYPE_CHECKING:
    from tests.host.account_kit import Account

PAGE = Path(__file__).parents[2] / "docs" / "life.md"


def test_the_diagram_in_the_docs_is_the_table() -> None:
    assert life.render_diagram() in PAGE.read_text("utf-8"), (
        "python -m remote_train.host.life prints the new one"
    )


def test_every_state_and_event_is_in_the_table_and_explained() -> None:
    assert {state for (state, _), _ in life.TRANSITIONS.items()} | set(life.TRANSITIONS.values()) == set(
        life.STATES
    )
    assert {event for _, event in life.TRANSITIONS} == set(life.EVENTS)


def test_every_state_can_be_reached_and_left_towards_an_end() -> None:
    assert all(life.can_follow(life.UNKNOWN, state) for state in life.STATES)
    assert all(any(life.can_follow(state, end) for end in life.FINAL) for state in life.STATES)


@given(st.lists(st.sampled_from(sorted(life.EVENTS)), max_size=8))
def test_a_run_that_is_over_stays_over_until_it_is_removed(events: list[str]) -> None:
    try:
        states = [life.choose_state(events[:count]) for count in range(len(events) + 1)]
    except KeyError:
        return
    for (before, after), event in zip(itertools.pairwise(states), events, strict=True):
        assert before not in life.FINAL or event == life.REMOVED
        assert life.can_follow(before, after)


def test_what_cannot_happen_is_refused() -> None:
    with pytest.raises(KeyError):
        life.choose_state([life.CLAIMED, life.EXIT_RECORDED])


def test_a_real_attempt_goes_through_the_table(account: Account) -> None:
    session = account.connect()
    package = account.ship(session, {"train.py": "import time; print('on', flush=True); time.sleep(600)"})
    seen = [session.request("state", run="run")["state"]]
    seen.append(session.request("start", **account.message(package))["state"])
    seen.append(until(lambda: session.request("state", run="run")["state"] == "running" and "running"))
    session.request("stop", run="run", attempt=1, grace=60.0)
    seen.append(until(lambda: session.request("state", run="run")["state"] == "ended" and "ended"))
    assert seen[0] == "unknown"
    assert all(life.can_follow(before, after) for before, after in itertools.pairwise(seen))
