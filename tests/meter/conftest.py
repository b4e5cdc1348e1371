"""A meter at work: in this process on a loop of the test's own, or in a process of its own as a training gets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST = Path(__file__).parents[2] / "remote_train" / "host"


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()] if path.exists() else []


def pick(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture
def metered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Run a meter in this process from the next optimizer step on; the function given ends it and returns its lines."""
    optimizers = pytest.importorskip("torch.optim.optimizer")
    import torch

    from remote_train.host.meter import life

    path = tmp_path / "metrics.jsonl"
    monkeypatch.setenv("REMOTE_TRAIN_METER", str(path))
    monkeypatch.setenv("REMOTE_TRAIN_BEGAN", repr(time.monotonic()))
    monkeypatch.delenv("RANK", raising=False)
    meters: list[Any] = []

    def first(optimizer: Any, _arguments: Any, _keywords: Any) -> None:
        meters.append(life.begin(torch, optimizer, before, after))

    before = optimizers.register_optimizer_step_pre_hook(lambda *_: None)
    after = optimizers.register_optimizer_step_post_hook(first)

    def end() -> list[dict[str, Any]]:
        for meter in meters:
            meter.close()
        return read_lines(path)

    yield end
    end()
    before.remove()
    after.remove()


class Training:
    """A script with its folder, run as a training is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = folder / "metrics.jsonl"

    def run(self, *argv: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
        variables: dict[str, str | None] = {
            **os.environ,
            "PYTHONPATH": str(HOST / "inject"),
            "REMOTE_TRAIN_METER": str(self.metrics),
            "REMOTE_TRAIN_BEGAN": repr(time.monotonic()),
            "RANK": None,
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        kept = {name: value for name, value in variables.items() if value is not None}
        return subprocess.run(
            [sys.executable, *argv],
            cwd=self.folder,
            env=kept,
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )

    def lines(self, kind: str | None = None) -> list[dict[str, Any]]:
        lines = read_lines(self.metrics)
        return lines if kind is None else pick(lines, kind)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    """Give a folder whose scripts run under the meter."""
    return Training(tmp_path)
