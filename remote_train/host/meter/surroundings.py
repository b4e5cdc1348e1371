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
    from typing import Any, Callable, Iterable, Iterator, List, Optional, Set, Tuple

    from .calls import Call


@contextlib.contextmanager
def keep_random_states(torch: ModuleType, draws: Set[str]) -> Iterator[None]:
    """Put Python's, NumPy's and torch's generators back, those of every GPU in use among them, where they have moved.

    With other threads about it may have been they who drew: then only those in `draws` ("random", "numpy", "torch"; it may
    be filled within) are put back, which the model may have moved. What such a thread drew of one of these meanwhile, it
    draws again.
    """
    states: List[Tuple[str, Any, Any]] = [("random", random.getstate, random.setstate)]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        states.append(("numpy", numpy.random.get_state, numpy.random.set_state))
    states.append(("torch", torch.get_rng_state, torch.set_rng_state))
    if torch.cuda.is_initialized():
        states += [("torch", maker.get_state, maker.set_state) for maker in torch.cuda.default_generators]
    kept = [(name, get, put, get()) for name, get, put in states]
    try:
        yield
    finally:
        alone = len(sys._current_frames()) == 1  # noqa: SLF001  (counts threads that `threading` does not know, too)
        for name, get, put, state in kept:
            if (alone or name in draws) and not _is_same(get(), state):
                put(state)


def _is_same(one: Any, other: Any) -> bool:  # noqa: ANN401  (states of a generator)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if hasattr(one, "tobytes") or hasattr(one, "numpy"):  # of NumPy and of torch
        return bool((one == other).all())
    return bool(one == other)


@contextlib.contextmanager
def enter_state(torch: ModuleType, call: Call) -> Iterator[None]:
    """Be in the state that the call was made in: grad mode, autocast, nothing compiled, no anomaly detection."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.set_grad_enabled(call.grad))
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        if hasattr(torch, "compiler") and hasattr(torch.compiler, "set_stance"):  # since 2.6
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        _leave_autocasts_cache_alone(torch, stack)
        for kind, dtype in _choose_autocasts(torch, call):
            stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=dtype is not None))
        stack.enter_context(_silence_this_thread())
        yield


def _leave_autocasts_cache_alone(torch: ModuleType, stack: contextlib.ExitStack) -> None:
    """Within an autocast of the script's use no cache of casts: clearing it changes what a loop inside one autocast does.

    Outside of any, it is empty, and emptied when ours ends.
    """
    torch.autocast_increment_nesting()
    if torch.autocast_decrement_nesting() > 0:
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)


def _choose_autocasts(torch: ModuleType, call: Call) -> List[Tuple[str, Any]]:
    from .calls import read_autocast  # noqa: PLC0415  (of the same floor)

    wanted = {kind: getattr(torch, name) for kind, name in call.autocast}
    now = [kind for kind, _ in read_autocast(torch)]
    return list(wanted.items()) + [(kind, None) for kind in now if kind not in wanted]


class _Muted:
    """The standard output with what one thread prints left out: a forward that prints does not print twice."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401  (whatever stands as sys.stdout)
        self._stream = stream
        self.thread: Optional[int] = (
            threading.get_ident()
        )  # None once the pause is over: a handler may have kept us

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.thread else int(self._stream.write(text) or 0)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)


@contextlib.contextmanager
def _silence_this_thread() -> Iterator[None]:
    """What it prints and logs goes nowhere."""
    out, err = sys.stdout, sys.stderr
    muted = _Muted(out), _Muted(err)
    sys.stdout, sys.stderr = muted
    try:
        with _silence_logging():
            yield
    finally:
        sys.stdout, sys.stderr = out, err
        for stream in muted:
            stream.thread = None


@contextlib.contextmanager
def _silence_logging() -> Iterator[None]:
    logging = sys.modules.get("logging")
    if logging is None:
        yield
        return
    thread, handle = threading.get_ident(), logging.Logger.handle

    def skip(logger: Any, record: Any) -> Any:  # noqa: ANN401
        return None if threading.get_ident() == thread else handle(logger, record)

    logging.Logger.handle = skip
    try:
        yield
    finally:
        logging.Logger.handle = handle


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
