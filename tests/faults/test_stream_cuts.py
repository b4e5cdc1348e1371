"""G1: a real `remote-train run` through a real sshd, its connections broken at random while output comes and while it ends."""

from __future__ import annotations

import contextlib
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import Box, Laptop, known_line, make_laptop, write_project
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
from tests.faults.invariants import Seat, check, expect_no_agents, hash_file
from tests.host.account_kit import sha256, until

if TYPE_CHECKING:
    import random
    from pathlib import Path

pytestmark = [pytest.mark.sshd, PATIENT]

# Odd chunks on both streams, until there is a file; then an end without a newline, and a code of its own.
SCRIPT = """
import os, random, sys, time
chance = random.Random(sys.argv[1])
fd = os.open(os.path.expanduser("~/starts"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(fd, b"x")
while not os.path.exists(os.path.expanduser("~/enough")):
    size = chance.choice((1, 7, 61, 1000, 4099, 20001))
    os.write(chance.choice((1, 2)), chance.randbytes(size))
    time.sleep(size / 1e6)
for _ in range(chance.randrange(40)):
    os.write(1, chance.randbytes(chance.randrange(3000)))
os.write(1, b"the end")
sys.exit(int(sys.argv[2]))
"""
ROUND = 25
HANDSHAKE = 4500  # bytes each way that a connection takes to be an SSH connection, about
SECONDS = 300.0


def make_program(chance: random.Random) -> Program:
    """Return how to break a connection: mostly while it streams, sometimes in its handshake."""
    streaming = HANDSHAKE + chance.randrange(chance.choice((2000, 20_000, 120_000)))
    asking = HANDSHAKE + chance.randrange(1500)
    kind, way = chance.choice((FIN, RST)), chance.choice((UP, DOWN))
    hole = chance.choice((BLACKHOLE, HALF_BLACKHOLE))
    weights = {
        Program(cuts=(Cut(DOWN, streaming, kind),), slice=chance.choice((None, None, 13, 777))): 46,
        Program(cuts=(Cut(DOWN, streaming, kind),), rate=chance.uniform(50_000, 400_000)): 7,
        Program(cuts=(Cut(DOWN, streaming, kind),), delay=chance.uniform(0.001, 0.04)): 8,
        Program(cuts=(Cut(DOWN, min(streaming, 10_000), kind),), slice=1): 8,
        Program(cuts=(Cut(way, asking, CORRUPT),)): 14,
        Program(cuts=(Cut(UP, asking, kind),)): 10,
        Program(cuts=(Cut(way, chance.randrange(HANDSHAKE), kind),)): 6,
        Program(cuts=(Cut(DOWN, streaming, hole),)): 1
        if is_nightly()
        else 0,  # 15 s each until it is noticed
    }
    return chance.choices(list(weights), list(weights.values()))[0]


@pytest.fixture
def proxied(tmp_path: Path, box: Box) -> tuple[Laptop, ChaosProxy]:
    """A laptop that reaches the box through a proxy, which its test enters."""
    proxy = ChaosProxy(box.sshd.port)
    made = make_laptop(tmp_path / "laptop", box)
    made.trust(known_line(box.sshd).replace(str(box.sshd.port), str(proxy.port)))
    made.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(port=str(proxy.port))}')
    return made, proxy


def broken(proxy: ChaosProxy) -> int:
    return sum(line.broken is not None for line in proxy.lines)


def test_random_cuts_lose_and_repeat_nothing(
    proxied: tuple[Laptop, ChaosProxy], box: Box, project: Path
) -> None:
    laptop, proxy = proxied
    with (
        proxy,
        Goal("G1 random cuts while streaming and around the end", reduced=ROUND, nightly=1000) as goal,
    ):
        for trial in goal:
            with trial:
                run_round(trial, laptop, proxy, box, project)


def run_round(trial: Trial, laptop: Laptop, proxy: ChaosProxy, box: Box, project: Path) -> None:
    """One run with 25 cuts and more: every byte here, once, and the right code."""
    chance = trial.chance
    code = chance.choice((0, 3))
    for name in ("enough", "starts"):
        (box.home / name).unlink(missing_ok=True)
    write_project(project, {"train.py": SCRIPT})
    before = broken(proxy), len(proxy.lines)
    proxy.program = lambda number: make_program(chance) if number > before[1] else Program()
    with (project.parent / "out").open("wb") as out, (project.parent / "err").open("wb") as err:
        argv = ("run", "--no-fallback", "train.py", str(trial.number), str(code))
        process = laptop.popen(project, *argv, stdout=out, stderr=err)
        try:
            until((box.home / "starts").exists, "the script's beginning")
            proxy.break_all(chance.choice((FIN, RST)))
            until(
                lambda: broken(proxy) - before[0] >= ROUND - 3 or process.poll() is not None,
                "the cuts",
                SECONDS,
            )
            assert process.poll() is None, (project.parent / "err").read_text()
            break_around_the_end(chance, proxy, box, process)
            trial.weight = broken(proxy) - before[0]
            process.wait(SECONDS)
        finally:
            process.kill()
            process.wait()
    verify(code, process.returncode, box, project)
    check(box.root, [Seat(project / "runs")], complete=True, settled=True)
    expect_no_agents(box.home)


def break_around_the_end(
    chance: random.Random, proxy: ChaosProxy, box: Box, process: subprocess.Popen[bytes]
) -> None:
    """Let the run end, and go on breaking what lives for two seconds around that."""
    moment, began = chance.uniform(0.0, 1.0), time.monotonic()
    while time.monotonic() - began < 2.0 and process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.0, 0.3))
        if time.monotonic() - began > moment:
            (box.home / "enough").touch()
        if chance.random() < 0.5:
            proxy.break_all(chance.choice((FIN, RST)))
    (box.home / "enough").touch()
    proxy.program = lambda _number: Program()


def verify(code: int, ended: int, box: Box, project: Path) -> None:
    """Compare what stdout got, what is mirrored, and what the host has."""
    assert ended == (1 if code else 0), (project.parent / "err").read_text()
    text = (project.parent / "err").read_text()
    assert "Traceback" not in text
    run = max((project / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns).name
    there = box.log(run)
    assert there.endswith(b"the end")
    assert hash_file(project.parent / "out") == sha256(there)
    assert hash_file(project / "runs" / run / "attempts" / "1" / "ranks" / "0.log") == sha256(there)
    assert (box.home / "starts").stat().st_size == 1
