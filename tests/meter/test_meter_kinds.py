"""Kinds of training scripts, each run with the meter and without: the same bits, the same words, and a count."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import remote_train.host

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]
pytest.importorskip("torch")

SCRIPTS = Path(__file__).parent / "scripts"
INJECT = Path(remote_train.host.__path__[0]) / "inject"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
OURS = ("REMOTE_TRAIN_", "TORCHELASTIC_", "PYTHON", "OMP_")
FEW, MANY = 12, 200


@dataclass(frozen=True)
class Kind:
    """How a kind is started, what it needs, and what the meter may say in place of a count."""

    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    needs: str = "torch"
    losses: int = 1
    """For each optimizer step of all processes."""
    why: str | None = None


KINDS = {
    "nanoGPT": Kind(("nano.py",)),
    "bare loop": Kind(("bare.py",)),
    "python -m": Kind(("-m", "package")),
    "notebook": Kind(("notebook.py",)),
    "forked workers": Kind(("loaders.py",)),
    "spawned workers": Kind(("loaders.py",), (("START", "spawn"),)),
    "DDP": Kind((*TORCHRUN, "ddp.py"), losses=2),
    "torch.compile": Kind(("nano.py",), (("COMPILE", "1"), ("TORCHINDUCTOR_COMPILE_THREADS", "1"))),
    "HF Trainer": Kind(("trainer.py",), needs="transformers"),
    "Lightning": Kind(("lit.py",), needs="lightning"),
    "accelerate": Kind(("accelerated.py",), needs="accelerate", losses=2),
}
DAILY = ("nanoGPT", "forked workers", "DDP", "HF Trainer", "Lightning", "accelerate")
"""Every day, with few steps; the others, and all of them with many steps, are slow."""


@dataclass
class Ran:
    """What a script said, and what the meter wrote beside it."""

    told: list[str]
    errors: list[str]
    lines: list[dict[str, Any]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] == kind]


def run(kind: Kind, folder: Path, steps: int, *, metered: bool) -> Ran:
    """Run a script to its end in a folder of its own; its processes' lines are sorted by process."""
    folder.mkdir()
    metrics = folder / "metrics.jsonl"
    env = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    env |= {"STEPS": str(steps), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    env |= {
        "HF_HOME": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder.parent / "compiled"),
        **dict(kind.env),
    }
    env |= {"PYTHONPATH": str(SCRIPTS)}
    if metered:
        env |= {"PYTHONPATH": f"{INJECT}:{SCRIPTS}", "REMOTE_TRAIN_METER": str(metrics)}
        env |= {"REMOTE_TRAIN_BEGAN": repr(time.monotonic())}
    place = [str(SCRIPTS / part) if part.endswith(".py") else part for part in kind.command]
    done = subprocess.run(
        [sys.executable, *place],
        cwd=folder,
        env=env,
        check=False,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    # Numbers in what torchrun and the frameworks say are times and process ids.
    errors = [re.sub(r"\d+", "0", line) for line in done.stderr.splitlines()]
    told = [
        line for line in done.stdout.splitlines() if line.startswith("rank ")
    ]  # a Trainer tells its own time
    return Ran(sorted(told, key=lambda line: line.split()[:2]), errors, lines)


def check(name: str, folder: Path, steps: int) -> None:
    kind = KINDS[name]
    if find_spec(kind.needs) is None:
        pytest.skip(f"{kind.needs} is not there: scripts/setup-venv train,dev,frameworks")
    plain, metered = (run(kind, folder / word, steps, metered=word == "on") for word in ("off", "on"))

    losses = [line for line in plain.told if " loss " in line]
    assert len(losses) == steps * kind.losses
    assert len({line.split()[-1] for line in losses}) > steps // 2, "it did not train"
    assert metered.told == plain.told
    assert set(metered.errors) <= set(plain.errors)
    assert plain.lines == []
    assert metered.of("off") == []
    (start, *_), (count, *_) = metered.of("start"), metered.of("count")
    assert start["device"] == "cpu"
    if kind.why is None:
        assert count["flops"] > 0, count["why"]
    else:
        assert kind.why in count["why"]
    assert (
        count["pause"] < 10
    )  # 2 s are its limit, which it looks at between calls: on a busy machine one takes long
    windows = metered.of("steps")
    assert windows[-1]["step"] in (steps - 1, steps)


@pytest.mark.parametrize("name", DAILY)
def test_a_few_steps_are_the_same_with_and_without_the_meter(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_steps_are_the_same_with_and_without_the_meter(name: str, tmp_path: Path) -> None:
    if name == "torch.compile" and shutil.which("g++") is None:
        pytest.skip("g++ is needed to compile on a CPU")
    check(name, tmp_path, MANY)
