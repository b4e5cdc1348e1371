"""What a counted forward moves, fills, ends or holds outside of its copy: all is as it was, and nothing of the script's is kept."""

from __future__ import annotations

import collections
import gc
import random
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.meter.counted_calls import count

pytestmark = pytest.mark.torch

ONCE = 2.0 * 4 * 10 * 10
real = pytest.mark.parametrize("keep", [False, True], ids=["without data", "real"])


class Settings:
    def __init__(self) -> None:
        self.generator = random.Random(2)


PYTHON, NUMPY, OLD = random.Random(0), np.random.default_rng(0), np.random.RandomState(0)
TORCH = torch.Generator()
SETTINGS = Settings()
BANK: dict[int, Any] = dict.fromkeys(range(2000))
RING = collections.deque(range(2000), maxlen=2000)
HISTOGRAM = np.zeros(20)


class Drawing(nn.Linear):
    own = random.Random(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for generator in (PYTHON, NUMPY, OLD, SETTINGS.generator, self.own):
            x = x * generator.random()
        return super().forward(x) + torch.rand(10, generator=TORCH)


def read_generators() -> str:
    old: Any = OLD.get_state()
    numpy = (NUMPY.bit_generator.state, old[2])
    python = [each.getstate() for each in (PYTHON, SETTINGS.generator, Drawing.own)]
    return repr((python, numpy, TORCH.get_state().tolist()))


@real
def test_generators_of_the_scripts_own_draw_what_they_would_have_drawn(keep: bool) -> None:
    before = read_generators()
    assert count(Drawing(10, 10), torch.randn(4, 10), keep=keep).flops == 2 * ONCE
    assert read_generators() == before


class Encoder(nn.Module):
    """A module outside of the model that keeps a state."""

    def __init__(self) -> None:
        super().__init__()
        self.state = torch.zeros(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state = self.state * 0.5 + x.detach()[0]
        return x + self.state


ENCODER = Encoder()


class Filling(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = ENCODER(super().forward(x))
        BANK[3] = y.detach()
        RING.append(1)
        HISTOGRAM[0] += 1
        return y


@real
def test_large_containers_arrays_and_modules_elsewhere_are_as_before(keep: bool) -> None:
    state = ENCODER.state
    assert count(Filling(10, 10), torch.randn(4, 10), keep=keep).flops == 2 * ONCE
    assert BANK[3] is None
    assert (RING[0], RING[-1], len(RING)) == (0, 1999, 2000)
    assert not HISTOGRAM.any()
    assert ENCODER.state is state


def test_what_cannot_be_put_back_does_not_keep_the_rest_from_it() -> None:
    from remote_train.host.meter import keeping

    keeper, first, last = keeping._Keeper(), [1], [2]
    keeper.keep(first)
    keeper._undo.callback(lambda: int("x"))
    keeper.keep(last)
    first.append(3)
    last.append(3)
    with pytest.raises(ValueError, match="invalid literal"):
        keeper.put_back()
    assert (first, last) == ([1], [2])


def test_a_large_array_of_a_model_is_not_written_into() -> None:
    class Writing(nn.Linear):
        array = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            held: Any = self.array
            held[0] += 1
            return super().forward(x)

    model: Any = Writing(10, 10)
    model.array = np.zeros(200_000)
    assert "read-only" in str(count(model, torch.randn(4, 10)).why)
    assert not model.array.any()
    assert model.array.flags.writeable


class Handle:
    """Of something outside of Python, freed at its end."""

    __slots__ = ("free", "number")

    def __init__(self, free: Any) -> None:
        self.free, self.number = free, 5

    def __del__(self) -> None:
        self.free(self.number)


def test_the_end_of_what_was_counted_frees_no_handle_of_the_scripts() -> None:
    class Graph(nn.Linear):
        def forward(self, x: torch.Tensor, graph: Any = None) -> torch.Tensor:
            return super().forward(x) if graph.handle.number == 5 else x

    freed: list[int] = []
    graph: Any = Settings()
    graph.handle = Handle(freed.append)
    model: Any = Graph(10, 10)
    model.handle = Handle(freed.append)
    assert count(model, torch.randn(4, 10), graph).flops == 2 * ONCE
    gc.collect()
    assert freed == []


def test_a_model_that_removes_its_hooks_at_its_end_keeps_them() -> None:
    class Watching(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net
            self.handle = net.register_forward_hook(lambda *_: None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.net(x)
            return out

        def __del__(self) -> None:
            self.handle.remove()

    net = nn.Linear(10, 10)
    model = Watching(net)
    assert "__del__" in str(count(model, torch.randn(4, 10)).why)
    gc.collect()
    assert len(net._forward_hooks) == 1


@real
def test_a_model_counted_is_gone_without_the_collector_once_the_script_drops_it(keep: bool) -> None:
    model = nn.Sequential(nn.Linear(10, 10))
    weight = weakref.ref(model[0].weight)
    gc.collect()
    gc.disable()
    try:
        count(model, torch.randn(4, 10), keep=keep)
        del model
        assert weight() is None
    finally:
        gc.enable()


def test_what_is_returned_beside_a_small_loss_is_differentiated_too() -> None:
    class Mixture(nn.Module):
        """Returns its logits, and a loss that balances its experts."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.gate = nn.Linear(10, 10), nn.Linear(10, 100), nn.Linear(10, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            h = self.body(x)
            return self.head(h), self.gate(h).softmax(-1).square().mean()

    expected = 2.0 * 4 * 10 * (2 * 10 + 3 * 100 + 3 * 4)
    assert count(Mixture(), torch.randn(4, 10)).flops == expected
