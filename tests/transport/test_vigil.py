"""The watch over a connection: what counts as silence, what does not, and this machine's own sleep."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from remote_train.errors import ConnectionLost
from remote_train.transport import suspend, vigil
from remote_train.transport.paramiko_ssh import ParamikoTransport
from remote_train.transport.vigil import Vigil

if TYPE_CHECKING:
    from tests.sshd import Sshd


@dataclass
class Ear:
    heard: float = field(default_factory=time.monotonic)


@dataclass
class Watched:
    """A vigil, and what it did."""

    ear: Ear = field(default_factory=Ear)
    knocked: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def watch(self, login_seconds: float = 60.0) -> Vigil:
        made = Vigil(self.ear, login_seconds, self.knocked.set, self.ended.set)
        made.start()
        return made


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become tenths."""
    monkeypatch.setattr(vigil, "SILENCE_SECONDS", 1.4)
    monkeypatch.setattr(vigil, "KNOCK_AFTER", 0.5)
    monkeypatch.setattr(vigil, "TICK", 0.05)


@pytest.mark.usefixtures("short")
def test_a_silent_host_is_asked_and_then_given_up() -> None:
    watched = Watched()
    watch = watched.watch()
    watch.note_login()
    assert watched.ended.wait(20)
    assert watched.knocked.is_set()
    assert watch.verdict.startswith("not a word for")


@pytest.mark.usefixtures("short")
def test_a_knock_that_hangs_does_not_hold_up_the_end() -> None:
    ended, never = threading.Event(), threading.Event()
    watch = Vigil(Ear(), 60.0, never.wait, ended.set)
    watch.note_login()
    watch.start()
    assert ended.wait(20)
    never.set()


@pytest.mark.usefixtures("short")
def test_an_answer_to_a_knock_is_life() -> None:
    ear, ended = Ear(), threading.Event()
    answers: list[float] = []

    def answer() -> None:
        ear.heard = time.monotonic()
        answers.append(ear.heard)

    watch = Vigil(ear, 60.0, answer, ended.set)
    watch.start()
    until = time.monotonic() + 20
    while len(answers) < 5 and time.monotonic() < until:
        assert not ended.wait(0.02)
    assert len(answers) == 5
    assert answers[-1] - answers[0] > 1.4, "longer than a silence"
    watch.end()


@pytest.mark.usefixtures("short")
def test_the_time_of_a_person_is_neither_silence_nor_login() -> None:
    watched = Watched()
    watch = watched.watch(login_seconds=1.0)
    with watch.paused():
        assert not watched.ended.wait(2.0)
    assert watched.ended.wait(20)
    assert watch.verdict == "did not finish the login within 1 s"


def test_the_two_clocks_are_never_far_apart_while_awake() -> None:
    before = suspend.read_suspended()
    assert abs(suspend.read_suspended() - before) < 0.1


def test_after_a_sleep_the_connection_is_lost_at_once(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = ParamikoTransport(sshd.target()).open("echo up; exec cat")
    assert channel.receive(20) == b"up\n"
    slept = suspend.read_suspended() + 15.0
    monkeypatch.setattr(suspend, "read_suspended", lambda: slept)
    with pytest.raises(ConnectionLost, match="this machine slept for 15 s"):
        channel.receive(20.0)


def test_a_nap_is_nothing(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = ParamikoTransport(sshd.target()).open("echo up; exec cat")
    assert channel.receive(20) == b"up\n"
    slept = suspend.read_suspended() + 10.0
    monkeypatch.setattr(suspend, "read_suspended", lambda: slept)
    assert channel.receive(1.5) is None
    channel.send(b"still here")
    assert channel.receive(20) == b"still here"
    channel.close()


@pytest.mark.usefixtures("short")
def test_a_host_may_be_silent_before_the_login_as_long_as_the_login_may_take() -> None:
    watched = Watched()
    watch = watched.watch(login_seconds=1.0)
    assert watched.ended.wait(20)
    assert watch.verdict == "did not finish the login within 1 s"


def test_a_host_that_waits_for_a_telephone_is_given_more_time() -> None:
    watch = Watched().watch(login_seconds=0.2)
    watch.grant(60.0)
    assert not watch._judge()
