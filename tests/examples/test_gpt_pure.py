"""The parts of the GPT example that need no run, and the project files beside both examples."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train.config.project import read_project
from tests.examples.example_runs import EXAMPLES

pytestmark = pytest.mark.torch


@settings(deadline=None)  # the first call imports torch
@given(warmup=st.integers(1, 50), more=st.integers(1, 500), lr=st.floats(1e-5, 1e-1))
def test_the_rate_rises_to_its_height_and_falls_to_a_tenth(warmup: int, more: int, lr: float) -> None:
    from examples.gpt.train import Config, compute_lr

    config = Config(steps=warmup + more, warmup=warmup, lr=lr)
    rates = [compute_lr(step, config) for step in range(1, config.steps + 1)]
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup - 1] == pytest.approx(lr)
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[-1] == pytest.approx(lr / 10)


def test_batches_are_a_function_of_the_seed_and_split_between_processes() -> None:
    import torch

    from examples.gpt.train import Config, make_batches

    config, data = Config(batch_size=3, block_size=5), torch.arange(200, dtype=torch.uint8)
    one, again, other = (list(make_batches(data, config, seed, range(4))) for seed in (1, 1, 2))
    assert all(torch.equal(x[0], y[0]) for x, y in zip(one, again, strict=True))
    assert not all(torch.equal(x[0], y[0]) for x, y in zip(one, other, strict=True))
    for inputs, targets in one:
        assert inputs.shape == targets.shape == (3, 5)
        assert torch.equal(inputs + 1, targets)
    for rank in range(2):
        part = list(make_batches(data, config, 1, range(rank, 4, 2)))
        assert all(torch.equal(x[0], y[0]) for x, y in zip(part, one[rank::2], strict=True))


def test_the_gpt_project_file_fits_its_script() -> None:
    from examples.gpt.train import parse_config

    project = read_project(EXAMPLES / "gpt")
    assert project.script == "train.py"
    assert set(project.device_args) == {"cpu", "cuda"}
    for device, args in project.device_args.items():
        config = parse_config([*args, *project.resume_args])
        assert config.device == device
        assert config.resume
        assert project.checkpoints == (f"{config.out}/ckpt.pt",)


def test_the_ddp_project_file_names_its_script() -> None:
    project = read_project(EXAMPLES / "ddp")
    assert (EXAMPLES / "ddp" / str(project.script)).is_file()
