"""Finding what a training calls, and seeing the calls for a moment: nothing is compiled again, nothing stays behind."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters

from remote_train.host.meter.calls import Call, describe_call
from remote_train.host.meter.counting import count_call
from remote_train.host.meter.modules import find_inner, find_outermost, find_watchable, watch
from tests.meter.counted_calls import PATIENT

# What torch's compiler warns of while it is imported and while it traces is not for us.
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

BATCH, STEPS, WATCHED = 4, 6, (2, 4)
FLOPS = 2.0 * BATCH * (2 * 8 * 16 + 3 * 16 * 1)


class Part(nn.Module):
    """Of the script's own: torch.compile passes over calls of torch's own classes."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(inner, outer), nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.dropout(self.linear(x).tanh())
        return out


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Part(8, 16), Part(16, 1)

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(x)) * scale
        return out


def leave(net: Net, _: str) -> Any:
    return net


def wrap(net: Net, backend: str) -> Any:
    return torch.compile(net, backend=backend)


def compile_in_place(net: Net, backend: str) -> Any:
    net.compile(backend=backend)
    return net


def wrap_part(net: Net, backend: str) -> Any:
    net.first = torch.compile(net.first, backend=backend)  # type: ignore[assignment]
    return net


def compile_part_in_place(net: Net, backend: str) -> Any:
    net.first.compile(backend=backend)
    return net


def compile_function(net: Net, backend: str) -> Any:
    def call(x: torch.Tensor, scale: float) -> torch.Tensor:
        out: torch.Tensor = net(x, scale=scale)
        return out

    return torch.compile(call, backend=backend)


Compile = Callable[[Net, str], Any]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def train(
    make: Compile, backend: str, watched: tuple[int, ...]
) -> tuple[list[float], dict[str, Any], list[Any]]:
    """Train a few steps; return the losses, what torch.compile did, and what was counted in the steps watched."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(5)
    net = Net()
    model = make(net, backend)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses, counted = [], []
    for step in range(STEPS):
        calls: list[Call] = []
        stops = start_watching(net, calls) if step in watched else []
        loss = model(torch.randn(BATCH, 8), scale=2.0).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        for stop in stops:
            stop()
        counted += [count_call(torch, call, time.monotonic() + PATIENT) for call in calls]
    return losses, {kind: dict(counters[kind]) for kind in ("stats", "frames", "recompiles")}, counted


def start_watching(net: nn.Module, calls: list[Call]) -> list[Callable[[], None]]:
    found = find_watchable(find_outermost(torch, net.parameters()))
    assert len(found) == 1

    def see(module: Any, args: Any, kwargs: Any) -> None:
        calls.append(describe_call(torch, module, args, kwargs))

    return [watch(one, see) for one in found if one.how]


def hold_alike(make: Compile, backend: str) -> list[Any]:
    plain, watched = train(make, backend, ()), train(make, backend, WATCHED)
    assert plain[0] == watched[0]
    assert plain[1] == watched[1]
    assert (make is leave) != (plain[1]["stats"].get("unique_graphs") == 1)
    return watched[2]


@pytest.mark.parametrize("make", [leave, wrap, compile_in_place, wrap_part, compile_part_in_place])
def test_a_look_changes_no_loss_and_compiles_nothing_again(make: Compile) -> None:
    counted = hold_alike(make, "aot_eager")
    assert [(one.flops, one.how) for one in counted] == [(FLOPS, "counted")] * len(WATCHED)


def test_a_compiled_function_around_the_model_is_not_looked_into() -> None:
    assert hold_alike(compile_function, "aot_eager") == []
    net = Net()
    compiled = compile_function(net, "eager")
    compiled(torch.randn(BATCH, 8), 2.0)
    (found,) = find_watchable(find_outermost(torch, net.parameters()))
    assert "a function (call)" in str(found.why)


@pytest.mark.slow
@pytest.mark.parametrize("make", [wrap, compile_in_place, wrap_part, compile_part_in_place])
def test_the_same_with_compiled_machine_code(make: Compile) -> None:
    assert len(hold_alike(make, "inductor")) == len(WATCHED)


def test_a_compiled_function_inside_a_model_is_counted_eagerly() -> None:
    @torch.compile(backend="eager")
    def square(x: torch.Tensor) -> torch.Tensor:
        return x @ x.t()

    class Inside(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return square(super().forward(x))

    model, x = Inside(8, 8), torch.randn(BATCH, 8)
    model(x)
    graphs = dict(counters["stats"])
    call = describe_call(torch, model, (x,), {})
    found = count_call(torch, call, time.monotonic() + PATIENT)
    assert (found.flops, found.why) == (2.0 * BATCH * (2 * 8 * 8 + 3 * 8 * BATCH), None)
    model(x)
    assert dict(counters["stats"]) == graphs


def test_the_outermost_modules_that_hold_parameters_are_found() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

    net, other, bystander = Net(), nn.Linear(3, 3), nn.Linear(3, 3)
    average = copy.deepcopy(net)
    assert find_outermost(torch, net.parameters()) == [net]
    wrapper = Wrapper(net)
    assert find_outermost(torch, list(net.second.parameters())) == [wrapper]
    both = find_outermost(torch, [*net.parameters(), *other.parameters()])
    assert {id(one) for one in both} == {id(wrapper), id(other)}
    assert find_outermost(torch, [nn.Parameter(torch.ones(1))]) == []
    assert find_inner(wrapper) == [net]
    assert find_inner(net) == [net.first, net.second]
    assert find_inner(torch.compile(net, backend="eager")) == []
    assert [bystander, average]  # alive until here, found by nobody


def test_a_frozen_collector_stays_as_it_is_and_hides_no_global(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trainer:
        model = None

    net, trainer = Net(), Trainer()
    trainer.model = net  # type: ignore[assignment]
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        assert find_outermost(torch, net.parameters()) == []
        monkeypatch.setattr(sys.modules["__main__"], "trainer_of_a_test", trainer, raising=False)
        assert find_outermost(torch, net.parameters()) == [net]
        assert gc.get_freeze_count() <= count
    finally:
        gc.unfreeze()


def test_of_millions_of_objects_only_the_scripts_globals_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net()
    monkeypatch.setattr(sys.modules["__main__"], "model_of_a_test", net, raising=False)
    monkeypatch.setattr(sys, "getallocatedblocks", lambda: 10**7)
    wrapped = torch.nn.ModuleList([net])  # that nobody calls, and no global is
    assert find_outermost(torch, net.parameters()) == [net]
    assert find_outermost(torch, [*net.parameters(), nn.Parameter(torch.ones(1))]) == [wrapped]


def test_proxies_are_not_touched() -> None:
    class Lazy:
        touched = 0

        @property
        def __class__(self) -> Any:
            Lazy.touched += 1
            return nn.Module

        @__class__.setter
        def __class__(self, _: Any) -> None: ...

        def __getattr__(self, _: str) -> Any:
            Lazy.touched += 1
            raise AttributeError

    net, lazy = Net(), [Lazy() for _ in range(3)]
    assert find_outermost(torch, net.parameters()) == [net]
    assert (Lazy.touched, len(lazy)) == (0, 3)


LOAD = """
import io, pickle, sys, torch
for file in pickle.load(sys.stdin.buffer):
    model = torch.load(io.BytesIO(file), weights_only=False)
    model(torch.randn(4, 8)).sum().backward()
print(sorted(name for name in sys.modules if "remote_train" in name))
"""


def test_a_model_saved_while_it_is_watched_loads_without_us() -> None:
    files: list[bytes] = []
    for model in (nn.Sequential(nn.Linear(8, 2)), nn.Sequential(nn.Linear(8, 2))):
        if files:
            model.compile(backend="eager")
        calls: list[Call] = []
        stops = start_watching(model, calls)
        twin = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        files.append(file.getvalue())
        for stop in (*stops, *stops):
            stop()
        twin(torch.randn(BATCH, 8))
        model(torch.randn(BATCH, 8))
        assert calls == []
        assert not model._forward_pre_hooks
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD], input=pickle.dumps(files), capture_output=True, check=True, cwd="/"
    )
    assert loaded.stdout == b"[]\n"
