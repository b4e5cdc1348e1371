"""Telemetry: shares worked out from a /proc of our own, rows of GPUs from a library compiled here, lines of a real run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.host import cpu_load, layout, telemetry
from remote_train.host.cpu_load import CpuLoad, PlainLoad
from remote_train.host.gpu_load import GpuLoad, count_others, name_reasons
from tests.host_system.test_gpu_facts import library, nvidia, uuid

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["library", "nvidia"]

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def write_process(
    root: Path, pid: int, ticks: tuple[int, int, int, int], pages: int, children: str = ""
) -> None:
    """Write the files of one process, named as awkwardly as a process may be."""
    fields = ["R", "1", "1", "1", "0", "-1", "0", "0", "0", "0", "0", *map(str, ticks)]
    fields += ["20", "0", "1", "0", "12345", "99999", str(pages), "0"]
    write(root, f"proc/{pid}/stat", f"{pid} (a) R (b) {' '.join(fields)}\n")
    write(root, f"proc/{pid}/task/{pid}/children", children)


def write_host(root: Path, busy: int, idle: int) -> None:
    write(root, "proc/stat", f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 0 0 1\n")
    write(root, "proc/loadavg", "3.50 2.00 1.00 4/121 12106\n")
    write(root, "proc/meminfo", "MemTotal:  1000 kB\nMemFree:  100 kB\nMemAvailable:  400 kB\n")
    for cpu, mhz in ((0, 4_000_000), (1, 2_000_000)):
        write(root, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq", f"{mhz}\n")


def test_shares_are_of_the_time_between_two_samples(tmp_path: Path) -> None:
    write_host(tmp_path, 1000, 1000)
    write_process(tmp_path, 10, (100, 50, 0, 0), 7, "11 12 ")
    write_process(tmp_path, 11, (10, 0, 0, 0), 3)
    write_process(tmp_path, 99, (5000, 0, 0, 0), 1000)  # somebody else's
    load = CpuLoad(10, str(tmp_path))
    first = load.sample(100.0)
    assert first["cpu"] == {
        "busy": None,
        "run": None,
        "mhz": 3000.0,
        "load": 3.5,
        "throttled": None,
        "celsius": None,
    }
    assert first["memory"] == {"used": 600 * 1024, "total": 1000 * 1024, "run": 10 * PAGE}

    # In 4 s the launcher took 2 s itself and has reaped 11 with the 1 s that it had in all: 2.9 s more than before.
    write_host(tmp_path, 1300, 1100)
    write_process(tmp_path, 10, (100 + TICKS, 50 + TICKS, TICKS, 0), 7)
    second = load.sample(104.0)
    assert second["cpu"]["busy"] == 0.75
    assert second["cpu"]["run"] == pytest.approx((3 * TICKS - 10) / TICKS / 4, abs=0.001)
    assert load.pids == {10}


def test_heat_is_told_where_the_kernel_counts_it(tmp_path: Path) -> None:
    write_host(tmp_path, 1, 1)
    counter = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    write(tmp_path, counter, "5\n")
    write(tmp_path, "sys/class/thermal/thermal_zone0/type", "acpitz\n")
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "20000\n")
    write(tmp_path, "sys/class/hwmon/hwmon3/name", "coretemp\n")
    write(tmp_path, "sys/class/hwmon/hwmon3/temp1_input", "91000\n")
    load = CpuLoad(10, str(tmp_path))
    samples = [load.sample(1.0), load.sample(2.0)]
    write(tmp_path, counter, "6\n")
    samples.append(load.sample(3.0))
    assert [sample["cpu"]["throttled"] for sample in samples] == [None, False, True]
    assert samples[0]["cpu"]["celsius"] == 91.0


def test_orphans_that_came_to_the_supervisor_are_of_the_run(tmp_path: Path) -> None:
    write_host(tmp_path, 1, 1)
    write_process(tmp_path, 5, (0, 0, 0, 0), 1, "10 20")
    write_process(tmp_path, 10, (0, 0, 0, 0), 1)
    write_process(tmp_path, 20, (0, 0, 0, 0), 1, "21")
    write_process(tmp_path, 21, (0, 0, 0, 0), 1)
    load = CpuLoad(10, str(tmp_path), own=5)
    load.sample(1.0)
    assert load.pids == {10, 20, 21}


def test_a_system_that_says_nothing_gives_nulls(tmp_path: Path) -> None:
    load = CpuLoad(10, str(tmp_path))
    load.sample(1.0)
    sample = load.sample(2.0)
    assert sample["cpu"] == {
        "busy": None,
        "run": 0.0,
        "mhz": None,
        "load": None,
        "throttled": None,
        "celsius": None,
    }
    assert sample["memory"] == {"used": None, "total": None, "run": 0}


@given(st.text(max_size=200))
def test_no_text_of_a_kernel_breaks_a_parser(text: str) -> None:
    for parse in (
        cpu_load.parse_busy,
        cpu_load.parse_stat,
        cpu_load.parse_clocks,
        cpu_load.parse_load,
        cpu_load.parse_memory,
        cpu_load.parse_ps,
        cpu_load.parse_duration,
    ):
        parse(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:01.50", 1.5), ("02:03", 123.0), ("1:00:00", 3600.0), ("2-00:00:01", 172801.0)]
)
def test_ps_counts_in_days_hours_and_hundredths(text: str, seconds: float) -> None:
    assert cpu_load.parse_duration(text) == seconds


def test_without_proc_ps_says_what_the_run_takes() -> None:
    answers = iter(
        [
            " 10 1 100 0:01.00\n 11 10 50 0:02.00\n 99 1 7 9:00.00\n",
            " 10 1 100 0:01.50\n 11 10 60 0:05.50\n 99 1 7 9:30.00\n",
        ]
    )
    load = PlainLoad(10, lambda: next(answers))
    load.sample(0.0)
    sample = load.sample(2.0)
    assert (sample["cpu"]["run"], sample["memory"]["run"]) == (2.0, 160 * 1024)
    assert load.pids == {10, 11}


def test_the_real_ps_finds_this_process() -> None:
    load = PlainLoad(os.getpid())
    assert load.sample(1.0)["memory"]["run"] > 10_000_000


def test_a_gpu_in_full(nvidia: pytest.MonkeyPatch) -> None:
    nvidia.setenv("FAKE_NVIDIA_PID", str(os.getpid()))
    load = GpuLoad([{"uuid": uuid(0), "index": 0}])
    (row,) = load.sample(set())
    assert row == {
        "uuid": uuid(0),
        "index": 0,
        "utilization": 0.97,
        "memory_used": 1 << 30,
        "watts": 283.5,
        "watt_limit": 200.0,
        "watt_default": 285.0,
        "sm_mhz": 2415,
        "celsius": 71,
        "throttle": ["power", "thermal"],
        "others": 1,
    }
    assert load.sample({os.getpid()})[0]["others"] == 0
    load.close()


def test_a_gpu_that_is_lost_or_says_little_costs_only_itself(nvidia: pytest.MonkeyPatch) -> None:
    nvidia.setenv("FAKE_NVIDIA", "bare")
    load = GpuLoad([{"uuid": uuid(0), "index": 0}, {"uuid": "GPU-gone", "index": 7}])
    (row,) = load.sample(set())
    assert (row["memory_used"], row["utilization"], row["watts"], row["throttle"]) == (
        1 << 30,
        None,
        None,
        None,
    )
    nvidia.setenv("FAKE_NVIDIA", "lost")
    assert GpuLoad([{"uuid": uuid(1), "index": 1}]).sample(set()) == []


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_TRAIN_NVML", "/nowhere/libnvidia-ml.so.1")
    load = GpuLoad([{"uuid": uuid(0), "index": 0}])
    assert load.sample(set()) == []
    assert load.sample(set()) == []
    load.close()


def test_who_else_computes() -> None:
    mine = os.getpid()
    assert count_others([], set()) == 0
    assert count_others([mine, 4_000_001], {mine}) == 1
    assert count_others([mine], set()) == 1
    assert count_others([4_000_001, 4_000_002], {mine}) is None  # the driver counts in another namespace


@pytest.mark.parametrize(
    ("bits", "words"), [(0, []), (0x24, ["power", "thermal"]), (0x60, ["thermal"]), (1, ["idle"])]
)
def test_bits_in_words(bits: int, words: list[str]) -> None:
    assert name_reasons(bits) == words


@given(st.floats(0, 1e7))
def test_a_month_stays_small(seconds: float) -> None:
    assert 2.0 <= telemetry.choose_pause(seconds) <= telemetry.choose_pause(seconds + 1.0) <= 60.0


def test_a_torn_line_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    path.write_bytes(b'{"kind":"sam')
    line = telemetry.make_line(1.0, {"cpu": {}}, [])
    assert telemetry.append_line(str(path), line, torn=True)
    assert path.read_bytes().splitlines()[1] + b"\n" == line
    assert not telemetry.append_line("/nowhere/at/all", line, torn=True)
    assert telemetry.append_line("/dev/full", line, torn=False)  # nothing of it was written


def follow(folder: Path, child: int, gpus: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the first lines of a telemetry that runs."""
    watched = telemetry.Telemetry(str(folder), time.monotonic())
    watched.begin(child, gpus)
    path, deadline = folder / layout.TELEMETRY, time.monotonic() + 60.0
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    watched.close()
    size = path.stat().st_size
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert path.stat().st_size == size
    return lines


@pytest.mark.usefixtures("nvidia")
def test_the_thread_writes_lines_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "PAUSES", ((60.0, 0.05),))
    lines = follow(tmp_path, os.getpid(), [{"uuid": uuid(0), "index": 0}], 3)
    assert {line["kind"] for line in lines} == {"sample"}
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert lines[0]["gpus"][0]["watts"] == 283.5
    assert lines[-1]["memory"]["run"] > 10_000_000


def test_a_driver_that_hangs_holds_nothing_up(tmp_path: Path, nvidia: pytest.MonkeyPatch) -> None:
    nvidia.setenv("FAKE_NVIDIA", "hang")
    script = (
        "import os, sys, time; from remote_train.host import telemetry; telemetry.PAUSES = ((60.0, 0.0),);"
        "telemetry.CLOSE_SECONDS = 0.05; watched = telemetry.Telemetry(sys.argv[1], time.monotonic());"
        "watched.begin(os.getpid(), [{'uuid': 'GPU-0', 'index': 0}]); watched.close(); print('over'); os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=True, timeout=60
    )
    assert done.stdout == b"over\n"
    assert not (tmp_path / layout.TELEMETRY).exists()
