"""FLOPs per step: what was counted of each kind of call, times how often the steps that were looked at made it."""

from __future__ import annotations

import time
from collections import Counter, deque

from .counting import count_call

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Deque, Dict, Hashable, List, Optional, Tuple

    from .calls import Call
    from .counting import Count

_REMEMBERED = 256  # steps; a run whose shapes grow is described by its newest ones
_KINDS = 512  # signatures told apart; more share the mean of those counted
_MOVED = 0.005  # the line is written again when the mean has moved by more


class Tally:
    """The calls of the steps looked at, and the counts of their signatures."""

    def __init__(self) -> None:
        self._calls: Dict[Hashable, Call] = {}
        self._counts: Dict[Hashable, Count] = {}
        self._steps: Deque[Tuple[float, Counter[Hashable]]] = deque(maxlen=_REMEMBERED)
        self._backwards: Deque[Tuple[float, int]] = deque(maxlen=_REMEMBERED)
        self._told: Optional[float] = None
        self.pause = 0.0
        self.why: Optional[str] = None  # why there was nothing to count
        self.counted = False

    @property
    def samples(self) -> int:
        """How many of the steps looked at called a module."""
        return len(self._steps)

    @property
    def call(self) -> Optional[Call]:
        """One call, of the kind made last."""
        signatures = list(self._steps[-1][1]) if self._steps else []
        return self._calls.get(signatures[-1]) if signatures else None

    def add(self, calls: List[Call], backwards: int, iterations: int) -> None:
        """Add a step looked at that made these calls in so many iterations (a GradScaler may have skipped steps)."""
        self._backwards.append((iterations, backwards))
        if not calls:
            return
        for call in calls:
            if call.signature in self._calls or len(self._calls) < _KINDS:
                self._calls[call.signature] = call  # the newest: it may have kept its tensors
        self._steps.append((iterations, Counter(call.signature for call in calls)))

    def backwards(self) -> Optional[float]:
        """Return the mean number of backward passes in an iteration."""
        iterations = sum(steps for steps, _ in self._backwards)
        passes = sum(count for _, count in self._backwards)
        return passes / iterations if iterations and passes else None

    def make_rates(self, iterations: int, steps: int) -> Dict[str, Optional[float]]:
        """Return a window's mean flops and backward passes per step, of which there may be fewer than iterations."""
        rates = {"flops": self.mean()["flops"], "backwards": self.backwards()}
        each = iterations / steps if steps else 0.0
        return {name: None if value is None or not steps else value * each for name, value in rates.items()}

    def count(self, torch: Any, budget: float) -> bool:  # noqa: ANN401  (a module)
        """Count the kinds of call not counted yet, within seconds; tell whether any should be seen with its tensors."""
        began = time.monotonic()
        wanting = False
        for signature in self._order():
            if self._counts and time.monotonic() - began > budget:
                break
            count = self._counts[signature] = count_call(torch, self._calls[signature], began + budget)
            wanting |= count.wants_real
        for call in self._calls.values():
            if call.kept:
                call.args, call.kwargs, call.kept = (), {}, False  # let go of the script's data
        self.pause += time.monotonic() - began
        self.counted = True
        return wanting

    def _order(self) -> List[Hashable]:
        """Return the kinds to count: the commonest first, then the smallest and the largest, between which others lie."""
        common: Counter[Hashable] = Counter()
        for _, signatures in self._steps:
            common.update(signatures)
        left = [kind for kind in common if kind not in self._counts or self._counts[kind].wants_real]
        left.sort(key=lambda kind: size(self._calls.get(kind)) or 0)
        ends = left[:1] + left[1:][-1:]
        return sorted(left, key=lambda kind: (-common[kind] if common[kind] > 1 else 0, kind not in ends))

    def mean(self) -> Dict[str, Any]:
        """Return the means of an iteration: flops, kernels, bytes, by_dtype, tokens and samples; None where not known."""
        iterations = sum(steps for steps, _ in self._steps)
        often: Counter[Hashable] = Counter()
        for _, signatures in self._steps:
            often.update(signatures)
        answer: Dict[str, Any] = {"by_dtype": self._by_dtype(often, iterations)}
        for name in ("flops", "kernels", "bytes"):
            answer[name] = average(
                [(times, self._figure(kind, name)) for kind, times in often.items()], iterations
            )
        for name in ("tokens", "samples"):
            each = [(times, getattr(self._calls.get(kind), name, None)) for kind, times in often.items()]
            answer[name] = average(each, iterations)
        return answer

    def _by_dtype(self, often: Counter[Hashable], iterations: float) -> Dict[str, float]:
        total: Dict[str, float] = {}
        for kind, times in often.items():
            for dtype, flops in self._counts[kind].by_dtype.items() if kind in self._counts else ():
                total[dtype] = total.get(dtype, 0.0) + times * flops / iterations
        return total

    def _figure(self, kind: Hashable, name: str) -> Optional[float]:
        if kind in self._counts and not self._counts[kind].wants_real:
            value = getattr(self._counts[kind], name)
            return None if value is None else float(value)
        known = [(size(self._calls.get(each)), getattr(count, name)) for each, count in self._counts.items()]
        points = sorted((at, float(value)) for at, value in known if at is not None and value is not None)
        return interpolate(points, size(self._calls.get(kind)))

    def estimated(self) -> int:
        """Return how many kinds of call were not counted themselves."""
        kinds = {kind for _, signatures in self._steps for kind in signatures}
        return len(kinds - set(self._counts))

    def shapes(self) -> int:
        """Return how many kinds of call there were."""
        return len({kind for _, signatures in self._steps for kind in signatures})

    def counts(self) -> List[Count]:
        """Return the counts, the commonest kind's first."""
        return list(self._counts.values())

    def parameters(self) -> Tuple[Optional[int], Optional[int]]:
        """Return the parameters and the trainable ones of all modules called."""
        modules: Dict[int, Count] = {}
        for kind, count in self._counts.items():
            modules[id(self._calls[kind].module())] = count
        both = [(count.parameters, count.trainable) for count in modules.values()]
        if not both or any(one is None or other is None for one, other in both):
            return None, None
        return sum(one or 0 for one, _ in both), sum(other or 0 for _, other in both)

    def has_moved(self, flops: Optional[float]) -> bool:
        """Tell whether the mean should be said again, and take it as said."""
        before = self._told
        if before is not None and flops is not None and abs(flops - before) <= _MOVED * before:
            return False
        self._told = flops
        return before is not None or flops is not None


def average(values: List[Tuple[int, Optional[float]]], iterations: float) -> Optional[float]:
    """Return the sum of values, each so many times, in one iteration; None when one of them is not known."""
    total = 0.0
    for times, value in values:
        if value is None:
            return None
        total += times * value
    return total / iterations if values and iterations else None


def size(call: Optional[Call]) -> Optional[int]:
    """Return a measure of how much a call was given."""
    return None if call is None else (call.tokens or call.samples)


def interpolate(points: List[Tuple[int, float]], at: Optional[int]) -> Optional[float]:
    """Return the value at a size between those known, in proportion beyond them; the mean of all for no size."""
    if not points:
        return None
    if at is None:
        return sum(value for _, value in points) / len(points)
    below = [point for point in points if point[0] <= at]
    above = [point for point in points if point[0] >= at]
    if not below or not above:
        nearest, value = points[0] if not below else points[-1]
        return value * at / nearest if nearest else value
    (low, first), (high, last) = below[-1], above[0]
    return first if low == high else first + (last - first) * (at - low) / (high - low)
