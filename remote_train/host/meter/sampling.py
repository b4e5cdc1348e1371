"""One step looked at closely: which calls of modules it made, and where its time went."""

from __future__ import annotations

import threading
import time

from .calls import describe_call
from .clock import all_passed, elapsed
from .modules import watch
from .patches import nothing, watch_backward

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

    from .calls import Call
    from .clock import Clock, Mark
    from .guard import Guard
    from .modules import Watchable
    from .patches import HookSlot

_MOST_MARKS = 256  # of a step with more the time is not told
_MOST_CALLS = 4096  # of a step with more the rest is not described
_MOST_KEPT = 8  # of so many calls real tensors are copied
_SHARES = ("forward", "backward", "optimizer")


class Sample:
    """A step from its begin to its end. What it puts into modules and torch is gone when `finish` returns.

    Time goes to `forward` from the first call of a module until a backward pass or the optimizer begins, so the loss is
    in it; to `backward` from its begin to what can be seen next, a call, the optimizer or a wait for data, so clipping
    is in it; to `optimizer` while it runs; the rest lies between.
    """

    def __init__(self, torch: Any, clock: Clock, thread: int, *, keep: bool = False) -> None:  # noqa: ANN401  (a module)
        self._torch, self._clock, self._thread, self._keep = torch, clock, thread, keep
        self._undo: List[Callable[[], None]] = []
        self._unwatch: List[Callable[[], None]] = []
        self._watched: List[Watchable] = []
        self._watch: Callable[[Watchable], Callable[[], None]] = lambda _one: nothing
        self._running: List[Tuple[int, Call]] = []
        self._begin: Mark = clock.mark()
        self._marks: List[Tuple[str, Mark]] = [("between", self._begin)]
        self.calls: List[Call] = []
        self.backwards = 0
        self._stepping = False
        self.spoiled = False  # the time; the calls count all the same
        self.suspended = False
        self.paused = False  # the calls of earlier steps were counted within it
        self.at_first_call: Optional[Callable[[], None]] = None
        self.starved: Optional[bool] = None
        self.cost = 0.0  # seconds of ours, in the host's time
        self.data = 0.0
        self.step = 0

    def start(self, guard: Guard, watched: Iterable[Watchable], before_step: HookSlot) -> None:
        """Begin to look, at the end of the step before."""
        see, done = _make_guarded(guard, "call", self._see), _make_guarded(guard, "call", self._saw)
        self._watched = [one for one in watched if one.how is not None]
        self._watch = lambda one: watch(one, see, done)
        self.resume()
        notice = _make_guarded(guard, "backward", self.begin_backward)
        self._undo.append(watch_backward(self._torch, notice))
        before_step.put(lambda *_: guard.run("optimizer", self.begin_stepping))
        self._undo.append(before_step.clear)
        self.cost += time.perf_counter() - self._begin.host

    def suspend(self) -> None:
        """Look at no calls until `resume`: an evaluation begins. Where the time goes is not told then."""
        self.spoiled = self.suspended = True
        while self._unwatch:
            self._unwatch.pop()()

    def resume(self) -> None:
        """Look at calls, again."""
        self.suspended = False
        self._unwatch += [self._watch(one) for one in self._watched]

    def finish(self, step: int, end: Mark) -> None:
        """Stop looking, at the step's end."""
        began = time.perf_counter()
        self.stop()
        for _, call in self._running:  # it raised, and the script went on: out of memory, say
            self.calls.remove(call)
        self.step = step
        if self._begin.event is not None:
            self.starved = self._begin.passed()
        self._marks.append(("end", end))
        self.cost += time.perf_counter() - began

    def stop(self) -> None:
        """Take everything out again; twice is fine."""
        for undo in (self._unwatch, self._undo):
            while undo:
                undo.pop()()

    def enter(self, name: str) -> None:
        """Note that another part of the step begins, in the training's thread and outside of a backward pass."""
        if not self._is_training():
            return
        if len(self._marks) >= _MOST_MARKS:
            self.spoiled = True
        elif self._marks[-1][0] != name:
            self._marks.append((name, self._clock.mark()))

    def begin_stepping(self) -> None:
        """Note that an optimizer's step begins; with a closure, the forward and backward passes are within it."""
        self._stepping = True
        self.enter("optimizer")

    def end_stepping(self) -> None:
        """Note that the step of another optimizer than the leader's has ended."""
        self._stepping = False
        self.enter("between")

    def begin_backward(self) -> None:
        """Note that a backward pass begins; nothing says when it ends."""
        if self._is_training():
            self.backwards += 1
            self.enter("backward")

    def wait(self) -> None:
        """Note that the script waits for data: what has been going on is over."""
        self.enter("optimizer" if self._stepping else "between")

    def _see(self, module: Any, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        began = time.perf_counter()
        if not self._is_training() or not self._torch.is_grad_enabled():
            return
        if self.at_first_call is not None:
            pause, self.at_first_call = self.at_first_call, None
            self.spoiled = self.paused = True
            pause()
        self.enter("forward")
        if len(self.calls) < _MOST_CALLS:
            keep = self._keep and len(self.calls) < _MOST_KEPT
            call = describe_call(self._torch, module, args, kwargs, keep=keep)
            self._running.append((id(module), call))
            self.calls.append(call)
        self.cost += time.perf_counter() - began

    def _saw(self, module: Any) -> None:  # noqa: ANN401
        """Note that a call has come to its end; those begun within it that never did were given up by the script."""
        if not self._is_training() or id(module) not in [place for place, _ in self._running]:
            return
        place = 0
        while place != id(module):
            place, call = self._running.pop()
            if place != id(module):
                self.calls.remove(call)

    def _is_training(self) -> bool:
        """Whether this is the training's thread, and no backward pass: there a checkpoint makes calls once more."""
        if threading.get_ident() != self._thread or self._torch.compiler.is_compiling():
            return False
        return not is_inside_backward(self._torch)

    def make_line(self) -> Optional[Dict[str, Any]]:
        """Return where the time went; None as long as the device has not come to the end, or when it is not known."""
        if self.spoiled or not all_passed([mark for _, mark in self._marks]):
            return None
        spent = dict.fromkeys((*_SHARES, "between"), 0.0)
        for (name, begin), (_, end) in zip(self._marks, self._marks[1:]):
            spent[name] += elapsed(begin, end) or 0.0
        seconds = elapsed(self._begin, self._marks[-1][1]) or 0.0
        line: Dict[str, Any] = {"step": self.step, "seconds": seconds, "data": self.data}
        line.update({name: spent[name] or None for name in _SHARES})
        line["other"] = max(0.0, spent["between"] - self.data)
        rounded = {
            name: round(value, 7) if isinstance(value, float) else value for name, value in line.items()
        }
        return dict(rounded, starved=self.starved)


def _make_guarded(guard: Guard, place: str, function: Callable[..., None]) -> Callable[..., None]:
    return lambda *arguments: guard.run(place, function, *arguments)


def is_inside_backward(torch: Any) -> bool:  # noqa: ANN401  (a module)
    """Tell whether a backward pass is running in this thread."""
    return bool(torch._C._current_graph_task_id() != -1)  # noqa: SLF001  (there is no public way to know)
