"""Whole runs on a CUDA device over a real sshd: MFU against the card's own peak, and a stop that gives its memory back."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import (
    REPOSITORY,
    Box,
    Laptop,
    kill_leftovers,
    make_laptop,
    poll,
    read_until,
    running_box,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.sshd,
    pytest.mark.torch,
    pytest.mark.timeout(240),
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA driver here"),
]

SHORT = ["--steps=60", "--warmup=10", "--log-every=10", "--eval-every=30", "--checkpoint-every=30"]
LONG = ["--steps=1000000", "--log-every=10", "--eval-every=1000000", "--checkpoint-every=1000000"]
NOISE_MB = 64


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with running_box(tmp_path / "box") as running:
        yield running


@pytest.fixture
def laptop(tmp_path: Path, box: Box) -> Iterator[Laptop]:
    made = make_laptop(tmp_path / "laptop", box)
    keys = {"device": '"cuda"', "peak_tflops": ""}
    made.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(**keys)}')
    yield made
    kill_leftovers(made.root)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "gpt"
    shutil.copytree(REPOSITORY / "examples" / "gpt", folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def read_memory_mb() -> int:
    """Return what the first card has in use, by nvidia-smi's count."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    return int(subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()[0])


def test_a_run_says_its_mfu_of_this_card_and_its_checkpoint_comes_home(
    laptop: Laptop, box: Box, project: Path
) -> None:
    done = laptop.ok(project, "run", "train.py", *SHORT, seconds=200)

    run = done.run_id()
    assert "torchrun" in done.err
    records = [json.loads(line) for line in laptop.ok(project, "metrics", run, "--json").out.splitlines()]
    last = [record for record in records if record["mfu"] is not None][-1]
    print(last)
    assert 0.0 < last["mfu"] < 1.0
    assert last["devices"] == 1
    pulled = project / "runs" / run / "files" / "out" / "ckpt.pt"
    there = box.code(run) / "out" / "ckpt.pt"
    assert hashlib.sha256(pulled.read_bytes()).digest() == hashlib.sha256(there.read_bytes()).digest()


def test_a_stop_gives_the_memory_of_the_card_back(laptop: Laptop, box: Box, project: Path) -> None:
    before = read_memory_mb()
    with laptop.popen(project, "run", "--no-pull", "train.py", *LONG) as process:
        read_until(process.stdout, b"step 10/", 120)
        during = read_memory_mb()
        assert during > before + 4 * NOISE_MB, f"{before} MB before, {during} MB while it trains"
        done = laptop.ok(project, "stop", "--grace", "5")
        assert process.wait(60) == 15

    poll(lambda: read_memory_mb() <= before + NOISE_MB, "the memory to come back")
    run = next((project / "runs").iterdir()).name
    assert box.processes(run) == []
    assert "nothing of it is left" in done.err


def test_a_run_goes_on_on_the_card_and_then_on_a_cpu(laptop: Laptop, project: Path) -> None:
    run = laptop.ok(project, "run", "train.py", *SHORT, seconds=200).run_id()

    again = laptop.ok(project, "resume", run, "--", "--steps=90", seconds=200)
    assert b"(step 60)" in again.out
    assert b"step 90/90" in again.out

    few = ["--steps=92", "--batch-size=2", "--log-every=1"]
    here = laptop.ok(project, "resume", run, "--local", "--", *few, seconds=200)
    assert b"(step 90)" in here.out
    assert b"step 92/92" in here.out
    records = [json.loads(line) for line in laptop.ok(project, "metrics", run, "--json").out.splitlines()]
    steps = [record["step"] for record in records if record.get("loss") is not None]
    print(steps)
    assert steps == sorted(set(steps))
    assert {record["attempt"] for record in records if record.get("loss") is not None} == {1, 2, 3}
