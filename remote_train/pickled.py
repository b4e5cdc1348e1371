"""The outline of a pickle: which dicts, names, numbers and tensors it is made of, told from its opcodes alone.

Nothing is imported and nothing is called: what a pickle would call is an `Opaque` with the name of that, but for the few
functions by which torch puts tensors together; of those the arguments tell the tensor's type and shape. Hostile input
raises ValueError, or gives an outline that is as wrong as the file says; it is bounded by the caps below.
"""

from __future__ import annotations

import pickletools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST = 16 << 20
"""Bytes of a pickle; the data of tensors lie elsewhere."""
MOST_OPCODES = 400_000
MOST_DIMENSIONS = 64
LARGEST = 2**62


@dataclass(frozen=True)
class Opaque:
    """Something that would be imported, or made by a call."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The memory of tensors: an entry of the archive, with so many numbers of a type."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class TensorOutline:
    """A tensor: its numbers' type, its shape, and where its numbers lie."""

    dtype: str
    shape: tuple[int, ...]
    storage: Storage | None = None
    offset: int = 0

    @property
    def count(self) -> int:
        """Return how many numbers it has."""
        count = 1
        for size in self.shape:
            count = min(count * size, LARGEST)
        return count


_MARK = object()
_PAIRS = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict")
_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
}
_KEYS = (str, int, float, bytes, bool, type(None))


def read_outline(data: bytes) -> Any:  # noqa: ANN401  (whatever a pickle holds)
    """Return dicts, lists, tuples, plain values, TensorOutline and Opaque; raise ValueError for what is no pickle."""
    if len(data) > LONGEST:
        raise ValueError(f"a pickle of {len(data):,} bytes")
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= MOST_OPCODES:
                raise ValueError(f"a pickle of more than {MOST_OPCODES:,} opcodes")
            if opcode.name == "STOP":
                return machine.stack[-1]
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, struct.error, OverflowError) as error:
        raise ValueError(f"a pickle that does not fit together: {error}") from None
    raise ValueError("a pickle without an end")


class _Machine:
    """The stack and the memo of one pickle, holding outlines."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:  # noqa: ANN401  (an opcode's argument)
        act = _ACTS.get(name)
        if act is not None:
            act(self)
        elif name in {"PROTO", "FRAME"}:
            return
        elif name in {"BINPUT", "LONG_BINPUT", "PUT"}:
            self.memo[argument] = self.stack[-1]
        elif name in {"BINGET", "LONG_BINGET", "GET"}:
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            self.stack.append(Opaque(argument.replace(" ", ".", 1)))
        elif argument is not None:  # numbers, texts, bytes
            self.stack.append(argument)
        else:
            raise ValueError(f"a pickle with {name}")

    def pop(self, count: int) -> tuple[Any, ...]:
        if count > len(self.stack):
            raise IndexError("its stack is empty")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return items

    def pop_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]


def _push(make: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(make(machine))


def _set_items(machine: _Machine, items: list[Any] | tuple[Any, ...]) -> None:
    target = machine.stack[-1]
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=False):
            if isinstance(key, _KEYS):
                target[key] = value


def _append(machine: _Machine, items: list[Any] | tuple[Any, ...]) -> None:
    if isinstance(machine.stack[-1], list):
        machine.stack[-1].extend(items)


def _make_dict(items: list[Any]) -> dict[Any, Any]:
    pairs = zip(items[::2], items[1::2], strict=False)
    return {key: value for key, value in pairs if isinstance(key, _KEYS)}


def _call(function: Any, arguments: Any) -> Any:  # noqa: ANN401  (outlines)
    """Return the outline of what a call gives."""
    name = function.name if isinstance(function, Opaque) else ""
    if not isinstance(arguments, tuple):
        return Opaque(name)
    if name in _PAIRS:
        return _make_pairs(arguments)
    if name.startswith("torch._utils._rebuild_parameter"):
        return arguments[0]
    if name in {
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_tensor",
    }:
        return _make_tensor(name, arguments)
    return Opaque(name)


def _make_pairs(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    items = arguments[0] if arguments and isinstance(arguments[0], list) else []
    pairs = [item for item in items if isinstance(item, (list, tuple)) and len(item) == 2]
    return {key: value for key, value in pairs if isinstance(key, _KEYS)}


def _make_tensor(name: str, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401  (a tensor, or nothing known)
    storage, offset, shape = arguments[:3]
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or len(shape) > MOST_DIMENSIONS:
        return Opaque(name)
    sizes = (offset, *shape)
    if not all(type(size) is int and 0 <= size < LARGEST for size in sizes):
        return Opaque(name)
    last = next((item for item in arguments[6:] if isinstance(item, Opaque)), None)  # of _v3: its dtype
    dtype = last.name.removeprefix("torch.") if last is not None else storage.dtype
    return TensorOutline(dtype, shape, storage, offset)


def _make_storage(identity: Any) -> Any:  # noqa: ANN401  (an outline)
    """Return what a reference to a storage says: (`storage`, its class, its key, its place, its numbers)."""
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        return Opaque("a reference")
    kind, key, count = identity[1], identity[2], identity[4]
    known = isinstance(kind, Opaque) and isinstance(key, str) and type(count) is int and 0 <= count < LARGEST
    dtype = _DTYPES.get(kind.name.rpartition(".")[2]) if known else None
    return Storage(dtype, key, count) if dtype else Opaque("a storage")


def _name(parts: tuple[Any, ...]) -> Opaque:
    return Opaque(".".join(str(part)[:200] for part in parts if isinstance(part, str)))


def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _build(machine: _Machine) -> None:
    machine.pop(1)  # what an object would be given; its class is not known here


_ACTS: dict[str, Callable[[_Machine], object]] = {
    "MARK": _push(lambda _: _MARK),
    "EMPTY_DICT": _push(lambda _: {}),
    "EMPTY_LIST": _push(lambda _: []),
    "EMPTY_TUPLE": _push(lambda _: ()),
    "EMPTY_SET": _push(lambda _: Opaque("a set")),
    "NONE": _push(lambda _: None),
    "NEWTRUE": _push(lambda _: True),
    "NEWFALSE": _push(lambda _: False),
    "TUPLE": _push(lambda machine: tuple(machine.pop_mark())),
    "TUPLE1": _push(lambda machine: machine.pop(1)),
    "TUPLE2": _push(lambda machine: machine.pop(2)),
    "TUPLE3": _push(lambda machine: machine.pop(3)),
    "LIST": _push(lambda machine: machine.pop_mark()),
    "DICT": _push(lambda machine: _make_dict(machine.pop_mark())),
    "FROZENSET": _push(lambda machine: machine.pop_mark() and Opaque("a set")),
    "ADDITEMS": lambda machine: machine.pop_mark(),
    "APPEND": lambda machine: _append(machine, machine.pop(1)),
    "APPENDS": lambda machine: _append(machine, machine.pop_mark()),
    "SETITEM": lambda machine: _set_items(machine, machine.pop(2)),
    "SETITEMS": lambda machine: _set_items(machine, machine.pop_mark()),
    "STACK_GLOBAL": _push(lambda machine: _name(machine.pop(2))),
    "REDUCE": _push(lambda machine: _call(*machine.pop(2))),
    "NEWOBJ": _push(lambda machine: _call(*machine.pop(2))),
    "NEWOBJ_EX": _push(lambda machine: _call(*machine.pop(3)[:2])),
    "BUILD": _build,
    "BINPERSID": _push(lambda machine: _make_storage(machine.pop(1)[0])),
    "MEMOIZE": _memoize,
    "POP": lambda machine: machine.pop(1),
    "POP_MARK": lambda machine: machine.pop_mark(),
    "DUP": _push(lambda machine: machine.stack[-1]),
}
