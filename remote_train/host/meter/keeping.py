"""Puts what a forward notes outside of its model back: globals, attributes of classes, closures, and what is kept there.

That is containers, attributes of objects and modules, arrays of NumPy's and generators of random numbers.
"""

from __future__ import annotations

import collections
import contextlib
import operator
import random
import sys
import types

from .reaching import is_foreign

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, Optional, Set

    from .reaching import Reach

_DEPTH = 3  # of containers and objects in one another
_LARGE = 1000  # entries; of a larger container they are put back, but not what is in them
_MOST = 5000  # entries that are looked into: a few milliseconds
_MOST_LARGE = (
    1_000_000  # entries put back; of a container beyond them only what was added at its end is taken away
)
_MOST_BYTES = 1 << 26  # of arrays
_CONTAINERS = (list, dict, set, collections.deque)
_PLAIN = frozenset(
    [type(None), bool, int, float, str, bytes, tuple, types.FunctionType, types.ModuleType, type]
)
_MISSING = object()


@contextlib.contextmanager
def keep_outside(reach: Reach) -> Iterator[None]:
    """Put back what was changed within and lies in reach: the rest may have been changed by another thread."""
    keeper = _Keeper()
    for space, names in reach.globals.values():
        keeper.keep_names(space, names)
    for kind in reach.classes:
        keeper.keep_class(kind)
    for cell in reach.cells:
        keeper.keep_cell(cell)
    for value in reach.values:
        keeper.keep(value)
    misses = [(cache, cache.cache_info().misses) for cache in reach.caches]
    try:
        yield
    finally:
        keeper.put_back()
        for cache, before in misses:
            if cache.cache_info().misses != before:
                cache.cache_clear()  # it may have a tensor without data


class _Keeper:
    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()  # which goes on where one fails
        self._seen: Dict[int, Any] = {}
        self._entries = 0
        self._room, self._bytes = _MOST_LARGE, _MOST_BYTES

    def put_back(self) -> None:
        self._undo.close()

    def keep_names(self, space: Dict[str, Any], names: Set[str]) -> None:
        saved = {name: space[name] for name in names if name in space}
        self._undo.callback(lambda: _restore_names(space, names, saved))
        for value in saved.values():
            self.keep(value)

    def keep_class(self, kind: type) -> None:
        saved = {name: value for name, value in vars(kind).items() if not _is_reserved(name)}
        self._undo.callback(lambda: _restore_class(kind, saved))
        for value in saved.values():
            self.keep(value)

    def keep_cell(self, cell: Any) -> None:  # noqa: ANN401
        value = cell.cell_contents
        self._undo.callback(lambda: _restore_cell(cell, value))
        self.keep(value)

    def keep(self, value: Any, depth: int = _DEPTH) -> None:  # noqa: ANN401  (any value of a program)
        """Keep a container's entries or an object's attributes, and those of the ones in it."""
        if type(value) in _PLAIN or self._keep_state(value):
            return
        if not isinstance(value, _CONTAINERS):
            value = _find_attributes(value)
        if value is None or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        size = len(value)
        if size > self._room:
            self._undo.callback(lambda: _cut(value, size))
            return
        self._room -= size
        saved = _copy(value)
        self._undo.callback(lambda: _restore(value, saved))
        if depth > 1 and size <= _LARGE and self._entries + size <= _MOST:
            self._entries += size
            for part in list(dict.values(value)) if isinstance(value, dict) else list(value):
                self.keep(part, depth - 1)

    def _keep_state(self, value: Any) -> bool:  # noqa: ANN401
        """Keep an array or a generator of random numbers; tell whether it was one."""
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray):
            if id(value) not in self._seen and value.flags.writeable and value.nbytes <= self._bytes:
                self._seen[id(value)] = value
                self._bytes -= value.nbytes
                saved = value.copy()
                self._undo.callback(lambda: _restore_array(numpy, value, saved))
            return True
        rewind = _make_rewind(numpy, value)
        if rewind is not None:
            self._undo.callback(rewind)
        return rewind is not None


def _make_rewind(numpy: Any, value: Any) -> Optional[Callable[[], object]]:  # noqa: ANN401  (a module)
    """Return what puts a generator of random numbers back to where it is now; None for anything else."""
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        state = value.getstate()
        return lambda: value.setstate(state)
    if numpy is not None and isinstance(value, numpy.random.RandomState):
        old = value.get_state()
        return lambda: value.set_state(old)
    if numpy is not None and isinstance(value, numpy.random.Generator):
        bits: Any = value.bit_generator
        now = bits.state
        return lambda: setattr(bits, "state", now)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Generator):
        twin = value.get_state()
        return lambda: value.set_state(twin)
    return None


def _restore_array(numpy: Any, value: Any, saved: Any) -> None:  # noqa: ANN401  (a module and its arrays)
    if not numpy.array_equal(value, saved):
        value[...] = saved


def _find_attributes(value: Any) -> Any:  # noqa: ANN401
    """Return the attributes of an object that may keep books: not of a tensor, a class or a function, nor of a layer of torch's."""
    if isinstance(value, type) or is_foreign(type(value)):
        return None
    attributes = getattr(value, "__dict__", None)
    return attributes if isinstance(attributes, dict) else None


def _copy(value: Any) -> Any:  # noqa: ANN401  (a container)
    if isinstance(value, dict):
        return dict(dict.items(value))  # `dict.copy` calls what a subclass has overridden
    return set.copy(value) if isinstance(value, set) else list(value)


def _is_reserved(name: str) -> bool:
    return (name.startswith("__") and name.endswith("__")) or name.startswith("_abc_")


def _restore_names(space: Dict[str, Any], names: Set[str], saved: Dict[str, Any]) -> None:
    for name in names:
        if name in saved:
            if space.get(name, _MISSING) is not saved[name]:
                space[name] = saved[name]
        elif name in space:
            del space[name]


def _restore_class(kind: type, saved: Dict[str, Any]) -> None:
    now = {name: value for name, value in vars(kind).items() if not _is_reserved(name)}
    for name, value in saved.items():
        if now.get(name, _MISSING) is not value:
            type.__setattr__(kind, name, value)
    for name in now.keys() - saved.keys():
        type.__delattr__(kind, name)


def _restore_cell(cell: Any, value: Any) -> None:  # noqa: ANN401
    """Written again in any case: the forward may have emptied it."""
    cell.cell_contents = value


def _restore(value: Any, saved: Any) -> None:  # noqa: ANN401  (a container)
    if _is_as_saved(_copy(value), saved):
        return
    if isinstance(value, dict):
        base: Any = collections.OrderedDict if isinstance(value, collections.OrderedDict) else dict
        for name in dict.keys(value) - dict.keys(saved):
            base.__delitem__(value, name)
        for name, part in dict.items(saved):
            if dict.get(value, name, _MISSING) is not part:
                base.__setitem__(value, name, part)
    elif isinstance(value, set):
        set.difference_update(value, set(value) - saved)
        set.update(value, saved)
    else:
        kind: Any = list if isinstance(value, list) else collections.deque
        kind.clear(value)
        kind.extend(value, saved)


def _is_as_saved(value: Any, saved: Any) -> bool:  # noqa: ANN401  (containers)
    """Tell whether the entries are the same objects in the same order; of a million in a few hundredths of a second."""
    if len(value) != len(saved) or not all(map(operator.is_, value, saved)):
        return False
    return not isinstance(value, dict) or all(map(operator.is_, value.values(), saved.values()))


def _cut(value: Any, size: int) -> None:  # noqa: ANN401  (a large container)
    while len(value) > size and not isinstance(value, set):
        if isinstance(value, dict):
            value.popitem()
        else:
            value.pop()
