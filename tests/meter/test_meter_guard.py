"""The guard, the file and the small pure parts of the meter."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.host.meter import schedule
from remote_train.host.meter.clock import Clock, Mark, elapsed
from remote_train.host.meter.guard import Guard
from remote_train.host.meter.leader import Leader
from remote_train.host.meter.lines import Lines, open_lines
from remote_train.host.meter.tally import interpolate
from remote_train.host.meter.windows import Window, summarise
from tests.meter.conftest import read_lines

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENT = 60.0


def warn() -> None:
    warnings.warn("once", UserWarning, stacklevel=1)


def make_guard() -> tuple[Guard, list[str]]:
    told: list[str] = []
    return Guard(told.append), told


def test_the_first_exception_ends_the_meter_and_names_its_type_and_place_but_not_its_text() -> None:
    guard, told = make_guard()
    undone: list[str] = []
    guard.undo(lambda: undone.append("first"))
    guard.undo(lambda: undone.append("second"))
    assert guard.run("count", lambda: 5) == 5
    assert guard.run("count", int, "not a number of the script's") is None
    assert guard.run("count", lambda: 5) is None
    assert undone == ["second", "first"]
    assert [why.partition(" (")[0] for why in told] == ["ValueError"]
    assert told[0].endswith(" in count")


def test_an_undo_that_fails_does_not_keep_the_others_from_being_done() -> None:
    guard, told = make_guard()
    undone: list[str] = []
    guard.undo(lambda: undone.append("first"))
    guard.undo(lambda: int("x"))
    guard.switch_off("why")
    assert (undone, told) == (["first"], ["why"])


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_script_is_the_scripts(kind: type[BaseException]) -> None:
    guard, told = make_guard()

    def end() -> None:
        raise kind

    with pytest.raises(kind):
        guard.run("step", end)
    assert (guard.off, told) == (False, [])
    assert guard.run("step", lambda: 5) == 5


def test_what_a_signal_handler_of_the_scripts_raises_is_the_scripts() -> None:
    guard, told = make_guard()

    def handler(_number: int, _frame: object) -> None:
        raise TimeoutError("the script's")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(TimeoutError, match="the script's"):
            guard.run("step", signal.raise_signal, signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert told == []


def test_ours_inside_of_ours_does_nothing() -> None:
    guard, _ = make_guard()
    assert guard.run("outer", lambda: guard.run("inner", lambda: 5)) is None
    assert not guard.off


def test_a_warning_within_is_neither_raised_nor_shown_nor_remembered() -> None:
    guard, told = make_guard()
    registry: dict[Any, Any] = globals().setdefault("__warningregistry__", {})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        warn()
        remembered = dict(registry)
        filters = list(warnings.filters)
        guard.run("count", warn)
        assert registry == remembered
        assert list(warnings.filters) == filters
        warn()  # has been shown once already
    assert [str(one.message) for one in seen] == ["once"]
    guard.run("count", warn)  # an error where the script says so: it would have been raised
    assert told == []


def is_open(lines: Lines) -> bool:
    return lines.open


def test_a_full_disk_and_a_removed_file_end_it_in_silence(tmp_path: Path) -> None:
    for path in (Path("/dev/full"), tmp_path / "metrics.jsonl"):
        lines = Lines(str(path), 0.0)
        assert is_open(lines)
        if path.parent == tmp_path:
            path.unlink()
        lines.write("steps", {"step": 1})
        assert not is_open(lines)
        lines.write("steps", {"step": 2})
    assert not Lines(str(tmp_path / "gone" / "metrics.jsonl"), 0.0).open


@pytest.mark.parametrize("act", [lambda lines: lines.write("steps", {"step": 1}), Lines.close])
def test_a_script_that_closes_what_it_does_not_know_keeps_its_next_file(
    tmp_path: Path, act: Callable[[Lines], None]
) -> None:
    lines = Lines(str(tmp_path / "metrics.jsonl"), 0.0)
    number = lines._fd
    assert number is not None
    os.close(number)
    theirs = os.open(tmp_path / "theirs", os.O_WRONLY | os.O_CREAT, 0o600)
    if theirs != number:  # another thread of this process was quicker
        os.dup2(theirs, number)
    act(lines)
    assert not is_open(lines)
    assert os.write(number, b"weights") == 7
    os.close(number)
    assert (tmp_path / "theirs").read_bytes() == b"weights"


def test_one_process_has_the_file_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    monkeypatch.setenv("REMOTE_TRAIN_METER", str(path))
    monkeypatch.setenv("REMOTE_TRAIN_BEGAN", "1.5")
    monkeypatch.delenv("RANK", raising=False)
    first = open_lines()
    assert first is not None
    assert open_lines() is None
    first.write("off", {"why": "one"})
    first.close()
    second = open_lines()
    assert second is not None
    second.write("off", {"why": "two"})
    second.close()
    assert [line["why"] for line in read_lines(path)] == ["one", "two"]
    monkeypatch.setenv("RANK", "1")
    assert open_lines() is None


@pytest.mark.parametrize("began", ["", "soon"])
def test_without_a_beginning_there_is_no_meter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, began: str
) -> None:
    monkeypatch.setenv("REMOTE_TRAIN_METER", str(tmp_path / "metrics.jsonl"))
    monkeypatch.setenv("REMOTE_TRAIN_BEGAN", began)
    assert open_lines() is None


def test_a_forked_child_never_writes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = Lines(str(path), 0.0)
    child = os.fork()
    if child == 0:
        lines.write("off", {"why": "the child's"})
        os._exit(0)
    os.waitpid(child, 0)
    lines.write("off", {"why": "ours"})
    lines.close()
    assert [line["why"] for line in read_lines(path)] == ["ours"]


class Optimizer:
    """Something to hold weakly."""


def test_the_lead_is_free_when_the_leader_is_gone() -> None:
    leader, first = Leader(), Optimizer()
    leader.lead(first)
    assert leader.id == id(first)
    other = Optimizer()
    assert not leader.passes_to(other, 1)
    del first
    assert leader.passes_to(other, 1)


def test_many_that_step_once_each_are_never_counted_as_leading() -> None:
    leader, first = Leader(), Optimizer()
    others = [Optimizer() for _ in range(300)]
    leader.lead(first)
    for step in range(40):
        assert not any(leader.passes_to(other, step) for other in others[leader.patience :])
    assert leader.patience >= len(others)


@given(st.integers(1, 10**6), st.integers(0, 9), st.floats(0, 100), st.floats(0, 1000))
def test_after_the_first_steps_less_than_one_in_sixty_four_is_looked_at(
    step: int, samples: int, step_seconds: float, apart: float
) -> None:
    following = schedule.next_sample_step(step, samples, step_seconds, apart)
    assert following == step if samples < schedule.FIRST_SAMPLES else following >= step + 64


def test_slow_steps_are_counted_before_a_short_run_is_over() -> None:
    assert not schedule.is_time_to_count(1, 0.5)
    assert schedule.is_time_to_count(1, 2.5)
    assert schedule.is_time_to_count(4, 0.01)
    assert [schedule.window_seconds(age) for age in (0, 119, 121, 3601)] == [1, 1, 5, 10]


@pytest.mark.parametrize(
    ("at", "value"), [(10, 100.0), (15, 150.0), (20, 200.0), (40, 400.0), (5, 50.0), (None, 150.0)]
)
def test_sizes_between_those_counted(at: int | None, value: float) -> None:
    assert interpolate([(10, 100.0), (20, 200.0)], at) == value
    assert interpolate([], at) is None


@given(st.lists(st.floats(0, 100), min_size=2, max_size=3000))
def test_the_longest_step_is_never_lost(gaps: list[float]) -> None:
    moments = [0.0]
    for gap in gaps:
        moments.append(moments[-1] + gap)
    found = summarise(moments)
    assert found["longest"] == pytest.approx(max(gaps), abs=1e-6)
    assert found["median"] is not None
    assert min(gaps) - 1e-6 <= found["median"] <= max(gaps) + 1e-6


class Event:
    """A device's event: passed once the device has come so far."""

    now = 0.0

    def __init__(self, at: float) -> None:
        self.at = at

    def query(self) -> bool:
        return Event.now >= self.at

    def elapsed_time(self, other: Event) -> float:
        return (other.at - self.at) * 1000.0


def test_a_window_on_a_device_waits_for_the_device_and_has_its_time() -> None:
    Event.now = 1.0
    window = Window(Mark(10.0, Event(1.0)))
    window.moments += [10.1, 10.2]
    window.close(Mark(10.2, Event(3.5)), 7, 1, {"data": 0.5})
    assert window.make_line() is None
    Event.now = 4.0
    assert window.make_line() == {
        "step": 7,
        "steps": 2,
        "seconds": 2.5,
        "data": 0.5,
        "median": 0.1,
        "longest": 0.1,
    }
    assert window.iterations == 3
    assert elapsed(Mark(10.0, Event(1.0)), Mark(12.0)) == 2.0  # without an event it is the host's time


def test_no_event_is_recorded_into_a_graph_that_is_being_captured() -> None:
    class Cuda:
        capturing = True

        def is_current_stream_capturing(self) -> bool:
            return self.capturing

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                pass

        def current_device(self) -> int:
            return 3

    class Torch:
        cuda = Cuda()

    clock = Clock(Torch, "cuda")
    assert clock.mark(5.0).event is None
    Torch.cuda.capturing = False
    mark = clock.mark(5.0)
    assert mark.event is not None
    assert mark.device == 3
    assert elapsed(mark, Mark(7.0, mark.event, 4)) == 2.0  # events of two devices cannot be compared
    assert Clock(Torch, "cpu").mark(5.0).event is None


def test_two_threads_that_come_at_once_leave_the_guard_open() -> None:
    """The second one comes between the first one's look whether anybody is at work and its work."""
    guard, _ = make_guard()
    within, end = threading.Event(), threading.Event()

    def work() -> None:
        within.set()
        end.wait(PATIENT)

    def come() -> None:
        guard.run("call", work)
        within.set()

    def leave() -> None:
        end.set()
        other.join()

    def trace(frame: Any, _event: str, _argument: object) -> None:
        if frame.f_code.co_name == "_attempt" and not within.is_set():
            other.start()
            assert within.wait(PATIENT)

    other, before = threading.Thread(target=come), sys.gettrace()
    sys.settrace(trace)
    try:
        guard.run("step", leave)
    finally:
        sys.settrace(before)
    assert guard.run("step", lambda: 5) == 5
