"""Two small runs of one script, drawn and compared as a user would, after their host is gone; and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from tests.e2e.machines import Laptop, write_project

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import sys, time
tokens = 768 * (2 if "--batch-size=24" in sys.argv else 1)
print("flops per token: 1000000", flush=True)
for step in range(1, 6):
    loss = "nan" if step == 3 else f"{5 - step / 2:.4f}"
    print(f"step {step}/5 | loss {loss} | 10.0 ms | {tokens * 100} tok/s", flush=True)
"""


@pytest.fixture
def pair(alone: Laptop, project: Path) -> tuple[str, str]:
    """Two runs that differ in nothing but the order of their arguments."""
    write_project(project, {"train.py": SCRIPT})
    args = (("--lr=1e-3", "--seed=1"), ("--seed=1", "--lr", "0.001", "--device=cpu"))
    first, second = (alone.ok(project, "run", "--local", "train.py", *one).run_id() for one in args)
    return first, second


def test_runs_are_compared_and_drawn(alone: Laptop, project: Path, pair: tuple[str, str]) -> None:
    a, b = pair
    said = alone.ok(project, "compare", a, b).out.decode()
    assert f"{b} is as fast per step as {a}, on the same configuration" in said
    assert "device (not set and cpu)" in said
    assert "loss at step 5" in said
    assert [line.split()[-2:] for line in said.splitlines() if line.startswith("bottleneck")]

    other = alone.ok(
        project, "run", "--local", "train.py", "--lr=1e-3", "--seed=1", "--batch-size=24"
    ).run_id()
    event = alone.ok(project, "compare", "--json", a, other).event("comparison")
    assert event["differences"] == ["batch_size (not set and 24)"]
    assert (event["same"], event["ratio"]) == (False, 1.0)
    assert "no gain" in event["sentence"]
    assert event["a"]["step_seconds"] == 0.01
    assert event["a"]["common_step"] == 5

    done = alone.ok(project, "plot", a, b, "-o", "out.SVG", "--x", "step", "--what", "tokens,loss", "--json")
    written = done.event("plot")
    assert [(line["run"], line["what"], line["points"]) for line in written["lines"]] == [
        (run, what, 5) for run in (a, b) for what in ("loss", "tokens")
    ]
    picture = (project / "out.SVG").read_bytes()
    drawn = [
        str(item.get("id"))
        for item in ET.fromstring(picture).iter()
        if str(item.get("id")).startswith("line-")
    ]
    assert sorted(drawn) == [f"line-{n}-{what}-step" for n in (0, 1) for what in ("loss", "tokens")]
    assert [path.name for path in project.iterdir() if path.name.startswith(".out")] == []


@pytest.mark.slow
def test_what_cannot_be_drawn_or_compared_is_said(alone: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "print('nothing')"})
    run = alone.ok(project, "run", "--local", "train.py").run_id()
    assert "RUN" in alone.type(project, "compare", run).expect(2).err
    assert "no run is named nobody" in alone.type(project, "compare", run, "nobody").expect(2).err
    assert ".png or .svg" in alone.type(project, "plot", run, "-o", "x.gif").expect(2).err
    assert (
        "throughput"
        in alone.type(project, "plot", run, "-o", "x.png", "--what", "loss,throughput").expect(2).err
    )
    assert "--x" in alone.type(project, "plot", run, "-o", "x.png", "--x", "epoch").expect(2).err
    assert "nothing to draw" in alone.type(project, "plot", run, "-o", "x.png").expect(2).err
    hidden = project / "no" / "x.svg"
    write_project(project, {"train.py": SCRIPT})
    drawn = alone.ok(project, "run", "--local", "train.py").run_id()
    refused = alone.type(project, "plot", "--json", "-o", str(hidden)).expect(2)
    assert json.loads(refused.out)["exit_code"] == 2
    assert str(hidden) in refused.err
    assert "choose one" in alone.type(project, "metrics", "--csv", "--json").expect(2).err
    done = alone.ok(project, "plot", "--json", run, drawn, "-o", "both.svg")
    assert done.event("plot")["left_out"] == [run]
    assert f"not in it: {run}" in done.err
    event = alone.ok(project, "compare", "--json", run, run).event("comparison")
    assert (event["ratio"], event["same"], event["a"]["mfu"]) == (None, True, None)


def test_drawing_without_matplotlib_names_the_extra(alone: Laptop, project: Path, tmp_path: Path) -> None:
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    (hiding / "matplotlib.py").write_text("raise ImportError('as if it were not there')\n")
    done = alone.type(project, "plot", "-o", "x.png", env={"PYTHONPATH": str(hiding)})
    assert "remote-train[plot]" in done.expect(2).err
