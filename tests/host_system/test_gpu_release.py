"""Memory that a driver holds for a process that is gone: found, waited for, and nobody else's taken for it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.host.gpu_release import await_release
from tests.host_system.test_gpu_facts import library, nvidia, uuid

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["library", "nvidia"]

FREE: list[dict[str, Any]] = [{"uuid": uuid(0), "processes": []}]


@pytest.fixture
def gone() -> int:
    """A pid that nobody has any more."""
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        process.wait()
    return process.pid


def test_memory_of_a_process_that_is_gone_is_held(nvidia: pytest.MonkeyPatch, gone: int) -> None:
    nvidia.setenv("FAKE_NVIDIA_PID", str(gone))
    assert await_release(FREE, 0.0) == [{"index": 0, "pid": gone, "memory_bytes": 500000000}]


def test_it_is_waited_for(nvidia: pytest.MonkeyPatch, gone: int, tmp_path: Path) -> None:
    nvidia.setenv("FAKE_NVIDIA_PID", str(gone))
    nvidia.setenv("FAKE_NVIDIA_UNTIL", str(tmp_path / "released"))
    assert await_release(FREE, 0.0) != []
    with subprocess.Popen(["sh", "-c", 'sleep 0.3; touch "$0"', str(tmp_path / "released")]):
        assert await_release(FREE, 30.0) == []


@pytest.mark.parametrize("before", [[{"uuid": uuid(1), "processes": []}], []])
def test_another_gpu_is_not_ours(nvidia: pytest.MonkeyPatch, gone: int, before: list[dict[str, Any]]) -> None:
    nvidia.setenv("FAKE_NVIDIA_PID", str(gone))
    assert await_release(before, 0.0) == []


def test_who_was_there_before_or_lives_is_not_ours(nvidia: pytest.MonkeyPatch, gone: int) -> None:
    nvidia.setenv("FAKE_NVIDIA_PID", str(gone))
    assert await_release([{"uuid": uuid(0), "processes": [{"pid": gone}]}], 0.0) == []
    nvidia.setenv("FAKE_NVIDIA_PID", str(os.getpid()))
    assert await_release(FREE, 0.0) == []
