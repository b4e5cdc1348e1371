"""How a run's output and files come home: latency and throughput of its log, its checkpoints; beside ssh and scp.

    python bench/stream.py [--quick] [--rtt 0,100] [--only latency,flood,pull] [--json FILE]     (about 10 minutes, alone)

Latency: from just before the script's write on the host to the line on the laptop's pipe, both by one clock, since both are this
machine; lines that were printed before the stream stood are left out. Flood: a script writes its log as fast as
it can, timed from the first byte on the laptop's pipe to the last. Pull: one incompressible file, whole processes beside
each other. By hand that is `ssh tail -F` and `scp`. The proxy has no bandwidth limit but costs CPU, on both sides.

Exit code 0: every budget that was measured is kept; 1: one is not; 2: a side failed.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench.machines import HOST, make_project, read_file_system, running_machines
from bench.report import (
    Budget,
    has_torch,
    read_machine,
    render_budgets,
    render_machine,
    render_spread,
    render_table,
    say,
)
from bench.resident import Resident
from bench.sides import COMMAND, LINE_SECONDS, SideFailed, make_watch, our_argv, run_rsync, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.machines import Machines
    from bench.sides import Timed

KINDS = ("latency", "flood", "pull")
MB = 1_000_000
SETTLED = 0.5  # seconds after the first line; by then the backlog of the connection is through
CLIENT_GROWTH_MB = (
    64 * 1.048576
)  # "memory flat": what a full receive window may hold, above the client at rest

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
    "big.py": """\
import os
import sys

os.makedirs("out")
with open("out/big.bin", "wb") as file:
    for _ in range(int(sys.argv[1])):
        file.write(os.urandom(1_000_000))
print("written", os.getcwd(), flush=True)
""",
}


class Figures:
    """Everything that was measured: what, by whom, at which round-trip time."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str, float], list[float]] = defaultdict(list)

    def add(self, what: str, side: str, rtt: float, *values: float) -> None:
        """Keep values, and tell that they have come."""
        self.held[what, side, rtt] += values
        say(f"  RTT {rtt:g} ms  {what}, {side}: {render_spread(values, 1)}")

    def get(self, what: str, side: str, rtt: float) -> list[float]:
        """Return the values, [] when there are none."""
        return self.held.get((what, side, rtt), [])


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
            "pull": self.measure_pull,
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
                        rate = read_flood(timed, self.options.log_mb * MB)
                        if side == "ours":
                            timed.finish()
                self.figures.add("log MB/s", side, rtt, rate)
                if side == "ours":
                    self.figures.add("client MB", side, rtt, resident.client)
                    self.figures.add("agent MB", side, rtt, resident.agent)
            self.machines.drop_old_runs()

    def measure_pull(self, rtt: float) -> None:
        """Bring one large file home."""
        size = self.options.pull_mb
        with self._running("ours", f"big.py {size}") as timed:
            line, _ = timed.read_line()
            timed.finish()
        place = f"{HOST}:{line.split(maxsplit=1)[1].decode().strip()}/out/big.bin"
        pulls = {
            "ours": [COMMAND, "pull", "--match", "out/big.bin", "--to"],
            "by hand": ["scp", "-q", "-F", str(self.machines.ssh_config), place],
        }
        for _ in range(self.options.repeat):
            for side, argv in pulls.items():
                self.figures.add("pull MB/s", side, rtt, size / self._pull(argv, size))
        shutil.rmtree(self.machines.host / ".local/state/remote-train/runs")

    def _pull(self, argv: list[str], size: int) -> float:
        """Return the seconds of a process that fills a new folder, and delete that again."""
        folder = self.machines.folder / "pulled"
        folder.mkdir()
        timed = start(self.machines, [*argv, str(folder)], self.project.ours)
        timed.finish()
        took = time.monotonic() - timed.began
        came = sum(path.stat().st_size for path in folder.rglob("big.bin"))
        shutil.rmtree(folder)
        if came != size * MB:
            raise SideFailed(f"{argv} brought {came} bytes of {size * MB}\n{timed.read_errors()}")
        return took

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


def read_pieces(timed: Timed) -> Iterator[tuple[bytes, float]]:
    """Yield what comes through the pipe and when; raise SideFailed at its end, or when nothing comes."""
    assert timed.process.stdout is not None
    place = timed.process.stdout.fileno()
    while True:
        readable, _, _ = select.select([place], [], [], LINE_SECONDS)
        piece = os.read(place, 1 << 20) if readable else b""
        if not piece:
            raise SideFailed(f"{timed.argv} ended or fell silent\n{timed.read_errors()}")
        yield piece, time.monotonic()


def read_ticks(timed: Timed, count: int) -> list[float]:
    """Return the latency of each line in milliseconds, from half a second after the first on."""
    held, late, first = b"", [], None
    for piece, when in read_pieces(timed):
        *lines, held = (held + piece).split(b"\n")
        first = first or when
        stamps = [line.split() for line in lines]
        late += [(when - float(stamp)) * 1e3 for _, _, stamp in stamps if float(stamp) > first + SETTLED]
        if stamps and int(stamps[-1][1]) == count - 1:
            break
    return late


def read_flood(timed: Timed, size: int) -> float:
    """Return MB/s from the first piece, which came before the clock ran, to the last."""
    pieces = read_pieces(timed)
    piece, first = next(pieces)
    begin = came = len(piece)
    last = first
    while came < size:
        piece, last = next(pieces)
        came += len(piece)
    if came != size:
        raise SideFailed(f"{timed.argv} printed {came} bytes, not {size}")
    return (came - begin) / MB / max(last - first, 1e-6)


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
        rates = figures.get("log MB/s", "ours", rtt)
        if rates:
            budgets.append(
                Budget(f"log, RTT {rtt:g} ms", statistics.median(rates), 100, " MB/s", at_least=True)
            )
        ours, scp = (figures.get("pull MB/s", side, rtt) for side in ("ours", "by hand"))
        least = {0.0: 0.7, 100.0: 8.0}.get(rtt)
        if ours and least:
            ratio = statistics.median(ours) / statistics.median(scp)
            budgets.append(Budget(f"pull / scp, RTT {rtt:g} ms", ratio, least, at_least=True))
    return budgets


def pick(values: Sequence[float], percent: int) -> float:
    """Return a percentile of sorted values: the least one that so many per cent do not exceed."""
    return values[max(0, -(-len(values) * percent // 100) - 1)]


def render_figures(figures: Figures, rtts: Sequence[float]) -> str:
    """Return all figures as a table."""
    rows = []
    for what in dict.fromkeys(what for what, _, _ in figures.held):
        for rtt in rtts:
            cells = [render_figure(what, figures.get(what, side, rtt)) for side in ("ours", "by hand")]
            rows.append((what, f"{rtt:g}", *cells))
    return render_table(["", "RTT ms", "ours", "by hand"], rows)


def render_figure(what: str, values: Sequence[float]) -> str:
    """Return percentiles of a latency, the spread of anything else."""
    if not what.startswith("latency") or not values:
        return render_spread(values, 1)
    p50, p99 = (pick(sorted(values), percent) for percent in (50, 99))
    return f"p50 {p50:.1f}, p99 {p99:.1f} ({len(values)} lines)"


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
    parser.add_argument("--log-mb", type=int, default=500, help="size of the log [500]")
    parser.add_argument("--pull-mb", type=int, default=1000, help="size of the file [1000]")
    parser.add_argument("--json", type=Path, help="write every single figure here")
    parser.add_argument("--seed", type=int, default=0, help="of the project's filler [0]")
    parser.add_argument("--dir", type=Path, help="where the temporary folder is made")
    options = parser.parse_args(arguments)
    if options.quick:
        options.repeat, options.ticks, options.log_mb, options.pull_mb = 1, 200, 50, 100
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
        raw = [
            {"what": what, "side": side, "rtt_ms": rtt, "values": values}
            for (what, side, rtt), values in figures.held.items()
        ]
        verdicts = [asdict(budget) | {"kept": budget.kept} for budget in budgets]
        options.json.write_text(
            json.dumps({"machine": machine, "figures": raw, "budgets": verdicts}, indent=1)
        )
    return 0 if all(budget.kept for budget in budgets) else 1


if __name__ == "__main__":
    sys.exit(main())
