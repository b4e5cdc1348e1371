"""Transformers: FLOPs against 6 N + 12 L T C, worked out here and not by torch's counter."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from remote_train.host.meter.calls import describe_call
from remote_train.host.meter.counting import count_call
from tests.meter.counted_calls import PATIENT, count
from tests.meter.counted_models import BABY, GPT, SMALL, TINY, Shape, make_batch

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    "shape",
    [
        TINY,
        BABY,
        dataclasses.replace(TINY, dropout=0.1),
        dataclasses.replace(TINY, kv_heads=2),
        dataclasses.replace(TINY, recompute="reentrant"),
        dataclasses.replace(TINY, recompute="not reentrant"),
        dataclasses.replace(TINY, recompute="not reentrant", dropout=0.1),
    ],
    ids=["tiny", "baby", "dropout", "GQA", "reentrant", "not reentrant", "both"],
)
def test_a_gpt_costs_what_its_closed_form_says(shape: Shape) -> None:
    model = GPT(shape)
    found = count(model, *make_batch(shape))
    assert (found.how, found.why, found.wants_real) == ("counted", None, False)
    assert found.flops == pytest.approx(shape.flops(), rel=0.001)
    assert found.by_dtype == {"float32": found.flops}
    assert found.parameters == found.trainable == sum(tensor.numel() for tensor in model.parameters())


def test_the_124m_costs_what_its_closed_form_says() -> None:
    with torch.device("meta"):
        model = GPT(SMALL)
    model.to_empty(device="cpu")  # memory that nobody writes: nothing of it is read
    model.head.weight = model.words.weight
    call = describe_call(torch, model, make_batch(SMALL), {})
    found = count_call(torch, call, time.monotonic() + PATIENT)
    assert (found.how, found.parameters) == ("counted", 124_475_904)
    assert found.flops == pytest.approx(SMALL.flops(), rel=0.001)


def test_kernels_are_counted_without_views_and_recomputation_is_among_them() -> None:
    plain = count(GPT(TINY), *make_batch(TINY))
    again = dataclasses.replace(TINY, recompute="not reentrant")
    assert plain.kernels is not None
    assert plain.bytes is not None
    assert (
        100 < plain.kernels < 200
    )  # 16 products forward and 35 backward, norms, sums; views would make it 300
    assert count(GPT(again), *make_batch(again)).kernels > plain.kernels  # type: ignore[operator]
    # Each of the four blocks reads and writes its 4 x wide activation several times; all is in float32.
    assert plain.bytes > TINY.layers * 4 * TINY.width * TINY.batch * TINY.block * 4 * 4


def test_forward_alone_is_a_third() -> None:
    model = GPT(TINY)
    with torch.no_grad():
        assert count(model, *make_batch(TINY)).flops == pytest.approx(TINY.flops() / 3, rel=0.001)


def test_a_model_that_returns_logits_costs_as_much_as_one_that_returns_its_loss() -> None:
    words, _ = make_batch(TINY)
    assert count(GPT(TINY), words).flops == pytest.approx(TINY.flops(), rel=0.001)


def test_products_under_autocast_are_of_its_dtype() -> None:
    model = GPT(TINY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = count(model, *make_batch(TINY))
    assert set(found.by_dtype) == {"bfloat16"}
    assert found.flops == pytest.approx(TINY.flops(), rel=0.001)


def test_autocast_that_is_over_when_the_count_is_made_is_entered_again() -> None:
    model = GPT(TINY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        call = describe_call(torch, model, make_batch(TINY), {})
    assert set(count_call(torch, call, time.monotonic() + 60).by_dtype) == {"bfloat16"}
    call = describe_call(torch, model, make_batch(TINY), {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert set(count_call(torch, call, time.monotonic() + 60).by_dtype) == {"float32"}
        assert torch.is_autocast_enabled("cpu")


def test_frozen_layers_have_no_gradients_of_their_own() -> None:
    model = GPT(TINY)
    for parameter in model.blocks.parameters():
        parameter.requires_grad_(False)
    # The head and the embedding still learn, so that gradients pass through every block: 2 of 3 products remain there.
    tokens = TINY.batch * TINY.block
    frozen = TINY.layers * 12 * TINY.width**2
    found = count(model, *make_batch(TINY))
    assert found.flops == pytest.approx(TINY.flops() - 2.0 * frozen * tokens, rel=0.001)
    assert (found.parameters or 0) - (found.trainable or 0) == sum(
        p.numel() for p in model.blocks.parameters()
    )


def test_what_lies_before_the_first_trained_layer_goes_forward_only() -> None:
    model = GPT(TINY)
    model.requires_grad_(False)
    adapter = torch.nn.Linear(TINY.width, 8)  # an adapter on the last norm, as in LoRA
    model.norm = torch.nn.Sequential(model.norm, adapter, torch.nn.Linear(8, TINY.width))  # type: ignore[assignment]
    tokens = TINY.batch * TINY.block
    extra = 2.0 * tokens * 8 * TINY.width
    head = 2.0 * tokens * TINY.vocabulary * TINY.width
    # forward of all, both adapters' weights, gradients down through the head and the second adapter
    expected = TINY.flops() / 3 + 2 * extra + 2 * extra + head + extra
    assert count(model, *make_batch(TINY)).flops == pytest.approx(expected, rel=0.001)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_transformers_of_hugging_face(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    layers, width, heads, inner, vocabulary, batch, length = 2, 64, 4, 160, 100, 3, 32
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
        )
        model = transformers.LlamaForCausalLM(config)
        block = 2 * width * width + 2 * width * width // 2 + 3 * width * inner
    else:
        config = transformers.GPT2Config(
            vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=heads, n_positions=length
        )
        model = transformers.GPT2LMHeadModel(config)
        block = 12 * width * width
    tokens = batch * length
    expected = 6.0 * tokens * (layers * block + vocabulary * width) + 12.0 * layers * width * length * tokens
    words = torch.randint(vocabulary, (batch, length))
    model.train()
    for recompute in (False, True):
        if recompute:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        found = count(model, input_ids=words, labels=words, attention_mask=torch.ones_like(words))
        assert (found.how, found.why) == ("counted", None)
        assert found.flops == pytest.approx(expected, rel=0.01)
