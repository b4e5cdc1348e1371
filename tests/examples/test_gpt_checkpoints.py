"""The GPT example's checkpoints: whole at every moment, and a resume that repeats the run it goes on with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples.example_runs import GPT, TINY, run_example, run_lines, start_gpt
from tests.faults.counts import is_nightly

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

pytestmark = pytest.mark.torch

LONG = [*TINY, "--steps=100", "--log-every=1", "--checkpoint-every=10"]
BIG = ["--device=cpu", "--layers=2", "--width=256", "--block-size=8", "--batch-size=1"]
SAVING = [*BIG, "--steps=100000", "--log-every=100000", "--eval-every=100000", "--checkpoint-every=1"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    import torch

    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = dict(enumerate(value)).items()
    else:
        return {prefix: value}
    return {name: leaf for key, part in items for name, leaf in flatten(part, f"{prefix}.{key}").items()}


def is_equal(one: object, other: object) -> bool:
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return one == other


def find_differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    ours, theirs = flatten(one), flatten(other)
    assert ours.keys() == theirs.keys()
    return [name for name, value in ours.items() if not is_equal(value, theirs[name])]


def kill_after(run: subprocess.Popen[bytes], words: bytes) -> None:
    with run:
        assert run.stdout is not None
        while words not in (line := run.stdout.readline()):
            assert line, "the run ended before it was killed"
        run.kill()
    assert run.returncode == -9


@pytest.mark.slow
def test_a_killed_run_resumes_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = run_lines(tmp_path, GPT, [*LONG, "--out=whole"])
    kill_after(start_gpt(tmp_path, [*LONG, "--out=parts"]), b"(step 10)")
    resumed = run_lines(tmp_path, GPT, [*LONG, "--out=parts", "--resume"])

    step = int(resumed[0].removeprefix("resumed parts/ckpt.pt (step ").removesuffix(")"))
    assert 10 <= step < 100
    tail = [line.split(" | ")[:2] for line in whole if line.startswith(f"step {step + 1}/")]
    assert tail == [line.split(" | ")[:2] for line in resumed if line.startswith(f"step {step + 1}/")]
    one, other = (read_checkpoint(tmp_path / folder / "ckpt.pt") for folder in ("whole", "parts"))
    assert one["step"] == other["step"] == 100
    different = set(find_differences(one, other))
    assert different == {".config.out", ".config.resume"}


@pytest.mark.slow
def test_resume_takes_the_shape_from_the_checkpoint(tmp_path: Path) -> None:
    run_lines(tmp_path, GPT, [*TINY, "--steps=2"])
    lines = run_lines(tmp_path, GPT, ["--device=cpu", "--batch-size=2", "--steps=3", "--resume"])
    assert lines[0] == "resumed out/ckpt.pt (step 2)"
    assert "tokens per step: 64" in lines
    assert lines[-1] == "saved out/ckpt.pt (step 3)"


@pytest.mark.slow  # by day the test above kills one while it trains
def test_sigkill_while_saving_leaves_a_whole_checkpoint_or_none(tmp_path: Path) -> None:
    path, partial = tmp_path / "out" / "ckpt.pt", tmp_path / "out" / ".ckpt.pt.partial"
    cut_short = steps = 0
    for _ in range(4 if is_nightly() else 2):
        partial.unlink(missing_ok=True)
        run = start_gpt(tmp_path, [*SAVING, *(["--resume"] if path.exists() else [])])
        with run:
            while not partial.exists():
                assert run.poll() is None, "the run ended by itself"
            run.kill()
        cut_short += partial.exists()
        if path.exists():
            step = read_checkpoint(path)["step"]
            assert step >= steps
            steps = step
    assert cut_short > 0  # else no kill met a save, and nothing was shown


def test_a_stop_that_was_asked_for_is_saved_and_left(tmp_path: Path) -> None:
    attempt = tmp_path / "attempt"
    (attempt / "code").mkdir(parents=True)
    (attempt / "stop").touch()
    names = {"REMOTE_TRAIN_STOP": attempt / "stop", "REMOTE_TRAIN_REPORT": attempt / "report.jsonl"}
    done = run_example(
        attempt / "code", GPT, (*TINY, "--steps=1000"), env={key: str(path) for key, path in names.items()}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "saved out/ckpt.pt (step 1)"
    told = [json.loads(line) for line in (attempt / "report.jsonl").read_text().splitlines()]
    (step,) = [line for line in told if line["kind"] == "step"]
    (made,) = [line for line in told if line["kind"] == "checkpoint"]
    assert (step["step"], step["tokens"], made["path"]) == (1, 16 * 32, "out/ckpt.pt")
    assert step["flops"] == 16 * 32 * int(
        next(line for line in done.stdout.splitlines() if line.startswith("flops")).split()[-1]
    )
