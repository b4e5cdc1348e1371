"""How a run's output comes home: latency and throughput of its log, beside ssh. Files are bench/pull.py.

    python bench/stream.py [--quick] [--rtt 0,100] [--only latency,flood,log] [--json FILE]     (about 10 minutes, alone)

Latency: from just before the script's write on the host to the line on the laptop's pipe, both by one clock, since both are this
machine; lines that were printed before the stream stood are left out. Flood: a script writes its log as fast as
it can, timed from the first byte on the laptop's pipe to the last. By hand that is `ssh tail -F` and `ssh cat`. The proxy has no bandwidth limit but costs CPU, on both sides.

Exit code 0: every budget that was measured is kept; 1: one is not; 2: a side failed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Figures, pick, render_figures, write_json
from bench.machines import HOST, make_project, read_file_system, running_machines
from bench.reading import MB, read_flood, read_ticks, read_whole
from bench.report import (
    Budget,
    has_torch,
    read_machine,
    render_budgets,
    render_machine,
    say,
)
from bench.resident import Resident
from bench.sides import COMMAND, LINE_SECONDS, SideFailed, make_watch, our_argv, run_rsync, start
from remote_train.host.files import find_tail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.machines import Machines
    from bench.sides import Timed

KINDS = ("latency", "flood", "log")
GROWTH_MB = 64 * 1.048576  # "memory flat": what a full receive window may hold, above the process at rest
TAIL_LINES = 1000
TAIL_SECONDS = 0.2  # on the host alone, of a log of 1 GB

SCRIPTS = {
    "ticks.py": """\
import random
import sys
import time

noise = random.Random(0)
for number in range(int(sys.argv[1])):
    time.sleep(noise.uniform(0.005, 0.03))
    print(f"tick {number} {time.monotonic():.6f}", flush=True)
""",
    "flood.py": """\
import os
import sys

lines = b"".join(os.urandom(49).hex().encode() + b".\\n" for _ in range(10_000))
for _ in range(int(sys.argv[1])):
    sys.stdout.buffer.write(lines)
sys.stdout.buffer.flush()
""",
}


class Streams:
    """The measurements, on one pair of machines."""

    def __init__(self, machines: Machines, options: argparse.Namespace) -> None:
        self.machines = machines
        self.options = options
        self.figures = Figures()
        self.project = make_project(machines, "stream", 10, options.seed)
        for name, text in SCRIPTS.items():
            for folder in (self.project.ours, self.project.by_hand):
                (folder / name).write_text(text)
        run_rsync(machines, self.project)

    def measure(self, rtt: float) -> None:
        """Take every figure that was asked for, the sides by turns."""
        self.machines.proxy.set_rtt(rtt)
        kinds: dict[str, Callable[[float], None]] = {
            "latency": self.measure_latency,
            "flood": self.measure_flood,
            "log": self.measure_log,
        }
        for kind in self.options.only:
            kinds[kind](rtt)

    def measure_latency(self, rtt: float) -> None:
        """Print lines now and then, and see when they come; all repetitions' lines together."""
        for _ in range(self.options.repeat):
            for side in ("ours", "by hand"):
                with self._running(side, f"ticks.py {self.options.ticks}") as timed:
                    late = read_ticks(timed, self.options.ticks)
                self.figures.add("latency ms", side, rtt, *late)

    def measure_flood(self, rtt: float) -> None:
        """Print much at once."""
        for _ in range(self.options.repeat):
            for side in ("ours", "by hand"):
                with self._running(side, f"flood.py {self.options.log_mb}") as timed:
                    resident = Resident(self.machines.mark, timed.process.pid)
                    with resident:
                        rate = read_flood(timed, self.options.log_mb * MB, resident)
                        if side == "ours":
                            timed.finish()
                self.figures.add("flood MB/s", side, rtt, rate)
                if side == "ours":
                    self._add_growth("flood", rtt, resident)
            self.machines.drop_old_runs()

    def _add_growth(self, what: str, rtt: float, resident: Resident) -> None:
        self.figures.add(f"{what}: client grew by MB", "ours", rtt, resident.client_growth)
        self.figures.add(f"{what}: agent grew by MB", "ours", rtt, resident.agent_growth)

    def measure_log(self, rtt: float) -> None:
        """Bring the log of a run that has ended, and its last lines alone."""
        size = self.options.log_mb * MB
        start(
            self.machines, our_argv("-d", script=["flood.py", str(self.options.log_mb)]), self.project.ours
        ).finish()
        run, log = self._await_log(size)
        began = time.perf_counter()
        find_tail(str(log), TAIL_LINES)
        self.figures.add("tail: host alone, s", "ours", rtt, time.perf_counter() - began)
        ssh = ["ssh", "-F", str(self.machines.ssh_config), HOST]
        whole = {"ours": [COMMAND, "logs", run], "by hand": [*ssh, "cat", str(log)]}
        tails = {
            "ours": [COMMAND, "logs", "--tail", str(TAIL_LINES), run],
            "by hand": [*ssh, "tail", "-n", str(TAIL_LINES), str(log)],
        }
        for _ in range(self.options.repeat):
            for side, argv in whole.items():
                self._forget_mirror(run)
                with Running(self.machines, tails[side], self.project.ours) as timed:
                    timed.finish()
                    self.figures.add("tail s", side, rtt, time.monotonic() - timed.began)
                with Running(self.machines, argv, self.project.ours) as timed:
                    with Resident(self.machines.mark, timed.process.pid) as resident:
                        took = read_whole(timed, size, resident)
                    self.figures.add("log MB/s", side, rtt, size / MB / took)
                    if side == "ours":
                        self._add_growth("log", rtt, resident)
        self.machines.drop_old_runs()

    def _await_log(self, size: int) -> tuple[str, Path]:
        """Return the newest run and its log, once all of it is written and the run has ended."""
        runs = (self.project.ours / "runs").glob("*/run.json")
        run = max(runs, key=lambda path: path.stat().st_mtime).parent.name
        attempt = self.machines.host / ".local/state/remote-train/runs" / run / "attempts/1"
        end = time.monotonic() + LINE_SECONDS
        while not (attempt / "exit.json").exists():
            if time.monotonic() > end:
                raise SideFailed(f"{run} has not ended")
            time.sleep(0.05)
        log = attempt / "ranks/0.log"
        if log.stat().st_size != size:
            raise SideFailed(f"{log} has {log.stat().st_size} bytes of {size}")
        return run, log

    def _forget_mirror(self, run: str) -> None:
        (self.project.ours / "runs" / run / "attempts/1/ranks/0.log").unlink(missing_ok=True)

    def _running(self, side: str, script: str) -> Running:
        argv = our_argv(script=script.split())
        if side != "ours":
            argv = ["sh", "-c", make_watch(self.machines, self.project, script)]
        return Running(self.machines, argv, self.project.ours)


class Running:
    """A started side; whatever of it is left at the end of the block is ended."""

    def __init__(self, machines: Machines, argv: list[str], cwd: Path) -> None:
        self.machines = machines
        self.timed = start(machines, argv, cwd)

    def __enter__(self) -> Timed:
        return self.timed

    def __exit__(self, *_: object) -> None:
        if self.timed.process.poll() is None:
            self.timed.end()
        self.machines.end_leftovers()
        self.machines.settle()


def make_budgets(figures: Figures, rtts: Sequence[float]) -> list[Budget]:
    """Return the budgets of DESIGN §11 that were measured."""
    budgets = []
    for rtt in rtts:
        late = sorted(figures.get("latency ms", "ours", rtt))
        for percent, limit in ((50, 10), (99, 30)):
            if late:
                value = pick(late, percent)
                budgets.append(
                    Budget(f"log latency p{percent}, RTT {rtt:g} ms", value, rtt / 2 + limit, " ms")
                )
        for what in ("flood", "log"):
            rates = figures.get(f"{what} MB/s", "ours", rtt)
            if rates:
                title = f"{what}, RTT {rtt:g} ms"
                budgets.append(Budget(title, statistics.median(rates), 100, " MB/s", at_least=True))
            for end in ("client", "agent"):
                grown = figures.get(f"{what}: {end} grew by MB", "ours", rtt)
                if grown:
                    title = f"{what}, RTT {rtt:g} ms: {end} grew by"
                    budgets.append(Budget(title, max(grown), GROWTH_MB, " MB"))
        tails = figures.get("tail: host alone, s", "ours", rtt)
        if tails:
            budgets.append(Budget("the last 1,000 lines, on the host", max(tails), TAIL_SECONDS, " s"))
    return budgets


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3, help="runs of each [3]")
    parser.add_argument("--quick", action="store_true", help="1 run, 200 lines, a tenth of the bytes")
    parser.add_argument(
        "--rtt", type=lambda text: [float(word) for word in text.split(",")], default=[0.0, 100.0]
    )
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=list(KINDS), help=f"of {','.join(KINDS)}"
    )
    parser.add_argument("--ticks", type=int, default=500, help="lines of a latency run [500]")
    parser.add_argument("--log-mb", type=int, default=1000, help="size of the log [1000]")
    parser.add_argument("--json", type=Path, help="write every single figure here")
    parser.add_argument("--seed", type=int, default=0, help="of the project's filler [0]")
    parser.add_argument("--dir", type=Path, help="where the temporary folder is made")
    options = parser.parse_args(arguments)
    if options.quick:
        options.repeat, options.ticks, options.log_mb = 1, 200, 50
    unknown = sorted(set(options.only) - set(KINDS))
    if unknown or not has_torch():
        parser.error(f"unknown: {', '.join(unknown)}" if unknown else "this Python has no torch")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; return the exit code."""
    options = parse_options(arguments)
    machine = read_machine() | {"file system": read_file_system(options.dir)}
    try:
        with running_machines(options.dir) as machines:
            streams = Streams(machines, options)
            for rtt in options.rtt:
                streams.measure(rtt)
    except SideFailed as failure:
        say(f"bench: {failure}")
        return 2
    figures = streams.figures
    budgets = make_budgets(figures, options.rtt)
    print(
        "\n\n".join([render_machine(machine), render_figures(figures, options.rtt), render_budgets(budgets)])
    )
    if options.json:
        write_json(options.json, machine, figures, budgets)
    return 0 if all(budget.kept for budget in budgets) else 1


if __name__ == "__main__":
    sys.exit(main())
