"""What a checkpoint holds, told from its container alone: nothing is unpickled, and no size in a file is believed.

A safetensors header says everything. Of a .pt archive the directory gives the storages' sizes, and the opcodes of its
pickle an outline of the names and shapes. A legacy pickle says nothing but its size. What cannot be read says why.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remote_train.host.model_files import FORMATS
from remote_train.host.model_keys import find_model, find_step
from remote_train.pickled import LARGEST, LONGEST, MOST_DIMENSIONS, Storage, TensorOutline, read_outline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEADER_BYTES = 4 << 20
"""Of a safetensors header: some 40,000 tensors; parsed, it may take twenty times that."""
DIRECTORY_BYTES = 16 << 20
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_WIDTHS = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool", "float8_e4m3fn", "float8_e5m2"), 1),
}
_END = struct.Struct("<4s8xIIH")
_LOCATOR = struct.Struct("<4s4xQ4x")
_END64 = struct.Struct("<4s36xQ8x")
_BROKEN = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, RecursionError, MemoryError, OverflowError),
    *(NotImplementedError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class Contents:
    """What a file holds: of its model the tensors, as (dtype, shape) by name, and the numbers in them."""

    kind: str
    """safetensors, torch, legacy, other, or unreadable."""
    size: int
    why: str | None = None
    tensors: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    parameters: int | None = None
    """Numbers in the model, those that have two names once; None where no model is recognised."""
    dtypes: tuple[str, ...] = ()
    optimizer: str | None = None
    step: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    """What lies at the top of a .pt, as its pickle has it."""
    storages: int | None = None
    """Bytes of all the tensors in a .pt."""

    def as_json(self) -> dict[str, Any]:
        """Return it for `--json`: the tensors' count in place of each."""
        names = ("kind", "why", "parameters", "dtypes", "optimizer", "step", "metadata", "keys", "storages")
        return {"tensors": len(self.tensors), **{name: getattr(self, name) for name in names}}


class _Unreadable(ValueError):
    """A file that is not what its name says."""


def read_contents(path: Path) -> Contents:
    """Return what a file holds; never raises for what is in it, nor for a file that is not there."""
    size = 0
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _Unreadable("it is no file")
            size = status.st_size
            return _read(file, path.name, size)
    except _BROKEN as error:
        return Contents("unreadable", size, why=_explain(error))


def _explain(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__ if not isinstance(error, _Unreadable) else ''} {error}".strip()[:200]


def _read(file: Any, name: str, size: int) -> Contents:  # noqa: ANN401  (a binary file)
    if name.endswith(".safetensors"):
        return _read_safetensors(file, size)
    head = file.read(4)
    if head == b"PK\x03\x04":
        return _read_archive(file, size)
    if head[:1] == b"\x80" and name.endswith(SUFFIXES):
        return Contents("legacy", size, why="it is in torch's old format, which cannot be read in part")
    if name.endswith(SUFFIXES):
        raise _Unreadable("it is empty" if not head else "it is no checkpoint")
    return Contents("other", size)


def _read_safetensors(file: Any, size: int) -> Contents:  # noqa: ANN401  (a binary file)
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > size - 8:
        raise _Unreadable("it is cut short, or no safetensors file")
    if length > HEADER_BYTES:
        raise _Unreadable(f"it has a header of {length:,} bytes")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise _Unreadable("its header is none")
    metadata = header.pop("__metadata__", {})
    tensors = {name: _parse_tensor(item, size - 8 - length) for name, item in header.items()}
    texts = (
        {key: value for key, value in metadata.items() if isinstance(value, str)}
        if isinstance(metadata, dict)
        else {}
    )
    step = texts.get("step", "")
    return Contents(
        "safetensors",
        size,
        tensors=tensors,
        parameters=sum(math.prod(shape) for _, shape in tensors.values()),
        dtypes=_rank_dtypes(tensors),
        step=int(step) if step.isascii() and step.isdigit() and len(step) < 19 else None,
        metadata=texts,
    )


def _parse_tensor(item: Any, room: int) -> tuple[str, tuple[int, ...]]:  # noqa: ANN401  (from JSON)
    form, shape, (begin, end) = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(form, str) or not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
        raise _Unreadable("its header is none")
    if not all(type(number) is int and 0 <= number < LARGEST for number in (*shape, begin, end)):
        raise _Unreadable("its header is none")
    dtype = next((name for name, known in FORMATS.items() if known == form), form[:20].lower())
    count = math.prod(shape)
    if not begin <= end <= room or (dtype in _WIDTHS and end - begin != count * _WIDTHS[dtype]):
        raise _Unreadable("it is cut short, or its header is wrong")
    return dtype, tuple(shape)


def _rank_dtypes(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> tuple[str, ...]:
    """Return the types of the numbers, the most frequent first."""
    counts: Counter[str] = Counter()
    for dtype, shape in tensors.values():
        counts[dtype] += math.prod(shape)
    return tuple(dtype for dtype, _ in counts.most_common())


def _read_archive(file: Any, size: int) -> Contents:  # noqa: ANN401  (a binary file)
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        name = next((name for name in sizes if name.endswith("/data.pkl")), None)
        if name is None:
            return Contents("other", size)
        base = name.removesuffix("data.pkl") + "data/"
        storages = sum(length for entry, length in sizes.items() if entry.startswith(base))
        with archive.open(name) as packed:
            data = packed.read(LONGEST + 1)
    if storages > size:
        raise _Unreadable("its tensors are larger than it is")
    try:
        outline = read_outline(data)
    except ValueError as error:
        return Contents("torch", size, why=str(error)[:200], storages=storages)
    return _describe_outline(outline, size, storages, lambda storage: _fits(storage, base, sizes))


def _check_directory(file: Any, size: int) -> None:  # noqa: ANN401  (a binary file)
    """Raise for an archive whose directory takes more memory than it is worth."""
    file.seek(max(0, size - _END.size - 0xFFFF))
    tail = file.read(_END.size + 0xFFFF)
    plain = tail[-_END.size :].startswith(b"PK\x05\x06") and tail.endswith(
        b"\0\0"
    )  # no comment: as zipfile looks
    place = len(tail) - _END.size if plain else tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) - place < _END.size:
        raise _Unreadable("it is cut short")
    length = _END.unpack_from(tail, place)[1]
    before = max(0, size - len(tail) + place - _LOCATOR.size)
    file.seek(before)
    locator = file.read(_LOCATOR.size)
    if len(locator) == _LOCATOR.size and locator.startswith(b"PK\x06\x07"):
        file.seek(min(_LOCATOR.unpack(locator)[1], size))
        record = file.read(_END64.size)
        length = max(length if length != 0xFFFFFFFF else 0, _END64.unpack(record)[1])
    if length > DIRECTORY_BYTES:
        raise _Unreadable(f"it has a directory of {length:,} bytes")


def _fits(storage: Storage, base: str, sizes: dict[str, int]) -> bool:
    """Tell whether the archive has the bytes of a storage."""
    return sizes.get(base + storage.key) == storage.count * _WIDTHS[storage.dtype]


def _describe_outline(
    outline: Any,  # noqa: ANN401  (whatever a pickle holds)
    size: int,
    storages: int,
    fits: Callable[[Storage], bool],
) -> Contents:
    """Return what an outline tells, of a model if there is one at its place."""
    keys = tuple(str(key)[:80] for key in list(outline)[:100]) if isinstance(outline, dict) else ()
    found = find_model(outline, lambda item: isinstance(item, TensorOutline))
    if found is None:
        return Contents("torch", size, step=find_step(outline), keys=keys, storages=storages)
    model = {name: item for name, item in found[1].items() if isinstance(item, TensorOutline)}
    if not all(item.storage is None or fits(item.storage) for item in model.values()):
        raise _Unreadable("its directory and its pickle do not agree")
    distinct = {(item.storage, item.offset, item.shape): item.count for item in model.values()}
    tensors = {name: (item.dtype, item.shape) for name, item in model.items()}
    return Contents(
        "torch",
        size,
        tensors=tensors,
        parameters=sum(distinct.values()),
        dtypes=_rank_dtypes(tensors),
        optimizer=_name_optimizer(outline) if found[0] else None,
        step=find_step(outline),
        keys=keys,
        storages=storages,
    )


def _name_optimizer(outline: dict[Any, Any]) -> str | None:
    """Return which optimizer the state beside the model looks like, by the names that torch's own give its parts."""
    for value in outline.values():
        for state in value if isinstance(value, list) else [value]:
            per_parameter = (
                state.get("state") if isinstance(state, dict) and "param_groups" in state else None
            )
            if isinstance(per_parameter, dict):
                return _name_state(next(iter(per_parameter.values()), None))
    return None


def _name_state(parts: Any) -> str:  # noqa: ANN401  (an outline)
    names = set(parts) if isinstance(parts, dict) else set()
    if {"exp_avg", "exp_avg_sq"} <= names:
        return "Adam-like state"
    if "momentum_buffer" in names:
        return "momentum"
    return "other state" if names else "no state"


def render_contents(contents: Contents) -> str:
    """Return what a file holds in one line: `model 10.7 M parameters, float32; optimizer: Adam-like state`."""
    if contents.kind == "unreadable":
        return f"unreadable: {contents.why}"
    parts = []
    if contents.parameters is not None:
        parts.append(
            f"model {render_amount(contents.parameters)} parameters, {', '.join(contents.dtypes[:3])}"
        )
    elif contents.storages is not None:
        parts.append(f"tensors of {contents.storages:,} bytes")
    if contents.optimizer is not None:
        parts.append(f"optimizer: {contents.optimizer}")
    elif contents.parameters is None and contents.keys:
        parts.append(f"keys: {', '.join(contents.keys[:8])}")
    return "; ".join(parts) or contents.why or ""


def render_amount(count: int) -> str:
    """Return a number of parameters as people write it: `124.4 M`."""
    for limit, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return str(count)
