"""What the code of a model can reach outside of it: globals, classes, closures and default arguments, found by name."""

from __future__ import annotations

import collections
import functools
import sys
import types

from .copying import is_machinery

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Deque, Dict, FrozenSet, Iterable, List, Set, Tuple

    Space = Dict[str, Any]

_MOST = 400  # functions, classes and objects looked at: a few milliseconds
_FOREIGN = frozenset(["torch", "numpy", "builtins", *getattr(sys, "stdlib_module_names", ())])
_CACHE: Any = type(functools.lru_cache(maxsize=1)(len))
_WRAPPERS = (property, classmethod, staticmethod)
_SEEDING = frozenset(["manual_seed", "seed", "set_rng_state", "fork_rng"])


class Reach:
    """What was found. `globals`: by the id of a namespace, it and the names in it that the code mentions.

    `draws`: which global generators the code may move: "random", "numpy", "torch". `everything` is true when there was
    more code than is looked at.
    """

    def __init__(self) -> None:
        self.globals: Dict[int, Tuple[Space, Set[str]]] = {}
        self.classes: List[type] = []
        self.cells: List[Any] = []
        self.values: List[
            Any
        ] = []  # containers and objects that code holds without a name: defaults of arguments
        self.caches: List[Any] = []  # functools.lru_cache
        self.draws: Set[str] = set()
        self.everything = False
        self._seen: Dict[int, Any] = {}
        self._queue: Deque[Any] = collections.deque()  # the nearest first
        self._names: Set[str] = {"forward"}
        self._waiting: Dict[str, List[Any]] = {}  # methods whose names nobody has mentioned yet

    def add(self, value: Any) -> None:  # noqa: ANN401  (any value of a program)
        """Note a value whose code is to be followed; once, and only if it is the script's or a library's of models."""
        if id(value) in self._seen or isinstance(
            value, (str, int, float, tuple, list, dict, set, type(None))
        ):
            return
        self._seen[id(value)] = value
        self._queue.append(value)

    def follow(self) -> None:
        """Follow all that was noted, and what that mentions."""
        while self._queue:
            if len(self._seen) > _MOST:
                self.everything = True
                self.draws |= {"random", "numpy", "torch"}
                return
            self._follow(self._queue.popleft())

    def _follow(self, value: Any) -> None:  # noqa: ANN401
        if isinstance(value, types.FunctionType):
            self._follow_function(value)
        elif isinstance(value, type):
            self._follow_class(value)
        elif isinstance(value, types.MethodType):
            self.add(value.__func__)
            self.add(value.__self__)
        elif isinstance(value, _WRAPPERS):
            for name in ("__func__", "fget", "fset"):
                self.add(getattr(value, name, None))
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self.add(part)
        elif isinstance(value, _CACHE):
            self.caches.append(value)
            self.add(value.__wrapped__)
        elif hasattr(value, "__dict__") and not isinstance(value, types.ModuleType):
            self.add(type(value))

    def _follow_class(self, kind: type) -> None:
        if is_foreign(kind):
            return
        self.classes.append(kind)
        for name, value in list(vars(kind).items()):
            if name in self._names or name.startswith("__"):
                self.add(value)
            elif callable(value) or isinstance(value, _WRAPPERS):
                self._waiting.setdefault(name, []).append(value)
        for base in kind.__mro__[1:]:
            self.add(base)

    def _follow_function(self, function: Any) -> None:  # noqa: ANN401
        if _is_foreign_name(str(function.__globals__.get("__name__"))):
            return
        names = list_names(function.__code__)
        self._mention(function.__globals__, names)
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not filled yet
                continue
            self.cells.append(cell)
        self.values += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]

    def _mention(self, space: Space, names: FrozenSet[str]) -> None:
        """Names of attributes are among the names: of a module of Python's they are globals once more."""
        self.globals.setdefault(id(space), (space, set()))[1].update(names)
        self._names |= names
        for name in names & self._waiting.keys():
            for value in self._waiting.pop(name):
                self.add(value)
        if names & _SEEDING:
            self.draws.add("torch")
        for name in names & space.keys():
            value = space[name]
            self._note_draws(value, names)
            if isinstance(value, types.ModuleType) and not _is_foreign_name(value.__name__):
                inside = vars(value)
                self.globals.setdefault(id(inside), (inside, set()))[1].update(names)
                for other in names & inside.keys():
                    self.add(inside[other])
            self.add(value)

    def _note_draws(self, value: Any, names: FrozenSet[str]) -> None:  # noqa: ANN401
        bound = isinstance(value, (types.MethodType, types.BuiltinMethodType))
        owner = value.__self__ if bound else value
        kind = owner.__name__ if isinstance(owner, types.ModuleType) else type(owner).__module__
        if kind.startswith("numpy.random") or (kind == "numpy" and "random" in names):
            self.draws.add("numpy")
        if kind == "random":
            self.draws.add("random")


def find_reach(values: Iterable[Any]) -> Reach:
    """Return what the code of these modules, objects and functions can reach, as far as names tell."""
    reach = Reach()
    for value in values:
        reach.add(value if isinstance(value, types.FunctionType) else type(value))
        for held in getattr(value, "__dict__", {}).values():
            if callable(held) or isinstance(held, types.ModuleType):
                reach._note_draws(held, frozenset(["random"]))  # noqa: SLF001  (of this file)
                reach.add(held)
    reach.follow()
    return reach


@functools.lru_cache(maxsize=1000)
def list_names(code: types.CodeType) -> FrozenSet[str]:
    """Return the names of globals and attributes in a function and in those within it."""
    names = set(code.co_names)
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            names |= list_names(part)
    return frozenset(names)


def is_foreign(kind: type) -> bool:
    """Tell whether a class is torch's, NumPy's or Python's, or machinery around a model: it keeps no books of a forward."""
    return _is_foreign_name(str(getattr(kind, "__module__", ""))) or is_machinery(kind)


def _is_foreign_name(name: str) -> bool:
    return name.partition(".")[0] in _FOREIGN
