"""Operations that the models above do not reach here: those of CUDA, of other versions, and the names that are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from remote_train.host.meter.formulas import find_formula, hides_products
from remote_train.host.meter.recording import allows_tf32, name_dtype

pytestmark = pytest.mark.torch


def shaped(*sizes: int) -> Any:
    return SimpleNamespace(shape=sizes)


QUERY, KEY, VALUE = shaped(2, 8, 10, 4), shaped(2, 2, 20, 4), shaped(2, 2, 20, 6)
ATTENTION = 2.0 * 2 * 8 * 10 * 20 * (4 + 6)


@pytest.mark.parametrize(
    ("name", "args", "out", "flops"),
    [
        ("mm", (shaped(3, 4), shaped(4, 5)), shaped(3, 5), 120.0),
        ("mv", (shaped(3, 4), shaped(4)), shaped(3), 24.0),
        ("dot", (shaped(4), shaped(4)), shaped(), 8.0),
        ("addmm_", (shaped(3, 5), shaped(3, 4), shaped(4, 5)), shaped(3, 5), 120.0),
        ("baddbmm", (shaped(2, 3, 5), shaped(2, 3, 4), shaped(2, 4, 5)), shaped(2, 3, 5), 240.0),
        ("linear", (shaped(2, 3, 4), shaped(5, 4)), shaped(2, 3, 5), 240.0),
        ("_grouped_mm", (shaped(30, 4), shaped(6, 4, 5)), shaped(30, 5), 2.0 * 30 * 4 * 5),
        ("_grouped_mm", (shaped(4, 30), shaped(30, 5)), shaped(6, 4, 5), 2.0 * 30 * 4 * 5),
        ("_grouped_mm", (shaped(6, 3, 4), shaped(6, 4, 5)), shaped(6, 3, 5), 2.0 * 6 * 3 * 4 * 5),
        ("_scaled_dot_product_flash_attention", (QUERY, KEY, VALUE), None, ATTENTION),
        ("_scaled_dot_product_cudnn_attention", (QUERY, KEY, VALUE), None, ATTENTION),
        ("_scaled_dot_product_efficient_attention_backward", (None, QUERY, KEY, VALUE), None, 2 * ATTENTION),
    ],
)
def test_a_product_costs_twice_its_multiplications(name: str, args: Any, out: Any, flops: float) -> None:
    formula = find_formula(name)
    assert formula is not None
    assert formula(args, out) == flops


def test_a_convolution_backward_costs_what_it_is_asked_for() -> None:
    formula = find_formula("convolution_backward")
    assert formula is not None
    once = 2.0 * (2 * 6 * 7 * 7) * (3 * 3 * 3)
    for mask, times in (([True, True, True], 2), ([False, True, True], 1), ([False, False, True], 0)):
        args = (shaped(2, 6, 7, 7), shaped(2, 3, 9, 9), shaped(6, 3, 3, 3), [6], [1, 1], [0, 0], [1, 1])
        assert formula((*args, False, [0, 0], 1, mask), None) == times * once


@pytest.mark.parametrize(
    "name",
    [
        "_cudnn_rnn",
        "mkldnn_rnn_layer",
        "lstm_mps",
        "_flash_attention_forward",
        "_native_multi_head_attention",
    ],
)
def test_what_hides_products_is_known_by_name(name: str) -> None:
    assert find_formula(name) is None
    assert hides_products(name)


@pytest.mark.parametrize(
    "name", ["add", "relu", "_thnn_fused_lstm_cell", "native_layer_norm", "nonzero", "topk"]
)
def test_what_hides_none_is_not_refused(name: str) -> None:
    assert find_formula(name) is None
    assert not hides_products(name)


def test_tf32_is_told_from_float32_on_cuda_only() -> None:
    on_gpu = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda"))
    low = SimpleNamespace(dtype=torch.bfloat16, device=torch.device("cuda"))
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed, name in ((True, "tf32"), (False, "float32")):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            assert name_dtype(torch, [on_gpu], convolution=False) == name
            assert name_dtype(torch, [torch.zeros(1)], convolution=False) == "float32"
            assert name_dtype(torch, [low], convolution=False) == "bfloat16"
        assert allows_tf32(torch, convolution=True)  # torch's default, whatever is said of products
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_a_torch_without_the_new_names_is_asked_by_the_old_ones() -> None:
    for answer in (True, False):
        switch = SimpleNamespace(allow_tf32=answer)
        old: Any = SimpleNamespace(
            backends=SimpleNamespace(cudnn=switch, cuda=SimpleNamespace(matmul=switch))
        )
        assert allows_tf32(old, convolution=False) is answer
        assert allows_tf32(old, convolution=True) is answer
