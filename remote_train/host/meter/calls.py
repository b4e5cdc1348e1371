"""What one call of a module was given, without keeping a tensor of it: enough to run it again on tensors without data."""

from __future__ import annotations

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    import weakref
    from types import ModuleType
    from typing import Any, Dict, Hashable, Optional, Tuple

    Module = Any


class Call:
    """One call of a module: its arguments with every tensor replaced by a description, and the state torch was in.

    `signature` is hashable and equal for calls that cost the same: shapes, dtypes, devices, grad mode, autocast, training,
    and the plain values among the arguments. The module is held weakly: `module()` is None when it is gone.
    """

    __slots__ = (
        "args",
        "autocast",
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
    kept: bool  # the tensors are real copies
    why: Optional[str]  # why the arguments could not be described; then it cannot be counted
    signature: Hashable


def describe_call(torch: ModuleType, module: Module, args: Any, kwargs: Any, *, keep: bool = False) -> Call:  # noqa: ANN401  (whatever a forward takes)
    """Describe a call from a forward pre-hook: cheap (< 200 us), keeps no tensor unless `keep` asks for copies of them.

    `keep` is for a module whose Count said `wants_real`: its FLOPs depend on the values.
    """
    raise NotImplementedError
