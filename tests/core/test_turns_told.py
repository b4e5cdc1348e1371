"""What this laptop makes of the queue for GPUs: a run's time, words, and the next host when one was taken meanwhile."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from remote_train import launching
from remote_train.errors import HostBusy, ProtocolError
from remote_train.host import layout
from remote_train.listener import Silent
from remote_train.occupied import Occupied
from remote_train.preparing import Request
from remote_train.query import make_row
from remote_train.records import create_run
from remote_train.turn_words import render_wait

if TYPE_CHECKING:
    from pathlib import Path


def test_a_wait_for_gpus_is_none_of_a_run_s_time(tmp_path: Path) -> None:
    fields = {"host": "box", "created": 1000.0, "attempts": [{"attempt": 1, "plan": {}}]}
    waits = create_run(
        tmp_path, "waits", {**fields, "state": "starting", "queue": {"place": 1}, "exit": None}
    )
    assert make_row(waits, None)["duration"] is None

    end = {"ended": 1900.0, "code": 0}
    done = create_run(tmp_path, "done", {**fields, "state": "ended", "queue": {"place": 1}, "exit": end})
    assert make_row(done, None)["duration"] == 900.0
    done.attempt(1).write(layout.ATTEMPT, {"queued": 5000.0, "started": 5700.0})
    assert make_row(done, None)["duration"] == 200.0


def test_why_it_waits_is_said() -> None:
    wait = {"gpus": [0], "count": 0, "place": 1, "of": 1, "why": "2 GPUs wanted, this host has 1"}
    assert (
        render_wait(wait, "box") == "waiting for GPU 0 of box: place 1 of 1; 2 GPUs wanted, this host has 1"
    )


class Place:
    """Hosts of which some are taken between the look and the start, as far as launching knows."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, taken: tuple[str, ...], on_busy: str = "next"
    ) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.closed: list[str] = []
        self.taken, self.on_busy = taken, on_busy
        monkeypatch.setattr(launching, "prepare", self.prepare)
        monkeypatch.setattr(launching, "launch", self.launch)

    def prepare(self, request: Request, *_: Any) -> Any:
        self.asked.append(request.hosts)
        name = request.hosts[0]
        session = SimpleNamespace(close=lambda: self.closed.append(name))
        return SimpleNamespace(
            plan=SimpleNamespace(host=name),
            job=SimpleNamespace(on_busy=self.on_busy),
            hosts=request.hosts,
            reached=SimpleNamespace(session=session),
        )

    def launch(self, prepared: Any, _listener: Any) -> Any:
        if prepared.plan.host in self.taken:
            raise HostBusy("GPU 0 is in use by somebody")
        return prepared.plan.host


REQUEST = replace(Request(), hosts=("one", "two", "three"))


def test_a_host_that_is_taken_meanwhile_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch, ("one", "two"))
    started: Any = launching.start(REQUEST, Silent(), None)
    assert started == "three"
    assert place.asked == [("one", "two", "three"), ("two", "three"), ("three",)]
    assert place.closed == ["one", "two"]


@pytest.mark.parametrize(
    ("taken", "on_busy", "tried"), [(("one", "two", "three"), "next", 3), (("one",), "fail", 1)]
)
def test_where_none_is_left_it_is_busy(
    monkeypatch: pytest.MonkeyPatch, taken: tuple[str, ...], on_busy: str, tried: int
) -> None:
    place = Place(monkeypatch, taken, on_busy)
    with pytest.raises(HostBusy):
        launching.start(REQUEST, Silent(), None)
    assert len(place.closed) == tried


def test_a_host_that_cannot_say_leaves_no_session_open() -> None:
    closed: list[bool] = []

    def refuse(*_: Any, **__: Any) -> Any:
        raise ProtocolError("no answer of ours")

    session = SimpleNamespace(request=refuse, close=lambda: closed.append(True))
    host = SimpleNamespace(device="cuda", name="box", env={})
    facts = {"gpus": [{"index": 0, "uuid": "GPU-a"}]}
    reached: Any = SimpleNamespace(link=SimpleNamespace(host=host), facts=facts, session=session, reasons=[])
    with pytest.raises(ProtocolError):
        Occupied("1", "queue", asks=True).takes(reached)
    assert closed == [True]
