"""What the GPT example prints, which the launcher reads, and how it learns."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from remote_train.metrics.generic import parse_generic_start, parse_generic_step
from tests.examples.example_runs import GPT, TINY, TORCHRUN, run_example, run_lines

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.torch

STEP = re.compile(r"step (\d+)/(\d+) \| loss (\d+\.\d{4}) \| (\d+\.\d) ms \| ([\d,]+) tok/s")
EVAL = re.compile(r"eval step (\d+): val loss (\d+\.\d{4})")


def read_losses(lines: list[str]) -> dict[int, float]:
    matches = [STEP.fullmatch(line) for line in lines]
    return {int(match[1]): float(match[3]) for match in matches if match}


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    cadence = ["--steps", "45", "--log-every", "10", "--eval-every=20", "--checkpoint-every=30"]
    return run_lines(tmp_path_factory.mktemp("gpt"), GPT, [*TINY, *cadence])


def test_each_line_has_its_stated_form_and_place(lines: list[str]) -> None:
    # Two blocks of 12 W^2 and two norms, the embedding, the last norm; positions only among the parameters.
    n = 2 * (12 * 32 * 32 + 2 * 32) + 256 * 32 + 32
    assert lines[:6] == [
        "device: cpu",
        "dtype: float32",
        "world size: 1",
        f"parameters: {n + 32 * 32:,}",
        f"flops per token: {6 * n + 12 * 2 * 32 * 32}",
        "tokens per step: 512",
    ]
    kinds = [re.sub(r"(loss) .*", r"\1", line) for line in lines[6:]]
    assert kinds == [
        "step 1/45 | loss",
        "step 10/45 | loss",
        "step 20/45 | loss",
        "eval step 20: val loss",
        "step 30/45 | loss",
        "saved out/ckpt.pt (step 30)",
        "step 40/45 | loss",
        "eval step 40: val loss",
        "step 45/45 | loss",
        "eval step 45: val loss",
        "saved out/ckpt.pt (step 45)",
    ]
    for line in lines[6:]:
        assert STEP.fullmatch(line) or EVAL.fullmatch(line) or line.startswith("saved "), line


def test_rate_and_time_say_the_same(lines: list[str]) -> None:
    for match in filter(None, map(STEP.fullmatch, lines)):
        seconds, rate = float(match[4]) / 1e3, float(match[5].replace(",", ""))
        # The time is printed to a twentieth of a millisecond.
        assert 512 / (seconds + 6e-5) - 1 <= rate <= 512 / max(seconds - 6e-5, 1e-6) + 1


def test_training_and_validation_loss_fall(lines: list[str]) -> None:
    losses = read_losses(lines)
    assert losses[1] > 5
    assert losses[45] < losses[10] < losses[1]
    assert losses[45] < 4
    validation = [float(match[2]) for match in map(EVAL.fullmatch, lines) if match]
    assert validation[0] > validation[-1]
    assert validation[-1] < 4


def test_the_launcher_reads_every_line(lines: list[str]) -> None:
    starts = [reading for line in lines if (reading := parse_generic_start(line))]
    assert [reading.flops_per_token for reading in starts if reading.flops_per_token] == [
        float(lines[4].rpartition(" ")[2])
    ]
    assert [reading.tokens_per_step for reading in starts if reading.tokens_per_step] == [512]
    steps = {reading.step: reading for line in lines if (reading := parse_generic_step(line))}
    assert {step: reading.loss for step, reading in steps.items()} == read_losses(lines)
    assert all(
        reading.total == 45 and reading.step_seconds and reading.tokens_per_second
        for reading in steps.values()
    )


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_learns(tmp_path: Path, dtype: str) -> None:
    lines = run_lines(tmp_path, GPT, [*TINY, "--steps=20", "--dtype", dtype])
    assert f"dtype: {dtype}" in lines
    losses = read_losses(lines)
    assert losses[20] < losses[1] - 0.5


@pytest.mark.slow
def test_two_processes_see_what_one_with_two_batches_sees(tmp_path: Path) -> None:
    steps = [*TINY, "--steps=12", "--log-every=3"]
    alone = run_lines(tmp_path, GPT, [*steps, "--accumulation=4", "--out=alone"])
    both = run_lines(tmp_path, GPT, [*steps, "--accumulation=2", "--out=both"], TORCHRUN)
    assert "world size: 2" in both
    assert "tokens per step: 2048" in both
    assert "tokens per step: 2048" in alone
    assert len([line for line in both if STEP.fullmatch(line)]) == 5  # the first process's alone
    assert read_losses(both) == pytest.approx(read_losses(alone), abs=5e-3)
    assert (tmp_path / "both" / "ckpt.pt").exists()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--device=cuda"], 1, "no cuda:0 here: PyTorch sees 0; --device cpu needs none"),
        (["--width=30", "--heads=4"], 2, "--width 30 is not a multiple of --heads 4"),
        (["--log-every=0"], 2, "must be at least 1: log_every"),
    ],
)
def test_a_wrong_call_is_said_in_one_line(tmp_path: Path, args: list[str], code: int, words: str) -> None:
    done = run_example(tmp_path, GPT, args)
    assert done.returncode == code
    assert words in done.stderr.splitlines()[-1]
    assert done.stdout == ""
