"""The two-process example."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from remote_train.metrics.generic import parse_generic_step
from tests.examples.example_runs import DDP, TORCHRUN, run_example, run_lines

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.torch


def test_two_processes_agree_on_the_gradients_and_learn(tmp_path: Path) -> None:
    lines = run_lines(tmp_path, DDP, launcher=TORCHRUN)
    for rank in range(2):
        # Two processes write to one pipe: a line of one may begin behind what the other has not ended yet.
        assert re.search(rf"rank {rank} of 2: cpu, gloo, process \d+", "\n".join(lines))
        assert "\n".join(lines).count(f"rank {rank} of 2: gradients agree") == 1
    readings = [reading for line in lines if (reading := parse_generic_step(line))]
    assert [reading.step for reading in readings] == list(range(1, 21))
    losses = [reading.loss for reading in readings if reading.loss is not None]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.01 * losses[0]


def test_alone_it_says_how_to_start_it(tmp_path: Path) -> None:
    done = run_example(tmp_path, DDP)
    assert done.returncode == 1
    assert "torchrun --standalone --nproc-per-node 2 train.py" in done.stderr
