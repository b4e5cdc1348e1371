"""Run the example scripts as a user would: as processes of their own, in a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXAMPLES = Path(__file__).parents[2] / "examples"
GPT = EXAMPLES / "gpt" / "train.py"
DDP = EXAMPLES / "ddp" / "train.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TINY = (
    "--device=cpu",
    "--layers=2",
    "--heads=2",
    "--width=32",
    "--block-size=32",
    "--batch-size=16",
    "--lr=1e-2",
)

# One thread each: two test workers share two cores. No CUDA devices: the tests mean the same on a GPU box.
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
ENV = {name: value for name, value in ENV.items() if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}


def make_command(script: Path, args: Sequence[str], launcher: Sequence[str] = ()) -> list[str]:
    """Make the command line of one example."""
    return [sys.executable, *launcher, str(script), *args]


def run_example(
    folder: Path,
    script: Path,
    args: Sequence[str] = (),
    launcher: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run an example to its end, whatever that is; `env` is beside what all have."""
    command = make_command(script, args, launcher)
    return subprocess.run(
        command,
        cwd=folder,
        env={**ENV, **(env or {})},
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )


def run_lines(
    folder: Path, script: Path, args: Sequence[str] = (), launcher: Sequence[str] = ()
) -> list[str]:
    """Run an example that must succeed; give the lines of its standard output."""
    done = run_example(folder, script, args, launcher)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def start_gpt(folder: Path, args: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the GPT behind a small pipe: a run that nobody reads stands still after some 70 lines."""
    command = make_command(GPT, args)
    return subprocess.Popen(command, cwd=folder, env=ENV, stdout=subprocess.PIPE, bufsize=0, pipesize=4096)
