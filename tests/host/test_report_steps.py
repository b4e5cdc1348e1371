"""`report.step`: what a script says of its steps becomes few lines, costs nothing, and never harms it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remote_train.host import layout

ROOT = str(Path(__file__).parents[2])

FAKE = """
import os, sys, threading, time
from remote_train import report
class Tensor:
    read = 0
    def __init__(self, value): self.value = value
    def __add__(self, other): return Tensor(self.value + other.value)
    def __float__(self):
        Tensor.read += 1
        return float(self.value)
def lines():
    return sum(1 for _ in open(os.environ["REMOTE_TRAIN_REPORT"]))
"""
MANY = """
for step in range(20_000):
    report.step(step, loss=Tensor(5 - step / 10_000), tokens=10, flops=100.0)
print(Tensor.read, lines())
"""
ODD = """
from remote_train.host import steps
steps.LINE_SECONDS = 0.0  # a line each
class Broken:
    def __float__(self): raise RuntimeError("CUDA error")
for loss in (float("nan"), float("inf"), Broken(), "much", [], object(), 1e300, 2.5):
    report.step(loss=loss, step="x" if loss == "much" else None, tokens=Broken() if loss == 2.5 else None)
"""
HOSTILE = """
import warnings
from remote_train.host import steps
class Own(Exception): pass
class Hostile:
    def fail(self, *_): raise Own
    __float__ = __add__ = __radd__ = __fspath__ = __index__ = __bool__ = __eq__ = detach = fail
class Warns:
    def __float__(self):
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
        return 3.0
class Deep:
    def __float__(self): return self.__float__()
warnings.simplefilter("error")
for value in (Hostile(), Warns(), Deep(), 10**400, "x", b"x", Hostile):
    steps.LINE_SECONDS = 0.0  # a line each
    report.step(value, loss=value, tokens=value, flops=value)
    report.step(value, loss=value, tokens=value, flops=value)
    report.checkpoint(value)
"""
LIVE = """
import weakref
from remote_train.host import steps
class Live:  # as a tensor in a graph
    def __init__(self, value, graph=None): self.value, self.graph = value, graph
    def detach(self): return Live(self.value)
    def __add__(self, other): return Live(self.value + getattr(other, "value", other))
    def __float__(self):
        assert self.graph is None, "read with its graph"
        return float(self.value)
class Graph: pass
def give(value):
    graph = Graph()
    live = Live(value, graph)
    report.step(live, loss=live, tokens=live)
    live.value *= 100  # changed in place, after it was given
    return weakref.ref(graph)
report.step(tokens=1)
print([give(value)() for value in (2.0, 3.0)])
"""
INTERRUPTED = """
import signal
class Slow:
    def __float__(self): signal.raise_signal(signal.SIGUSR1)
def handler(*_): raise TimeoutError("the script's")
signal.signal(signal.SIGUSR1, handler)
try:
    report.step(loss=Slow())
except TimeoutError as error:
    print(error)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
"""
FORKED = """
report.step(1, tokens=1)
report.step(2, tokens=20)
child = os.fork()
if child == 0:
    report.step(7, tokens=300)
    sys.exit()
os.waitpid(child, 0)
"""
THREADS = """
threads = [threading.Thread(target=lambda: [report.step(tokens=1) for _ in range(5_000)]) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def run(code: str, tmp_path: Path, **environment: str) -> tuple[str, list[dict[str, Any]]]:
    """Run a script under us, as far as it can see; return what it printed, and its report."""
    path = tmp_path / layout.REPORT
    more = {layout.REPORT_VARIABLE: str(path), layout.BEGAN_VARIABLE: "0.0", "PYTHONPATH": ROOT}
    done = subprocess.run(
        [sys.executable, "-c", FAKE + code],
        env={**os.environ, **more, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    lines = path.read_text().splitlines() if path.exists() else []
    return done.stdout, [json.loads(line, parse_constant=pytest.fail) for line in lines]


def test_twenty_thousand_steps_are_few_lines_and_few_reads_of_the_loss(tmp_path: Path) -> None:
    said, lines = run(MANY, tmp_path, RANK="3")
    read, written = map(int, said.split())
    assert read == written <= len(lines) <= written + 1
    assert len(lines) >= 2  # the first call's, and at exit the last one's
    assert sum(line["steps"] for line in lines) == 20_000
    assert sum(line["tokens"] for line in lines) == 200_000
    assert sum(line["flops"] for line in lines) == 2_000_000
    assert {line["kind"] for line in lines} == {"step"}
    assert {line["rank"] for line in lines} == {3}
    assert lines[0]["seconds"] is None
    assert all(line["seconds"] >= 0.5 for line in lines[1:-1])
    assert lines[-1]["step"] == 19_999
    assert lines[-1]["loss"] == 5 - 1.9999
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)


def test_what_is_no_number_is_null_and_nothing_is_raised(tmp_path: Path) -> None:
    _, lines = run(ODD, tmp_path)
    assert [line["loss"] for line in lines] == [None] * 7 + [2.5]
    assert {line["step"] for line in lines} == {line["tokens"] for line in lines} == {None}


def test_whatever_it_is_given_nothing_is_raised_or_warned_of(tmp_path: Path) -> None:
    _, lines = run(HOSTILE, tmp_path)
    assert len(lines) == 14
    assert {line["kind"] for line in lines} == {"step"}
    assert [line["loss"] for line in lines if line["loss"] is not None] == [3.0, 3.0]
    assert [line["tokens"] for line in lines if line["tokens"] is not None] == [3.0, 3.0]


def test_what_a_loss_was_computed_from_is_let_go_at_once_and_sums_are_ours(tmp_path: Path) -> None:
    said, lines = run(LIVE, tmp_path)
    assert said == "[None, None]\n"
    assert [line["tokens"] for line in lines] == [1, 5]


def test_what_a_signal_handler_raises_meanwhile_is_the_scripts(tmp_path: Path) -> None:
    said, _ = run(INTERRUPTED, tmp_path)
    assert said == "the script's\n"


def test_a_forked_process_does_not_write_what_its_parent_has_not_yet(tmp_path: Path) -> None:
    _, lines = run(FORKED, tmp_path)
    assert sorted((line["step"], line["tokens"]) for line in lines) == [(1, 1), (2, 20), (7, 300)]


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    _, lines = run(THREADS, tmp_path)
    assert 0 < sum(line["steps"] for line in lines) <= 20_000
    assert all(set(line) == set(lines[0]) for line in lines)


@pytest.mark.parametrize("report", ["", "/nowhere/at/all/report.jsonl", "/"])
def test_where_nothing_can_be_written_it_is_harmless(tmp_path: Path, report: str) -> None:
    said, lines = run("report.step(1, loss=2.0)\nprint('on')", tmp_path, **{layout.REPORT_VARIABLE: report})
    assert (said, lines) == ("on\n", [])


def test_checkpoints_stand_among_the_steps(tmp_path: Path) -> None:
    code = tmp_path / layout.CODE
    code.mkdir()
    (code / "ckpt.pt").write_bytes(b"weights")
    script = f"os.chdir({str(code)!r})\nreport.step(1)\nreport.checkpoint('ckpt.pt')\nreport.step(2)"
    _, lines = run(script, tmp_path)
    assert [line["kind"] for line in lines] == ["step", "checkpoint", "step"]
