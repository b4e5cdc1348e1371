"""A host with GPUs that are none: the stand-in driver reads them from a file, which tests change while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from remote_train.host import layout
from remote_train.host.durable import read_record
from tests.host_system.test_gpu_facts import build

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.account_kit import Account

TRAINING = """
import os, sys, time
print("gpus", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
"""
"""Says which GPUs it sees, and ends when a file is there."""


class Driver:
    """What the driver says of the GPUs and of who uses them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tell(2)

    def tell(self, count: int, *processes: tuple[int, int, int, str], used: int = 0) -> None:
        """Have so many GPUs, `used` bytes of each taken, and (index, pid, bytes, C, G or B) on them."""
        lines = [f"gpu {index} {uuid_of(index)} {used}" for index in range(count)]
        lines += ["process " + " ".join(map(str, process)) for process in processes]
        self._write(lines)

    def hang(self) -> None:
        """Answer nobody from now on."""
        self._write(["hang"])

    def _write(self, lines: list[str]) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.rename(self.path)


def uuid_of(index: int) -> str:
    return f"GPU-{index}0000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def driver(account: Account, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Two free GPUs on the account's machine."""
    assert account.home.is_dir()
    monkeypatch.setenv("REMOTE_TRAIN_NVML", library)
    monkeypatch.setenv("REMOTE_TRAIN_LIBCUDA", "/nowhere/libcuda.so")
    monkeypatch.setenv("FAKE_NVIDIA_FILE", str(tmp_path / "driver.txt"))
    return Driver(tmp_path / "driver.txt")


def queue_of(started: Any) -> dict[str, Any]:
    """Return why an attempt waits."""
    return read_record(str(started.folder / layout.QUEUE)) or {}
