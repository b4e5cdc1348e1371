"""Models that are no transformers: convolutions, recurrent networks, experts; each against a closed form of our own."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from remote_train.host.meter.calls import describe_call
from remote_train.host.meter.counting import count_call
from tests.meter.counted_calls import PATIENT, count

pytestmark = pytest.mark.torch


def test_a_perceptron_has_no_gradient_of_its_input() -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))
    found = count(model, torch.randn(7, 20))
    # 2 each forward and for the weights; for the activations of the second layer only
    assert found.flops == 2.0 * 7 * (2 * 20 * 30 + 3 * 30 * 5)
    asked = count(model, torch.randn(7, 20, requires_grad=True))
    assert asked.flops == 2.0 * 7 * (3 * 20 * 30 + 3 * 30 * 5)


class Bottleneck(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.way = nn.Sequential(
            nn.Conv2d(outer // 2, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=4, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.short = nn.Conv2d(outer // 2, outer, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.way(x) + self.short(x))


def test_a_network_of_strided_grouped_and_pointwise_convolutions() -> None:
    batch, size = 3, 32
    model = nn.Sequential(
        nn.Conv2d(3, 16, 7, stride=2, padding=3),
        nn.MaxPool2d(3, stride=2, padding=1),
        Bottleneck(16, 32, 1),
        Bottleneck(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    stem = 2.0 * batch * 16 * 16 * 16 * 3 * 49
    first = 2.0 * batch * 8 * 8 * (16 * 16 + 16 * 4 * 9 + 16 * 32 + 16 * 32)
    second = 2.0 * batch * (8 * 8 * 32 * 32 + 4 * 4 * (32 * 8 * 9 + 32 * 64 + 32 * 64))
    head = 2.0 * batch * 64 * 10
    found = count(model, torch.randn(batch, 3, size, size))
    assert found.flops == pytest.approx(2 * stem + 3 * (first + second + head), rel=1e-9)
    assert found.how == "counted"
    whole: Any = model
    channels_last = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    assert count(whole.to(memory_format=torch.channels_last), channels_last).flops == found.flops


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_transposed_convolutions(dimensions: int) -> None:
    weight = nn.Parameter(torch.randn(6, 4, *[3] * dimensions))

    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            up = getattr(functional, f"conv_transpose{dimensions}d")
            out: torch.Tensor = up(x, self.weight, stride=2, groups=2)
            return out

    found = count(Up(), torch.randn(5, 6, *[8] * dimensions, requires_grad=True))
    # every element of the input meets each of the 4 filters of its group
    assert found.flops == 3 * 2.0 * 5 * 6 * 8**dimensions * 4 * 3**dimensions


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_networks_are_taken_apart(kind: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    batch, length, inner, width = 6, 9, 20, 32
    model = getattr(nn, kind)(inner, width, num_layers=2, batch_first=True)
    found = count(model, torch.randn(batch, length, inner))
    a_step = gates * width * (inner + width + width + width)
    # no gradient of the input; the first step's hidden state is zeros, made in forward, and needs none either
    most = 3 * 2.0 * batch * length * a_step
    without = 2.0 * batch * length * gates * width * inner + 2 * 2.0 * batch * gates * width * width
    assert found.how == "counted"
    assert found.flops == pytest.approx(most - without, rel=0.01)


class DenseExperts(nn.Module):
    """Every token to every expert by einsum, weighted: shapes never depend on values."""

    def __init__(self, experts: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, width, 4 * width))
        self.down = nn.Parameter(torch.randn(experts, 4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.gate(x).softmax(-1)
        inner = torch.einsum("td,edh->eth", x, self.up).relu()
        return torch.einsum("eth,ehd->etd", inner, self.down).mul(weights.t().unsqueeze(-1)).sum(0)


class ChosenExperts(nn.Module):
    """The two best experts of each token, found by their index: how many tokens an expert gets depends on values."""

    def __init__(self, experts: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.Dropout(0.1), nn.Linear(4 * width, width))
            for _ in range(experts)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == number)
            out = out.index_add(0, rows, expert(x[rows]) * weights[rows, place].unsqueeze(-1))
        return out


def test_experts_that_all_work() -> None:
    tokens, experts, width = 40, 4, 16
    found = count(DenseExperts(experts, width), torch.randn(tokens, width))
    assert found.how == "counted"
    gate, up = 2.0 * tokens * width * experts, 2.0 * tokens * experts * width * 4 * width
    assert found.flops == pytest.approx(2 * gate + 2 * up + 3 * up, rel=0.01)


def test_experts_that_are_chosen_are_counted_on_real_tensors() -> None:
    tokens, width = 40, 16
    model, x = ChosenExperts(4, width), torch.randn(tokens, width)
    first = count(model, x)
    assert (first.flops, first.how, first.wants_real) == (None, None, True)
    assert first.why is not None
    assert "depend on values" in first.why
    second = count(model, x, keep=True)
    assert (second.how, second.wants_real, second.why) == ("counted on real tensors", False, None)
    gate, once = 2.0 * tokens * width * 4, 2.0 * 2 * tokens * width * 4 * width  # each token has two experts
    assert second.flops == pytest.approx(2 * gate + 2 * once + 3 * once, rel=0.01)


def test_what_was_kept_for_real_is_not_what_the_script_goes_on_with() -> None:
    model, x = ChosenExperts(4, 16), torch.randn(40, 16)
    call = describe_call(torch, model, (x,), {}, keep=True)
    x.zero_()  # in place, before the count at the step's end
    found = count_call(torch, call, time.monotonic() + PATIENT)
    once = 2.0 * 2 * 40 * 16 * 64
    assert found.flops == pytest.approx(2 * (2.0 * 40 * 16 * 4) + 5 * once, rel=0.01)


class Norms(nn.Module):
    def __init__(self, made: nn.Module) -> None:
        super().__init__()
        self.made = made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.made(x)
        return out


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "old weight_norm"])
def test_weights_that_are_made_of_others(norm: str) -> None:
    linear = nn.Linear(20, 30)
    with torch.no_grad():
        if norm == "old weight_norm":
            with pytest.warns(FutureWarning):
                nn.utils.weight_norm(linear)
        else:
            getattr(nn.utils.parametrizations, norm)(linear)
    model = Norms(linear)
    model(torch.randn(7, 20))
    found = count(model, torch.randn(7, 20))
    products = 2 * 2.0 * 7 * 20 * 30
    rest = 30 * 20 * 2.0 * 6 if norm == "spectral_norm" else 0  # its vectors: a few products of one row
    assert found.how == "counted"
    assert products <= (found.flops or 0) <= products + rest


def test_values_that_products_are_not_made_of() -> None:
    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.weight @ x) @ torch.ones(8)

    with torch.no_grad():
        assert count(Vectors(), torch.randn(5)).flops == 2.0 * 8 * 5 + 2.0 * 8


@pytest.mark.parametrize("fused", [True, False])
def test_torchs_own_attention_layers(fused: bool) -> None:
    batch, length, width, inner = 3, 12, 16, 40
    model = nn.TransformerEncoderLayer(width, 4, inner, dropout=0.1, batch_first=True)
    x = torch.randn(batch, length, width)
    mask = None if fused else nn.Transformer.generate_square_subsequent_mask(length)
    products = 2.0 * batch * length * (4 * width * width + 2 * width * inner + 2 * length * width)
    found = count(model, x, src_mask=mask)
    no_gradient = 2.0 * batch * length * 3 * width * width  # of the input
    assert found.flops == pytest.approx(3 * products - no_gradient, rel=0.01)


def test_a_step_that_is_counted_under_inference_mode_is_taken_apart() -> None:
    class Inferring(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                hidden = torch.matmul(x, self.weight)
            return super().forward(x + hidden.clone())

    assert count(Inferring(10, 10), torch.randn(4, 10)).flops == 3 * 2.0 * 4 * 100


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, that it is slow when it is not compiled
def test_flexible_attention_is_counted_though_it_is_no_operation_of_aten() -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention")

    class Flexible(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inward = nn.Linear(16, 48)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.inward(x).view(2, 8, 3, 2, 8).permute(2, 0, 3, 1, 4)
            out: torch.Tensor = flex.flex_attention(q, k, v)
            return out

    with torch.no_grad():  # torch has no backward of it on a CPU
        found = count(Flexible(), torch.randn(2, 8, 16))
    assert found.flops == 2.0 * 16 * 16 * 48 + 2 * 2.0 * 2 * 2 * 8 * 8 * 8


def test_bilinear_layers() -> None:
    found = count(nn.Bilinear(4, 5, 6), torch.randn(9, 4), torch.randn(9, 5))
    assert found.flops == 2 * 2.0 * 9 * 4 * 5 * 6


def test_tensors_and_modules_in_plain_attributes_take_part() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = nn.Linear(10, 10)
            self.hidden = [nn.Linear(10, 10)]
            self.table = {"scale": torch.full((10, 10), 0.1)}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.hidden[0](self.main(x)) @ self.table["scale"]
            return out

    # three products forward; the gradients of two weights, and of the inputs of two
    assert count(Odd(), torch.randn(4, 10)).flops == 2.0 * 4 * 100 * (3 + 2 + 2)
