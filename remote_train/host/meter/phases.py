"""Seconds a training spends on other things than steps: waiting for its DataLoader, saving, evaluating."""

from __future__ import annotations

import sys
import threading
import time

from .patches import nothing, replace

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional, Set

    from .guard import Guard

    CountSteps = Callable[[object], Optional[int]]


class Phases:
    """Adds up the phases' seconds in the training's thread; `take` reads and resets them.

    Watches what a script calls rarely, or at a cost beside which ours is nothing: DataLoader iterators, the inside of
    torch.save, GradScaler.step, Module.eval and, while an evaluation goes on, Module.train.
    """

    __slots__ = (
        "_began_evaluating",
        "_busy",
        "_seconds",
        "_thread",
        "on_evaluation",
        "on_training",
        "on_wait",
        "scaler",
        "skipped",
        "trained",
        "unwatch_train",
        "watch_train",
        "workers",
    )

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._seconds = {"eval": 0.0, "save": 0.0, "data": 0.0}
        self._busy: Optional[str] = None
        self._began_evaluating: Optional[float] = None
        self.trained: Callable[[], Set[int]] = set  # the ids of the modules whose eval() begins an evaluation
        self.on_evaluation: Callable[[], None] = nothing
        self.on_training: Callable[[], None] = nothing
        self.watch_train: Callable[[], Callable[[], None]] = lambda: nothing
        self.unwatch_train: Callable[[], None] = nothing
        self.on_wait: Callable[[], None] = nothing  # for data
        self.skipped = 0  # iterations that a GradScaler left without a step
        self.scaler = False
        self.workers: Optional[int] = None

    def follow_thread(self, thread: int) -> None:
        """Count what this thread does: the one whose optimizer steps are counted."""
        self._thread = thread

    @property
    def data(self) -> float:
        """Seconds waited for data since the last `take`."""
        return self._seconds["data"]

    def take(self) -> Dict[str, float]:
        """Return the seconds by phase since the last call; an evaluation under way counts so far."""
        if self._began_evaluating is not None:
            now = time.perf_counter()
            self._seconds["eval"] += now - self._began_evaluating
            self._began_evaluating = now
        taken = dict(self._seconds)
        self._seconds.update(eval=0.0, save=0.0, data=0.0)
        return taken

    def evaluate(self, module: object) -> None:
        """Begin an evaluation, if this is a module that is trained."""
        if threading.get_ident() != self._thread or self.evaluating or id(module) not in self.trained():
            return
        self._began_evaluating = time.perf_counter()
        self.unwatch_train = self.watch_train()
        self.on_evaluation()

    def train(self, module: object) -> None:
        """End the evaluation, if this is a module that is trained."""
        if threading.get_ident() == self._thread and id(module) in self.trained():
            self.end_evaluation(counts=True)
            self.on_training()

    def end_evaluation(self, *, counts: bool) -> None:
        """End it; one that the next step finds still going on was none, and does not count."""
        if self._began_evaluating is not None and counts:
            self._seconds["eval"] += time.perf_counter() - self._began_evaluating
        self._began_evaluating = None
        self.unwatch_train()

    @property
    def evaluating(self) -> bool:
        """Whether an evaluation has begun."""
        return self._began_evaluating is not None

    def begin(self, name: str) -> Optional[float]:
        """Return the moment at which a phase begins; None within another, in another thread, or for data to evaluate on."""
        if self._busy or threading.get_ident() != self._thread:
            return None
        if self._began_evaluating is not None and name == "data":
            return None
        self._busy = name
        if name == "data":
            self.on_wait()
        return time.perf_counter()

    def end(self, name: str, began: float) -> None:
        """Add the time since the phase began; saving may come before an evaluation is seen to be over, and is no part of it."""
        spent = time.perf_counter() - began
        self._busy = None
        self._seconds[name] += spent
        if self._began_evaluating is not None:
            self._began_evaluating += spent


def install(torch: Any, phases: Phases, guard: Guard, count_steps: CountSteps) -> None:  # noqa: ANN401  (a module)
    """Replace the few functions of torch, until the guard is switched off.

    `count_steps` returns the steps so far if it is given the optimizer whose steps are counted, and None otherwise.
    """

    def timed(name: str) -> Callable[[Any], Any]:
        return lambda original: _make_timed(name, original, phases)

    loader = sys.modules.get("torch.utils.data.dataloader")
    iterators = getattr(loader, "_BaseDataLoaderIter", None)
    scalers = getattr(sys.modules.get("torch.amp.grad_scaler"), "GradScaler", None)
    if iterators is not None:
        guard.undo(replace(iterators, "__next__", lambda original: _make_next(original, phases)))
    if scalers is not None:
        guard.undo(
            replace(scalers, "step", lambda original: _make_scaler_step(original, phases, count_steps))
        )
    for name in ("_save", "_legacy_save"):
        guard.undo(replace(torch.serialization, name, timed("save")))
    module = torch.nn.Module
    phases.watch_train = lambda: replace(
        module, "train", lambda original: _make_train(torch, original, phases, guard)
    )
    guard.undo(lambda: phases.end_evaluation(counts=False))
    guard.undo(replace(module, "eval", lambda original: _make_eval(torch, original, phases, guard)))


def _make_timed(name: str, original: Callable[..., Any], phases: Phases) -> Callable[..., Any]:
    def timed(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401
        began = phases.begin(name)
        if began is None:
            return original(*arguments, **keywords)
        try:
            return original(*arguments, **keywords)
        finally:
            phases.end(name, began)

    return timed


def _make_next(original: Callable[..., Any], phases: Phases) -> Callable[..., Any]:
    timed = _make_timed("data", original, phases)

    def __next__(self: Any) -> Any:  # noqa: ANN401, N807  (stands in for the method of this name)
        phases.workers = getattr(self, "_num_workers", phases.workers)
        return timed(self)

    return __next__


def _make_eval(torch: Any, original: Callable[..., Any], phases: Phases, guard: Guard) -> Callable[..., Any]:  # noqa: ANN401
    def eval(self: Any) -> Any:  # noqa: ANN401, A001  (stands in for the method of this name)
        if not torch.compiler.is_compiling():
            guard.run("eval", phases.evaluate, self)
        return original(self)

    return eval


def _make_train(torch: Any, original: Callable[..., Any], phases: Phases, guard: Guard) -> Callable[..., Any]:  # noqa: ANN401
    def train(self: Any, mode: bool = True) -> Any:  # noqa: ANN401  (stands in for the method of this name)
        if mode and not torch.compiler.is_compiling():
            guard.run("train", phases.train, self)
        return original(self, mode)

    return train


def _make_scaler_step(
    original: Callable[..., Any], phases: Phases, count_steps: CountSteps
) -> Callable[..., Any]:
    def step(self: Any, optimizer: Any, *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401
        phases.scaler = bool(getattr(self, "_enabled", True))
        before = count_steps(optimizer)
        answer = original(self, optimizer, *arguments, **keywords)
        if before is not None and count_steps(optimizer) == before:
            phases.skipped += 1
        return answer

    return step
