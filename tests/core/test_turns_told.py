"""What this laptop makes of the queue for GPUs: a run's time, words, and the next host when one was taken meanwhile."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from remote_train import launching
from remote_train.config.project_spec import ProjectSpec
from remote_train.errors import HostBusy, HostUnfit, ProtocolError, RemoteTrainError, Unreachable, UsageError
from remote_train.host import layout
from remote_train.listener import Silent
from remote_train.occupied import Occupied
from remote_train.plan import Job
from remote_train.preparing import Prepared, Request
from remote_train.query import make_row
from remote_train.records import create_run
from remote_train.turn_words import render_wait

if TYPE_CHECKING:
    from pathlib import Path

    from remote_train.reach import Reached


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


def test_a_run_that_was_stopped_in_the_queue_took_no_time(tmp_path: Path) -> None:
    """By its host's clock, which is none of this laptop's, it waited 900 s and then did nothing."""
    attempts = [{"attempt": 1, "plan": {}}, {"attempt": 2, "plan": {}}]
    end = {"ended": 5900.0, "stopped": True}
    fields = {"host": "box", "state": "ended", "exit": end, "created": 4990.0, "attempts": attempts[:1]}
    run = create_run(tmp_path, "stopped", fields)
    run.attempt(1).write(layout.ATTEMPT, {"started": 5000.0, "phase": "queued"})
    run.attempt(1).write(layout.EXIT, end)
    assert make_row(run, None)["duration"] == 10.0

    again = create_run(tmp_path, "again", {**fields, "created": 1000.0, "attempts": attempts})
    again.attempt(2).prepare()
    again.attempt(1).write(layout.ATTEMPT, {"queued": 1000.0, "started": 1500.0, "phase": "running"})
    again.attempt(2).write(layout.ATTEMPT, {"started": 5000.0, "phase": "queued"})
    again.attempt(2).write(layout.EXIT, end)
    assert make_row(again, None)["duration"] == 3500.0


def test_why_it_waits_is_said() -> None:
    wait = {"gpus": [0], "count": 0, "place": 1, "of": 1, "why": "2 GPUs wanted, this host has 1"}
    assert (
        render_wait(wait, "box") == "waiting for GPU 0 of box: place 1 of 1; 2 GPUs wanted, this host has 1"
    )


class Place:
    """Hosts of which some are taken between the look and the start, and some out of reach, as far as launching knows."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        taken: tuple[str, ...],
        on_busy: str = "next",
        absent: tuple[str, ...] = (),
    ) -> None:
        self.asked: list[Request] = []
        self.known: list[dict[str, str] | None] = []
        self.closed: list[str] = []
        self.taken, self.on_busy, self.absent = taken, on_busy, absent
        self.error: type[RemoteTrainError] = Unreachable
        monkeypatch.setattr(launching, "prepare", self.prepare)
        monkeypatch.setattr(launching, "launch", self.launch)

    def prepare(self, request: Request, _listener: Any, _ask: Any, before: Prepared | None) -> Prepared:
        self.asked.append(request)
        self.known.append(None if before is None else before.secret_env)
        name = next((name for name in request.hosts if name not in self.absent), None)
        if name is None and not request.fallback:
            raise self.error(f"{request.hosts[0]}: no route")
        name = name or "local"
        some: Any = SimpleNamespace
        session = some(close=lambda: self.closed.append(name))
        return Prepared(
            root=some(),
            request=request,
            job=some(on_busy=self.on_busy),
            package=some(),
            reached=some(session=session),
            plan=some(host=name),
            secret_env={"TOKEN": "typed"},
            hosts=request.hosts,
        )

    def launch(self, prepared: Prepared, _listener: Any) -> Any:
        if prepared.plan.host in self.taken:
            raise HostBusy(f"{prepared.plan.host}: GPU 0 is in use by somebody")
        return prepared


REQUEST = replace(Request(), hosts=("one", "two", "three"))


def test_a_host_that_is_taken_meanwhile_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch, ("one", "two"))
    started: Any = launching.start(REQUEST, Silent(), None)
    assert started.plan.host == "three"
    assert [request.hosts for request in place.asked] == [
        ("one", "two", "three"),
        ("two", "three"),
        ("three",),
    ]
    assert place.closed == ["one", "two"]
    # What was typed is not asked for again, and the run's record says what was asked for.
    assert place.known == [None, {"TOKEN": "typed"}, {"TOKEN": "typed"}]
    assert (started.request, started.hosts) == (REQUEST, REQUEST.hosts)


@pytest.mark.parametrize("error", [Unreachable, HostUnfit, UsageError])
def test_a_busy_host_is_not_fallen_back_from(
    monkeypatch: pytest.MonkeyPatch, error: type[RemoteTrainError]
) -> None:
    """It can be reached: this machine's CPU is for when none can. What the last one lacks (a GPU by name) is told beside it."""
    place = Place(monkeypatch, ("one",), absent=("two", "three"))
    place.error = error
    with pytest.raises(HostBusy) as refusal:
        launching.start(REQUEST, Silent(), None)
    assert refusal.value.message == "one: GPU 0 is in use by somebody\ntwo: no route"
    assert place.closed == ["one"]


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


def make_job(**changes: Any) -> Job:
    return Job(ProjectSpec("p"), "/", "", "train.py", None, (), None, **changes)


def reach(request: Any, closed: list[bool], **env: str) -> Reached:
    some: Any = SimpleNamespace
    session = some(request=request, close=lambda: closed.append(True))
    host = some(device="cuda", name="box", env=env)
    gpus = [{"index": 0, "uuid": "GPU-a"}, {"index": 1, "uuid": "GPU-b"}]
    return some(link=some(host=host), facts={"gpus": gpus}, session=session, reasons=[])  # type: ignore[no-any-return]


def test_a_host_that_cannot_say_leaves_no_session_open() -> None:
    closed: list[bool] = []

    def refuse(*_: Any, **__: Any) -> Any:
        raise ProtocolError("no answer of ours")

    with pytest.raises(ProtocolError):
        Occupied(make_job(), []).takes(reach(refuse, closed))
    assert closed == [True]


def test_busy_are_the_gpus_that_the_command_line_leaves() -> None:
    asked: list[Any] = []

    def answer(_: str, gpus: Any) -> dict[str, Any]:
        asked.append(gpus)
        return {"free": True}

    job = make_job(env={"CUDA_VISIBLE_DEVICES": "1"})
    assert Occupied(job, []).takes(reach(answer, [], CUDA_VISIBLE_DEVICES="0"))
    assert Occupied(make_job(), []).takes(reach(answer, [], CUDA_VISIBLE_DEVICES="0"))
    assert asked == [{"count": 1, "among": ["GPU-b"]}, {"count": 1, "among": ["GPU-a"]}]
