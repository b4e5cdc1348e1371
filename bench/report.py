"""Figures of a benchmark as text: medians with their spread, the machine they were taken on, budgets and verdicts.

Pure but for `read_machine`.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("remote-train", "paramiko", "fabric", "typer", "torch")
# On a machine that does nothing else the load is near 0; above this somebody else is at work.
QUIET_LOAD = 0.5


@dataclass(frozen=True)
class Budget:
    """A promise of the design, and what was measured."""

    title: str
    measured: float
    limit: float
    unit: str = ""
    at_least: bool = False

    @property
    def kept(self) -> bool:
        """Whether it holds."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def render_spread(values: Sequence[float], digits: int = 3) -> str:
    """Return the median and, of several values, the least and the greatest."""
    if not values:
        return ""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table whose columns line up in plain text too."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(_render_row(line, widths) for line in lines)


def _render_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def render_budgets(budgets: Sequence[Budget]) -> str:
    """Return the budgets as a table."""
    rows = [
        (
            budget.title,
            f"{budget.measured:.3g}{budget.unit}",
            f"{'>=' if budget.at_least else '<='} {budget.limit:g}{budget.unit}",
            "PASS" if budget.kept else "FAIL",
        )
        for budget in budgets
    ]
    return render_table(["budget", "measured", "limit", "verdict"], rows)


def read_machine() -> dict[str, str]:
    """Return what figures depend on; to be called before anything is measured: the load is the machine's own."""
    load = os.getloadavg()
    quiet = "" if load[0] <= QUIET_LOAD else f", NOT QUIET (over {QUIET_LOAD}): not to be quoted"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": _read_commit(),
        "cpu": f"{_read_cpu()}, {len(os.sched_getaffinity(0))} logical cores usable",
        "load at start": f"{load[0]:.2f} {load[1]:.2f} {load[2]:.2f}{quiet}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {_read_version(name)}" for name in PACKAGES),
        "ssh": _read_first_line("ssh", "-V"),
        "rsync": _read_first_line("rsync", "--version"),
    }


def render_machine(facts: dict[str, str]) -> str:
    """Return the machine as a list."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def has_torch() -> bool:
    """Tell whether this Python, the benchmark's host's too, has torch; without importing it."""
    return _read_version("torch") != "none"


def say(text: str) -> None:
    """Tell how far it is; the report alone goes to stdout."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _read_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _read_cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _read_commit() -> str:
    commit = _read_first_line("git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD")
    changed = _read_first_line("git", "-C", str(REPOSITORY), "status", "--porcelain", "remote_train")
    return f"{commit}, with uncommitted changes" if changed else commit


def _read_first_line(*argv: str) -> str:
    """Return the first line that a command prints anywhere; ssh -V writes to stderr."""
    done = subprocess.run(argv, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.partition("\n")[0].strip()
