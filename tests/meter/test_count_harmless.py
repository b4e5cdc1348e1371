"""Counting leaves the live model, its Python state, its hooks, its inputs and everybody's random numbers alone."""

from __future__ import annotations

import functools
import itertools
import logging
import random
import threading
import time
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from remote_train.host.meter.calls import describe_call
from remote_train.host.meter.counting import count_call
from tests.meter.counted_calls import PATIENT, count, is_forgotten, unchanged

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.torch

ONCE = 2.0 * 4 * 10 * 10  # one product of the linear layers below


class Drawing(nn.Module):
    """Draws from every generator there is, its own among them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 10)
        self.own: list[Any] = [random.Random(1), np.random.default_rng(1), torch.Generator().manual_seed(1)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        drawn = np.random.random()  # noqa: NPY002  (what scripts draw from)
        scale = random.random() + drawn + self.own[0].random() + self.own[1].random()
        noise = torch.rand(4, 10, generator=self.own[2]) + torch.rand(4, 10)
        out: torch.Tensor = self.linear(x + noise) * float(scale)
        return out

    def states(self) -> list[Any]:
        return [self.own[0].getstate(), self.own[1].bit_generator.state, self.own[2].get_state().tolist()]


@pytest.mark.parametrize("keep", [False, True], ids=["without data", "real"])
def test_random_numbers_of_all_kinds_come_as_if_nothing_had_been(keep: bool) -> None:
    model = Drawing()
    before = model.states()
    found = count(model, torch.randn(4, 10), keep=keep)
    assert found.flops == 2 * ONCE
    assert found.how == ("counted on real tensors" if keep else "counted")
    assert model.states() == before


Pair = namedtuple("Pair", "a b")  # noqa: PYI024  (as scripts write it)


class Remembering(nn.Module):
    """Keeps books in every kind of structure, in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 10)
        self.register_buffer("mean", torch.zeros(10))
        self.steps = 0
        self.seen: list[int] = [1]
        self.by_name: dict[str, list[int]] = {"a": []}
        self.kinds = (defaultdict(int, a=1), Counter("a"), OrderedDict(a=1), deque([1, 2], maxlen=2), {3})
        self.inner = types.SimpleNamespace(calls=0, parent=self, named=Pair(1, [2]))
        self.array = np.zeros(3)
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.seen.append(self.steps)
        self.by_name["a"].append(1)
        self.kinds[0]["b"] += 1
        self.kinds[1].update("b")
        self.kinds[2]["b"] = 2
        self.kinds[3].append(9)
        self.kinds[4].add(4)
        self.inner.calls += 1
        self.inner.parent.inner.named.b.append(3)
        self.array += 1
        self.get_buffer("mean").add_(1.0)
        self.last = x
        self.linear.weight.extra = self.steps  # type: ignore[attr-defined]
        out: torch.Tensor = self.linear(x)
        return out

    def books(self) -> str:
        named = self.inner.named
        return repr(
            (self.steps, self.seen, self.by_name, self.kinds, self.inner.calls, named, self.array, self.last)
        )


@pytest.mark.parametrize("keep", [False, True], ids=["without data", "real"])
def test_what_a_forward_notes_is_noted_in_the_copy(keep: bool) -> None:
    model = Remembering()
    before = model.books()
    assert count(model, torch.randn(4, 10), keep=keep).flops == 2 * ONCE
    assert model.books() == before
    assert not hasattr(model.linear.weight, "extra")


def test_hooks_are_neither_run_nor_lost() -> None:
    model: Any = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    calls: list[str] = []
    model.register_forward_hook(lambda *_: calls.append("forward"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    model[1].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[0].weight.register_hook(lambda _: calls.append("gradient"))
    model[1].weight.register_post_accumulate_grad_hook(lambda _: calls.append("accumulated"))
    assert count(model, torch.randn(4, 10)).flops == 5 * ONCE
    assert calls == []
    model(torch.randn(4, 10)).sum().backward()
    assert sorted(calls) == ["accumulated", "backward", "before", "forward", "gradient"]


def test_modules_with_locks_loggers_files_and_threads(tmp_path: Path) -> None:
    class Busy(nn.Module):
        def __init__(self, file: Any) -> None:
            super().__init__()
            self.linear = nn.Linear(10, 10)
            self.lock, self.event = threading.RLock(), threading.Event()
            self.logger, self.file = logging.getLogger("busy"), file
            self.counter = itertools.count()
            self.words = {f"word {number}": number for number in range(50_000)}  # a vocabulary

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with self.lock:
                out: torch.Tensor = self.linear(x)
            return out

    with (tmp_path / "file").open("w") as file:
        assert count(Busy(file), torch.randn(4, 10)).flops == 2 * ONCE


def test_a_forward_that_prints_does_not_print_twice(capsys: pytest.CaptureFixture[str]) -> None:
    class Loud(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            print("forward")
            return super().forward(x)

    assert count(Loud(10, 10), torch.randn(4, 10)).flops == 2 * ONCE
    assert capsys.readouterr() == ("", "")


def test_methods_put_on_an_instance_are_bound_to_the_copy() -> None:
    """As accelerate does to cast a forward's results, and as its hooks do with a partial."""

    def rescale(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, module.weight) * 2.0

    def wrap(forward: Any) -> Any:
        return lambda *args: forward(*args).float()

    for make in (
        lambda linear: types.MethodType(rescale, linear),
        lambda linear: functools.partial(rescale, linear),
        lambda linear: wrap(linear.forward),
        lambda linear: wrap(functools.partial(wrap(linear.forward))),
    ):
        linear: Any = nn.Linear(10, 10)
        linear.forward = make(linear)
        found = count(linear, torch.randn(4, 10))
        assert (found.flops, found.how, found.why) == (2 * ONCE, "counted", None)


@pytest.mark.parametrize("keep", [False, True], ids=["without data", "real"])
def test_a_model_reached_through_a_global_name_is_refused(keep: bool) -> None:
    hidden = nn.Linear(10, 10)
    module = types.ModuleType("script")
    vars(module)["hidden"] = hidden

    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mine = nn.Linear(10, 10)
            self.script = module  # modules of Python are shared, as globals are

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.script.hidden(self.mine(x))
            return out

    model, x = Outside(), torch.randn(4, 10)
    with unchanged(hidden):
        found = count(model, x, keep=keep)
    assert found.flops is None
    assert "does not hold" in str(found.why)


def test_the_inputs_are_not_held() -> None:
    model, x = nn.Linear(10, 10), torch.randn(4, 10)
    call = describe_call(torch, model, ([{"x": x}],), {"y": x})
    reference = weakref.ref(x)
    del x
    assert is_forgotten(reference)
    del call
    x = torch.randn(4, 10)
    reference = weakref.ref(x)
    found = count(model, x)
    del x
    assert is_forgotten(reference)
    gone = weakref.ref(model)
    del model
    assert is_forgotten(gone)
    assert found.flops == 2 * ONCE


def test_a_model_that_is_gone_is_said_so() -> None:
    call = describe_call(torch, nn.Linear(10, 10), (torch.randn(4, 10),), {})
    found = count_call(torch, call, time.monotonic() + PATIENT)
    assert (found.flops, found.why) == (None, "the model is gone")


@pytest.mark.parametrize("fails", [False, True])
def test_a_real_copy_gives_its_memory_back_at_once(fails: bool) -> None:
    copies: list[torch.Tensor] = []
    note = [copies.extend]  # not by the name of the list, whose entries would be put back

    class Kept(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            note[0](self.parameters())
            out = super().forward(x)
            if fails:
                raise ValueError("not today")
            return out

    model = Kept(10, 10)
    found = count(model, torch.randn(4, 10), keep=True)
    assert found.flops == (None if fails else 2 * ONCE)
    assert len(copies) == 2
    assert all(copied is not live for copied, live in zip(copies, model.parameters(), strict=True))
    assert [copied.untyped_storage().nbytes() for copied in copies] == [0, 0]
    assert [copied.grad for copied in copies] == [None, None]
