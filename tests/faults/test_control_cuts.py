"""G2 and G3: the conversation from the first byte to the verdict, cut wherever it can be cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from remote_train.host.wire import HEADER, Decoder
from tests.faults.agent_farm import Break, running_farm
from tests.faults.counts import PATIENT, Goal, is_nightly
from tests.faults.lives import Life, no_pauses

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from remote_train.session import Session
    from tests.faults.agent_farm import Farm
    from tests.host.account_kit import Account

pytestmark = PATIENT


@pytest.fixture
def farm(account: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    no_pauses(monkeypatch)
    with running_farm(account.home) as running:
        yield running


def live(farm: Farm, name: str, monkeypatch: pytest.MonkeyPatch, *breaks: Break) -> Life:
    """Live through the breaks and verify what came of it; what was sound leaves nothing."""
    life = Life(farm, name, breaks)
    life.live(monkeypatch)
    life.verify(settled=not any(plan.kill for plan in breaks))
    life.clean()
    return life


@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_cut_at_every_byte(farm: Farm, monkeypatch: pytest.MonkeyPatch, direction: str) -> None:
    whole = live(farm, "whole", monkeypatch).link.transports[0].channel
    assert whole is not None
    length = whole.down if direction == "down" else whole.up
    goal = f"G2 a cut at every byte of probe, ship, start, stream, end: {direction}"
    with Goal(goal, reduced=6, nightly=length, remark=f"{length:,} bytes") as trials:
        for trial in trials:
            with trial:
                at = trial.number if is_nightly() else trial.chance.randrange(length)
                plan = Break(down=at) if direction == "down" else Break(up=at)
                life = live(farm, f"cut{at}", monkeypatch, plan)
                # How many ACKs there are differs a little: the last bytes may not come.
                assert len(life.link.transports) >= 2 or at > length - 400


def test_a_connection_lost_after_the_end_leaves_none_behind(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that failed asks what its newest checkpoint is; the connection brought up for that is closed too."""
    life = live(farm, "asking", monkeypatch, Break(instead_of=b'"op":"files"'))
    assert len(life.link.transports) == 2


def test_a_lost_start_answer_is_one_start(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = live(farm, "whole", monkeypatch).link.transports[0].channel
    assert whole is not None
    answer = length_of_start_answer(whole.answer)
    with Goal("G3 the answer to start lost at a random byte: one run", reduced=8, nightly=1000) as goal:
        for trial in goal:
            with trial:
                losses = trial.chance.choice((1, 1, 1, 2, 3))
                plans = [make_loss(trial.chance, whole.starts if not n else 1, answer) for n in range(losses)]
                life = live(farm, f"lost{trial.number}", monkeypatch, *plans)
                assert not life.link.breaks
                assert len(life.link.transports) == losses + 1


def test_a_start_whose_answer_was_lost_is_asked_for_before_anything_is_sent(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the project has changed by then: the run goes on all the same, and nobody says that it was not started."""

    def make_life(name: str, *breaks: Break) -> Life:
        life = Life(farm, name, breaks)
        life.link.memory.write_base(life.project, "0" * 64, [])  # so its files are sent ahead
        return life

    whole = make_life("whole")
    whole.live(monkeypatch)
    channel = whole.link.transports[0].channel
    assert channel is not None
    answer = length_of_start_answer(channel.answer)
    life = make_life("changed", Break(after_start=channel.starts, down=answer - 1))
    connect = life.link.connect

    def connect_again() -> Session:
        if life.link.transports:
            (life.project / "train.py").write_text("raise SystemExit(4)")
        return connect()

    monkeypatch.setattr(life.link, "connect", connect_again)
    life.live(monkeypatch)
    assert len(life.link.transports) == 2
    life.verify()


def length_of_start_answer(data: bytes) -> int:
    """Return how many bytes came from the start request to the last of its answer: the first frame with an attempt."""
    length = 0
    for _, _, payload in Decoder().feed(data):
        length += HEADER.size + len(payload)
        if b'"ok":{"state":' in payload:
            return length
    raise AssertionError(f"no answer to start in {data!r}")


def make_loss(chance: random.Random, start: int, answer: int) -> Break:
    """Return a loss between the start request and the end of its answer."""
    if chance.random() < 0.2:
        return Break(after_start=start, kill=chance.uniform(0.0, 0.03))
    return Break(after_start=start, down=chance.choice((0, 1, chance.randrange(answer))))
