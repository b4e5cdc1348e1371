"""A copy of any Python structure, tensors in it replaced: containers, methods and objects rebuilt, the rest shared.

What cannot be rebuilt without running foreign code (locks, files, loggers, classes, C objects) is taken by reference, and so is
an object with a `__del__`: the end of its copy would free, close or remove what is the original's.
"""

from __future__ import annotations

import collections
import enum
import functools
import io
import random
import sys
import types
import weakref

from .tensors import CannotCopyError

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Tuple

    Rule = Tuple[Any, Callable[[Any], Any]]

_ATOMS = frozenset([type(None), bool, int, float, complex, str, bytes, type, range, slice, type(Ellipsis)])
_SHARED = (type, types.ModuleType, types.BuiltinFunctionType, types.CodeType, enum.Enum)

# Packages whose objects are machinery around a model: they hold threads, processes, connections and files.
_MACHINERY = frozenset(
    [
        "threading",
        "_thread",
        "logging",
        "io",
        "_io",
        "socket",
        "subprocess",
        "multiprocessing",
        "queue",
        "concurrent",
        "asyncio",
        "ctypes",
        "re",
        "pathlib",
        "datetime",
        "decimal",
        "inspect",
        "lightning",
        "lightning_fabric",
        "pytorch_lightning",
        "lightning_utilities",
        "deepspeed",
        "wandb",
        "mlflow",
        "tqdm",
        "rich",
        "tensorboard",
        "tensorboardX",
        "tokenizers",
        "datasets",
    ]
)
_TORCH_MACHINERY = (
    "torch.distributed",
    "torch.optim",
    "torch.utils.data",
    "torch.utils.tensorboard",
    "torch.cuda",
    "torch.amp",
    "torch._dynamo",
    "torch._C",
    "torch.fx",
)
_QUEUES = ("queue", "_queue", "multiprocessing.queues", "asyncio.queues", "torch.multiprocessing.queue")
_SMALL_ARRAY = 1 << 20  # bytes; a larger one is data: a forward that writes into it fails on its copy


class OutOfReach:
    """Stands in for what would be used up by a copy's forward: an iterator or a queue; to use it ends the count."""

    def __init__(self, copier: Copier, what: str) -> None:
        vars(self).update(_copier=copier, _what=what)

    def __iter__(self) -> OutOfReach:
        return self

    def __next__(self) -> Any:  # noqa: ANN401
        return self._refuse()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse()

    def _refuse(self) -> Any:  # noqa: ANN401
        error = CannotCopyError(
            "the forward takes from %s, of which a count would use up a part" % self._what
        )
        self._copier.refusal = self._copier.refusal or error  # told even if the forward catches it
        raise error


class Copier:
    """Copies structures with one memory, so that what is shared stays shared; `rules` come before everything else.

    A rule is a type (or a tuple of them) and what makes the copy of an instance. `limit` bounds the number of objects, past it
    CannotCopyError is raised. `refusal` is what a copy did that it must not.
    """

    refusal: Optional[CannotCopyError] = None

    def __init__(self, rules: List[Rule], limit: int) -> None:
        self.rules, self.limit, self.objects = rules, limit, 0
        self.memo: Dict[
            int, Tuple[Any, Any]
        ] = {}  # with the original, so that its id is not given to another

    def copy(self, value: Any) -> Any:  # noqa: ANN401  (any value of a program)
        """Return the copy of a value, or the value itself where it is shared."""
        if type(value) in _ATOMS:
            return value
        known = self.memo.get(id(value))
        if known is not None:
            return known[0]
        for kind, make in self.rules:
            if isinstance(value, kind):
                return self.remember(value, make(value))
        return self._copy_structure(value)

    def remember(self, value: Any, made: Any) -> Any:  # noqa: ANN401  (any value of a program)
        """Note a copy before it is filled, so that structures may contain themselves."""
        self.memo[id(value)] = (made, value)
        self.objects += 1
        if self.objects > self.limit:
            raise CannotCopyError("the model holds more than %d objects" % self.limit)
        return made

    def forget(self) -> None:
        """Let go of the originals and the copies now: the rules mostly know this copier, so that only the collector would."""
        self.memo.clear()
        self.rules.clear()

    def _copy_structure(self, value: Any) -> Any:  # noqa: ANN401
        containers = (dict, list, tuple, set, frozenset, collections.deque)
        if isinstance(value, containers) and not has_finaliser(type(value)):
            return self._copy_container(value)
        if isinstance(value, OutOfReach) or _is_used_up(value):
            what = vars(value)["_what"] if isinstance(value, OutOfReach) else "a " + type(value).__name__
            return self.remember(value, OutOfReach(self, what))
        if isinstance(value, _SHARED):
            return value
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial, weakref.ref)):
            return self._copy_callable(value)
        return self._copy_other(value)

    def _copy_other(self, value: Any) -> Any:  # noqa: ANN401
        state = _copy_random_state(value)
        if state is not None:
            return self.remember(value, state)
        shared = is_machinery(type(value)) or has_finaliser(type(value))
        return value if shared else self._copy_object(value)

    def _copy_container(self, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, dict):
            return self._copy_dict(value)
        if isinstance(value, (tuple, frozenset)):
            parts = [self.copy(part) for part in value]
            base: Any = tuple if isinstance(value, tuple) else frozenset
            if all(new is old for new, old in zip(parts, value)):
                return value
            return self._with_attributes(value, self.remember(value, base.__new__(type(value), parts)))
        base = next(kind for kind in (list, set, collections.deque) if isinstance(value, kind))
        made = base.__new__(type(value))
        if base is collections.deque:
            base.__init__(made, (), value.maxlen)
        self.remember(value, made)
        if set(map(type, value)) <= _ATOMS:
            (set.update if base is set else base.extend)(made, value)
        else:
            for part in value:
                (set.add if base is set else base.append)(made, self.copy(part))
        return self._with_attributes(value, made)

    def _copy_dict(self, value: Any) -> Any:  # noqa: ANN401
        base: Any = collections.OrderedDict if isinstance(value, collections.OrderedDict) else dict
        made = self.remember(value, base.__new__(type(value)))
        if isinstance(value, collections.defaultdict):
            made.default_factory = value.default_factory
        if set(map(type, dict.values(value))) <= _ATOMS:
            base.update(made, dict(dict.items(value)))
        else:
            for key in dict.keys(value):
                base.__setitem__(made, key, self.copy(dict.__getitem__(value, key)))
        return self._with_attributes(value, made)

    def _with_attributes(self, value: Any, made: Any) -> Any:  # noqa: ANN401
        attributes = getattr(value, "__dict__", None)
        if attributes:
            made.__dict__.update({name: self.copy(part) for name, part in attributes.items()})
        return made

    def _copy_callable(self, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, types.MethodType):
            return types.MethodType(self.copy(value.__func__), self.copy(value.__self__))
        if isinstance(value, functools.partial):
            return functools.partial(
                self.copy(value.func), *self.copy(value.args), **self.copy(value.keywords)
            )
        if isinstance(value, weakref.ref):
            known = self.memo.get(id(value()))
            return weakref.ref(known[0]) if known is not None else value
        compiled = value.__dict__.get("_torchdynamo_orig_callable")
        if compiled is not None:
            return self.copy(compiled)
        return self._copy_closure(value) if value.__closure__ else value

    def _copy_closure(self, value: Any) -> Any:  # noqa: ANN401
        """Rebuild a function around a method or a module, so that the copy does not call the original."""
        self.memo[id(value)] = (value, value)
        cells = [_read_cell(cell) for cell in value.__closure__]
        held = [self.copy(part) for part in cells]
        if all(new is old for new, old in zip(held, cells)):
            return value
        closure = tuple(types.CellType(part) for part in held)
        made = types.FunctionType(
            value.__code__, value.__globals__, value.__name__, value.__defaults__, closure
        )
        made.__kwdefaults__ = value.__kwdefaults__
        return self.remember(value, made)

    def _copy_object(self, value: Any) -> Any:  # noqa: ANN401
        names = [name for name in _list_slots(type(value)) if hasattr(value, name)]
        attributes = getattr(value, "__dict__", None)
        if not attributes and not names:
            return value  # a mark, told from others by its identity
        base: Any = types.SimpleNamespace if isinstance(value, types.SimpleNamespace) else object
        try:
            made = base.__new__(type(value))
        except TypeError:  # made in C
            return value
        self.remember(value, made)
        for name in names:
            object.__setattr__(made, name, self.copy(getattr(value, name)))
        return self._with_attributes(value, made)


def _is_used_up(value: Any) -> bool:  # noqa: ANN401
    """Tell whether taking from it takes it from the script too; an iterator written in Python is copied with its state."""
    kind = type(value)
    name = str(kind.__module__)
    if name in _QUEUES:
        return hasattr(kind, "get")
    if not hasattr(kind, "__next__") or isinstance(value, (io.IOBase, type)):
        return False
    return is_machinery(kind) or not isinstance(vars(kind).get("__next__", kind.__next__), types.FunctionType)


def is_machinery(kind: type) -> bool:
    """Tell whether a class is of the machinery around a model, whose objects are shared."""
    name = str(getattr(kind, "__module__", ""))
    return name.partition(".")[0] in _MACHINERY or name.startswith(_TORCH_MACHINERY)


def has_finaliser(kind: type) -> bool:
    """Tell whether the end of an instance is noticed: by a handle it frees, say, or hooks it removes."""
    return hasattr(kind, "__del__")


def _read_cell(cell: Any) -> Any:  # noqa: ANN401
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _list_slots(kind: type) -> List[str]:
    found: List[str] = []
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        found += [slots] if isinstance(slots, str) else list(slots)
    return [name for name in found if name not in ("__dict__", "__weakref__") and not name.startswith("__")]


def _copy_random_state(value: Any) -> Any:  # noqa: ANN401
    """Copy a generator of random numbers, so that drawing from the copy does not move the original; None for others."""
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        made = random.Random()  # noqa: S311  (a copy of the script's)
        made.setstate(value.getstate())
        return made
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return value.copy() if value.nbytes <= _SMALL_ARRAY else _make_read_only(value)
    if numpy is not None and isinstance(value, (numpy.random.Generator, numpy.random.RandomState)):
        import copy  # noqa: PLC0415  (rare)

        return copy.deepcopy(value)
    if torch is not None and isinstance(value, torch.Generator):
        twin = torch.Generator(device=value.device)
        return twin.set_state(value.get_state())
    return None


def _make_read_only(array: Any) -> Any:  # noqa: ANN401  (NumPy's)
    view = array.view()
    view.flags.writeable = False
    return view
