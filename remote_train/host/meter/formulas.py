"""FLOPs of the operations that multiply matrices, by their names in torch's dispatcher: our own, and torch's where we have none.

A multiplication and an addition are two. Attention is counted as its products, backward as twice forward: recomputation inside
a fused kernel is no model FLOP, and a causal mask halves nothing.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional, Sequence, Tuple

    Formula = Callable[[Any, Any], float]  # the arguments in order, and what came out


def multiply(sizes: Sequence[int]) -> int:
    """Return the product of the sizes: the number of elements of a shape."""
    product = 1
    for size in sizes:
        product *= int(size)
    return product


def _count_product(left: Any, right: Any) -> float:  # noqa: ANN401  (tensors)
    """Of [..., n, k] and [..., k, m]; a vector counts as a matrix with one row or column."""
    columns = right.shape[-1] if len(right.shape) > 1 else 1
    return 2.0 * multiply(left.shape) * columns


def _count_convolution(args: Any, out: Any) -> float:  # noqa: ANN401  (input, weight, bias, stride, padding, dilation, transposed…)
    """Each element of the output (transposed: of the input) takes part in one product with a filter.

    The weight is [out, in / groups, *kernel], transposed [in, out / groups, *kernel].
    """
    transposed = bool(args[6]) if len(args) > 6 else False
    return _count_filters(args[0].shape if transposed else out.shape, args[1].shape)


def _count_filters(positions: Sequence[int], weight: Sequence[int]) -> float:
    return 2.0 * multiply(positions) * multiply(weight[1:])


def _count_convolution_backward(args: Any, _: Any) -> float:  # noqa: ANN401  (grad, input, weight, …, transposed at 7, output_mask at 10)
    mask, transposed = args[10], bool(args[7])
    once = _count_filters(args[1].shape if transposed else args[0].shape, args[2].shape)
    return once * (bool(mask[0]) + bool(mask[1]))


def _count_attention(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> float:
    """Of [..., heads, length, size]: scores and their product with the values."""
    return 2.0 * multiply([*query[:-1], key[-2], query[-1] + value[-1]])


def _count_attention_forward(args: Any, _: Any) -> float:  # noqa: ANN401
    return _count_attention(args[0].shape, args[1].shape, args[2].shape)


def _count_attention_backward(args: Any, _: Any) -> float:  # noqa: ANN401  (the gradient comes first)
    return 2.0 * _count_attention(args[1].shape, args[2].shape, args[3].shape)


def _count_grouped(args: Any, out: Any) -> float:  # noqa: ANN401  (the groups share the rows out among them)
    left, right = args[0].shape, args[1].shape
    groups_inside = len(left) == 2 and len(right) == 2  # along the dimension that is summed over
    return 2.0 * multiply([*left, right[1]] if groups_inside else [*out.shape, left[-1]])


def _count_trilinear(args: Any, _: Any) -> float:  # noqa: ANN401  (three tensors, then which dimensions each lacks)
    """The three are spread over all dimensions, multiplied and summed: a term for each place."""
    spread = []
    for tensor, missing in zip(args[:3], args[3:6]):
        sizes = list(tensor.shape)
        for dimension in sorted(missing):
            sizes.insert(dimension, 1)
        spread.append(sizes)
    return 2.0 * multiply([max(sizes) for sizes in zip(*spread)])


def _after(first: int) -> Formula:
    """Return the formula for a product whose factors begin at this argument."""
    return lambda args, _: _count_product(args[first], args[first + 1])


_FORMULAS: Dict[str, Formula] = {
    "mm": _after(0),
    "bmm": _after(0),
    "mv": _after(0),
    "dot": _after(0),
    "vdot": _after(0),
    "_int_mm": _after(0),
    "_scaled_mm": _after(0),
    "addmm": _after(1),
    "baddbmm": _after(1),
    "addbmm": _after(1),
    "addmv": _after(1),
    "_addmm_activation": _after(1),
    "linear": lambda args, _: 2.0 * multiply(args[0].shape) * args[1].shape[0],
    "_grouped_mm": _count_grouped,
    "_trilinear": _count_trilinear,
    "flex_attention": _count_attention_forward,
    "flex_attention_backward": lambda args, _: 2.0 * _count_attention(*(part.shape for part in args[:3])),
    "convolution": _count_convolution,
    "_convolution": _count_convolution,
    "convolution_overrideable": _count_convolution,
    "convolution_backward": _count_convolution_backward,
    "convolution_backward_overrideable": _count_convolution_backward,
}

# Operations that hide products and have no formula here: their answer is a reason, never nothing.
_HIDING = (
    "rnn",
    "lstm",
    "gru",
    "multi_head_attention",
    "transformer_encoder_layer",
    "mkldnn_linear",
    "mkldnn_conv",
    "cudnn_conv",
    "miopen_conv",
    "_slow_conv",
    "slow_conv",
    "thnn_conv",
    "conv_depthwise",
    "flash_attention",
    "efficient_attention",
    "fused_attention",
    "_scaled_mm",
    "_grouped_mm",
    "sparse_mm",
    "sspaddmm",
    "_weight_int",
)
# Much work, but no products of two matrices: left out, and the count says so.
_LEFT_OUT = (
    "_fft_",
    "_linalg_",
    "linalg_",
    "cholesky",
    "triangular_solve",
    "lu_solve",
    "lu_unpack",
    "geqrf",
    "ormqr",
    "_cdist",
)
_CHEAP = ("linalg_vector_norm", "linalg_cross", "linalg_diagonal")
_HARMLESS = (
    "_thnn_fused_lstm_cell",
    "_thnn_fused_gru_cell",
    "philox",
)  # what is left when the products are apart


def find_formula(name: str) -> Optional[Formula]:
    """Return our formula for the operation `aten::NAME`, without its overload; None when there is none."""
    base = name.rstrip("_")
    if base in _FORMULAS:
        return _FORMULAS[base]
    if "scaled_dot_product" in base and "attention" in base:
        return _count_attention_backward if base.endswith("backward") else _count_attention_forward
    return None


def find_torchs_formula(packet: Any) -> Optional[Formula]:  # noqa: ANN401  (an OpOverloadPacket)
    """Return torch's own formula of an operation, which a library may have registered for its kernels."""
    try:
        registry = importlib.import_module("torch.utils.flop_counter").flop_registry  # since 2.1
    except (ImportError, AttributeError):
        return None
    formula = registry.get(packet)
    if formula is None:
        return None
    return lambda args, out: float(formula(*args, out_val=out))


def hides_products(name: str) -> bool:
    """Return whether an operation of aten that has no formula multiplies matrices inside."""
    return any(word in name for word in _HIDING) and not name.startswith(_HARMLESS)


def is_left_out(name: str) -> bool:
    """Return whether an operation of aten without a formula computes so much that leaving it out must be said."""
    return name.startswith(_LEFT_OUT) and not name.startswith(_CHEAP)


def bind(arguments: Sequence[Any], args: Sequence[Any], kwargs: Dict[str, Any]) -> Tuple[Any, ...]:
    """Put what an operation was called with into the order of its schema, defaults filled in."""
    rest = arguments[len(args) :]
    return tuple(args) + tuple(kwargs.get(argument.name, argument.default_value) for argument in rest)
