"""What a forward notes, takes, writes, draws or prints outside of its model is not noted, taken or written by the count."""

from __future__ import annotations

import collections
import functools
import logging
import random
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from remote_train.host.meter import surroundings
from remote_train.host.meter.calls import describe_call
from remote_train.host.meter.counting import count_call
from remote_train.host.meter.guard import is_from_a_signal
from tests.meter.counted_calls import PATIENT, count

pytestmark = pytest.mark.torch

ONCE = 2.0 * 4 * 10 * 10
LOSSES: list[Any] = []
BOOKS: dict[str, Any] = {"calls": 0, "deep": [[]]}
KINDS: tuple[Any, ...] = (
    set(),
    collections.deque([1], maxlen=2),
    collections.OrderedDict(a=1),
    list(range(20_000)),
)
SET, DEQUE, ORDERED, LARGE = KINDS
CALLS = 0
BANK = torch.zeros(10)
real = pytest.mark.parametrize("keep", [False, True], ids=["without data", "real"])


class State:
    def __init__(self) -> None:
        self.calls, self.losses = 0, [1]


STATE = State()


@functools.lru_cache(maxsize=8)
def make_mask(_: Any) -> torch.Tensor:
    return torch.ones(10)


def note(y: torch.Tensor) -> None:
    """A function that the forward calls: its globals are reached too."""
    global CALLS  # noqa: PLW0603
    CALLS += 1
    LOSSES.append(y.mean())
    BOOKS["calls"] += 1
    BOOKS["deep"][0].append(y)
    SET.add(y)
    DEQUE.append(y)
    ORDERED.pop("a")
    ORDERED["b"] = y
    LARGE.append(y)
    STATE.calls += 1
    STATE.losses.append(2)


class Noting(nn.Linear):
    calls = 0
    held: list[Any] = []  # noqa: RUF012

    def forward(self, x: torch.Tensor, default: list[Any] = []) -> torch.Tensor:  # noqa: B006
        y = super().forward(x) * make_mask(self)
        note(y)
        Noting.calls += 1
        Noting.new = 1  # type: ignore[attr-defined]
        self.held.append(y)
        default.append(y)
        return y


def read_books() -> str:
    noting = (Noting.calls, hasattr(Noting, "new"), Noting.held, Noting.forward.__defaults__)
    return repr(
        (LOSSES, BOOKS, KINDS[:3], len(LARGE), CALLS, vars(STATE), noting, make_mask.cache_info().currsize)
    )


@real
def test_what_a_forward_notes_in_globals_and_classes_is_put_back(keep: bool) -> None:
    before, model = read_books(), Noting(10, 10)
    assert count(model, torch.randn(4, 10), keep=keep).flops == 2 * ONCE
    assert read_books() == before


def test_what_a_forward_notes_in_variables_of_the_function_around_it_is_put_back() -> None:
    losses: list[Any] = []
    calls = 0

    class Inner(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            losses.append(x)
            return super().forward(x)

    assert count(Inner(10, 10), torch.randn(4, 10)).flops == 2 * ONCE
    assert (losses, calls) == ([], 0)


class Taking(nn.Linear):
    def forward(self, source: Any) -> torch.Tensor:
        return super().forward(source.get() if hasattr(source, "get") else next(source))


@real
@pytest.mark.parametrize("kind", ["list_iterator", "generator", "zip", "Queue", "SimpleQueue"])
def test_nothing_is_taken_from_iterators_and_queues(kind: str, keep: bool) -> None:
    import queue

    x = torch.randn(4, 10)
    source: Any = {"list_iterator": iter([x]), "generator": (one for one in [x]), "zip": zip([x])}.get(kind)
    if source is None:
        source = getattr(queue, kind)()
        source.put(x)
    found = count(Taking(10, 10), source, keep=keep)
    assert found.flops is None
    assert f"takes from a {kind}" in str(found.why)
    left = source.get_nowait() if source_is_queue(kind) else next(source)
    assert (left[0] if kind == "zip" else left) is x


def source_is_queue(kind: str) -> bool:
    return kind.endswith("Queue")


class Stream:
    """An iterator written in Python: its copy has a state of its own."""

    def __init__(self) -> None:
        self.at = 0

    def __next__(self) -> torch.Tensor:
        self.at += 1
        return torch.ones(4, 10)


def test_an_iterator_written_in_python_is_copied_with_its_state() -> None:
    stream = Stream()
    assert count(Taking(10, 10), stream).flops == 2 * ONCE
    assert stream.at == 0


class Banking(nn.Linear):
    def forward(self, x: torch.Tensor, how: str = "whole") -> torch.Tensor:
        y = super().forward(x)
        with torch.no_grad():
            if how == "view":
                BANK[:5].add_(1.0)
            elif how == "norm":
                nn.functional.batch_norm(y, BANK, BANK + 1, training=True)
            else:
                BANK.mul_(0.9).add_(1.0)
        y.view(-1).mul_(2.0)  # its own it may write
        return y


@pytest.mark.parametrize("how", ["whole", "view", "norm"])
def test_a_real_copy_writes_only_into_what_is_its_own(how: str) -> None:
    BANK.zero_()
    found = count(Banking(10, 10), torch.randn(4, 10), how, keep=True)
    assert found.flops is None
    assert "writes into a tensor" in str(found.why)
    count(Banking(10, 10), torch.randn(4, 10), how)  # without data: refused too, or done to a stand-in
    assert not BANK.any()


class Handler:
    def __call__(self, *_: object) -> None:
        raise KeyError("mine")

    def method(self, *_: object) -> None:
        raise TimeoutError("mine")


class Interrupted(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        signal.raise_signal(signal.SIGUSR1)
        return y


@pytest.mark.parametrize("kind", ["object", "method", "partial", "function"])
def test_what_a_signal_handler_raises_into_a_count_reaches_the_script(kind: str) -> None:
    handler = Handler()
    handlers: dict[str, Any] = {
        "object": handler,
        "method": handler.method,
        "partial": functools.partial(handler.method, 1),
        "function": lambda *_: handler(),
    }
    before = signal.signal(signal.SIGUSR1, handlers[kind])
    model = Interrupted(10, 10)
    try:
        with pytest.raises((KeyError, TimeoutError)) as raised:
            count(model, torch.randn(4, 10))
        assert is_from_a_signal(raised.value)
        wrapped = RuntimeError("wrapped")
        wrapped.__cause__ = raised.value
        assert is_from_a_signal(wrapped)
        assert not is_from_a_signal(RuntimeError("mine"))
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_loop_inside_one_autocast_goes_on_as_without_a_count() -> None:
    """The cached casts are of the weights before the first step: to clear them would be to train better."""

    def train(counts: bool) -> list[float]:
        torch.manual_seed(0)
        model = nn.Linear(10, 10)
        optimizer, x, losses = torch.optim.SGD(model.parameters(), 0.1), torch.randn(4, 10), []
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for _ in range(3):
                loss = model(x).float().pow(2).mean()
                loss.backward(retain_graph=True)
                optimizer.step()
                losses.append(loss.item())
                if counts:
                    assert count(model, x).by_dtype == {"bfloat16": 2 * ONCE}
            assert torch.is_autocast_cache_enabled()
        return losses

    assert train(counts=True) == train(counts=False)


def test_a_stream_kept_by_a_handler_is_as_any_other_after_the_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept: list[Any] = []

    class Keeping(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            vars(self)["kept"][0](sys.stdout)
            sys.stdout.writelines(["not"])
            return super().forward(x)

    model: Any = Keeping(10, 10)
    model.kept = [kept.append]
    count(model, torch.randn(4, 10))
    kept[0].write("said")
    kept[0].writelines([" so"])
    assert capsys.readouterr().out == "said so"


def test_a_forward_that_logs_does_not_log_twice(caplog: pytest.LogCaptureFixture) -> None:
    class Logging(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logging.getLogger("forward").error("once")
            return super().forward(x)

    handle = logging.Logger.handle
    assert count(Logging(10, 10), torch.randn(4, 10)).flops == 2 * ONCE
    assert caplog.records == []
    assert logging.Logger.handle is handle


def read_place() -> int:
    """Return how far NumPy's global generator is."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return int(state[2])


def test_what_other_threads_draw_is_not_drawn_again() -> None:
    """A prefetching thread draws from NumPy while a model that never does is counted."""
    asked, drawn, end = threading.Event(), threading.Event(), threading.Event()

    def prefetch() -> None:
        asked.wait(PATIENT)
        np.random.random()  # noqa: NPY002
        random.random()
        drawn.set()
        end.wait(PATIENT)

    thread = threading.Thread(target=prefetch)
    thread.start()
    before, draws = read_place(), {"random"}
    python = random.getstate()
    with surroundings.keep_random_states(torch, draws):
        asked.set()
        assert drawn.wait(PATIENT)
    end.set()
    thread.join()
    assert read_place() != before
    assert random.getstate() == python  # the model may have drawn it


def test_a_call_inside_vmap_says_that_it_cannot_be_counted() -> None:
    model, seen = nn.Linear(10, 10), []
    handle = model.register_forward_pre_hook(
        lambda one, args: seen.append(describe_call(torch, one, args, {}))
    )

    def lose(parameters: Any, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = functional_call(model, parameters, (x,)).sum()
        return out

    parameters = {name: value.detach() for name, value in model.named_parameters()}
    vmap(grad(lose), in_dims=(None, 0))(parameters, torch.randn(4, 10))
    grad(lose)(parameters, torch.randn(4, 10))
    handle.remove()
    found = [count_call(torch, call, time.monotonic() + PATIENT) for call in seen]
    assert found[0].flops is None
    assert "torch.func" in str(found[0].why)
    assert len(found) == 2


@pytest.mark.parametrize("name", ["_fft_r2c", "linalg_inv_ex"])
def test_operations_without_a_formula_that_compute_a_lot_are_named(name: str) -> None:
    class Solving(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            eye = torch.eye(10) + y.T @ y
            out: torch.Tensor = torch.fft.rfft(y).abs() if name == "_fft_r2c" else torch.linalg.inv(eye)
            return out

    found = count(Solving(10, 10), torch.randn(4, 10))
    assert found.how == "counted"
    assert found.flops
    assert name in str(found.why)
