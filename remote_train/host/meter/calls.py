"""What one call of a module was given, without keeping a tensor of it: enough to run it again on tensors without data."""

from __future__ import annotations

import weakref

from .cloning import Leaf
from .copying import Copier
from .tensors import CannotCopyError, TensorShape, describe_tensor, make_clone

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Dict, Hashable, List, Optional, Tuple

    Module = Any

LIMIT = 2000  # objects that the arguments of a call may hold
_KEPT_BYTES = 1 << 30  # of real inputs


class Call:
    """One call of a module: its arguments with every tensor replaced by a description, and the state torch was in.

    `signature` is hashable and equal for calls that cost the same: shapes, dtypes, devices, grad mode, autocast, training,
    and the plain values among the arguments (floats left out; a script that gives the step's number as an int gets a new one each
    time). The module is held weakly: `module()` is None when it is gone.
    """

    __slots__ = (
        "args",
        "autocast",
        "elements",
        "grad",
        "kept",
        "kwargs",
        "module",
        "samples",
        "signature",
        "tokens",
        "training",
        "why",
    )

    module: weakref.ref[Module]
    args: Tuple[Any, ...]
    kwargs: Dict[str, Any]
    grad: bool
    autocast: Tuple[Tuple[str, str], ...]  # device type and dtype of each that is on
    training: bool
    tokens: Optional[int]  # of the first integer tensor with two dimensions or more
    samples: Optional[int]  # its first dimension, or the first tensor's
    elements: int  # of all tensors among the arguments
    kept: bool  # the tensors are real copies
    why: Optional[str]  # why the arguments could not be described; then it cannot be counted
    signature: Hashable


def describe_call(torch: ModuleType, module: Module, args: Any, kwargs: Any, *, keep: bool = False) -> Call:  # noqa: ANN401  (whatever a forward takes)
    """Describe a call from a forward pre-hook: cheap (< 200 us), keeps no tensor unless `keep` asks for copies of them.

    `keep` is for a module whose Count said `wants_real`: its FLOPs depend on the values.
    """
    call = Call()
    call.module, call.kept, call.why = weakref.ref(module), keep, None
    call.grad, call.training = bool(torch.is_grad_enabled()), bool(module.training)
    call.autocast = read_autocast(torch)
    if _is_transformed(torch):
        call.why = "the model is called inside a transformation of torch.func's (vmap, jvp or one in another)"
    tensors: List[TensorShape] = []
    copier = _make_describer(torch, tensors, keep=keep)
    try:
        call.args, call.kwargs = copier.copy(tuple(args)), copier.copy(dict(kwargs or {}))
    except (CannotCopyError, RecursionError) as error:
        call.args, call.kwargs, call.why = (
            (),
            {},
            "the arguments of the model cannot be described: %s" % error,
        )
    call.tokens, call.samples = count_tokens(tensors)
    call.elements = sum(map(count_elements, tensors))
    plain = tuple(_list_plain(call.args)) + tuple(_list_plain(call.kwargs))
    shapes = tuple(shape.key() for shape in tensors)
    call.signature = (id(module), call.training, call.grad, call.autocast, shapes, plain)
    return call


def _is_transformed(torch: ModuleType) -> bool:
    """A gradient alone is what a backward pass would do; batches and derivatives of another kind cost something else."""
    functorch = getattr(torch._C, "_functorch", None)  # noqa: SLF001  (since 2.0)
    read = getattr(functorch, "get_interpreter_stack", None)
    stack = (read() or []) if read is not None else []
    return len(stack) > 1 or any(not str(level.key()).endswith("Grad") for level in stack)


def _make_describer(torch: ModuleType, tensors: List[TensorShape], *, keep: bool) -> Copier:
    held = [0]

    def describe(tensor: Any) -> Any:  # noqa: ANN401  (a tensor)
        shape = describe_tensor(torch, tensor)
        shape.parameter = False
        tensors.append(shape)
        if not keep:
            return shape
        held[0] += tensor.numel() * tensor.element_size()
        if held[0] > _KEPT_BYTES:
            raise CannotCopyError("they are over 1 GB")
        return make_clone(torch, tensor)

    rules = [(torch.Tensor, describe), (torch.nn.Module, lambda module: Leaf(weakref.ref(module)))]
    return Copier(rules, LIMIT)


def read_autocast(torch: ModuleType) -> Tuple[Tuple[str, str], ...]:
    """Return the device types for which autocast is on, each with its dtype's name."""
    found = []
    for kind in ("cpu", "cuda", "xpu", "mps"):
        try:
            dtype = _read_autocast_of(torch, kind)
        except (RuntimeError, TypeError, AttributeError):  # a device that this torch does not know
            continue
        if dtype is not None:
            found.append((kind, str(dtype).replace("torch.", "")))
    return tuple(found)


def _read_autocast_of(torch: ModuleType, kind: str) -> Any:  # noqa: ANN401  (a torch.dtype or None)
    if hasattr(torch, "get_autocast_dtype"):  # since 2.4
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    if kind == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if kind == "cuda" and torch.is_autocast_enabled() else None


def count_tokens(tensors: List[TensorShape]) -> Tuple[Optional[int], Optional[int]]:
    """Return the tokens and the samples that a call worked on, each None if it does not show."""
    for tensor in tensors:
        if len(tensor.shape) >= 2 and not (tensor.dtype.is_floating_point or tensor.dtype.is_complex):
            return count_elements(tensor), tensor.shape[0]
    first = next((tensor for tensor in tensors if tensor.shape), None)
    return None, None if first is None else first.shape[0]


def count_elements(tensor: TensorShape) -> int:
    """Return how many numbers a tensor holds."""
    elements = 1
    for size in tensor.shape:
        elements *= size
    return elements


def _list_plain(value: Any, depth: int = 4) -> List[Hashable]:  # noqa: ANN401  (an argument)
    """List the plain values in the arguments that may decide what a forward does, with the names they go by."""
    if value is None or isinstance(value, (bool, int, str)):
        return [value]
    if depth and isinstance(value, dict):
        return [part for key in value for part in (str(key), *_list_plain(value[key], depth - 1))]
    if depth and isinstance(value, (list, tuple)):
        return [part for item in value[:100] for part in _list_plain(item, depth - 1)]
    return [type(value).__name__]
