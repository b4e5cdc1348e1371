"""What is kept of a call: shapes and plain values, no tensor; equal signatures for calls that cost the same."""

from __future__ import annotations

import collections
import dataclasses
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from remote_train.host.meter.calls import Call, describe_call
from tests.meter.counted_calls import count

pytestmark = pytest.mark.torch


def describe(*args: Any, module: nn.Module | None = None, **kwargs: Any) -> Call:
    return describe_call(torch, module if module is not None else MODULE, args, kwargs)


MODULE = nn.Linear(10, 10)


@dataclasses.dataclass
class Batch:
    words: torch.Tensor
    names: list[str]


class Output(collections.OrderedDict[str, Any]):
    """As those of transformers: a dictionary whose entries are attributes too."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


def test_tokens_are_of_the_first_table_of_integers() -> None:
    words, mask = torch.zeros(3, 7, dtype=torch.long), torch.ones(3, 1, 7, 7, dtype=torch.bool)
    for call in (
        describe(words),
        describe(torch.randn(5, 4), words, mask),
        describe(input_ids=words, attention_mask=mask),
        describe({"batch": [Batch(words, ["a"])]}),
        describe(Output(words=words)),
    ):
        assert (call.tokens, call.samples, call.why) == (21, 3, None)
    images = describe(torch.randn(5, 3, 8, 8), torch.zeros(5, dtype=torch.long))
    assert (images.tokens, images.samples) == (None, 5)
    assert (describe().tokens, describe().samples) == (None, None)


def test_signatures_tell_calls_apart_that_cost_differently() -> None:
    x = torch.randn(4, 10)
    alike = [describe(x), describe(torch.zeros(4, 10)), describe(x.t().contiguous().t())]
    assert len({call.signature for call in alike}) == 1
    with torch.no_grad():
        still = describe(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = describe(x)
    MODULE.eval()
    calm = describe(x)
    MODULE.train()
    others = [
        still,
        low,
        calm,
        describe(x[:2]),
        describe(x.double()),
        describe(x, x),
        describe(x.requires_grad_()),
        describe(torch.zeros(4, 10), cache=True),
        describe(torch.zeros(4, 10), cache=False),
        describe(torch.zeros(4, 10), module=nn.Linear(10, 10)),
    ]
    assert len({call.signature for call in [*others, alike[0]]}) == len(others) + 1
    assert low.autocast == (("cpu", "bfloat16"),)
    assert (still.grad, low.grad, calm.training, low.training) == (False, True, False, True)


def test_no_tensor_is_kept_however_deep_it_lies() -> None:
    tensors = [torch.randn(2, 2) for _ in range(8)]
    module = nn.Linear(2, 2)
    pair = collections.namedtuple("pair", "a b")  # noqa: PYI024
    values = (
        [tensors[0], (tensors[1], {"a": tensors[2]})],
        Batch(tensors[3], []),
        Output(loss=tensors[4]),
        pair(tensors[5], collections.deque([tensors[6]])),
        module,
        lambda: None,
    )
    call = describe(*values, last=tensors[7])
    assert call.why is None
    references = [weakref.ref(tensor) for tensor in [*tensors, module.weight]]
    del tensors, values, module
    gc.collect()
    assert [reference() for reference in references] == [None] * 9


def test_arguments_of_every_kind_come_back_in_the_count() -> None:
    class Taking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(10, 10)

        def forward(self, batch: Batch, output: Any, other: nn.Module, *, scale: float = 1.0) -> Any:
            assert batch.names == ["a"]
            assert output.hidden is output["hidden"]
            x = self.linear(batch.words) + output.hidden
            return Output(hidden=x, loss=(other(x) * scale).sum())

    other = nn.Linear(10, 10)
    batch = Batch(torch.randn(4, 10), ["a"])
    found = count(Taking(), batch, Output(hidden=torch.randn(4, 10)), other, scale=2.0)
    assert (found.flops, found.why) == (5 * 2.0 * 4 * 100, None)


def test_arguments_that_are_too_much_are_said_so() -> None:
    call = describe([[number] for number in range(5000)])
    assert "objects" in str(call.why)
    assert (call.args, call.kwargs) == ((), {})
    found = count(MODULE, [[number] for number in range(5000)])
    assert found.flops is None
    assert "arguments" in str(found.why)


def test_a_batch_of_hugging_face_is_understood() -> None:
    transformers = pytest.importorskip("transformers")
    words = torch.zeros(3, 7, dtype=torch.long)
    call = describe(transformers.BatchEncoding({"input_ids": words}))
    assert (call.tokens, call.samples, call.why) == (21, 3, None)
    output = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=torch.randn(2, 3, 4))
    assert describe(output).samples == 2


def test_frameworks_that_patch_the_forward_are_followed() -> None:
    accelerate = pytest.importorskip("accelerate")
    fabric = pytest.importorskip("lightning.fabric")
    made = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(nn.Linear(10, 10))
    runner = fabric.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    wrapped = runner.setup_module(nn.Linear(10, 10))
    for model in (made, wrapped):
        found = count(model, torch.randn(4, 10))
        assert (found.by_dtype, found.why) == ({"bfloat16": 2 * 2.0 * 4 * 100}, None)
