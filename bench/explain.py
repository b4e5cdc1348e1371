"""Does what `explain` predicts come true? A tiny GPT is trained under the meter, explained, and changed as it says.

    python -m bench.explain --rounds 5 --threads 1

Trains `bench/tiny_gpt.py` with `remote-train run --local`, asks `explain --json`, then applies the best tries that a script
can apply (a larger batch, compile, fused, bf16, threads), one at a time, against the script as it was, in interleaved rounds.
What was got is the median over the rounds of tokens a second over those of the same round's plain run; `by CPU time` is
the same of the process's own CPU time, which a machine that others use disturbs less.
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
from pathlib import Path
from typing import Any

from bench.report import render_table

SCRIPT = Path(__file__).with_name("tiny_gpt.py")
TOP = 3
BATCH = 12


def choose_options(item: dict[str, Any], cores: int) -> list[str] | None:
    """Return the script's options that apply a try; None for one that no option applies."""
    known = {
        "batch": ["--batch", str(BATCH * int(item["how"].split()[0]))] if item["id"] == "batch" else [],
        "compile": ["--compile"],
        "fused": ["--fused"],
        "dtype": ["--bf16"] if item["name"].startswith("bf16") else None,
        "threads": ["--threads", str(cores)],
    }
    return known.get(item["id"])


def explain(folder: Path, steps: int, threads: int | None) -> dict[str, Any]:
    """Train once under the meter and return what `explain --json` says of it."""
    project = folder / "project"
    project.mkdir()
    shutil.copy(SCRIPT, project / "train.py")
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "HOME": str(folder)}
    command = [sys.executable, "-m", "remote_train"]
    given = ["--env", f"OMP_NUM_THREADS={threads}"] if threads else []
    run = [*command, "run", "--local", "--no-pull", *given, "train.py", "--steps", str(steps)]
    subprocess.run(run, cwd=project, env=environment, check=True, stdout=subprocess.DEVNULL)
    done = subprocess.run(
        [*command, "explain"], cwd=project, env=environment, check=True, capture_output=True
    )
    print(done.stdout.decode())
    answer = [*command, "explain", "--json"]
    done = subprocess.run(answer, cwd=project, env=environment, check=True, capture_output=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def train(options: list[str], steps: int, threads: int) -> dict[str, float]:
    """Run the script by itself, without us, and return its pace."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(SCRIPT), "--steps", str(steps), *options]
    done = subprocess.run(command, env=environment, check=True, capture_output=True)
    pace: dict[str, float] = json.loads(done.stdout)
    return pace


def compare(
    sides: dict[str, list[str]], rounds: int, steps: int, threads: int
) -> dict[str, dict[str, list[float]]]:
    """Run the plain script and each side once a round, the order turning; return the ratios to the round's plain run."""
    got: dict[str, dict[str, list[float]]] = {name: {"tokens": [], "cpu_tokens": []} for name in sides}
    names = ["plain", *sides]
    for number in range(rounds):
        turned = names[number % len(names) :] + names[: number % len(names)]
        paces = {name: train(sides.get(name, []), steps, threads) for name in turned}
        for name in sides:
            for key, ratios in got[name].items():
                ratios.append(paces[name][key] / paces["plain"][key])
    return got


def make_rows(tries: list[dict[str, Any]], got: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """Return the table: what was predicted, what was got in wall time and in CPU time, with the range over the rounds."""
    rows = []
    for item in tries:
        low, high = item["gain"]
        cells = [
            f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
            for ratios in got[item["id"]].values()
        ]
        rows.append([item["name"], f"{low:.2f} to {high:.2f} x", *cells])
    return rows


def main() -> None:
    """Explain, apply, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="of each timed run, at the plain batch")
    parser.add_argument(
        "--threads", type=int, default=None, help="of the run that is explained; default: as run chooses"
    )
    parser.add_argument(
        "--all", action="store_true", help="every try that can be applied, not the first three"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = explain(Path(folder), max(options.steps, 100), options.threads)
    threads, cores = found["device"]["threads"] or 1, found["device"]["cores"] or 1
    tries = [item for item in found["tries"] if item["gain"] and choose_options(item, cores) is not None]
    tries = tries if options.all else tries[:TOP]
    sides = {item["id"]: choose_options(item, cores) or [] for item in tries}
    got = compare(sides, options.rounds, options.steps, threads)
    print(
        f"{options.rounds} rounds of {options.steps} steps, {threads} threads; load {os.getloadavg()[0]:.1f}\n"
    )
    print(render_table(["try", "predicted", "got (wall)", "got (CPU time)"], make_rows(tries, got)))


if __name__ == "__main__":
    main()
