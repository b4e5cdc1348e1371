"""Measured matrix product peaks: the script under this environment's torch, the choice of shape, and the cache."""

import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.host import matmul_peak, peak_probe, peaks_cache
from remote_train.host.commands import finish_commands, start_command
from tests.host_system.conftest import REPOSITORY

CPU_SHAPES = matmul_peak.SHAPES["cpu"]


@pytest.mark.slow
@pytest.mark.torch
def test_the_cpu_of_this_machine() -> None:
    pytest.importorskip("torch")
    peak = peak_probe.measure_peak(sys.executable, "cpu", 1, dict(os.environ))

    assert peak["threads"] == 1
    assert peak["shape"] in CPU_SHAPES
    # From a slow virtual core to a socket with matrix units; a wrong factor of 1000 falls outside.
    assert 1e9 < peak["float32"] < 2e13
    assert peak["torch"]
    # From one channel of slow memory to a socket of HBM; from a fast core to one that others use too.
    assert 2e8 < peak["bandwidth"] < 1e13
    assert 1e-7 < peak["dispatch"] < 1e-3


def test_a_python_without_torch_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    peak = peak_probe.measure_peak(sys.executable, "cpu", 1, environment)

    assert peak == {"error": "ImportError: no torch here"}
    assert peak_probe.measure_peak("/nowhere/python", "cpu", 1, environment) == {
        "error": "No such file or directory"
    }
    assert "tpu" in peak_probe.measure_peak(sys.executable, "tpu", 1, environment)["error"]


def test_it_measures_from_inside_an_archive(tmp_path: Path) -> None:
    archive = tmp_path / "agent.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for source in (REPOSITORY / "remote_train" / "host").glob("*.py"):
            file.write(source, f"remote_train/host/{source.name}")
        file.writestr("remote_train/__init__.py", "")
    (tmp_path / "torch.py").write_text("raise ImportError('as far as it should get')\n")
    script = "import sys; sys.path.insert(0, sys.argv[1]); from remote_train.host.peak_probe import measure_peak; print(measure_peak(sys.executable, 'cpu', 1, {'PYTHONPATH': sys.argv[2]}))"
    command = start_command([sys.executable, "-I", "-c", script, str(archive), str(tmp_path)])
    outcome = finish_commands([command], 30.0)[0]

    assert outcome.problem is None
    assert "as far as it should get" in outcome.output


@given(st.floats(1e-6, 100.0))
def test_the_shape_is_the_largest_that_leaves_time(seconds: float) -> None:
    shape = matmul_peak.choose_shape(CPU_SHAPES, seconds)
    cost = {size: seconds * (size / CPU_SHAPES[-1]) ** 3 * (matmul_peak.WARM_UPS + 1) for size in CPU_SHAPES}
    fitting = [size for size in CPU_SHAPES if cost[size] <= matmul_peak.MOST_SECONDS / 2 * (1 + 1e-9)]

    assert shape == max(fitting, default=CPU_SHAPES[-1]) or abs(cost[shape] - 1.0) < 1e-6


def test_the_best_run_counts_and_warm_ups_do_not() -> None:
    runs = iter([0.001, 0.002, 0.003])
    calls: list[float] = []

    def once() -> float:
        calls.append(next(runs, 0.5))
        return calls[-1]

    assert matmul_peak.best_seconds(once) == 0.5
    assert len(calls) > matmul_peak.WARM_UPS


def test_a_peak_is_kept_whole(tmp_path: Path) -> None:
    root, key = str(tmp_path / "state"), peaks_cache.peak_key("i7-12700H", 6, "2.9.1", "cpu")
    peak: dict[str, Any] = {"float32": 5.6e11, "bfloat16": None, "threads": 6}
    assert peaks_cache.read_peak(root, key) is None
    peaks_cache.write_peak(root, key, peak)
    kept = peaks_cache.read_peak(root, key)

    assert kept is not None
    assert peak.items() <= kept.items()
    (file,) = (tmp_path / "state" / "peaks").iterdir()
    file.write_bytes(file.read_bytes()[:20])
    assert peaks_cache.read_peak(root, key) is None


def test_a_key_stands_for_each_of_its_parts() -> None:
    base: tuple[str, int, str, str] = ("i7", 6, "2.9.1", "cpu")
    others: list[tuple[Any, ...]] = [
        ("i9", 6, "2.9.1", "cpu"),
        ("i7", 4, "2.9.1", "cpu"),
        ("i7", 6, "2.9.0", "cpu"),
        ("i7", 6, "2.9.1", "cuda"),
        ("i7", 6, "2.9.1", "cpu", (0, 1)),
        ("i7", 6, "2.9.1", "cpu", (0, 2)),
    ]

    assert len({peaks_cache.peak_key(*parts) for parts in (base, *others)}) == 7
    assert peaks_cache.peak_key(*base) == peaks_cache.peak_key(*base)
