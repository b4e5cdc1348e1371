"""A script that prints nothing we know, and says of its steps itself: its metrics are there, live and afterwards."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import Laptop, write_project

if TYPE_CHECKING:
    from pathlib import Path

REPORTING = """
import os
try:
    from remote_train import report
except ImportError:
    report = None
from remote_train.host import steps
steps.LINE_SECONDS = 0.0  # a line for each step: the test counts them
for step in range(1, 6):
    print("busy", flush=True)
    report.step(step, loss=5 - step / 2, tokens=1000, flops=2e6)
with open(os.environ["REMOTE_TRAIN_REPORT"], "a") as own:
    own.write('{"step": 6, "loss": 1.5}\\\\n')
with open(os.environ["REMOTE_TRAIN_METER"], "a") as meter:  # what the meter would write
    meter.write('{"kind": "count", "flops": 1e6, "dtype": "float32", "dtype_source": "parameters", "tokens": 9}\\\\n')
    for n in (1, 2, 3):
        meter.write('{"kind": "steps", "time": %d, "step": %d, "steps": 10, "seconds": 1.0, "flops": 1e6}\\\\n' % (n, 10 * n))
"""


def test_what_a_script_reports_is_its_metrics(alone: Laptop, project: Path) -> None:
    write_project(project, {"train.py": REPORTING.replace("\\\\n", "\\n")})
    live = alone.ok(project, "run", "--local", "--json", "train.py")

    records = alone.ok(project, "metrics", "--json").events

    shown = [event for event in live.events if event["event"] == "metric"]
    by_source = {name: [one for one in records if one["source"] == name] for name in ("report", "meter")}
    assert len(records) == len(shown) == 6 + 3
    assert [one["step"] for one in by_source["report"]] == [1, 2, 3, 4, 5, 6]
    assert [one["loss"] for one in by_source["report"]] == [4.5, 4.0, 3.5, 3.0, 2.5, 1.5]
    assert [(one["step"], one["optimizer_step"]) for one in by_source["meter"]] == [
        (None, 10),
        (None, 20),
        (None, 30),
    ]
    fifth, last = by_source["report"][4:]
    assert fifth["mfu"] == pytest.approx(2e6 / fifth["step_seconds"] / 1e11)
    assert fifth["tokens_per_second"] == pytest.approx(1000 / fifth["step_seconds"])
    assert last["mfu"] is None  # unknown is null
    assert by_source["meter"][-1]["mfu"] == pytest.approx(1e7 / 1e11)
    assert by_source["meter"][-1]["dtype_source"] == "parameters"

    row = alone.ok(project, "ps", "--json").event("run")
    assert (row["step"], row["loss"]) == (6, 1.5)
    found = sorted(one["mfu"] for one in by_source["report"] if one["mfu"] is not None)
    assert (
        found[0] <= row["mfu"] <= found[-1]
    )  # the script's own word is the best source, its median stands for all
    facts = alone.ok(project, "show", "--json").event("run")
    assert [one["source"] for one in facts["mfu"]["sources"]] == ["report", "meter"]
    said = alone.ok(project, "show").out.decode()
    assert "by the script's own report" in said
    assert "of 100 GFLOP/s (measured" in said
    assert "0.01 % by the meter" in said

    table = alone.ok(project, "metrics").out.decode().splitlines()
    assert table[0].split() == ["STEP", "TIME", "LOSS", "TIME/STEP", "TOK/S", "MFU", "SOURCE", "DTYPE"]
    assert len(table) == 1 + 9 + 1
    assert table[-1].startswith("MFU is of 100 GFLOP/s (measured")
    rows = list(csv.DictReader(io.StringIO(alone.ok(project, "metrics", "--csv").out.decode())))
    assert [row["source"] for row in rows] == [one["source"] for one in records]


def test_without_the_meter_that_is_recorded_and_said(alone: Laptop, project: Path) -> None:
    script = "import os\nprint('REMOTE_TRAIN_METER' in os.environ, 'REMOTE_TRAIN_REPORT' in os.environ)"
    write_project(project, {"train.py": script})
    done = alone.ok(project, "run", "--local", "--no-meter", "train.py")

    assert done.out == b"False True\n"
    record = json.loads((project / "runs" / done.run_id() / "run.json").read_text())
    assert record["attempts"][0]["plan"]["meter"] is False
    assert record["job"]["meter"] is False
    assert "not metered: --no-meter" in alone.ok(project, "show").out.decode()
    again = alone.ok(project, "run", "--local", "--from", done.run_id())
    assert again.out == b"False True\n"
