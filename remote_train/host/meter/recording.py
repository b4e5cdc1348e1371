"""Sees each operation that a copy of a model dispatches and adds up what it costs, forward and backward."""

from __future__ import annotations

import importlib
import time

from .formulas import bind, find_formula, find_torchs_formula, hides_products, is_left_out

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Dict, List, Optional, Set, Tuple

    from .formulas import Formula

    Operation = Any

_KNOWN_NAMESPACES = ("aten", "prims", "prim", "quantized_decomposed", "inductor", "rngprims")
_COLLECTIVES = (
    "c10d",
    "_c10d_functional",
    "_c10d_functional_autograd",
    "c10d_functional",
    "symm_mem",
    "fsdp",
    "_dtensor",
)

# Neither a view by its schema nor work.
_FREE = (
    "_unsafe_view",
    "_reshape_alias",
    "lift_fresh",
    "alias",
    "is_same_size",
    "_local_scalar_dense",
    "resize_",
)


class RefusedError(Exception):
    """An operation that must not run on a copy, or whose cost nobody knows; the message says which and why."""


class OutOfTimeError(RefusedError):
    """The time that the count may take is over."""


class Kind:
    """What is known of an operation before it runs: its formula, and whether it is free."""

    __slots__ = ("arguments", "composite", "convolution", "formula", "free", "left_out", "refusal", "writes")

    def __init__(self, operation: Operation) -> None:
        schema = getattr(operation, "_schema", None)
        name = str(schema.name) if schema is not None else "%s::" % operation
        namespace, _, short = name.partition("::")
        self.arguments: List[Any] = list(schema.arguments) if schema is not None else []
        self.free = namespace == "prim" or (schema is not None and _is_free(schema, short))
        ours = short if namespace == "aten" else namespace  # an operation of higher order has no schema
        self.formula: Optional[Formula] = (
            find_formula(ours) if namespace == "aten" or schema is None else None
        )
        if self.formula is None:
            packet = getattr(operation, "overloadpacket", operation)
            self.formula = find_torchs_formula(packet)
        self.convolution = "conv" in short
        self.left_out = short if namespace == "aten" and self.formula is None and is_left_out(short) else None
        self.writes = [at for at, each in enumerate(self.arguments) if _is_written(each, short)]
        self.refusal = None if self.formula is not None else _find_refusal(namespace, short, name)
        # Operations made of others arrive whole under inference mode only; they are then taken apart.
        can = getattr(operation, "_can_decompose", None)
        self.composite = namespace == "aten" and self.formula is None and can is not None and bool(can())


def _is_written(argument: Any, short: str) -> bool:  # noqa: ANN401  (torch's Argument)
    """By the schema; batch norms, whose schema keeps it to itself, write the running statistics."""
    if "batch_norm" in short and argument.name in ("running_mean", "running_var"):
        return True
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


def _find_refusal(namespace: str, short: str, name: str) -> Optional[str]:
    if namespace in _COLLECTIVES:
        return "the model talks to other processes in its forward (%s)" % name
    if namespace not in _KNOWN_NAMESPACES:
        return "nobody has said what the operation %s costs" % name.rstrip(":")
    return "the operation %s hides its products" % name if hides_products(short) else None


def _is_free(schema: Any, short: str) -> bool:  # noqa: ANN401  (torch's FunctionSchema)
    if short.startswith(("empty", "new_empty", "sym_")) or short in _FREE:
        return True
    aliases = [value.alias_info for value in schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


class Tally:
    """The sums so far. FLOPs are the model's: those of recomputation in backward are left out, its kernels are not."""

    def __init__(self) -> None:
        self.by_dtype: Dict[str, float] = {}
        self.kernels = self.bytes = 0
        self.backward = False
        self.left_out: Set[str] = set()  # operations that compute a lot and have no formula
        self.refusal: Optional[RefusedError] = None


class Recorder:
    """Decides about each operation; `live` are the ids of the live model's tensors, which none may touch.

    `own` are the storages of a real copy and of what is made from it, the only ones that may be written; None on tensors
    without data. `draws` are the generators that the model may move.
    """

    def __init__(self, torch: ModuleType, deadline: float, live: Set[int]) -> None:
        self.torch, self.deadline, self.live = torch, deadline, live
        self.own: Optional[Set[Optional[int]]] = None
        self.draws: Set[str] = set()
        self.tally = Tally()
        self.kinds: Dict[Any, Kind] = {}

    def know(self, operation: Operation) -> Kind:
        """Return what is known of an operation, looked up once."""
        kind = self.kinds.get(operation)
        if kind is None:
            kind = self.kinds[operation] = Kind(operation)
        return kind

    def run(self, operation: Operation, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:  # noqa: ANN401
        """Run an operation and add it up; raise RefusedError before it runs if it must not."""
        kind = self.know(operation)
        inputs = _list_tensors(self.torch, (args, kwargs))
        self._refuse(kind, inputs)
        if kind.writes:
            self._refuse_to_write(kind, bind(kind.arguments, args, kwargs))
        out = operation(*args, **kwargs)
        if self.own is not None:
            old = {name_storage(tensor) for tensor in inputs}  # a view of what is not ours is not either
            self.own |= {name_storage(tensor) for tensor in _list_tensors(self.torch, out)} - old
        if not kind.free:
            self._add(kind, inputs, bind(kind.arguments, args, kwargs), out)
        return out

    def _refuse(self, kind: Kind, inputs: List[Any]) -> None:
        error: Optional[RefusedError] = None
        if kind.refusal is not None:
            error = RefusedError(kind.refusal)
        elif time.monotonic() > self.deadline:
            error = OutOfTimeError("counting took too long")
        elif any(map(self._is_live, inputs)):
            error = RefusedError("the forward reaches parameters that it does not hold")
        if error is not None:
            self._end(error)

    def _end(self, error: RefusedError) -> None:
        self.tally.refusal = error  # told even if the forward catches it
        raise error

    def _refuse_to_write(self, kind: Kind, args: Tuple[Any, ...]) -> None:
        written = _list_tensors(self.torch, [args[at] for at in kind.writes])
        if any(map(self._is_foreign, written)):
            self._end(RefusedError("the forward writes into a tensor that the model does not hold"))

    def _is_foreign(self, tensor: Any) -> bool:  # noqa: ANN401
        """On tensors without data what has data is not ours: some operations do run on it."""
        if self.own is None:
            return type(tensor) in (self.torch.Tensor, self.torch.nn.Parameter)
        return name_storage(tensor) not in self.own

    def _is_live(self, tensor: Any) -> bool:  # noqa: ANN401
        """Those of the module, and any parameter of the script's: a backward would change its gradient."""
        if id(tensor) in self.live:
            return True
        if self.own is None:  # on tensors without data every copy has a class of its own
            return bool(tensor.requires_grad) and type(tensor) in (self.torch.Tensor, self.torch.nn.Parameter)
        return bool(tensor.requires_grad) and name_storage(tensor) not in self.own

    def _add(self, kind: Kind, inputs: List[Any], args: Tuple[Any, ...], out: Any) -> None:  # noqa: ANN401
        tally = self.tally
        tally.kernels += 1
        tally.bytes += sum(map(_count_bytes, inputs)) + sum(map(_count_bytes, _list_tensors(self.torch, out)))
        if kind.left_out is not None:
            tally.left_out.add(kind.left_out)
        if kind.formula is None or (tally.backward and self.torch.is_grad_enabled()):
            return  # with gradients on in backward: a checkpoint computes its forward again
        dtype = name_dtype(self.torch, inputs, convolution=kind.convolution)
        tally.by_dtype[dtype] = tally.by_dtype.get(dtype, 0.0) + kind.formula(args, out)


def _list_tensors(torch: ModuleType, value: Any) -> List[Any]:  # noqa: ANN401  (arguments or results)
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in _list_tensors(torch, part)]
    if isinstance(value, dict):
        return [tensor for part in value.values() for tensor in _list_tensors(torch, part)]
    return []


def name_storage(tensor: Any) -> Optional[int]:  # noqa: ANN401
    """Return what tells the memory of a tensor from any other's that is in use; None for one without (sparse)."""
    try:
        storage = tensor.untyped_storage() if hasattr(tensor, "untyped_storage") else tensor.storage()
        return int(storage._cdata)  # noqa: SLF001  (also tells empty ones apart)
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


def _count_bytes(tensor: Any) -> int:  # noqa: ANN401
    """Of the elements there are in memory: an expanded dimension is read once."""
    elements = int(tensor.element_size())
    for size, stride in zip(tensor.shape, tensor.stride()):
        elements *= int(size) if stride or not size else 1
    return elements


def name_dtype(torch: ModuleType, inputs: List[Any], *, convolution: bool) -> str:
    """Return the dtype that a product is made in: of its inputs, or tf32 where float32 may be cut down to it."""
    first = next((tensor for tensor in inputs if tensor.dtype.is_floating_point), inputs[0])
    name = str(first.dtype).replace("torch.", "")
    if name == "float32" and first.device.type == "cuda" and allows_tf32(torch, convolution=convolution):
        return "tf32"
    return name


def allows_tf32(torch: ModuleType, *, convolution: bool) -> bool:
    """Return whether torch may use TF32 on CUDA; convolutions have a switch of their own, which is on by default."""
    switch = torch.backends.cudnn if convolution else torch.backends.cuda.matmul
    if convolution and hasattr(
        torch.backends.cudnn, "conv"
    ):  # since 2.9; the old names warn once the new ones are used
        switch = torch.backends.cudnn.conv
    try:
        precision = getattr(switch, "fp32_precision", None)
        if precision in ("tf32", "ieee"):
            return bool(precision == "tf32")
        old = torch.backends.cudnn if convolution else torch.backends.cuda.matmul
        return bool(old.allow_tf32)
    except (AttributeError, RuntimeError):
        return False


def make_mode(torch: ModuleType, recorder: Recorder) -> Any:  # noqa: ANN401  (a TorchDispatchMode)
    """Return the dispatch mode, a context manager, that shows a recorder every operation."""
    base: Any = importlib.import_module("torch.utils._python_dispatch").TorchDispatchMode

    device = (
        torch.ops.prim.device.default
    )  # what reading `.device` of a tensor without data becomes, a thousand times

    class Mode(base):  # type: ignore[misc]
        supports_higher_order_operators = True

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
            if func is device:
                return func(*args)
            if recorder.know(func).composite:
                with self:
                    return func.decompose(*args, **(kwargs or {}))
            return recorder.run(func, args, kwargs or {})

    return Mode()
