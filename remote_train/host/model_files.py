"""Read the tensors of a model from files, in the training's own Python; unpickle with `weights_only` alone.

Imports torch only inside the functions that need it: this module is read by Pythons without torch.
"""

import errno
import json
import os
import struct
from typing import Any, BinaryIO, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from remote_train.host.model_keys import describe_keys, find_model, find_step, strip_prefixes

FORMATS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""What safetensors calls a torch dtype."""
HEADER_LIMIT = 100 << 20
"""The format's own limit."""
TELLING = ("WeightsUnpickler error: ", "Trying to load ")
ADVICE = ("Please use", "Check the documentation")
"""What comes before and behind the words of torch that say what was wrong; none of its advice is for us."""


class Refused(Exception):
    """There is no model to be had; `kind` says what the laptop makes of it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Tensor(NamedTuple):
    """One tensor to be written: `load` gives it as torch has it; `storage` is equal for those that are the same memory."""

    dtype: str
    shape: "Tuple[int, ...]"
    load: "Callable[[], Any]"
    storage: Any


def identify(paths: Sequence[str]) -> List[List[int]]:
    """Return what changes when somebody writes to one of these files, or puts another in its place."""
    return [_list_identity(os.stat(path)) for path in paths]


def check_unchanged(files: Sequence[BinaryIO], identity: List[List[int]]) -> None:
    """Raise Refused when somebody has written to an open file since; one that was replaced or removed stays what it is."""
    if [_list_identity(os.fstat(file.fileno())) for file in files] != identity:
        raise Refused("changed", "it changed while being read")


def _list_identity(status: os.stat_result) -> List[int]:
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def read_source(files: Sequence[BinaryIO], *, still: bool) -> Tuple[Dict[str, Tensor], Optional[int]]:
    """Return the model's tensors in these files, and the step that one of them tells of; raise Refused.

    `still`: nobody writes to them any more.
    """
    tensors: Dict[str, Tensor] = {}
    step = None
    for file in files:
        if file.name.endswith(".safetensors"):
            tensors.update(list_safetensors(file))
        else:
            value = load_checkpoint(file, still=still)
            step = find_step(value) if step is None else step
            tensors.update(list_torch(value))
    names = strip_prefixes(list(tensors))
    return {names[name]: tensor for name, tensor in tensors.items()}, step


def load_checkpoint(file: BinaryIO, *, still: bool) -> Any:  # noqa: ANN401  (whatever a checkpoint holds)
    """Return what torch makes of an open file; raise Refused."""
    import pickle  # noqa: PLC0415  (for the name of its error)

    try:
        return _load(file, still=still)
    except (pickle.UnpicklingError, AttributeError, KeyError, IndexError, ValueError, TypeError) as error:
        raise Refused("pull-incomplete", _choose_words(str(error))) from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # what seeking before the beginning gives: it is cut short
            raise
        raise Refused("pull-incomplete", "it is cut short, or no checkpoint") from None
    except RuntimeError as error:
        lacking = "memory" in str(error)
        raise Refused("host-unfit" if lacking else "pull-incomplete", _choose_words(str(error))) from None


def _load(file: BinaryIO, *, still: bool) -> Any:  # noqa: ANN401  (whatever a checkpoint holds)
    import inspect  # noqa: PLC0415
    import zipfile  # noqa: PLC0415

    import torch  # noqa: PLC0415  (see above)

    options: Mapping[str, Any] = {"map_location": "cpu", "weights_only": True}
    can_map = "mmap" in inspect.signature(torch.load).parameters  # from torch 2.1 on
    # Only then: mapped memory of a file that is rewritten in place would end us with a SIGBUS.
    mapped = "/proc/self/fd/%d" % file.fileno()
    if still and can_map and os.path.exists(mapped) and zipfile.is_zipfile(file):
        return torch.load(mapped, mmap=True, **options)
    file.seek(0)
    return torch.load(file, **options)


def _choose_words(text: str) -> str:
    """Return the part of torch's words that says what was wrong."""
    words = " ".join(text.split())
    for sign in TELLING:
        words = words[max(words.find(sign), 0) :]
    for sign in ADVICE:
        words = words.partition(sign)[0]
    return words.strip()[:1000] or "torch cannot read it"


def list_torch(value: Any) -> Dict[str, Tensor]:  # noqa: ANN401  (whatever a checkpoint holds)
    """Return the tensors of the model in a loaded checkpoint, by name; raise Refused."""
    import torch  # noqa: PLC0415  (see above)

    found = find_model(value, lambda item: isinstance(item, torch.Tensor))
    if found is None:
        raise Refused("pull-incomplete", "no model is found in it: " + describe_keys(value))
    tensors = {name: item for name, item in found[1].items() if isinstance(item, torch.Tensor)}
    return {name: _describe_tensor(name, tensor) for name, tensor in tensors.items()}


def _describe_tensor(name: str, tensor: Any) -> Tensor:  # noqa: ANN401  (torch)
    import torch  # noqa: PLC0415  (see above)

    dtype = str(tensor.dtype).rpartition(".")[2]
    strange = tensor.layout != torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg()
    if strange or dtype not in FORMATS:
        raise Refused("pull-incomplete", "%s is a tensor that safetensors has no form for" % name)
    place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
    return Tensor(dtype, tuple(tensor.shape), lambda: tensor, (dtype, place if tensor.numel() else object()))


def list_safetensors(file: BinaryIO) -> Dict[str, Tensor]:
    """Return the tensors of a safetensors file, by name; raise Refused."""
    dtypes = {form: dtype for dtype, form in FORMATS.items()}
    size = struct.unpack("<Q", file.read(8))[0]
    if size > HEADER_LIMIT:
        raise Refused("pull-incomplete", "%s is no safetensors file" % os.path.basename(file.name))
    header = json.loads(file.read(size).decode("utf-8"))
    header.pop("__metadata__", None)
    found = {}
    for name, item in header.items():
        if item["dtype"] not in dtypes:
            raise Refused(
                "pull-incomplete", "%s is of type %s, which is not known here" % (name, item["dtype"])
            )
        dtype, (begin, end) = dtypes[item["dtype"]], item["data_offsets"]
        load = _make_loader(file, (8 + size + begin, end - begin), dtype, item["shape"])
        found[name] = Tensor(dtype, tuple(item["shape"]), load, object())
    return found


def _make_loader(file: BinaryIO, place: Tuple[int, int], dtype: str, shape: List[int]) -> Callable[[], Any]:
    def load() -> Any:  # noqa: ANN401  (torch)
        import torch  # noqa: PLC0415  (see above)

        data = bytearray(place[1])
        file.seek(place[0])
        if file.readinto(data) != len(data):  # type: ignore[attr-defined]  # a buffered file has it
            raise Refused("pull-incomplete", "%s ends too early" % os.path.basename(file.name))
        kind = getattr(torch, dtype)
        return torch.frombuffer(data, dtype=kind).reshape(shape) if data else torch.empty(shape, dtype=kind)

    return load
