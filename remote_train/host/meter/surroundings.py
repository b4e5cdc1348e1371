"""Everything of torch and Python that a forward and backward could change or depend on: put as it was, then put back."""

from __future__ import annotations

import contextlib
import importlib
import random
import sys
import threading

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Callable, Iterator, List, Tuple

    from .calls import Call


@contextlib.contextmanager
def keep_random_states(torch: ModuleType) -> Iterator[None]:
    """Put Python's, NumPy's and torch's generators back, those of every GPU in use among them."""
    putting = [(random.setstate, random.getstate())]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        putting.append((numpy.random.set_state, numpy.random.get_state()))
    putting.append((torch.set_rng_state, torch.get_rng_state()))
    if torch.cuda.is_initialized():
        putting += [(maker.set_state, maker.get_state()) for maker in torch.cuda.default_generators]
    try:
        yield
    finally:
        for put, state in putting:
            put(state)


@contextlib.contextmanager
def enter_state(torch: ModuleType, call: Call) -> Iterator[None]:
    """Be in the state that the call was made in: grad mode, autocast, nothing compiled, no anomaly detection."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.set_grad_enabled(call.grad))
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        if hasattr(torch, "compiler") and hasattr(torch.compiler, "set_stance"):  # since 2.6
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for kind, dtype in _choose_autocasts(torch, call):
            stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=dtype is not None))
        stack.callback(torch.clear_autocast_cache)
        stack.enter_context(_silence_this_thread())
        yield


def _choose_autocasts(torch: ModuleType, call: Call) -> List[Tuple[str, Any]]:
    from .calls import read_autocast  # noqa: PLC0415  (of the same floor)

    wanted = {kind: getattr(torch, name) for kind, name in call.autocast}
    now = [kind for kind, _ in read_autocast(torch)]
    return list(wanted.items()) + [(kind, None) for kind in now if kind not in wanted]


class _Muted:
    """The standard output with what one thread prints left out: a forward that prints does not print twice."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401  (whatever stands as sys.stdout)
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else int(self._stream.write(text) or 0)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)


@contextlib.contextmanager
def _silence_this_thread() -> Iterator[None]:
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Muted(out), _Muted(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


@contextlib.contextmanager
def take_rnns_apart(torch: ModuleType, *, needed: bool) -> Iterator[None]:
    """Switch the fused kernels of recurrent networks off, in which products are hidden; only if there is one.

    The bare switches: the public `flags` contexts also write precision settings back, which a user may have set otherwise.
    """
    switches: List[Tuple[Callable[[bool], Any], bool]] = []
    for name in ("mkldnn", "cudnn"):
        get = getattr(torch._C, "_get_%s_enabled" % name, None)  # noqa: SLF001
        put = getattr(torch._C, "_set_%s_enabled" % name, None)  # noqa: SLF001
        if needed and get is not None and put is not None:
            switches.append((put, bool(get())))
    try:
        for put, _ in switches:
            put(False)
        yield
    finally:
        for put, value in switches:
            put(value)


def find_foreign_modes() -> bool:
    """Return whether a dispatch mode of the script's is on (a profiler's or a counter's): it would see our operations."""
    dispatch = importlib.import_module("torch.utils._python_dispatch")
    read = getattr(dispatch, "_get_current_dispatch_mode_stack", None)  # since 2.1
    return read is not None and bool(read())


def find_global_hooks(torch: ModuleType) -> bool:
    """Return whether hooks for all modules are on, which would run on a copy too."""
    place = torch.nn.modules.module
    names = (
        "_global_forward_hooks",
        "_global_forward_pre_hooks",
        "_global_backward_hooks",
        "_global_backward_pre_hooks",
    )
    return any(getattr(place, name, None) for name in names)
