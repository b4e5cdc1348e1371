"""What cannot be counted says why, in words; 6 N a token stands in where tokens are known, labelled as such."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import distributed, nn

from remote_train.host.meter.calls import describe_call
from remote_train.host.meter.counting import count_call
from tests.meter.counted_calls import PATIENT, count
from tests.meter.counted_models import GPT, TINY, make_batch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.torch

ONCE = 2.0 * 4 * 10 * 10


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process only."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_data_parallel_models_are_unwrapped() -> None:
    model = nn.parallel.DistributedDataParallel(nn.Linear(10, 10))
    found = count(model, torch.randn(4, 10))
    assert (found.flops, found.how, found.parameters) == (2 * ONCE, "counted", 110)


@pytest.mark.usefixtures("alone")
def test_fully_sharded_models_are_counted_whole() -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("before torch 2.6")
    from torch.distributed.device_mesh import init_device_mesh

    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    mesh = init_device_mesh("cpu", (1,))
    fsdp.fully_shard(model[0], mesh=mesh)
    fsdp.fully_shard(model, mesh=mesh)

    call = describe_call(torch, model, (torch.randn(4, 10),), {})
    found = count_call(torch, call, time.monotonic() + PATIENT)
    assert (found.flops, found.how, found.why) == (5 * ONCE, "counted", None)
    assert type(model).__name__ == "FSDPSequential"  # it is still what it was


@pytest.mark.usefixtures("alone")
def test_a_collective_in_forward_is_never_run() -> None:
    reduced: list[int] = []

    class Talking(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            distributed.all_reduce(out.detach())
            reduced.append(1)
            return out

    found = count(Talking(10, 10), torch.randn(4, 10))
    assert found.flops is None
    assert "talks to other processes" in str(found.why)
    assert reduced == []


def test_batch_norms_that_talk_are_made_not_to() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4))
    assert count(model, torch.randn(2, 3, 5, 5)).flops == 2 * 2.0 * 2 * 25 * 3 * 4


def test_an_operation_of_somebody_elses_is_named() -> None:
    @torch.library.custom_op("counted_test::secret", mutates_args=())
    def secret(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @secret.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    class Foreign(GPT):
        def forward(self, words: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
            logits, loss = super().forward(words, targets)
            return secret(logits), loss

    found = count(Foreign(TINY), *make_batch(TINY))
    assert found.how == "6N"
    assert "counted_test::secret" in str(found.why)
    assert not found.wants_real
    assert found.flops == 6.0 * count_multiplied(TINY) * TINY.batch * TINY.block
    assert found.by_dtype == {"float32": found.flops}


def count_multiplied(shape: Any) -> int:
    """All parameters but the table of positions: the head is tied, so the words' table is multiplied with."""
    model = GPT(shape)
    return sum(tensor.numel() for tensor in model.parameters()) - model.places.weight.numel()


def test_a_kernel_that_reads_memory_itself_is_noticed() -> None:
    class Raw(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.data_ptr()
            return super().forward(x)

    found = count(Raw(10, 10), torch.randn(4, 10))
    assert found.flops is None
    assert "outside of torch's dispatcher" in str(found.why)
    assert not found.wants_real


def test_time_that_is_over_ends_it() -> None:
    found = count(GPT(TINY), *make_batch(TINY), seconds=0.0)
    assert found.how == "6N"
    assert str(found.why).startswith("counting took too long; 6N leaves out")


def test_a_forward_that_fails_is_quoted() -> None:
    class Failing(nn.Linear):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            raise ValueError("not today")

    found = count(Failing(10, 10), torch.randn(4, 10))
    assert found.flops is None
    assert "ValueError: not today" in str(found.why)


@pytest.mark.usefixtures("alone")
def test_a_forward_that_swallows_a_refusal_is_refused_still() -> None:
    class Swallowing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with contextlib.suppress(Exception):
                distributed.all_reduce(x)
            return super().forward(x)

    found = count(Swallowing(10, 10), torch.randn(4, 10))
    assert found.flops is None
    assert "talks to other processes" in str(found.why)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: torch.jit.script(nn.Linear(10, 10)), "TorchScript"),
        (lambda: nn.LazyLinear(10), "lazy"),
        (lambda: put(nn.Linear(10, 10), [object.__new__(Plain) for _ in range(11_000)]), "objects"),
        (lambda: put(nn.Linear(10, 10), torch.eye(3).to_sparse()), "sparse"),
    ],
    ids=["TorchScript", "lazy", "too many objects", "sparse"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_models_that_cannot_be_copied(make: Any, word: str) -> None:

    found = count_call(
        torch, describe_call(torch, make(), (torch.randn(4, 10),), {}), time.monotonic() + PATIENT
    )
    assert found.flops is None
    assert word in str(found.why) or "gone" in str(found.why)


class Plain:
    def __init__(self) -> None:
        self.number = 1


def put(module: nn.Module, value: Any) -> nn.Module:
    for part in value if isinstance(value, list) else []:
        part.number = 1
    module.held = value
    return module


def test_a_mode_or_hooks_of_the_scripts_own_are_left_alone() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as mode:
        found = count(nn.Linear(10, 10), torch.randn(4, 10))
    assert mode.get_total_flops() == 0
    assert "dispatch mode" in str(found.why)
    calls: list[int] = []
    handle = nn.modules.module.register_module_forward_pre_hook(lambda *_: calls.append(1))
    try:
        assert "hooks on all modules" in str(count(nn.Linear(10, 10), torch.randn(4, 10)).why)
    finally:
        handle.remove()
    assert calls == []
