"""Coming back: at once after a sleep, and never for ever to a program that dies again and again."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from remote_train import reconnect
from remote_train.errors import AgentEnded, ConnectionGivenUp, ConnectionLost, HostSpace, ProtocolError
from remote_train.follow import Following, Wish
from remote_train.query import check_host
from remote_train.reconnect import Losses
from remote_train.session import open_session
from remote_train.transport import suspend
from remote_train.transport.local import LocalTransport
from tests.core.cutting_link import CuttingLink, Ears
from tests.host.account_kit import the_agent

if TYPE_CHECKING:
    from remote_train.session import Session
    from tests.host.account_kit import Account


def test_a_pause_ends_when_the_machine_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    asleep = iter([0.0, 0.0, 0.0, 600.0])
    monkeypatch.setattr(suspend, "read_suspended", lambda: next(asleep))
    began = time.monotonic()
    reconnect.pause(60.0)
    assert time.monotonic() - began < 30.0


def test_a_pause_is_as_long_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "NAP", 0.05)
    began = time.monotonic()
    reconnect.pause(0.2)
    assert time.monotonic() - began >= 0.2


def test_an_agent_that_ends_again_and_again_is_told_from_a_bad_network() -> None:
    losses = Losses()
    losses.note_back()
    for _ in range(20):
        losses.begin(ConnectionLost("a bad network is no mistake of ours"))
    for _ in range(20):
        losses.begin(AgentEnded("killed"))
        losses.note_progress()
    for _ in range(reconnect.AGENT_TRIES - 1):
        losses.begin(AgentEnded("killed"))
    with pytest.raises(ConnectionGivenUp, match="again and again"):
        losses.begin(AgentEnded("killed"))


class KillingLink(CuttingLink):
    """Every agent is killed as soon as it is up."""

    def connect(self) -> Session:
        self.connections += 1
        transport = LocalTransport()
        session = open_session(transport, the_agent(), sys.executable)
        assert transport._channel is not None
        os.kill(transport._channel._child.pid, signal.SIGKILL)
        return session


def test_an_agent_that_is_always_killed_is_no_lost_connection(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnect, "choose_pause", lambda *_: 0.01)
    started = account.start("import time; time.sleep(600)")
    wish = Wish(account.client_run(started), 1, ["0"], {0})
    link = KillingLink()
    following = Following(wish, link, Ears(), writing=True)
    with pytest.raises(ConnectionGivenUp, match="again and again"):
        following.run()
    assert link.connections <= 100  # a busy machine may be killed before its word, which is another loss
    assert started.supervisor_lives(), "the run goes on"


class Broken(CuttingLink):
    """Connects, or not, and asks for facts in vain."""

    def __init__(self, error: Exception, *, connects: bool) -> None:
        super().__init__()
        self.error = error
        self.connects = connects

    def connect(self) -> Session:
        if not self.connects:
            raise self.error
        return super().connect()

    def read_facts(self, *_: object, **__: object) -> dict[str, Any]:
        raise self.error


@pytest.mark.parametrize(
    ("error", "connects", "code"),
    [
        (ConnectionLost("cut"), False, 30),
        (HostSpace("full"), False, 14),
        (ConnectionLost("cut"), True, 30),
        (ProtocolError("nonsense"), True, 60),
    ],
)
def test_a_check_ends_with_the_code_of_what_ended_it(error: Exception, connects: bool, code: int) -> None:
    row = check_host(Broken(error, connects=connects))
    assert (row["ok"], row["exit_code"], row["verdict"]) == (False, code, str(error))
