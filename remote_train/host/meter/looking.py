"""The steps that are looked at closely, and the one pause in which their calls are counted."""

from __future__ import annotations

import threading
import weakref

from . import schedule
from .roots import Roots, describe_parameters
from .sampling import Sample, is_inside_backward
from .settings import list_parameters
from .tally import Tally

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Hashable, Optional, Set

    from .calls import Call
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
        self._roots = Roots(torch)
        self._later: Optional[weakref.ref[Any]] = None
        self._likeness: Hashable = None
        self._told = float("-inf")
        self.cost = 0.0  # seconds that the end of the last look took besides, for what was written of it
        self._looks = 0
        self._skipped = 0
        self._first_parameter = 0
        self._budget = schedule.PAUSE_SECONDS
        self._retries = 1
        self._keep = False
        guard.undo(self.stop)

    def turn_to(self, optimizer: Any, step: int) -> None:  # noqa: ANN401  (torch's)
        """Look at what this optimizer trains from now on; one that trains what the last one did changes nothing."""
        self.stop()
        parameters = list_parameters(optimizer)
        first = id(parameters[0]) if parameters else 0
        if first == self._first_parameter and self._roots.alive():
            return
        self._first_parameter = first
        likeness = type(optimizer), describe_parameters(parameters)
        if self.is_alike(optimizer):
            if self.tally.counted:
                self.tally.grow_old()
        else:
            self.tally, self._likeness = Tally(), likeness
        self._looks, self._keep, self.step = 0, False, step
        self._roots.forget()
        self._later = weakref.ref(optimizer)
        self._find()

    def is_alike(self, optimizer: Any) -> bool:  # noqa: ANN401  (torch's)
        """Tell whether an optimizer trains what costs the same as what the last one trained, going by the shapes."""
        return (type(optimizer), describe_parameters(list_parameters(optimizer))) == self._likeness

    def _find(self) -> None:
        """Find the modules of the optimizer turned to, unless a script with a new model a moment has made us look too often."""
        optimizer = self._later() if self._later is not None else None
        if optimizer is None or not self._roots.may_look():
            return
        self._later = None
        before = self._roots.seconds
        self._roots.find(optimizer)
        self.tally.pause += self._roots.seconds - before

    def note(self, optimizer: Any) -> None:  # noqa: ANN401  (torch's)
        """Take note of another optimizer that steps, whose modules are trained as well."""
        if not self.tally.counted:
            self._roots.note(optimizer)

    def trained(self) -> Set[int]:
        """Return the ids of the modules whose calls are looked for, and of those they wrap."""
        known: Set[int] = set()
        for one in self._roots.alive():
            known |= {id(one), id(getattr(one, "module", None)), id(getattr(one, "_orig_mod", None))}
        return known

    def start(self, seconds: float) -> None:
        """Begin to look at the step that begins now, `seconds` after the first one."""
        self._find()
        if self._later is not None:
            self.step += schedule.SAMPLE_STEPS
            return
        self._skipped = self._phases.skipped
        self.sample = Sample(self._torch, self._clock, self.thread, keep=self._keep)
        self.sample.data = self._phases.data
        if self.is_time_to_count(seconds) and is_inside_backward(self._torch):
            self.sample.at_first_call = self.count
        self.sample.start(self._guard, self._roots.watchable(), self._before_step)

    def finish(self, step: int, end: Mark, age: float, step_seconds: float) -> Optional[Sample]:
        """End the look at a step's end, `age` seconds after the first; it is returned if its time is worth telling."""
        sample, self.sample = self.sample, None
        if sample is None:
            return None
        sample.finish(step, end)
        sample.data = max(0.0, self._phases.data - sample.data)
        self._looks += 1
        self._add(sample)
        apart = schedule.sample_seconds(age, sample.cost + self.cost)
        first = self.tally.samples if self.why() is None else schedule.UNEVEN_SAMPLES
        self.step = schedule.next_sample_step(step, first, step_seconds, apart, uneven=self.tally.uneven)
        return sample if not sample.spoiled and self._is_worth_telling(age) else None

    def _is_worth_telling(self, age: float) -> bool:
        """Tell whether a sample's time should be told: the first few, then one in a window's time."""
        if self._looks > schedule.FIRST_SAMPLES and age - self._told < schedule.window_seconds(age):
            return False
        self._told = age
        return True

    def _add(self, sample: Sample) -> None:
        """Add what a sample saw; nothing of it counts if it could not see all that is trained."""
        if not self.tally.counted and self._roots.reach_out():
            self.tally, self._looks = Tally(), 0
            return
        called = {id(call.module()) for call in sample.calls}
        for call in sample.calls:
            self._rename(call)
        self.tally.add(sample.calls, sample.backwards, 1 + self._phases.skipped - self._skipped)
        watched = {id(module) for module in self._roots.alive()}
        early = self._looks <= schedule.LEVELS or not sample.calls
        if early and not watched <= called and self._roots.descend(called):
            self.tally.grow_old()
        if self.tally.counted and not self.tally.may_count_later(self._budget):
            self.tally.release()

    def _rename(self, call: Call) -> None:
        """Name the module in a call's signature by its place, which the next model of a script may take."""
        if isinstance(call.signature, tuple):
            module, *rest = call.signature
            call.signature = (self._roots.places.get(module, module), *rest)

    def is_time_to_count(self, seconds: float) -> bool:
        """Tell whether the FLOPs should be counted now, given the seconds since the first step."""
        if self.tally.counted:
            return self.tally.may_count_later(self._budget)
        if not self._roots:
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

    def stop(self) -> None:
        """Take everything out of the modules and of torch."""
        sample, self.sample = self.sample, None
        if sample is not None:
            sample.stop()

    def why(self) -> Optional[str]:
        """Return why no call was seen, as far as that is known; None while it may still come."""
        if self._later is not None:
            return None
        if not self._roots:
            return "no module holds what the optimizer updates"
        if self.tally.samples or self._looks < schedule.FIRST_SAMPLES + schedule.LEVELS:
            return None
        unseen = [one.why for one in self._roots.watchable() if one.why]
        return (
            unseen[0]
            if unseen
            else "no call of a module was seen: torch.compile may have compiled a function around it"
        )


def choose_thread(torch: Any) -> int:  # noqa: ANN401  (a module)
    """Return the thread that trains: this one, unless a backward pass is calling us from a thread of its own."""
    main = threading.main_thread().ident
    return main if main is not None and is_inside_backward(torch) else threading.get_ident()
