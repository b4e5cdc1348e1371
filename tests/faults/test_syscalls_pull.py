"""Kill, or fail, a pull at any system call: what is at home is the old file or the new one, and the ledger knows which."""

from __future__ import annotations

import os
import random
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import Done, Laptop, write_project
from tests.faults.counts import PATIENT, Goal, is_nightly, seed
from tests.faults.invariants import Seat, check
from tests.faults.syscalls import (
    Hit,
    choose,
    count_calls,
    list_failures,
    list_kills,
    make_argv,
    need_strace,
    was_felt,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = PATIENT

SIZE = 300_000
TOLD = {0, 13, 14, 30, 40, 41, 42}
"""How a pull may end whose call failed once, on either side; never 60 or 70."""
SAVES = "open('model.pt', 'wb').write(b'1' * 300_000)"


class Pulling:
    """A run that was pulled once and has saved a newer checkpoint since."""

    def __init__(self, laptop: Laptop, project: Path, folder: Path) -> None:
        self.laptop = laptop
        self.project = project
        self.log = folder / "strace.log"
        write_project(project, {"train.py": SAVES})
        laptop.ok(project, "run", "--local", "--name", "one", "train.py")
        self.made = laptop.attempt("one") / "code" / "model.pt"
        (self.place,) = (project / "runs" / "one" / "files").rglob("model.pt")

    def save(self) -> tuple[bytes, bytes]:
        """Write a newer checkpoint on the host; return the one at home and that."""
        self.made.write_bytes(os.urandom(SIZE))
        return self.place.read_bytes(), self.made.read_bytes()

    def pull(self, hit: Hit | None) -> Done:
        """Pull below strace; the agent, which is this machine too, is traced as well: every one that comes up is hit."""
        argv = [*make_argv(self.log, hit), *self.laptop.command, "pull", "--give-up", "1", "one"]
        done = subprocess.run(
            argv,
            cwd=self.project,
            env=self.laptop.environment,
            capture_output=True,
            timeout=90,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr.decode(errors="replace"))

    def judge(self, before: bytes, after: bytes, *, settled: bool) -> None:
        """Check what is at home; pull again, undisturbed; check that it is all there."""
        assert self.place.read_bytes() in (before, after)
        check(self.laptop.root, [Seat(self.project / "runs")], settled=settled)
        self.laptop.ok(self.project, "pull", "one")
        assert self.place.read_bytes() == after
        check(self.laptop.root, [Seat(self.project / "runs")], settled=settled)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "failed"])
def test_at_any_system_call(alone: Laptop, project: Path, tmp_path: Path, how: str) -> None:
    need_strace()
    pulling = Pulling(alone, project, tmp_path)
    pulling.save()
    pulling.pull(None).expect(0)
    counts = count_calls(pulling.log)
    # Hundreds of files are opened to import modules; what cannot be opened then is Python's to tell.
    places = (
        list_kills(counts)
        if how == "killed"
        else [hit for hit in list_failures(counts) if hit.call != "openat"]
    )
    hits = choose(places, 250 if is_nightly() else 3, random.Random(seed()))
    goal = Goal(
        f"{'G6' if how == 'killed' else 'G9'} pull and publish: {how} at any system call",
        reduced=len(hits),
        nightly=len(hits),
        remark=f"{len(places)} places",
    )
    felt = 0
    with goal:
        for trial in goal:
            with trial:
                hit = hits[trial.number]
                before, after = pulling.save()
                done = pulling.pull(hit)
                felt += was_felt(pulling.log)
                print(hit, done.code)
                if how == "failed":
                    assert done.code in TOLD, done.err
                    assert "Traceback" not in done.err
                settled = how == "failed" and not hit.call.startswith("unlink")
                pulling.judge(before, after, settled=settled)
        assert felt >= goal.made * 0.7, f"of {goal.made} hits {felt} came to pass"
