"""The configuration the product began with, on this CPU: what nanoGPT prints as MFU, and what it is.

    python -m bench.origin --iterations 200

Runs a script of nanoGPT's shape (bench/origin_train.py) with the options of nanoGPT's README for a CPU through `remote-train run
--local`, and reads `metrics --json`. MFU by the log is from the start lines and the printed times, MFU by the meter from its count and its
clock; both are means over the same iterations, the first WARM left out. Exits with 1 when they are more than 3 % apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.report import render_table

HERE = Path(__file__).parent
OPTIONS = [
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--log_interval=1",
]
WARM = 10
AGREE = 0.03
CONFIGURATOR = """import sys
for argument in sys.argv[1:]:
    key, _, value = argument.removeprefix("--").partition("=")
    globals()[key] = type(globals()[key])(eval(value)) if not isinstance(globals()[key], str) else value
    print(f"Overriding: {key} = {globals()[key]}")
"""


def run_origin(folder: Path, iterations: int) -> list[dict[str, Any]]:
    """Train in a project of its own and return the metric records."""
    project = folder / "project"
    project.mkdir()
    shutil.copy(HERE / "origin_train.py", project / "train.py")
    shutil.copy(HERE / "tiny_gpt.py", project)
    (project / "configurator.py").write_text(CONFIGURATOR)
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "HOME": str(folder)}
    command = [sys.executable, "-m", "remote_train"]
    run = [*command, "run", "--local", "--no-pull", "train.py", *OPTIONS, f"--max_iters={iterations}"]
    subprocess.run(run, cwd=project, env=environment, check=True, stdout=subprocess.DEVNULL)
    asked = [*command, "metrics", "--json"]
    done = subprocess.run(asked, cwd=project, env=environment, check=True, capture_output=True)
    return [event for line in done.stdout.splitlines() if (event := json.loads(line))["event"] == "metric"]


def measure_log(records: list[dict[str, Any]]) -> tuple[float, float]:
    """Return seconds per step and FLOP/s by the log, the warm-up left out."""
    kept = [r for r in records if r["source"] == "log:nanogpt" and r["step"] > WARM and r["flops_per_second"]]
    seconds = sum(record["step_seconds"] for record in kept)
    flops = sum(record["flops_per_second"] * record["step_seconds"] for record in kept)
    return seconds / len(kept), flops / seconds


def measure_meter(records: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the same by the meter: each of its windows counts by its steps."""
    seconds = flops = 0.0
    steps, before = 0, 0
    for record in (r for r in records if r["source"] == "meter" and r["step_seconds"]):
        count, before = record["optimizer_step"] - before, record["optimizer_step"]
        if before - count > WARM and record["flops_per_second"]:
            steps += count
            seconds += count * record["step_seconds"]
            flops += count * record["step_seconds"] * record["flops_per_second"]
    return seconds / steps, flops / seconds


def main() -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        records = run_origin(Path(folder), options.iterations)
    log, meter = measure_log(records), measure_meter(records)
    last = [r for r in records if r["source"] == "log:nanogpt"][-1]
    peak = last["peak_flops"]
    printed = last["reported_mfu"]
    rows = [
        ["nanoGPT prints", "", f"{100 * printed:.2f} %", "312 TFLOP/s: one A100, bf16, whatever the device"],
        [
            "by the log",
            f"{1e3 * log[0]:.1f}",
            f"{100 * log[1] / peak:.2f} %",
            f"{peak / 1e9:.1f} GFLOP/s ({last['peak_source']})",
        ],
        ["by the meter", f"{1e3 * meter[0]:.1f}", f"{100 * meter[1] / peak:.2f} %", "the same"],
    ]
    print(render_table(["MFU", "ms per step", "figure", "of"], rows))
    apart = abs(meter[1] / log[1] - 1)
    print(f"FLOP/s by the log {log[1]:.4g}, by the meter {meter[1]:.4g}: {100 * apart:.2f} % apart")
    sys.exit(apart > AGREE)


if __name__ == "__main__":
    main()
