"""The steps that are looked at closely, and the one pause in which their calls are counted."""

from __future__ import annotations

import threading
import weakref

from . import schedule
from .modules import Watchable, find_inner, find_outermost, find_watchable, watch
from .sampling import Sample, is_inside_backward
from .settings import list_parameters
from .tally import Tally

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Callable, List, Optional, Set

    from .clock import Clock, Mark
    from .guard import Guard
    from .patches import HookSlot
    from .phases import Phases


class Looking:
    """Looks at a step now and then. `sample` is the one under way, `step` the one after which the next begins.

    Modules are held weakly: a script that drops its model has dropped it.
    """

    def __init__(self, torch: Any, guard: Guard, clock: Clock, phases: Phases, before_step: HookSlot) -> None:  # noqa: ANN401
        self._torch, self._guard, self._clock, self._phases = torch, guard, clock, phases
        self._before_step = before_step
        self.tally = Tally()
        self.sample: Optional[Sample] = None
        self.step = 0
        self.thread = choose_thread(torch)
        self._modules: List[Any] = []
        self._level = 0
        self._looks = 0
        self._skipped = 0
        self._first_parameter = 0
        self._budget = schedule.PAUSE_SECONDS
        self._retries = 1
        self._keep = False
        self._unwatch: List[Callable[[], None]] = []
        guard.undo(self.stop)

    def turn_to(self, optimizer: Any, step: int) -> None:  # noqa: ANN401  (torch's)
        """Look at what this optimizer trains from now on; one that trains what the last one did changes nothing."""
        self.stop()
        parameters = list_parameters(optimizer)
        first = id(parameters[0]) if parameters else 0
        if first == self._first_parameter and any(reference() is not None for reference in self._modules):
            return
        self._first_parameter = first
        self._modules = [weakref.ref(module) for module in find_outermost(self._torch, parameters)]
        self.tally, self._level, self._looks, self._keep = Tally(), 0, 0, False
        self.step = step

    def trains(self, module: Any) -> bool:  # noqa: ANN401  (torch's)
        """Tell whether a module is one whose calls are looked for, or is wrapped by one."""
        known: Set[int] = set()
        for one in self._alive():
            known |= {id(one), id(getattr(one, "module", None)), id(getattr(one, "_orig_mod", None))}
        return id(module) in known

    def start(self, seconds: float) -> None:
        """Begin to look at the step that begins now, `seconds` after the first one."""
        self._skipped = self._phases.skipped
        self.sample = Sample(self._torch, self._clock, self.thread, keep=self._keep)
        self.sample.data = self._phases.data
        if self.is_time_to_count(seconds) and is_inside_backward(self._torch):
            self.sample.at_first_call = self.count
        self.sample.start(self._guard, self._watchable(), self._before_step)

    def finish(self, step: int, end: Mark, age: float, step_seconds: float) -> Optional[Sample]:
        """End the look at a step's end, `age` seconds after the first; it is returned if its time is worth telling."""
        sample, self.sample = self.sample, None
        if sample is None:
            return None
        sample.finish(step, end)
        sample.data = max(0.0, self._phases.data - sample.data)
        self.tally.add(sample.calls, sample.backwards, 1 + self._phases.skipped - self._skipped)
        self._looks += 1
        if not self.tally.samples:
            self._descend()
        apart = schedule.sample_seconds(age, sample.cost)
        first = self.tally.samples if self.why() is None else schedule.FIRST_SAMPLES
        self.step = schedule.next_sample_step(step, first, step_seconds, apart)
        return None if sample.spoiled else sample

    def is_time_to_count(self, seconds: float) -> bool:
        """Tell whether the FLOPs should be counted now, given the seconds since the first step."""
        if self.tally.counted or not self._modules:
            return False
        return schedule.is_time_to_count(self.tally.samples, seconds)

    def count(self) -> None:
        """Count what has been seen, with what is left of the pause; what wants real tensors gets them once."""
        before = self.tally.pause
        wanting = self.tally.count(self._torch, self._budget)
        self._budget = max(0.0, self._budget - (self.tally.pause - before))
        self._keep = wanting and self._retries > 0
        if self._keep:
            self._retries -= 1
            self.tally.counted = False

    def watch_until(self, done: Callable[[Any], bool]) -> None:
        """Watch calls outside of a sample until `done(module)` is true of one, or `unwatch`."""

        def see(module: Any, _args: Any, _kwargs: Any) -> None:  # noqa: ANN401
            if threading.get_ident() == self.thread and done(module):
                self.unwatch()

        for one in self._watchable():
            if one.how is not None:
                self._unwatch.append(
                    watch(self._torch, one, lambda *call: self._guard.run("watch", see, *call))
                )

    def unwatch(self) -> None:
        """End `watch_until`; twice is fine."""
        while self._unwatch:
            self._unwatch.pop()()

    def stop(self) -> None:
        """Take everything out of the modules and of torch."""
        self.unwatch()
        sample, self.sample = self.sample, None
        if sample is not None:
            sample.stop()

    def why(self) -> Optional[str]:
        """Return why no call was seen, as far as that is known; None while it may still come."""
        if not self._modules:
            return "no module holds what the optimizer updates"
        if self.tally.samples or self._looks < schedule.FIRST_SAMPLES + schedule.LEVELS:
            return None
        unseen = [one.why for one in self._watchable() if one.why]
        return (
            unseen[0]
            if unseen
            else "no call of a module was seen: torch.compile may have compiled a function around it"
        )

    def _alive(self) -> List[Any]:
        return [module for module in (reference() for reference in self._modules) if module is not None]

    def _watchable(self) -> List[Watchable]:
        return find_watchable(self._torch, self._alive())

    def _descend(self) -> None:
        """Look one level deeper: a LightningModule, say, is never called, but the modules in it are."""
        if self._level >= schedule.LEVELS:
            return
        self._level += 1
        deeper = [child for module in self._alive() for child in find_inner(module)]
        if deeper:
            self._modules = [weakref.ref(module) for module in deeper]


def choose_thread(torch: Any) -> int:  # noqa: ANN401  (a module)
    """Return the thread that trains: this one, unless a backward pass is calling us from a thread of its own."""
    main = threading.main_thread().ident
    return main if main is not None and is_inside_backward(torch) else threading.get_ident()
