"""Run the fault tests and make a table of what came: `python -m tests.faults.nightly [--nightly] [pytest's arguments]`."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.faults.counts import MODE, RECORD, SEED

ROOT = Path(__file__).parents[2]
MARK = "tests.faults.counts import"
COLUMNS = ("goal", "trials", "failures", "seconds", "seed", "remark")


def find_tests() -> list[str]:
    """Return the folder of fault tests, and every other test file that counts its trials as they do."""
    found = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if MARK in path.read_text("utf-8")]
    others = [path for path in found if path.parent != Path(__file__).parent]
    return [str(path.relative_to(ROOT)) for path in (Path(__file__).parent, *others)]


def render_table(rows: list[dict[str, Any]]) -> str:
    """Return the goals as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---:|---:|---:|---:|---|"]
    for row in sorted(rows, key=lambda row: str(row["goal"])):
        cells = {**row, "seconds": f"{row['seconds']:.0f}"}
        lines.append("| " + " | ".join(str(cells.get(name, "")) for name in COLUMNS) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run pytest in two workers; return its exit code."""
    large = "--nightly" in arguments
    options = [argument for argument in arguments if argument != "--nightly"]
    paths = [] if any(option.partition("::")[0].endswith(".py") for option in options) else find_tests()
    number = os.environ.get(SEED) or str(secrets.randbelow(1 << 31))
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "goals.jsonl"
        record.touch()
        asked = {MODE: "nightly" if large else "", SEED: number, RECORD: str(record)}
        print(f"seed: {SEED}={number}", flush=True)
        began = time.monotonic()
        argv = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal", "-ra", *paths, *options]
        code = subprocess.run(argv, cwd=ROOT, env={**os.environ, **asked}, check=False).returncode
        rows = [json.loads(line) for line in record.read_text("utf-8").splitlines()]
    print(f"\n{render_table(rows)}\n\n{time.monotonic() - began:.0f} s, pytest ended with {code}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
