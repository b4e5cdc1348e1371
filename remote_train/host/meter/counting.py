"""The FLOPs of one call, forward and backward, worked out on a copy of the module made of tensors without data."""

from __future__ import annotations

import importlib
import os
import traceback

from .cloning import make_copier
from .estimate import count_parameters, estimate_flops
from .guard import is_from_a_signal
from .keeping import keep_outside
from .reaching import find_reach
from .recording import Recorder, RefusedError, make_mode, name_storage
from .surroundings import (
    enter_state,
    find_foreign_modes,
    find_global_hooks,
    keep_random_states,
    take_rnns_apart,
)
from .tensors import CannotCopyError

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Dict, List, Optional

    from .calls import Call
    from .copying import Copier
    from .recording import Tally

# What a stranger's forward raises when it is run on tensors it did not expect; anything else is for the meter's guard.
_FAILURES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError)
_MORE_FAILURES = (RuntimeError, StopIteration, SyntaxError, TypeError, ValueError, Warning)

_REAL_BYTES = 1 << 30  # of parameters and buffers that are copied for real
_REAL_SHARE = 0.2  # of the memory that is free
_DEPENDS = ("DataDependentOutputException", "DynamicOutputShapeException")


class Count:
    """What one call costs, forward and backward together; a figure that is not known is None, and `why` says why.

    Model FLOPs (recomputation of checkpointed activations left out, causal attention not halved), `by_dtype` those of
    each dtype that products are made in. `kernels`: operations that are no views; `bytes`: of the tensors that go in
    and out of them; recomputation is among these two. `how`: "counted", "counted on real tensors", "6N" or None.
    `wants_real`: the shapes depend on values, so describe the next call with `keep=True` and count again.
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

    The live module, its gradients, every random state and every global switch of torch are as before when it returns, and so
    are the globals, attributes of classes and closures that the module's code mentions (keeping.py). What a signal handler
    of the script's raises meanwhile is raised.
    """
    module = call.module()
    if module is None:
        count = Count(None, None)
        count.why = "the model is gone"
        return count
    count = Count(*count_parameters(module))
    try:
        _fill(count, _run(torch, module, call, deadline), real=call.kept)
    except (CannotCopyError, RefusedError) as error:
        count.why = str(error)
        traceback.clear_frames(error.__traceback__)  # which hold the copy
    except _FAILURES + _MORE_FAILURES as error:
        if is_from_a_signal(error):
            raise  # it is the script's, and was meant to interrupt what happened to be ours
        count.why = _explain(error, real=call.kept)
        traceback.clear_frames(error.__traceback__)
        count.wants_real = not call.kept and _may_be_real(torch, module) and "data pointer" not in str(error)
    if count.flops is None:
        estimate_flops(torch, module, call, count)
    return count


def _fill(count: Count, tally: Tally, *, real: bool) -> None:
    if tally.refusal is not None:
        raise tally.refusal
    count.by_dtype = dict(tally.by_dtype)
    count.flops = sum(tally.by_dtype.values())
    count.kernels, count.bytes = tally.kernels, tally.bytes
    count.how = "counted on real tensors" if real else "counted"
    if tally.left_out:
        count.why = "no FLOPs are counted of %s" % ", ".join(sorted(tally.left_out)[:5])


def _run(torch: ModuleType, module: Any, call: Call, deadline: float) -> Tally:  # noqa: ANN401  (a module)
    obstacle = call.why or _find_obstacle(torch, module, call)
    if obstacle:
        raise CannotCopyError(obstacle)
    live = {id(tensor) for tensors in (module.parameters(), module.buffers()) for tensor in tensors}
    recorder = Recorder(torch, deadline, live)
    with keep_random_states(torch, recorder.draws), enter_state(torch, call):
        if call.kept:
            _run_copy(torch, module, call, recorder)
        else:
            with _make_fake_mode(torch, module):
                _run_copy(torch, module, call, recorder)
    return recorder.tally


def _find_obstacle(torch: ModuleType, module: Any, call: Call) -> Optional[str]:  # noqa: ANN401  (a module)
    if call.kept and not _may_be_real(torch, module):
        return "the shapes depend on values, and the model is too large to copy"
    if find_foreign_modes():
        return "a dispatch mode of the script's is on (a counter or a profiler)"
    if find_global_hooks(torch):
        return "the script has hooks on all modules"
    return None


def _make_fake_mode(torch: ModuleType, module: Any) -> Any:  # noqa: ANN401  (a module; a FakeTensorMode)
    on_gpu = any(tensor.device.type == "cuda" for tensor in module.parameters())
    if on_gpu and not hasattr(torch._C, "_set_throw_on_mutable_data_ptr"):  # noqa: SLF001  (before 2.2)
        raise RuntimeError("kernels outside of this old torch would not notice that there is no data")
    fake = importlib.import_module("torch._subclasses.fake_tensor")
    try:
        mode = fake.FakeTensorMode(allow_non_fake_inputs=True)
    except TypeError:  # before 2.0
        mode = fake.FakeTensorMode()
    if hasattr(mode, "_allow_unsafe_data_ptr_access"):
        # A Triton kernel that got a null pointer would end the training.
        mode._allow_unsafe_data_ptr_access = False  # noqa: SLF001
    return mode


def _run_copy(torch: ModuleType, module: Any, call: Call, recorder: Recorder) -> None:  # noqa: ANN401  (a module)
    copier = make_copier(torch, real=call.kept)
    try:
        _call_copy(torch, copier, module, call, recorder)
    finally:
        copier.forget()


def _call_copy(torch: ModuleType, copier: Copier, module: Any, call: Call, recorder: Recorder) -> None:  # noqa: ANN401  (as above)
    copy = copier.copy(module)
    if copy.training != call.training:
        copy.train(call.training)
    args, kwargs = copier.copy(call.args), copier.copy(call.kwargs)
    made = [pair[0] for pair in copier.memo.values()]
    if call.kept:
        recorder.own = {name_storage(one) for one in made if isinstance(one, torch.Tensor)}
    reach = find_reach(made)
    recorder.draws |= reach.draws | ({"torch"} if call.kept else set())
    recurrent = any(isinstance(part, torch.nn.RNNBase) for part in copy.modules())
    try:
        with keep_outside(reach), take_rnns_apart(torch, needed=recurrent), make_mode(torch, recorder):
            out = copy(*args, **kwargs)
            if call.grad:
                recorder.tally.backward = True
                _run_backward(torch, out)
        if copier.refusal is not None:
            raise copier.refusal
    finally:
        if call.kept:
            _release([*copy.parameters(), *copy.buffers()])


def _release(tensors: List[Any]) -> None:
    """Give the memory of a real copy back now, not when the collector comes upon its cycles."""
    for tensor in tensors:
        tensor.grad = None
        tensor.data = tensor.data.new_empty(0)


def _run_backward(torch: ModuleType, out: Any) -> None:  # noqa: ANN401  (whatever a forward returns)
    """Differentiate everything that can be: what a loss among it is made of costs no more than the loss alone.

    The loss alone would not do: it may be a small one beside the logits (of a mixture of experts), which the script's own is made of.
    """
    roots = [tensor for tensor in _list_outputs(torch, out) if tensor.requires_grad]
    if roots:
        torch.autograd.backward(roots, [torch.ones_like(tensor) for tensor in roots])


def _list_outputs(torch: ModuleType, out: Any, depth: int = 6) -> List[Any]:  # noqa: ANN401
    if isinstance(out, torch.Tensor):
        return [out] if out.is_floating_point() or out.is_complex() else []
    if isinstance(out, dict):
        parts = list(out.values())
    elif isinstance(out, (list, tuple)):
        parts = list(out)
    else:
        parts = list(vars(out).values()) if hasattr(out, "__dict__") and not callable(out) else []
    return [tensor for part in parts for tensor in _list_outputs(torch, part, depth - 1)] if depth else []


def _explain(error: BaseException, *, real: bool) -> str:
    name = type(error).__name__
    if name in _DEPENDS:
        return "shapes depend on values (%s)" % getattr(error, "func", name)
    if "data pointer" in str(error):
        return "a kernel outside of torch's dispatcher (Triton or C++) reads the tensors"
    # Quoted, as the guard does not: it is the script's word on its own model, and mostly names what the model wants.
    where = "a copy" if real else "a copy without data"
    return ("the forward fails on %s: %s: %s" % (where, name, error))[:300]


def _may_be_real(torch: ModuleType, module: Any) -> bool:  # noqa: ANN401  (a module)
    tensors = [tensor for group in (module.parameters(), module.buffers()) for tensor in group]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return bool(size <= _REAL_BYTES and size <= _REAL_SHARE * _read_free_memory(torch, tensors))


def _read_free_memory(torch: ModuleType, tensors: List[Any]) -> int:
    device = next((tensor.device for tensor in tensors), None)
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 8 << 30  # macOS does not say
