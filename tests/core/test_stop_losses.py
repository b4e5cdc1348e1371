"""A stop whose connection breaks at any byte is still one stop, and what is not known is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from remote_train import reconnect as reconnecting
from remote_train import stop as stopping
from remote_train.errors import ConnectionGivenUp, ConnectionLost
from remote_train.stop import stop_across_losses
from tests.core.cutting_link import CuttingLink, Ears
from tests.host.test_supervisor_stops import OBEDIENT, begin

if TYPE_CHECKING:
    from remote_train.session import Session
    from tests.host.account_kit import Account


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(reconnecting, "LONGEST_PAUSE", 0.02)


def test_a_stop_survives_cuts_in_both_directions(account: Account) -> None:
    started = begin(account, OBEDIENT)
    run = account.client_run(started)
    cuts: list[tuple[int | None, int | None]] = [(None, 20), (None, 90), (1, None), (120, None), (None, 160)]
    link = CuttingLink(cuts)
    state = stop_across_losses(run, 1, link, 60.0, Ears())
    assert not link.cuts
    assert (state["state"], state["exit"]["stopped"]) == ("ended", True)
    assert started.members() == []


class Vanishing(CuttingLink):
    """A host that is there once."""

    def connect(self) -> Session:
        if self.connections:
            raise ConnectionLost("nobody there")
        return super().connect()


def test_a_host_that_stays_away_leaves_it_unknown(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "LOST_SECONDS", 0.2)
    started = begin(account, OBEDIENT)
    with pytest.raises(ConnectionGivenUp) as lost:
        stop_across_losses(account.client_run(started), 1, Vanishing([(None, 20)]), 60.0, Ears())
    assert lost.value.exit_code == 30
    assert "whether run is stopped is not known" in lost.value.message
