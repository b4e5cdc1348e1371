"""The modules whose calls are looked for: the outermost that hold what is trained, or the parts of one never called."""

from __future__ import annotations

import time
import weakref

from . import schedule
from .estimate import is_unknown
from .modules import find_inner, find_outermost, find_watchable
from .settings import list_parameters

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Dict, Hashable, Iterable, List, Set, Tuple

    from .modules import Watchable

    Module = Any

_MOST = 256  # modules watched at once; more parts than that are not looked for
_REACHES = 3  # how often a look at all objects is made again for what other optimizers train


class Roots:
    """Finds them and goes down into what is not called. Modules and optimizers are held weakly.

    A module's `place` is the same for the next one of its class and shapes, so that a script which makes a new model for
    each task does not have each counted. Looks at all objects take no more than a share of the run; `seconds` is their sum.
    """

    def __init__(self, torch: Any) -> None:  # noqa: ANN401  (a module)
        self._torch = torch
        self._modules: List[weakref.ref[Module]] = []
        self._optimizers: List[weakref.ref[Any]] = []
        self._known: Set[int] = set()
        self._news = False
        self._level = self._reaches = self._looks = 0
        self._began = time.perf_counter()
        self._interned: Dict[Hashable, int] = {}
        self.places: Dict[int, int] = {}
        self.seconds = 0.0

    def __bool__(self) -> bool:
        """Whether any was found."""
        return bool(self._modules)

    def alive(self) -> List[Module]:
        """Return those that the script has not dropped."""
        return [module for module in (reference() for reference in self._modules) if module is not None]

    def watchable(self) -> List[Watchable]:
        """Say of each how its calls can be seen."""
        return find_watchable(self.alive())

    def may_look(self) -> bool:
        """Tell whether one more look at all objects would be no more than a share of the run."""
        spent = time.perf_counter() - self._began
        return self._looks < schedule.FIRST_SAMPLES or self.seconds <= schedule.LOOK_SHARE * spent

    def find(self, optimizer: Any) -> None:  # noqa: ANN401  (torch's)
        """Find what holds this optimizer's parameters, and forget the others."""
        self._optimizers, self._known = [weakref.ref(optimizer)], {id(optimizer)}
        self._news, self._reaches = False, 0
        self._look()

    def forget(self) -> None:
        """Hold nothing: what is trained now will be looked for later."""
        self._modules, self._optimizers, self._news = [], [], False

    def note(self, optimizer: Any) -> None:  # noqa: ANN401  (torch's)
        """Take note of another optimizer that steps: what it trains, a GAN's other half, is trained too."""
        if id(optimizer) not in self._known:
            self._known.add(id(optimizer))
            self._optimizers.append(weakref.ref(optimizer))
            self._news = True

    def reach_out(self) -> bool:
        """Find what the optimizers noted meanwhile train besides; tell whether there was any of it."""
        if not self._news or self._reaches >= _REACHES:
            return False
        self._news = False
        held = {id(parameter) for module in self.alive() for parameter in module.parameters()}
        if all(id(parameter) in held for parameter in self._list_parameters()):
            return False
        self._reaches += 1
        before = {id(module) for module in self.alive()}
        self._look()
        return {id(module) for module in self.alive()} != before

    def descend(self, called: Set[int]) -> bool:
        """Go one level down into those that were not called; tell whether anything changed.

        A LightningModule, say, is never called, but the modules in it are. One that was called stays. What two of them
        hold is looked for once, and what lies in another one is not looked for beside it.
        """
        if self._level >= schedule.LEVELS:
            return False
        self._level += 1
        roots = self.alive()
        below = {
            id(part): part
            for root in roots
            for part in ([root] if id(root) in called else find_inner(root) or [root])
        }
        chosen = [part for part in below.values() if id(part) in called or not _lies_in(part, below.values())]
        if len(chosen) > _MOST or {id(part) for part in chosen} == {id(root) for root in roots}:
            return False
        self._hold(chosen)
        return True

    def _look(self) -> None:
        began = time.perf_counter()
        self._hold(find_outermost(self._torch, self._list_parameters()))
        self._level = 0
        self._looks += 1
        self.seconds += time.perf_counter() - began

    def _list_parameters(self) -> List[Any]:
        optimizers = [one for one in (reference() for reference in self._optimizers) if one is not None]
        return [parameter for one in optimizers for parameter in list_parameters(one)]

    def _hold(self, modules: List[Module]) -> None:
        self._modules = [weakref.ref(module) for module in modules]
        keys = [
            (place, *name_class(type(module)), describe_parameters(module.parameters()))
            for place, module in enumerate(modules)
        ]
        self.places = {
            id(module): self._interned.setdefault(key, len(self._interned))
            for module, key in zip(modules, keys)
        }


def name_class(kind: type) -> Tuple[str, str]:
    """Return a class by its names: one made for each task, kept, would keep what its methods were made around."""
    return kind.__module__, kind.__qualname__


def describe_parameters(parameters: Iterable[Any]) -> Hashable:
    """Return what two models that cost the same have in common: each parameter's shape, dtype and whether it is trained."""
    return tuple(
        (() if is_unknown(one) else tuple(one.shape), one.dtype, one.requires_grad) for one in parameters
    )


def _lies_in(part: Module, others: Iterable[Module]) -> bool:
    return any(inner is part for other in others if other is not part for inner in other.modules())
