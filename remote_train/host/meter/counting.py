"""The FLOPs of one call, forward and backward, worked out on a copy of the module made of tensors without data."""

from __future__ import annotations

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Dict, Optional

    from .calls import Call


class Count:
    """What one call costs, forward and backward together; a figure that is not known is None, and `why` says why.

    Model FLOPs (recomputation of checkpointed activations left out, causal attention not halved), `by_dtype` those of
    each dtype that products are made in. `kernels`: operations that are no views; `bytes`: of the tensors that go in
    and out of them. `how`: "counted", "counted on real tensors", "6N" or None. `wants_real`: the shapes depend on values,
    so describe the next call with `keep=True` and count again.
    """

    __slots__ = (
        "by_dtype",
        "bytes",
        "flops",
        "how",
        "kernels",
        "parameters",
        "trainable",
        "wants_real",
        "why",
    )

    def __init__(self, parameters: Optional[int], trainable: Optional[int]) -> None:
        self.parameters, self.trainable = parameters, trainable
        self.flops: Optional[float] = None
        self.by_dtype: Dict[str, float] = {}
        self.kernels: Optional[int] = None
        self.bytes: Optional[int] = None
        self.how: Optional[str] = None
        self.why: Optional[str] = None
        self.wants_real = False


def count_call(torch: ModuleType, call: Call, deadline: float) -> Count:
    """Count a call's FLOPs without touching its module, in this thread; `deadline` is a time of `time.monotonic()`.

    The live module, its gradients, every random state and every global switch of torch are as before when it returns.
    """
    raise NotImplementedError
