"""G1: a real `remote-train run` through a real sshd, its connections broken at random while output comes and while it ends."""

from __future__ import annotations

import contextlib
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from remote_train.follow import OUTPUTS_ALWAYS, Following, Wish
from tests.core.cutting_link import CuttingLink, Ears
from tests.faults.chaos_proxy import (
    BLACKHOLE,
    CORRUPT,
    DOWN,
    FIN,
    HALF_BLACKHOLE,
    RST,
    UP,
    ChaosProxy,
    Cut,
    Program,
)
from tests.faults.counts import PATIENT, Goal, Trial, is_nightly
from tests.faults.invariants import Seat, check, expect_no_agents
from tests.faults.streams import SECONDS, Stream
from tests.host.account_kit import until

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests.e2e.machines import Box, Laptop
    from tests.host.account_kit import Account

pytestmark = [pytest.mark.sshd, PATIENT]

ROUND = 25 if is_nightly() else 12
"""Cuts of one run; at night there are many runs."""
HANDSHAKE = 4500  # bytes each way that a connection takes to be an SSH connection, about


def make_program(chance: random.Random, *, early: bool) -> Program:
    """Return how to break a connection: while it streams, or with `early` perhaps before it has brought anything.

    Two early breaks in a row are answered with pauses, which would make a night of them a week.
    """
    streaming = HANDSHAKE + 6000 + chance.randrange(chance.choice((2000, 20_000, 120_000)))
    asking = HANDSHAKE + chance.randrange(1500)
    kind, way = chance.choice((FIN, RST)), chance.choice((UP, DOWN))
    hole = chance.choice((BLACKHOLE, HALF_BLACKHOLE))
    weights = {
        Program(cuts=(Cut(DOWN, streaming, kind),), slice=chance.choice((None, None, 13, 777))): 46,
        Program(cuts=(Cut(DOWN, streaming, kind),), rate=chance.uniform(50_000, 400_000)): 7,
        Program(cuts=(Cut(DOWN, streaming, kind),), delay=chance.uniform(0.001, 0.04)): 8,
        Program(cuts=(Cut(DOWN, min(streaming, 14_000), kind),), slice=1): 8,
        Program(cuts=(Cut(DOWN, streaming, CORRUPT),)): 8,
        Program(cuts=(Cut(way, asking, CORRUPT),)): 20 * early,
        Program(cuts=(Cut(UP, asking, kind),)): 20 * early,
        Program(cuts=(Cut(way, chance.randrange(HANDSHAKE), kind),)): 12 * early,
        Program(cuts=(Cut(DOWN, streaming, hole),)): 1
        if is_nightly()
        else 0,  # 15 s each until it is noticed
    }
    return chance.choices(list(weights), list(weights.values()))[0]


def broken(proxy: ChaosProxy) -> int:
    return sum(line.broken is not None for line in proxy.lines)


def test_random_cuts_lose_and_repeat_nothing(
    proxied: Laptop, proxy: ChaosProxy, box: Box, project: Path
) -> None:
    name = "G1 random cuts while streaming and around the end"
    with Goal(name, reduced=ROUND, nightly=1000) as goal:
        for trial in goal:
            with trial:
                run_round(trial, proxied, proxy, box, project)


def test_a_line_that_breaks_all_the_time_still_brings_what_it_carries(account: Account) -> None:
    """40 KB each time, and 600 KB to come: a frame that is longer than that would never arrive."""
    started = account.start("import os; os.write(1, os.urandom(600_000))")
    started.end()
    link = CuttingLink([(40_000, None)] * 40)
    run = account.client_run(started)
    following = Following(Wish(run, 1, ["0", *OUTPUTS_ALWAYS], {0}), link, Ears(), writing=True)
    assert following.run().state == "ended"
    following.close()
    assert link.connections < 30
    check(account.root, [Seat(account.home / "client" / "runs")], complete=True)


def run_round(trial: Trial, laptop: Laptop, proxy: ChaosProxy, box: Box, project: Path) -> None:
    """One run with many cuts: every byte here, once, and the right code."""
    chance = trial.chance
    before = broken(proxy), len(proxy.lines)
    proxy.program = lambda number: (
        make_program(chance, early=number % 2 == 0) if number > before[1] else Program()
    )
    with Stream(laptop, box, project, f"round{trial.number}", chance.choice((0, 3))) as stream:
        stream.run()
        stream.begun()
        proxy.break_all(chance.choice((FIN, RST)))
        until(lambda: broken(proxy) - before[0] >= ROUND - 3 or stream.ended(), "the cuts", SECONDS)
        assert not stream.ended(), stream.words()
        break_around_the_end(chance, proxy, stream)
        trial.weight = broken(proxy) - before[0]
        stream.finish()
    expect_no_agents(box.home)


def break_around_the_end(chance: random.Random, proxy: ChaosProxy, stream: Stream) -> None:
    """Let the run end, and go on breaking what lives for two seconds around that."""
    moment, began = chance.uniform(0.0, 1.0), time.monotonic()
    while time.monotonic() - began < 2.0 and not stream.ended():
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert stream.process is not None
            stream.process.wait(chance.uniform(0.0, 0.3))
        if time.monotonic() - began > moment:
            stream.enough()
        if chance.random() < 0.5:
            proxy.break_all(chance.choice((FIN, RST)))
    proxy.program = lambda _number: Program()
