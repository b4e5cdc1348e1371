"""FLOPs per step: what was counted of each kind of call, times how often the steps that were looked at made it."""

from __future__ import annotations

import time
from collections import Counter, deque

from . import schedule
from .counting import count_call

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Deque, Dict, Hashable, List, Optional, Set, Tuple

    from .calls import Call
    from .counting import Count

_REMEMBERED = 256  # steps; a run whose shapes grow is described by its newest ones
_KINDS = 512  # signatures told apart; more share the mean of those counted
_LATER = 16  # kinds met later that are counted at most
_FIGURES = 16384  # of kinds, remembered between two means
_MOVED = 0.005  # the line is written again when the mean has moved by more


class Tally:
    """The calls of the steps looked at, and the counts of their signatures."""

    def __init__(self) -> None:
        self._calls: Dict[Hashable, Call] = {}
        self._counts: Dict[Hashable, Count] = {}
        self._held: Set[Hashable] = set()  # the kinds whose call still has its arguments
        self._quickest = float(
            "inf"
        )  # seconds that counting one kind has taken at least: the first one is cold
        self._later = 0
        self._old = False
        self._figures: Dict[Tuple[Hashable, str], Optional[float]] = {}  # as long as nothing more is counted
        self._mean: Optional[Dict[str, Any]] = None  # as long as nothing more is seen
        self.uneven = False  # whether the steps differed in what they called
        self._steps: Deque[Tuple[float, Counter[Hashable]]] = deque(maxlen=_REMEMBERED)
        self._backwards: Deque[Tuple[float, int]] = deque(maxlen=_REMEMBERED)
        self._told: Optional[float] = None
        self.pause = 0.0
        self.why: Optional[str] = None  # why there was nothing to count
        self.counted = False

    @property
    def samples(self) -> int:
        """How many of the steps looked at called a module, as far as they are still of what is trained."""
        return 0 if self._old else len(self._steps)

    @property
    def call(self) -> Optional[Call]:
        """One call, of the kind made last."""
        signatures = list(self._steps[-1][1]) if self._steps else []
        return self._calls.get(signatures[-1]) if signatures else None

    def add(self, calls: List[Call], backwards: int, iterations: int) -> None:
        """Add a step looked at that made these calls in so many iterations (a GradScaler may have skipped steps)."""
        if calls and self._old:
            self._steps.clear()
            self._backwards.clear()
            self._old = self.uneven = False
        self._backwards.append((iterations, backwards))
        if not calls:
            return
        for call in calls:
            if call.signature in self._calls or len(self._calls) < _KINDS:
                self._calls[call.signature] = call  # the newest: it may have kept its tensors
                self._held.add(call.signature)
        step = iterations, Counter(call.signature for call in calls)
        self.uneven |= bool(self._steps) and step != self._steps[-1]
        self._steps.append(step)
        self._mean = None
        self._drop_another_stage()

    def grow_old(self) -> None:
        """Let the steps so far count only until the next one is seen: what is looked for is another now."""
        self._old = bool(self._steps)

    def _drop_another_stage(self) -> None:
        """Forget the steps before the newest few if these made the same calls, and none of those before them any of these."""
        steps = list(self._steps)
        newest, before = steps[-schedule.FIRST_SAMPLES :], steps[: -schedule.FIRST_SAMPLES]
        if not before or any(step != newest[0] for step in newest):
            return
        if all(newest[0][1].keys().isdisjoint(kinds) for _, kinds in before):
            self._steps.clear()
            self._steps.extend(newest)
            self.uneven = False

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
        order = self._find_far() if self.counted else self._order()
        self._later += len(order) if self.counted else 0
        for signature in order:
            if self._counts and time.monotonic() - began > budget:
                break
            count = self._count_one(torch, signature, began + budget)
            wanting |= count.wants_real
        self.release()
        self.pause += time.monotonic() - began
        self.counted = True
        return wanting

    def _count_one(self, torch: Any, kind: Hashable, deadline: float) -> Count:  # noqa: ANN401  (a module)
        began = time.monotonic()
        count = self._counts[kind] = count_call(torch, self._calls[kind], deadline)
        self._quickest = min(self._quickest, time.monotonic() - began)
        self._figures.clear()
        self._mean = None
        return count

    def release(self) -> None:
        """Let go of what calls were given, which is the script's."""
        for kind in self._held:
            call = self._calls[kind]
            call.args, call.kwargs, call.kept = (), {}, False
        self._held.clear()

    def may_count_later(self, budget: float) -> bool:
        """Tell whether kinds that came after the first count should be counted too: few, quick and unlike those before."""
        quick = self._quickest <= min(schedule.LATER_SECONDS, budget)
        return self.counted and quick and self._later < _LATER and bool(self._find_far())

    def _find_far(self) -> List[Hashable]:
        """Return a kind to count that does not lie between two which were; none if there is no such."""
        for kind in self._steps[-1][1] if self._steps else ():
            sizes, at = [each for each, _ in self._list_alike(kind)], size(self._calls.get(kind))
            between = at is not None and sizes and min(sizes) <= at <= max(sizes)
            if kind in self._held and kind not in self._counts and not between:
                return [kind]
        return []

    def _order(self) -> List[Hashable]:
        """Return the kinds to count: the commonest first, then the smallest and the largest, between which others lie."""
        common: Counter[Hashable] = Counter()
        for _, signatures in self._steps:
            common.update(signatures)
        open_ones = [kind for kind in common if kind in self._held and self._is_open(kind)]
        left = [kind for kind in open_ones if self._calls[kind].module() is not None] or open_ones
        left.sort(key=lambda kind: size(self._calls.get(kind)) or 0)
        ends = left[:1] + left[1:][-1:]
        return sorted(left, key=lambda kind: (-common[kind] if common[kind] > 1 else 0, kind not in ends))

    def _is_open(self, kind: Hashable) -> bool:
        return kind not in self._counts or self._counts[kind].wants_real

    def mean(self) -> Dict[str, Any]:
        """Return the means of an iteration: flops, kernels, bytes, by_dtype, tokens and samples; None where not known."""
        if self._mean is None:
            self._mean = self._work_out()
        return self._mean

    def _work_out(self) -> Dict[str, Any]:
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
        """Return the mean FLOPs of each dtype; like their sum, those of kinds not counted lie between those that were."""
        names = sorted({name for count in self._counts.values() for name in count.by_dtype})
        total = {}
        for name in names:
            figures = [(times, self._figure(kind, "by_dtype." + name)) for kind, times in often.items()]
            total[name] = sum(times * (flops or 0.0) for times, flops in figures) / max(1.0, iterations)
        return {name: flops for name, flops in total.items() if flops}

    def _figure(self, kind: Hashable, name: str) -> Optional[float]:
        """Return what a kind's call costs: as counted, or going by the sizes of those counted."""
        if (kind, name) not in self._figures:
            if len(self._figures) >= _FIGURES:  # a script whose every call is of a new kind
                self._figures.clear()
            self._figures[kind, name] = self._choose_figure(kind, name)
        return self._figures[kind, name]

    def _choose_figure(self, kind: Hashable, name: str) -> Optional[float]:
        if not self._is_open(kind):
            return read_figure(self._counts[kind], name)
        known = [(at, read_figure(count, name)) for at, count in self._list_alike(kind)]
        points = [(at, value) for at, value in known if value is not None]
        return interpolate(points, size(self._calls.get(kind)))

    def _list_alike(self, kind: Hashable) -> List[Tuple[int, Count]]:
        """List the sizes and counts of the kinds that were counted of this one's module, called in this one's way."""
        own = [(each, count) for each, count in self._counts.items() if _way(each) == _way(kind)]
        sized = [(size(self._calls.get(each)), count) for each, count in own]
        return [(at, count) for at, count in sized if at is not None]

    def estimated(self) -> int:
        """Return how many kinds of call were not counted themselves; of a module of which none was they are not known."""
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
        modules: Dict[Hashable, Count] = {}
        for kind, count in self._counts.items():
            modules[_place(kind)] = count
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
    """Return a measure of how much a call was given: numbers in all, for a batch of longer sequences costs more."""
    return None if call is None else call.elements


def _place(kind: Hashable) -> Hashable:
    """Return what stands for the module in a signature."""
    return kind[0] if isinstance(kind, tuple) else kind


def _way(kind: Hashable) -> Hashable:
    """Return what stands in a signature for the module, whether it trains, with gradients, and under which autocast."""
    return kind[:4] if isinstance(kind, tuple) else kind


def read_figure(count: Count, name: str) -> Optional[float]:
    """Return a count's flops, kernels or bytes, or the flops of a dtype; None if they are not known."""
    name, _, dtype = name.partition(".")
    if dtype:
        return None if count.flops is None else count.by_dtype.get(dtype, 0.0)
    value = getattr(count, name)
    return None if value is None else float(value)


def interpolate(points: List[Tuple[int, float]], at: Optional[int]) -> Optional[float]:
    """Return the value at a size between those known, in proportion beyond them; the mean of all for no size.

    Where several values are known of one size, their mean stands for them.
    """
    if not points:
        return None
    if at is None:
        return sum(value for _, value in points) / len(points)
    means = sorted(_merge(points).items())
    below = [point for point in means if point[0] <= at]
    above = [point for point in means if point[0] >= at]
    if not below or not above:
        nearest, value = means[0] if not below else means[-1]
        return value * at / nearest if nearest else value
    (low, first), (high, last) = below[-1], above[0]
    return first if low == high else first + (last - first) * (at - low) / (high - low)


def _merge(points: List[Tuple[int, float]]) -> Dict[int, float]:
    values: Dict[int, List[float]] = {}
    for at, value in points:
        values.setdefault(at, []).append(value)
    return {at: sum(each) / len(each) for at, each in values.items()}
