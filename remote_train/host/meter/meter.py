"""The meter: what happens at each optimizer step, and what is written of many."""

from __future__ import annotations

import time
from collections import deque

from . import schedule
from .clock import Clock, Mark
from .counted import make_count_line
from .leader import Leader
from .looking import Looking
from .phases import Phases
from .sampling import Sample, is_inside_backward
from .settings import find_device, list_parameters, read_process, read_settings
from .windows import Window

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Deque, Dict, Optional, Union

    from .guard import Guard
    from .lines import Lines
    from .patches import HookSlot

_MOST_PENDING = 64


class Meter:
    """Counts the leader's steps. All but a look at the clock waits for a boundary: the end of a window or a sample."""

    def __init__(self, torch: Any, optimizer: Any, guard: Guard, lines: Lines, before_step: HookSlot) -> None:  # noqa: ANN401
        self._torch, self._guard, self._lines = torch, guard, lines
        self._is_compiling = torch.compiler.is_compiling
        self._device = find_device(list_parameters(optimizer))
        self._clock = Clock(torch, self._device)
        self.phases = Phases()
        self._looking = Looking(torch, guard, self._clock, self.phases, before_step)
        self.phases.follow_thread(self._looking.thread)
        self.phases.trained = self._looking.trained
        self.phases.on_evaluation = self._begin_evaluation
        self.phases.on_training = self._begin_training
        self.phases.on_wait = lambda: guard.run("data", self._wait)
        self._leader = Leader()
        self._step = 0
        self._others = 0
        self._boundary_seconds = 0.0
        self._boundary_step = 0
        self._moments: Any = []
        self._window: Optional[Window] = None
        self._pending: Deque[Union[Window, Sample]] = deque(maxlen=_MOST_PENDING)
        self._first = 0.0
        self._skipped = 0
        self._trains_evaluating = False  # the last evaluation ended with a step: this script trains so
        self._settings: Dict[str, Any] = {}
        self._wrote_window = False

    def begin(self, optimizer: Any) -> None:  # noqa: ANN401  (torch's)
        """Begin with the first step of all, which has just ended."""
        self._step = 1
        self._leader.lead(optimizer)
        self._looking.turn_to(optimizer, self._step)
        self._tell_settings(optimizer)
        self._first = time.perf_counter()
        self._begin_next(self._clock.mark(self._first))

    def after_step(self, optimizer: object, _arguments: object, _keywords: object) -> None:
        """Be called by torch after each step of each optimizer: about a microsecond."""
        if self._is_compiling():
            return
        if id(optimizer) != self._leader.id:
            self._others += 1
            if (
                self._others > self._leader.patience
                or not self._leader.id
                or self._looking.sample is not None
            ):
                self._guard.run("step", self._after_other, optimizer)
            return
        now = time.perf_counter()
        self._others = 0
        self._step += 1
        self._moments.append(now)
        if now >= self._boundary_seconds or self._step >= self._boundary_step:
            self._guard.run("step", self._at_boundary, optimizer, now)

    def count_steps(self, optimizer: object) -> Optional[int]:
        """Return the steps so far if this optimizer leads, else None."""
        return self._step if id(optimizer) == self._leader.id else None

    def close(self) -> None:
        """Write what has not been written, and leave torch as it was: the process ends."""
        self._looking.stop()
        window = self._window
        if (
            window is not None
            and len(window.moments) > 1
            and not (self._device == "cuda" and self._wrote_window)
        ):
            # Without an event: how far the device is now says nothing of the last step, and nobody waits for it.
            self._close_window(Mark(window.moments[-1]))
        self._write_pending()
        self._guard.switch_off(None)
        self._lines.close()

    def _at_boundary(self, optimizer: Any, now: float) -> None:  # noqa: ANN401
        self._end_evaluation()
        mark = self._clock.mark(now)
        looking = self._looking
        sample = looking.sample
        told = looking.finish(self._step, mark, now - self._first, self._step_seconds(now))
        if told is not None:
            self._pending.append(told)
        if sample is not None and sample.paused:
            self._window = None  # its one step held the pause
        counts = looking.is_time_to_count(now - self._first) and not is_inside_backward(self._torch)
        if self._window is not None and (counts or self._is_full(now)):
            self._close_window(mark)
        if counts:
            looking.count()
            mark = self._clock.mark()
        if sample is not None:
            self._tell_count(paused=counts or sample.paused)
            self._tell_settings(optimizer)
        self._write_pending()
        if sample is not None:
            looking.cost = time.perf_counter() - mark.host
        self._begin_next(mark)

    def _after_other(self, optimizer: Any) -> None:  # noqa: ANN401
        sample = self._looking.sample
        if sample is not None and self._leader.id:
            sample.end_stepping()
            self._looking.note(optimizer)
        if self._others > self._leader.patience or not self._leader.id:
            self._consider(optimizer)

    def _consider(self, optimizer: Any) -> None:  # noqa: ANN401
        """Let another optimizer lead, if the leader is gone or idle: its step is one of the training's from now on."""
        gone = not self._leader.id
        if not self._leader.passes_to(optimizer, self._step):
            return
        self._end_evaluation()
        now = time.perf_counter()
        if gone and self._window is not None and self._looking.is_alike(optimizer) and not self._is_full(now):
            self._moments.append(now)  # one of many tasks with a new model each
        else:
            if self._window is not None and len(self._window.moments) > 1:
                self._close_window(self._clock.mark(now))
            self._window = None
        self._others = 0
        self._step += 1
        self._leader.lead(optimizer)
        self._looking.turn_to(optimizer, self._step)
        self._begin_next(self._clock.mark())

    def _begin_next(self, mark: Mark) -> None:
        """Begin what begins with the next step, and choose the boundary that comes first."""
        age = mark.host - self._first
        if self._window is None:
            self._window = Window(mark)
        self._moments = self._window.moments
        if self._step >= self._looking.step or self._looking.is_time_to_count(age):
            self._looking.start(age)
        self._boundary_seconds = self._window.begin.host + schedule.window_seconds(age)
        full = self._step + schedule.WINDOW_STEPS - len(self._moments)
        self._boundary_step = (
            self._step + 1 if self._looking.sample is not None else min(full, self._looking.step)
        )

    def _is_full(self, now: float) -> bool:
        if self._window is None:
            return False
        seconds = schedule.window_seconds(now - self._first)
        return now - self._window.begin.host >= seconds or len(self._window.moments) >= schedule.WINDOW_STEPS

    def _step_seconds(self, now: float) -> float:
        window = self._window
        return (now - window.begin.host) / max(1, len(window.moments) - 1) if window is not None else 0.0

    def _close_window(self, mark: Mark) -> None:
        window, self._window = self._window, None
        if window is not None:
            skipped, self._skipped = self.phases.skipped - self._skipped, self.phases.skipped
            window.close(mark, self._step, skipped, self.phases.take())
            self._pending.append(window)

    def _write_pending(self) -> None:
        """Write what the device has come to, in order."""
        while self._pending:
            line = self._pending[0].make_line()
            if line is None:
                return
            window = self._pending.popleft()
            if isinstance(window, Sample):
                self._lines.write("sample", line)
            else:
                self._lines.write(
                    "steps", dict(line, **self._looking.tally.make_rates(window.iterations, line["steps"]))
                )
                self._wrote_window = True

    def _tell_count(self, *, paused: bool) -> None:
        """Write what was counted, when it is new, or the reason why nothing was."""
        tally, why = self._looking.tally, self._looking.why()
        if why is not None and not tally.counted:
            tally.counted = paused = True
            tally.why = why
        mean = tally.mean()
        if tally.counted and (paused or tally.has_moved(mean["flops"])):
            tally.has_moved(mean["flops"])
            self._lines.write(
                "count", dict(make_count_line(tally, mean, self._settings, self._device), step=self._step)
            )

    def _tell_settings(self, optimizer: Any) -> None:  # noqa: ANN401
        settings = read_settings(self._torch, optimizer, self._looking.tally.call, self.phases)
        if settings != self._settings:
            self._settings = settings
            process = read_process(self._torch, self._device)
            self._lines.write("start", dict({"format": 1}, **process, settings=settings))

    def _begin_evaluation(self) -> None:
        """Look at no call until the script is back at training, or else its next step."""
        sample = self._looking.sample
        if sample is not None and self._trains_evaluating:
            sample.spoiled = True
        elif sample is not None:
            sample.suspend()
        self._boundary_step = 0

    def _begin_training(self) -> None:
        self._trains_evaluating = False
        sample = self._looking.sample
        if sample is not None and sample.suspended:
            sample.resume()

    def _end_evaluation(self) -> None:
        """End at a step what was no evaluation, after all."""
        if not self.phases.evaluating:
            return
        self.phases.end_evaluation(counts=False)
        self._trains_evaluating = True
        sample = self._looking.sample
        if sample is not None and sample.suspended:  # it has not seen all calls of this step
            self._looking.stop()

    def _wait(self) -> None:
        if self._looking.sample is not None:
            self._looking.sample.wait()
