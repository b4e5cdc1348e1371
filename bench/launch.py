"""How long a launch takes: `remote-train run` beside the same job by hand, over loopback and over a line of 100 ms.

    python bench/launch.py [--quick] [--rtt 0,100] [--only changed,many] [--json FILE]     (about 8 minutes, alone)
    python bench/launch.py --profile [--rtt 100]                                          (where one launch's time goes)

Both sides are timed from process start to the script's first line, read through a pipe; both start it with plain python on the
same host, an own sshd behind a delay proxy. The sides take turns, so that both see the same machine, and what stands in
the table is the median with the least and the greatest. Preparation, an edit of a file for example, is not timed. Round trips
are told in two ways: by the clock (how much longer it takes on a line of 400 ms, per 400 ms; this is what a user waits), and
as the proxy counts them (the longest chain of cause and effect, an upper bound that includes waits hidden behind work).

Exit code 0: every budget that was measured is kept; 1: one is not; 2: a side failed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import launch_profile
from bench.echo import measure_proxy
from bench.machines import HOST, MEASURED, SHARED, make_project, read_file_system, running_machines
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
from bench.sides import Sample, SideFailed, open_shared, run_by_hand, run_ours, run_rsync

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.machines import Machines, Project

FILES, MANY = 40, 20_000
SLOPE_RTT = 400.0  # far enough from 0 that the noise of two cores is a hundredth of a round trip


@dataclass(frozen=True)
class Entry:
    """One thing that is timed again and again."""

    key: str
    run: Callable[[], Sample]


@dataclass(frozen=True)
class Line:
    """A line of the table: what of ours stands beside what."""

    group: str
    title: str
    ours: str
    other: str


LINES = (
    Line("first", "first launch on a host", "first", "first by hand"),
    Line("cached", "agent cached, nothing changed", "cached", "cached by hand"),
    Line("changed", f"one of {FILES} files changed", "changed", "changed by hand"),
    Line("many", f"one of {MANY:,} files changed", "many", "many by hand"),
    Line("many", "the same beside rsync alone", "many", "many rsync"),
    Line("torchrun", "torchrun instead of python", "torchrun", ""),
    Line("peak", "first launch that measures a matmul peak", "peak", ""),
    Line("shared", "one file changed, beside ControlMaster", "changed", "shared"),
    Line("shared", "the same, its connection open already", "changed", "shared open"),
)
GROUPS = tuple(dict.fromkeys(line.group for line in LINES))


class Samples:
    """Everything that was measured: by entry and round-trip time."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, float], list[Sample]] = defaultdict(list)

    def seconds(self, key: str, rtt: float) -> list[float]:
        """Return the times of an entry, [] when it was not measured."""
        return [sample.seconds for sample in self.held.get((key, rtt), [])]

    def median(self, key: str, rtt: float) -> float | None:
        """Return the median time of an entry."""
        seconds = self.seconds(key, rtt)
        return statistics.median(seconds) if seconds else None

    def round_trips(self, key: str, rtt: float) -> list[float]:
        """Return what the proxy counted."""
        return [sample.round_trips for sample in self.held.get((key, rtt), [])]

    def take_turns(self, entries: Sequence[Entry], rtt: float, repeat: int) -> None:
        """Time every entry `repeat` times, by turns, another first in each round."""
        for turn in range(repeat):
            place = turn % len(entries) if entries else 0
            for entry in [*entries[place:], *entries[:place]]:
                sample = entry.run()
                self.held[entry.key, rtt].append(sample)
                say(f"  {turn + 1}/{repeat}  RTT {rtt:g} ms  {entry.key}: {sample.seconds:.3f} s")


class Launches:
    """What can be timed on a pair of machines."""

    def __init__(self, machines: Machines, groups: Sequence[str], seed: int) -> None:
        self.machines = machines
        self.groups = groups
        self.small = make_project(machines, "forty", FILES, seed)
        self.large = make_project(machines, "many", MANY, seed) if "many" in groups else None

    def warm_up(self) -> None:
        """Launch everything once, so that both sides know host and project."""
        for project in filter(None, (self.small, self.large)):
            run_ours(self.machines, project)
            run_by_hand(self.machines, project)

    def make_small(self) -> list[Entry]:
        """Return the entries on a project that the host knows."""
        known = {
            "cached": [Entry("cached", self._ours()), Entry("cached by hand", self._by_hand())],
            "changed": self.make_changed(),
            "torchrun": [Entry("torchrun", self._changed(self._ours(launcher="torchrun")))],
            "shared": [
                Entry("shared", self._changed(self._by_hand(SHARED))),
                Entry("shared open", self._changed(self._opened(self._by_hand(SHARED)))),
            ],
        }
        return [entry for group in self.groups for entry in known.get(group, [])]

    def make_changed(self) -> list[Entry]:
        """Return the two entries of the budget."""
        ours = Entry("changed", self._changed(self._ours()))
        return [ours, Entry("changed by hand", self._changed(self._by_hand()))]

    def make_large(self) -> list[Entry]:
        """Return the entries on the large project."""
        project = self.large
        if project is None:
            return []
        return [
            Entry("many", self._changed(self._pruned(self._ours(project)), project)),
            Entry("many by hand", self._changed(lambda: run_by_hand(self.machines, project), project)),
            Entry("many rsync", self._changed(lambda: run_rsync(self.machines, project), project)),
        ]

    def make_first(self) -> list[Entry]:
        """Return the entries on a host that neither side has ever used."""
        known = {
            "first": [
                Entry("first", self._forgotten(self._ours())),
                Entry("first by hand", self._forgotten(self._by_hand())),
            ],
            "peak": [Entry("peak", self._forgotten(self._ours(host=MEASURED)))],
        }
        return [entry for group in self.groups for entry in known.get(group, [])]

    def _ours(
        self, project: Project | None = None, host: str = HOST, launcher: str = "python"
    ) -> Callable[[], Sample]:
        return lambda: run_ours(self.machines, project or self.small, host, launcher)

    def _by_hand(self, host: str = HOST) -> Callable[[], Sample]:
        return lambda: run_by_hand(self.machines, self.small, host)

    def _changed(self, run: Callable[[], Sample], project: Project | None = None) -> Callable[[], Sample]:
        return _after((project or self.small).change, run)

    def _opened(self, run: Callable[[], Sample]) -> Callable[[], Sample]:
        return _after(lambda: open_shared(self.machines), run)

    def _pruned(self, run: Callable[[], Sample]) -> Callable[[], Sample]:
        return _after(self.machines.drop_old_runs, run)

    def _forgotten(self, run: Callable[[], Sample]) -> Callable[[], Sample]:
        return _after(self.machines.forget_host, run)


def _after(prepare: Callable[[], None], run: Callable[[], Sample]) -> Callable[[], Sample]:
    """Return `run` with something before it that is not timed."""

    def both() -> Sample:
        prepare()
        return run()

    return both


def measure(machines: Machines, options: argparse.Namespace) -> Samples:
    """Time everything that was asked for; the entries that forget the host come last."""
    launches = Launches(machines, options.only, options.seed)
    samples = Samples()
    launches.warm_up()
    plans = [(launches.make_small(), rtt, options.repeat) for rtt in options.rtt]
    if "changed" in options.only and 0.0 in options.rtt:
        plans.append((launches.make_changed(), SLOPE_RTT, options.slope_repeat))
    plans += [(launches.make_large(), rtt, options.repeat) for rtt in options.rtt]
    plans += [(launches.make_first(), rtt, options.repeat) for rtt in options.rtt]
    for entries, rtt, repeat in plans:
        machines.proxy.set_rtt(rtt)
        samples.take_turns(entries, rtt, repeat)
    return samples


def make_budgets(samples: Samples) -> list[Budget]:
    """Return the budgets of DESIGN §11 that were measured."""
    at, few = samples.median, f"one of {FILES} files changed"
    budgets = []
    for rtt, limit in ((0.0, 0.6), (100.0, 0.3)):
        ours, by_hand = at("changed", rtt), at("changed by hand", rtt)
        if ours and by_hand:
            budgets.append(Budget(f"{few}, RTT {rtt:g} ms: ours / by hand", ours / by_hand, limit))
    many, small, far = at("many", 0.0), at("changed", 0.0), at("many", 100.0)
    if many and small:
        budgets.append(
            Budget(f"one of {MANY:,}, RTT 0 ms: ours, more than of {FILES}", many - small, 1.0, " s")
        )
    rsync = at("many rsync", 100.0)
    if far and rsync:
        budgets.append(Budget(f"one of {MANY:,}, RTT 100 ms: ours / rsync alone", far / rsync, 0.5))
    return budgets


def render_times(samples: Samples, groups: Sequence[str], rtts: Sequence[float]) -> str:
    """Return the table of both sides' times."""
    rows = []
    for line in LINES:
        for rtt in rtts:
            ours, other = samples.median(line.ours, rtt), samples.median(line.other, rtt)
            if line.group not in groups or ours is None:
                continue
            ratio = f"{ours / other:.2f}" if other else ""
            spreads = [render_spread(samples.seconds(key, rtt)) for key in (line.ours, line.other)]
            rows.append((line.title, f"{rtt:g}", *spreads, ratio))
    header = ["to the first line (s)", "RTT ms", "ours", "by hand", "ratio"]
    return render_table(header, rows)


def render_round_trips(samples: Samples, rtts: Sequence[float]) -> str:
    """Return the table of round trips of the job with one file changed."""
    rows = []
    far = max(rtts)
    for title, key in (("ours", "changed"), ("by hand", "changed by hand")):
        near, slow = samples.median(key, 0.0), samples.median(key, SLOPE_RTT)
        slope = f"{(slow - near) / SLOPE_RTT * 1e3:.1f}" if near and slow else ""
        counted = render_spread(samples.round_trips(key, far), 1) if far else ""
        connections = [sample.connections for sample in samples.held.get((key, far), [])]
        rows.append((title, slope, counted, f"{max(connections, default=0)}"))
    header = [
        "round trips, one file changed",
        f"by the clock, 0 to {SLOPE_RTT:g} ms",
        f"as the proxy counts, {far:g} ms",
        "connections",
    ]
    return render_table(header, rows)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=7, help="runs of each entry [7]")
    parser.add_argument("--slope-repeat", type=int, default=3, help=f"the same at {SLOPE_RTT:g} ms [3]")
    parser.add_argument("--quick", action="store_true", help="3 runs, 1 for the slope")
    parser.add_argument("--rtt", type=_parse_rtts, default=[0.0, 100.0], help="milliseconds [0,100]")
    parser.add_argument("--only", type=_parse_groups, default=list(GROUPS), help=f"of {','.join(GROUPS)}")
    parser.add_argument("--json", type=Path, help="write every single figure here")
    parser.add_argument("--seed", type=int, default=0, help="of the project's filler [0]")
    parser.add_argument("--dir", type=Path, help="where the temporary folder is made")
    parser.add_argument("--profile", action="store_true", help="show where the time of one launch goes")
    options = parser.parse_args(arguments)
    if options.quick:
        options.repeat, options.slope_repeat = 3, 1
    if not has_torch():
        say("this Python has no torch: nothing of ours can run; install the project with [train]")
        parser.exit(2)
    return options


def _parse_rtts(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _parse_groups(text: str) -> list[str]:
    groups = text.split(",")
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
    return groups


def report(samples: Samples, machine: dict[str, str], options: argparse.Namespace) -> bool:
    """Print the tables and write the JSON; tell whether every budget is kept."""
    budgets = make_budgets(samples)
    parts = [render_machine(machine), render_times(samples, options.only, options.rtt)]
    if "changed" in options.only:
        parts.append(render_round_trips(samples, options.rtt))
    if budgets:
        parts.append(render_budgets(budgets))
    print("\n\n".join(parts))
    if options.json:
        raw = [
            {"entry": key, "rtt_ms": rtt, "samples": [asdict(sample) for sample in held]}
            for (key, rtt), held in samples.held.items()
        ]
        verdicts = [asdict(budget) | {"kept": budget.kept} for budget in budgets]
        options.json.write_text(
            json.dumps({"machine": machine, "entries": raw, "budgets": verdicts}, indent=1)
        )
    return all(budget.kept for budget in budgets)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; return the exit code."""
    options = parse_options(arguments)
    machine = read_machine() | {"file system": read_file_system(options.dir)}
    began = time.monotonic()
    try:
        with running_machines(options.dir) as machines:
            if options.profile:
                print(launch_profile.profile(machines, options.rtt, options.repeat, options.seed))
                return 0
            far = max(options.rtt)
            machine["proxy"] = f"{far:g} ms asked, {render_spread(measure_proxy(far), 2)} measured"
            samples = measure(machines, options)
    except SideFailed as failure:
        say(f"bench: {failure}")
        return 2
    machine["runs"] = (
        f"{options.repeat} of each, seed {options.seed}, {time.monotonic() - began:.0f} s in all"
    )
    return 0 if report(samples, machine, options) else 1


if __name__ == "__main__":
    sys.exit(main())
