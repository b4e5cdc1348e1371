"""What our processes and the meter cost a training: beside the same training started by hand, by turns in one run.

    python bench/overhead.py [--quick] [--repeat N] [--only NAME,NAME] [--json FILE]        (over 7 minutes, alone)

Ours is `remote-train run --local`, attached, with supervisor, telemetry and meter; by hand it is `python` or `torchrun` with the same
script and the same number of threads. The share is the CPU time of supervisor, agent and rank shim while the training ran, plus the
time of our hooks on each optimizer step, divided by the CPU time of the training. A step's time is the median of its window; what
is left of a difference between the sides after that share is the noise of the machine, whose size the spread tells. The pause in which FLOPs
are counted lies in the warm-up: its length, and the longest other step, are told apart.

Exit code 0: every budget is kept; 1: one is not; 2: a side failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.overhead_processes import find_ours, read_cpu, read_resident
from bench.report import Budget, read_machine, render_budgets, render_machine, render_table, say

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SHARE = 0.5  # per cent of the training's CPU time
STALL_MS = 50.0  # besides the one pause
PAUSE_SECONDS = 2.0
RESIDENT_MB = 25.0
TRAINING = Path(__file__).with_name("overhead_train.py")
LIMIT_SECONDS = 600.0


@dataclass(frozen=True)
class Case:
    """One training: what model, and how it is started."""

    name: str
    launcher: str
    steps: int
    shape: dict[str, Any]

    @property
    def device(self) -> str:
        """Where it trains: cpu or cuda."""
        return self.name.split()[0]


TINY = {"layers": 4, "heads": 4, "width": 128, "block": 64, "batch": 12, "vocab": 65, "seed": 1}
BABY = {"layers": 6, "heads": 6, "width": 384, "block": 128, "batch": 4, "vocab": 65, "seed": 1}
CASES = (
    Case("cpu tiny python", "python", 600, TINY),
    Case("cpu tiny torchrun", "torchrun", 600, TINY),
    Case("cpu baby python", "python", 60, BABY),
    Case("cuda tiny torchrun", "torchrun", 3000, TINY),
    Case("cuda baby torchrun", "torchrun", 1500, {**BABY, "block": 256, "batch": 64}),
)


@dataclass
class Side:
    """What one training told, and what our processes used beside its window."""

    told: dict[str, Any]
    ours: dict[str, float]
    """CPU seconds by process: supervisor, agent, shim; the launcher's own are not ours."""
    resident: float = 0.0
    pause: float | None = None

    @property
    def step(self) -> float:
        """Seconds of the median step."""
        return float(statistics.median(self.told["steps"]))


class Failed(Exception):
    """A training did not do what it should."""


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the training has come so far."""
    end = time.monotonic() + LIMIT_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise Failed(f"the training ended before {path.name!r}: see above")
        time.sleep(0.005)


class Machine:
    """A folder with a home and a project, in which trainings run one after the other."""

    def __init__(self, root: Path, warm_up: int) -> None:
        self.home, self.project, self.folder = root / "home", root / "project", root / "meeting"
        for folder in (self.home / "config" / "remote-train", self.project, self.folder):
            folder.mkdir(parents=True)
        shutil.copy(TRAINING, self.project / "train.py")
        hosts = self.home / "config" / "remote-train" / "hosts.toml"
        hosts.write_text('default = ["local"]\n[hosts.local]\npeak_tflops = { fp32 = 0.1, bf16 = 0.1 }\n')
        hosts.chmod(0o600)
        self.warm_up = warm_up
        kept = {
            key: os.environ[key] for key in ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH") if key in os.environ
        }
        state = {
            "HOME": self.home,
            "XDG_CONFIG_HOME": self.home / "config",
            "XDG_STATE_HOME": self.home / "state",
        }
        self.env = {
            **kept,
            **{key: str(value) for key, value in state.items()},
            "OMP_NUM_THREADS": str(count_threads()),
        }

    def run(self, case: Case, *, ours: bool) -> Side:
        """Run one training to its end; raise Failed."""
        job = {
            **case.shape,
            "device": case.device,
            "steps": case.steps,
            "warm_up": self.warm_up,
            "threads": count_threads(),
        }
        (self.folder / "job.json").write_text(json.dumps(job))
        argv = self.our_argv(case) if ours else by_hand_argv(case)
        env = {**self.env, **({"CUDA_VISIBLE_DEVICES": ""} if case.device == "cpu" and not ours else {})}
        with subprocess.Popen(
            [*argv, str(self.folder / "job.json")], cwd=self.project, env=env, stdout=subprocess.PIPE
        ) as process:
            try:
                wait_for(self.folder / "begins", process)
                pids = find_ours(process.pid, self.home) if ours else {}
                before = {name: read_cpu(pid) for name, pid in pids.items()}
                (self.folder / "begins").unlink()
                wait_for(self.folder / "ends", process)
                used = {name: read_cpu(pid) - before[name] for name, pid in pids.items()}
                resident = read_resident(pids["supervisor"]) if ours else 0.0
                (self.folder / "ends").unlink()
                output = process.communicate(timeout=LIMIT_SECONDS)[0].decode()
            finally:
                if process.poll() is None:
                    self.end(process, ours=ours)
        told = [line for line in output.splitlines() if line.startswith("told ")]
        if len(told) != 1:
            raise Failed("the training told nothing")
        side = Side(json.loads(told[0][5:]), used, resident)
        if ours:
            side.pause = self.read_pause()
            shutil.rmtree(self.home / ".local")
            shutil.rmtree(self.project / "runs")
        return side

    def end(self, process: subprocess.Popen[bytes], *, ours: bool) -> None:
        """End a training that did not come to its own end."""
        if ours:
            command = str(Path(sys.executable).with_name("remote-train"))
            subprocess.run([command, "stop", "--grace", "0"], cwd=self.project, env=self.env, check=False)
        process.terminate()

    def our_argv(self, case: Case) -> list[str]:
        """Return our command, without the script's argument."""
        command = str(Path(sys.executable).with_name("remote-train"))
        device = ["--local"] if case.device == "cpu" else ["--host", "local"]
        return [command, "run", *device, "--launcher", case.launcher, "--no-pull", "train.py"]

    def read_pause(self) -> float | None:
        """Return the seconds that counting took, None when nothing was counted."""
        (path,) = self.home.glob(".local/state/remote-train/runs/*/attempts/1/metrics.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        counts = [line for line in lines if line["kind"] == "count" and line["flops"]]
        return sum(line["pause"] for line in counts[:1]) if counts else None


def count_threads() -> int:
    """Return the threads of each training: as many as there are CPUs for it, less one for who watches."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def by_hand_argv(case: Case) -> list[str]:
    """Return the command by hand, without the script's argument."""
    if case.launcher == "python":
        return [sys.executable, "-u", "train.py"]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "1",
        "train.py",
    ]


def shares(side: Side) -> tuple[float, float]:
    """Return what our processes, and our hooks, take of the training's CPU time, in per cent."""
    cpu = side.told["cpu"]
    return 100 * sum(side.ours.values()) / cpu, 100 * side.told["hooks"] * len(side.told["steps"]) / cpu


def longest(side: Side) -> float:
    """Return the longest step of the window, less a usual one, in milliseconds."""
    return 1e3 * (float(max(side.told["steps"])) - side.step)


def render_case(name: str, by_hand: Sequence[Side], ours: Sequence[Side]) -> list[str]:
    """Return the row of one training."""
    processes, hooks = (statistics.median(part) for part in zip(*map(shares, ours), strict=True))
    steps = [statistics.median(side.step for side in sides) * 1e3 for sides in (by_hand, ours)]
    spread = max(side.step for side in by_hand) / min(side.step for side in by_hand)
    pauses = [side.pause for side in ours if side.pause is not None]
    micro = statistics.median(side.told["hooks"] for side in ours) * 1e6
    return [
        name,
        *(f"{step:.2f} ms" for step in steps),
        f"{steps[1] / steps[0]:.3f}",
        f"{spread:.3f}",
        f"{processes:.2f} %",
        f"{hooks:.3f} % ({micro:.2f} us)",
        f"{processes + hooks:.2f} %",
        f"{max(pauses):.2f} s" if pauses else "none",
        f"{min(map(longest, by_hand)):.0f} / {min(map(longest, ours)):.0f} ms",
        f"{max(side.resident for side in ours):.0f} MB",
    ]


HEADER = [
    "training",
    "step by hand",
    "step ours",
    "ratio",
    "spread by hand",
    "our processes",
    "our hooks",
    "together",
    "pause",
    "longest other stall, by hand / ours",
    "supervisor",
]


def make_budgets(name: str, by_hand: Sequence[Side], ours: Sequence[Side]) -> Iterable[Budget]:
    """Judge one training; a stall is ours where the quietest of our runs has more than the quietest by hand."""
    yield Budget(f"{name}: share", statistics.median(sum(shares(side)) for side in ours), SHARE, "%")
    pauses = [side.pause for side in ours]
    yield Budget(f"{name}: pause", max((pause or 0.0) for pause in pauses), PAUSE_SECONDS, "s")
    stall = min(map(longest, ours)) - min(map(longest, by_hand))
    yield Budget(f"{name}: longest other stall", max(0.0, stall), STALL_MS, "ms")
    yield Budget(f"{name}: supervisor's memory", max(side.resident for side in ours), RESIDENT_MB, "MB")


def has_cuda() -> bool:
    """Ask another process: this one imports no torch."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, one turn")
    parser.add_argument("--repeat", type=int, default=3, help="turns")
    parser.add_argument("--only", default="", help="trainings whose names contain one of these")
    parser.add_argument("--json", type=Path, help="keep every figure")
    return parser.parse_args(arguments)


def measure(machine: Machine, case: Case, repeat: int) -> tuple[list[Side], list[Side]]:
    """Return both sides of one training, taken by turns, another one first each time."""
    sides: dict[bool, list[Side]] = {False: [], True: []}
    for turn in range(repeat):
        for ours in (False, True) if turn % 2 == 0 else (True, False):
            say(f"{case.name}: turn {turn + 1} of {repeat}, {'ours' if ours else 'by hand'}")
            sides[ours].append(machine.run(case, ours=ours))
    return sides[False], sides[True]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the report."""
    options = parse_options(arguments)
    if find_spec("torch") is None:
        say("there is no torch here")
        return 2
    facts = read_machine()
    cuda = has_cuda()
    wanted = [word for word in options.only.split(",") if word]
    cases = [
        case
        for case in CASES
        if (cuda or case.device == "cpu") and (not wanted or any(word in case.name for word in wanted))
    ]
    if options.quick:
        cases = [Case(case.name, case.launcher, max(20, case.steps // 10), case.shape) for case in cases]
    rows, budgets, kept = [], list[Budget](), {}
    with tempfile.TemporaryDirectory(prefix="overhead") as root:
        machine = Machine(Path(root), warm_up=20)
        for case in cases:
            try:
                by_hand, ours = measure(machine, case, 1 if options.quick else options.repeat)
            except Failed as error:
                say(f"{case.name}: {error}")
                return 2
            rows.append(render_case(case.name, by_hand, ours))
            budgets += make_budgets(case.name, by_hand, ours)
            kept[case.name] = {
                "by hand": [vars(side) for side in by_hand],
                "ours": [vars(side) for side in ours],
            }
            facts |= {"torch": ours[0].told["torch"], "threads": str(ours[0].told["threads"])}
    load = os.getloadavg()
    facts |= {"load at the end": f"{load[0]:.2f}", "turns": str(1 if options.quick else options.repeat)}
    sys.stdout.write(
        f"{render_machine(facts)}\n\n{render_table(HEADER, rows)}\n\n{render_budgets(budgets)}\n"
    )
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "sides": kept}))
    return 0 if all(budget.kept for budget in budgets) else 1


if __name__ == "__main__":
    sys.exit(main())
