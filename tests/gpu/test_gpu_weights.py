"""A checkpoint of CUDA tensors, converted where there is a card and where there is none."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from remote_train.host import weights
from tests.host.account_kit import make_test_plan
from tests.weights.checkpoints import make_model, read_safetensors, same, save

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA driver here"),
]


@pytest.mark.parametrize("still", [False, True])
def test_cuda_tensors_become_safetensors_and_the_card_is_not_touched(tmp_path: Path, *, still: bool) -> None:
    import torch

    (tmp_path / "code").mkdir()
    model = make_model().to("cuda", torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    state = model.state_dict()
    assert state["0.weight"].is_cuda
    save(tmp_path / "code" / "ckpt.pt", {"model": state, "optimizer": optimizer.state_dict(), "step": 5})
    plan = make_test_plan("p", ("train.py",)).as_message()
    for dtype in (None, "fp32"):  # the script's environment hides the card: it is as on a host without one
        job = weights.make_job(str(tmp_path), "ckpt.pt", dtype, still=still)
        made = weights.run_job(job, plan)
        _, tensors = read_safetensors(tmp_path / "weights" / made["name"])
        floats = torch.float32 if dtype else torch.bfloat16
        expected = {name: item.cpu() for name, item in state.items()}
        kinds = {name: floats if item.is_floating_point() else item.dtype for name, item in expected.items()}
        assert same(tensors, {name: item.to(kinds[name]) for name, item in expected.items()})
