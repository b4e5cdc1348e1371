"""Tensors without their data: a description of one, and a new tensor that looks the same and holds nothing of it."""

from __future__ import annotations

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Callable, Optional, Tuple

    Tensor = Any


class CannotCopyError(Exception):
    """Something cannot be stood in for; the message says what, in words for the user."""


class TensorShape:
    """What a tensor looks like: a value among the arguments of a call, in the place of the tensor."""

    __slots__ = ("device", "dtype", "grad", "parameter", "shape", "stride")

    def __init__(self, tensor: Tensor, *, parameter: bool = False) -> None:
        self.shape: Tuple[int, ...] = tuple(tensor.shape)
        self.stride: Tuple[int, ...] = tuple(tensor.stride())
        self.dtype, self.device = tensor.dtype, tensor.device
        self.grad, self.parameter = bool(tensor.requires_grad), parameter

    def key(self) -> Tuple[Any, ...]:
        """Return what decides the cost of working with it."""
        return (self.shape, str(self.dtype), str(self.device), self.grad)


def describe_tensor(torch: ModuleType, tensor: Tensor) -> TensorShape:
    """Describe a tensor; raise CannotCopyError for one whose shape does not tell what is done with it."""
    obstacle = _find_obstacle(torch, tensor)
    if obstacle:
        raise CannotCopyError(obstacle)
    return TensorShape(tensor, parameter=isinstance(tensor, torch.nn.Parameter))


def _find_obstacle(torch: ModuleType, tensor: Tensor) -> Optional[str]:
    kind = type(tensor)
    name = kind.__name__
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        return _find_obstacle_of_plain(torch, tensor)
    if name == "DTensor":
        return _find_obstacle_of_pieces(tensor)
    if name.startswith("Uninitialized"):
        return "a lazy parameter has no shape yet"
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ or vars(tensor).get("quant_state"):
        return "a tensor is of a class with arithmetic of its own (%s)" % name
    return None


def _find_obstacle_of_plain(torch: ModuleType, tensor: Tensor) -> Optional[str]:
    if is_transformed(torch, tensor):
        return "a tensor stands for a whole batch inside torch.func.vmap, or is differentiated by torch.func"
    if "ds_id" in tensor.__dict__ and not tensor.numel():
        return "DeepSpeed ZeRO-3 keeps each parameter in pieces"
    if tensor.layout is not torch.strided or tensor.is_quantized or getattr(tensor, "is_nested", False):
        return "a tensor is sparse, nested or quantised"
    return None


def is_transformed(torch: ModuleType, tensor: Tensor) -> bool:
    """Return whether a tensor is a stand-in of torch.func's, whose shape is not that of what is computed."""
    functorch = getattr(torch._C, "_functorch", None)  # noqa: SLF001  (since 2.0)
    return functorch is not None and bool(functorch.is_functorch_wrapped_tensor(tensor))


def _find_obstacle_of_pieces(tensor: Tensor) -> Optional[str]:
    """FSDP and HSDP give every rank the whole layer for a moment; tensor parallelism never does."""
    kinds = [type(placement).__name__ for placement in tensor.placements]
    sharded = [kind for kind in kinds if "Shard" in kind]
    if len(sharded) > 1 or (len(kinds) > 1 and "Shard" not in kinds[-1]):
        return "parameters are split along several dimensions of the device mesh (tensor parallel)"
    return None


def make_empty(torch: ModuleType, shape: TensorShape) -> Tensor:
    """Make a new tensor like the one described; without data when made under FakeTensorMode."""
    made = torch.empty_strided(shape.shape, shape.stride, dtype=shape.dtype, device=shape.device)
    if shape.parameter:
        return torch.nn.Parameter(made, requires_grad=shape.grad)
    return made.requires_grad_() if shape.grad else made


def make_clone(torch: ModuleType, tensor: Tensor) -> Tensor:
    """Make a real copy, values and all, that is a leaf of its own."""
    describe_tensor(torch, tensor)
    if type(tensor).__name__ == "DTensor":
        raise CannotCopyError("parameters lie in pieces on several processes")
    with torch.no_grad():
        made = tensor.detach().clone()
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made.requires_grad_() if tensor.requires_grad else made


def make_stand_in(torch: ModuleType, *, real: bool) -> Callable[[Tensor], Tensor]:
    """Return what puts a new tensor in the place of a live one."""
    if real:
        return lambda tensor: make_clone(torch, tensor)
    return lambda tensor: make_empty(torch, describe_tensor(torch, tensor))
