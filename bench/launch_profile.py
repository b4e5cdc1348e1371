"""Where the time of one of our launches goes, as far as it can be seen from outside: nothing is added to the product.

Three views: phases, from what crosses the proxy and the time that the script itself prints; the same traffic burst by
burst; and Python's own `-X importtime`, whose measuring makes the process slower than it is.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from bench.delay_proxy import DOWN_IN, DOWN_OUT, OPEN, UP_IN, UP_OUT
from bench.machines import make_project
from bench.report import render_spread, render_table
from bench.sides import SideFailed, check_line, our_argv, run_ours, start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.delay_proxy import Event
    from bench.machines import Machines, Project

SHOWN = 18
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)")


class Launch(NamedTuple):
    """One launch: when it began, when the script says it printed, when its line was here, and the traffic."""

    began: float
    printed: float
    line: float
    events: list[Event]


def profile(machines: Machines, rtts: Sequence[float], repeat: int, seed: int) -> str:
    """Return the report for launches with one of 40 files changed."""
    project = make_project(machines, "profile", 40, seed)
    run_ours(machines, project)
    parts = []
    for rtt in rtts:
        machines.proxy.set_rtt(rtt)
        launches = [watch_launch(machines, project) for _ in range(repeat)]
        parts += [render_phases(launches, rtt), render_bursts(launches[-1], rtt)]
    machines.proxy.set_rtt(0)
    parts.append(render_imports(run_import_time(machines, project)))
    return "\n\n".join(parts)


def watch_launch(machines: Machines, project: Project) -> Launch:
    """Change a file, launch, and return what was seen."""
    project.change()
    machines.proxy.take_events()
    timed = start(machines, our_argv(), project.ours)
    line, when = timed.read_line()
    check_line(line, project, timed)
    words = timed.finish().split()
    machines.settle()
    wall = time.time() - time.monotonic()
    events = keep_own(machines.proxy.take_events(), when)
    return Launch(timed.began, float(words[words.index(b"printed") + 1]) - wall, when, events)


def keep_own(events: Sequence[Event], until: float) -> list[Event]:
    """Return what happened in time on connections that were opened meanwhile; the last launch's may still close."""
    own = {event.connection for event in events if event.kind == OPEN}
    return [event for event in events if event.connection in own and event.at <= until]


def find_marks(launch: Launch) -> list[tuple[str, float]]:
    """Return what happened when, as seen at the laptop's end of the line; the phase before each is what is named.

    The laptop sends its ident, its side of the key exchange, then login, exec and the bootstrap in one flight, and
    then its first request to the agent: the first four bursts, each after an answer to the one before.
    """
    bursts = find_bursts(launch, UP_IN, DOWN_OUT)
    sent = [burst[0].at for burst in bursts if burst[0].kind == UP_IN]
    received = [burst for burst in bursts if burst[0].kind == DOWN_OUT]
    if len(sent) < 4:
        raise SideFailed(
            f"the laptop sent {len(sent)} times before the first line: not a launch as profiled here"
        )
    return [
        ("imports and configuration, until the host is dialled", launch.events[0].at),
        ("TCP and banner", received[0][0].at),
        ("until the key exchange is answered", sent[2]),
        ("login, exec, agent ready", sent[3]),
        ("package, start, the script prints", launch.printed),
        ("noticed, sent, received", received[-1][-1].at),
        ("written to the pipe", launch.line),
    ]


def find_bursts(launch: Launch, *kinds: str) -> list[list[Event]]:
    """Return what happened at one end of the line, with what followed each other in one direction taken together."""
    seen = [event for event in launch.events if event.kind in kinds]
    return [list(group) for _, group in itertools.groupby(seen, key=lambda event: event.kind)]


def render_phases(launches: Sequence[Launch], rtt: float) -> str:
    """Return each phase's milliseconds, median and spread."""
    lasted = defaultdict(list)
    for launch in launches:
        marks = [("", launch.began), *find_marks(launch)]
        for (_, before), (name, after) in itertools.pairwise(marks):
            lasted[name].append((after - before) * 1e3)
    rows = [(name, render_spread(values, 1)) for name, values in lasted.items()]
    whole = [(launch.line - launch.began) * 1e3 for launch in launches]
    return render_table(
        [f"RTT {rtt:g} ms, phase of a launch", "ms"], [*rows, ("whole", render_spread(whole, 1))]
    )


def render_bursts(launch: Launch, rtt: float) -> str:
    """Return the traffic of one launch, burst by burst."""
    rows = []
    for title, kinds in (("laptop", (UP_IN, DOWN_OUT)), ("host", (DOWN_IN, UP_OUT))):
        for burst in find_bursts(launch, *kinds):
            does = "sends" if burst[0].kind in (UP_IN, DOWN_IN) else "receives"
            span = [f"{(event.at - launch.began) * 1e3:.1f}" for event in (burst[0], burst[-1])]
            rows.append((f"{title} {does}", *span, f"{sum(event.size for event in burst)}"))
    return render_table([f"RTT {rtt:g} ms, one launch", "from ms", "to ms", "bytes"], rows)


def run_import_time(machines: Machines, project: Project) -> dict[str, float]:
    """Return milliseconds of imports by top-level package, their own time without what they import in turn."""
    project.change()
    argv = [sys.executable, "-X", "importtime", *our_argv()]
    done = subprocess.run(
        argv, cwd=project.ours, env=machines.environment, check=False, capture_output=True, text=True
    )
    machines.settle()
    if done.returncode:
        raise SideFailed(done.stderr[-2000:])
    spent: dict[str, float] = defaultdict(float)
    for own, name in _IMPORT.findall(done.stderr):
        spent[_group(name)] += int(own) / 1e3
    return spent


def _group(module: str) -> str:
    top = module.partition(".")[0]
    return "(standard library)" if top in sys.stdlib_module_names else top


def render_imports(spent: dict[str, float]) -> str:
    """Return the packages that cost most; imports of all threads are summed, those during a wait too."""
    most = sorted(spent.items(), key=lambda item: -item[1])
    rows = [(name, f"{cost:.1f}") for name, cost in most[:SHOWN]]
    rest = sum(cost for _, cost in most[SHOWN:])
    rows += [("the rest", f"{rest:.1f}"), ("all", f"{sum(spent.values()):.1f}")]
    return render_table(["imports by package, -X importtime", "ms"], rows)
