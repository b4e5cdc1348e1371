"""What a call costs when it cannot be counted: 6·N·tokens, for want of better, and how many parameters there are."""

from __future__ import annotations

from .recording import name_dtype

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, List, Optional, Tuple

    from .calls import Call
    from .counting import Count

    Module = Any


_LEFT_OUT = (
    "6N leaves out attention's own products, and those with an embedding's weight that no other module holds"
)


def count_parameters(module: Module) -> Tuple[Optional[int], Optional[int]]:
    """Return the parameters of a module and the trainable ones among them, shared ones once; None if they lie in pieces."""
    found = list(module.parameters())
    kinds = {kind.__name__ for part in module.modules() for kind in type(part).__mro__}
    if "FullyShardedDataParallel" in kinds or any(map(is_unknown, found)):
        return None, None
    return sum(map(_count, found)), sum(_count(tensor) for tensor in found if tensor.requires_grad)


def is_unknown(tensor: Any) -> bool:  # noqa: ANN401  (a parameter)
    """Tell whether a parameter has no shape of its own yet, or lies in pieces."""
    return "ds_id" in getattr(tensor, "__dict__", {}) or type(tensor).__name__.startswith("Uninitialized")


def _count(tensor: Any) -> int:  # noqa: ANN401
    return int(tensor.numel())


def estimate_flops(torch: ModuleType, module: Module, call: Call, count: Count) -> None:
    """Fill in 2N a token for forward, and with gradients 2N for those of activations and 2 for each trainable parameter.

    Kaplan et al. 2020, section 2.1. Embeddings that no other module holds multiply nothing and are left out, so one whose
    weight the forward multiplies by itself is too; attention's own products are not in it. `why` says so.
    """
    if call.tokens is None or count.parameters is None:
        return
    used = _list_multiplied(torch, module)
    total = sum(map(_count, used))
    trained = sum(_count(tensor) for tensor in used if tensor.requires_grad)
    a_token = 2.0 * total
    if call.grad and count.trainable:
        a_token += 2.0 * total + 2.0 * trained
    count.flops, count.how = a_token * call.tokens, "6N"
    count.why = "; ".join(filter(None, (count.why, _LEFT_OUT)))
    dtype = call.autocast[0][1] if call.autocast else _name_dtype(torch, used)
    count.by_dtype = {dtype: count.flops}


def _list_multiplied(torch: ModuleType, module: Module) -> List[Any]:
    kinds = (torch.nn.Embedding, torch.nn.EmbeddingBag)
    found = {
        id(tensor): tensor
        for part in module.modules()
        if not isinstance(part, kinds)
        for tensor in part.parameters(recurse=False)
    }
    return list(found.values())


def _name_dtype(torch: ModuleType, tensors: List[Any]) -> str:
    return name_dtype(torch, tensors, convolution=False) if tensors else "float32"
