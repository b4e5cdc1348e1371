"""The agent's `bench`: the training's own Python measures and trains, and nothing trains on when the laptop is gone."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.benching import bench_hosts
from remote_train.errors import HostUnfit
from remote_train.host import bench_gpt, peaks_cache
from remote_train.metrics.benchmark import MODELS
from tests.host.account_kit import make_test_plan, until

if TYPE_CHECKING:
    from tests.host.account_kit import Account

pytestmark = pytest.mark.torch

SMALL = replace(MODELS[0], name="small", layers=2, heads=2, width=32, block=16, batch=2, seconds=0.2)


def children(account: Account) -> list[int]:
    """Return the processes that this account's agents have train."""
    home = f"HOME={account.home}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (
                b"host.bench_gpt" in (entry / "cmdline").read_bytes()
                and home in (entry / "environ").read_bytes()
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_host_is_measured_and_trains_a_model(account: Account) -> None:
    told: list[str] = []
    (row,) = bench_hosts([account.link()], [SMALL], told.append)

    assert (row["ok"], row["reason"], row["exit_code"]) == (True, None, 0)
    assert told == ["benching local: matrix products …", "benching local: small …"]
    assert 1e9 < row["measured"]["float32"] < 1e14
    (item,) = row["models"]
    assert item["parameters"] == 65 * 32 + 16 * 32 + 2 * (12 * 32 * 32 + 2 * 32) + 32
    assert item["flops_closed_form"] == (6 * (item["parameters"] - 16 * 32) + 12 * 2 * 32 * 16) * 32
    assert item["dtype"] == "float32"
    assert item["steps"] >= 2
    assert item["tokens_per_second"] == pytest.approx(32 / item["step_seconds"])
    assert item["mfu"] == pytest.approx(item["flops_per_second"] / row["measured"]["float32"])
    assert item["peak_source"].startswith("measured: ")
    assert item["estimated_seconds"] == 2000 * item["step_seconds"]
    assert item["losses"][0] == pytest.approx(math.log(65), rel=0.05)
    # what was measured is what later runs divide by
    (kept,) = (account.root / "peaks").glob("*.json")
    assert json.loads(kept.read_text())["float32"] == row["measured"]["float32"]
    assert children(account) == []


def test_nothing_trains_on_when_the_laptop_is_gone(account: Account) -> None:
    session = account.connect()
    plan = make_test_plan("", ("bench",)).as_message()
    session.submit("bench", what="train", plan=plan, job=replace(SMALL, seconds=600.0).make_job())
    until(lambda: children(account), "the training")
    session.close()
    until(lambda: not children(account), "its end")


@pytest.mark.parametrize("what", ["peak", "train"])
def test_a_python_that_cannot_says_why(account: Account, what: str) -> None:
    plan = make_test_plan("", ("bench",), python="/nowhere/python").as_message()
    with pytest.raises(HostUnfit, match="No such file"):
        account.connect().request("bench", what=what, plan=plan, job=SMALL.make_job())
    assert peaks_cache.read_peak(str(account.root), "x") is None


def test_a_slow_machine_takes_two_steps_and_a_fast_one_whole_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def steps_of(seconds: float) -> Any:
        def step() -> float:
            now[0] += seconds
            return 1.0

        return step

    paces, steps, losses = bench_gpt.time_steps(steps_of(30.0), 15.0)
    assert (paces, steps, len(losses)) == ([30.0, 30.0], 2, 3)
    paces, steps, _ = bench_gpt.time_steps(steps_of(0.001), 1.0)
    assert paces == pytest.approx([0.001] * len(paces))
    assert steps == pytest.approx(1000, abs=250)


def test_the_script_reads_one_job_and_ends_with_its_stdin() -> None:
    import subprocess

    command = [sys.executable, "-c", "from remote_train.host.bench_gpt import main; main()"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, input=b"", env=environment, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
