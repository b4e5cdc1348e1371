"""Checkpoints that come home through a real sshd whose connections break, beside an output that never stops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import write_project
from tests.faults.chaos_proxy import DOWN, FIN, RST, ChaosProxy, Cut, Program
from tests.faults.counts import PATIENT, Goal
from tests.faults.invariants import Seat, check, hash_file
from tests.host.account_kit import until

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests.e2e.machines import Box, Laptop

pytestmark = [pytest.mark.sshd, PATIENT]

COUNT, CUTS = 4, 5
SAVES = """
import json, os, sys, time
from remote_train import report

for number in range(int(sys.argv[2])):
    size = 6_000_000
    header = json.dumps({"t": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open("tmp", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + os.urandom(size))
    os.replace("tmp", "%d.safetensors" % number)
    report.checkpoint("%d.safetensors" % number)
    for line in range(4000):
        print(number, line, "x" * 80)
while not os.path.exists(os.path.expanduser("~/" + sys.argv[1])):
    print("waiting", flush=True)
    time.sleep(0.01)
"""


def make_program(chance: random.Random, number: int, cuts: int) -> Program:
    """Break so many connections at a random byte; the line is slow enough for them to be felt."""
    if number >= cuts:
        return Program()
    cut = Cut(DOWN, 20_000 + chance.randrange(4_000_000), chance.choice((FIN, RST)))
    return Program(cuts=(cut,), rate=20e6)


class Mirrored:
    """One run whose checkpoints come home while connections break."""

    def __init__(self, laptop: Laptop, proxy: ChaosProxy, box: Box, project: Path) -> None:
        self.laptop, self.proxy, self.box, self.project = laptop, proxy, box, project

    def go(self, chance: random.Random, name: str, command: str) -> None:
        """Start it, follow it with a command, and compare what is here with what the host has."""
        write_project(self.project, {"train.py": SAVES})
        start, argv = ("run", "--no-fallback", "--name", name), ("train.py", f"end-{name}", str(COUNT))
        if command != "run":
            self.laptop.ok(self.project, *start, "-d", *argv)
        first = len(self.proxy.lines) + (command == "run")  # the launch itself is left alone
        self.proxy.program = lambda number: make_program(chance, number - first, CUTS)
        files, out = self.project / "runs" / name / "files", self.project.parent / f"{name}.out"
        with out.open("wb") as stream:
            typed = (*start, *argv) if command == "run" else ("pull", "--follow", name)
            process = self.laptop.popen(self.project, *typed, stdout=stream)
            if command == "run":
                until(lambda: out.stat().st_size, "output", 60)
                self.proxy.break_all(RST)
            come = until(lambda: len(list(files.glob("*.safetensors"))) == COUNT or process.poll(), "all", 90)
            (self.box.home / f"end-{name}").touch()
            _, err = process.communicate(timeout=90)
        assert come is True, err.decode()
        assert process.returncode == 0, err.decode()
        assert any(line.broken for line in self.proxy.lines[first:])
        for path in files.glob("*.safetensors"):
            assert hash_file(path) == hash_file(self.box.code(name) / path.name)
        assert command != "run" or out.read_bytes() == self.box.log(name)
        seat = Seat(self.project / "runs")
        check(self.box.root, [seat], complete=command == "run", runs=[name])


@pytest.mark.parametrize("command", ["run", "pull --follow"])
def test_checkpoints_and_output_come_whole_through_cuts(
    proxied: Laptop, proxy: ChaosProxy, box: Box, project: Path, command: str
) -> None:
    mirrored = Mirrored(proxied, proxy, box, project)
    with Goal(f"H3 checkpoints come home through cuts: {command}", reduced=1, nightly=20) as goal:
        for trial in goal:
            with trial:
                mirrored.go(trial.chance, f"r{trial.number}", command)
