"""G10: a run's whole life as a state machine: any order of starts, cuts, kills, stops, pulls and full disks, and the invariants.

Everything is real but the wire, which breaks where it is told to (agent_farm.py): agents, supervisors, trainings.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from remote_train import preparing
from remote_train.api import Training
from remote_train.errors import ConnectionLost, RemoteTrainError
from remote_train.host import durable, layout, system
from remote_train.launching import launch
from remote_train.listener import Silent
from remote_train.pull import PullWish
from remote_train.records import find_run
from tests.e2e.machines import kill_leftovers
from tests.faults.agent_farm import Break, Farm, FarmLink, running_farm
from tests.faults.counts import PATIENT, is_nightly, note, seed
from tests.faults.invariants import Seat, check
from tests.faults.lives import HOST, no_pauses
from tests.host.account_kit import until

if TYPE_CHECKING:
    import pytest

    from tests.host.account_kit import Account

pytestmark = PATIENT

# Says something, saves something, and ends when it is told with which code.
SCRIPT = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(fd, b"x")
os.makedirs("out", exist_ok=True)
step = 0
while not os.path.exists(sys.argv[2]):
    step += 1
    try:
        print("step", step, "x" * (step % 300), flush=True)
        with open("out/new", "wb") as file:
            file.write(b"%d" % step * 1000)
        os.replace("out/new", "out/ckpt.pt")
    except OSError:
        pass
    time.sleep(0.02)
sys.exit(int(open(sys.argv[2]).read()))
"""
DISK = 24 << 20
FORGIVEN = (RemoteTrainError, ConnectionLost)


class Place:
    """What all lives of one test share: a farm, and where hosts and projects lie."""

    farm: Farm
    patch: pytest.MonkeyPatch
    lives = 0


class WholeLife(RuleBasedStateMachine):
    """One host, one laptop, one run at a time."""

    def __init__(self) -> None:
        super().__init__()
        Place.lives += 1
        self.base = Path(tempfile.mkdtemp(dir=Place.farm.folder))
        self.host = self.base / "host"
        self.host.mkdir()
        self.small = mount_small(self.host)
        self.root = self.host / "remote-train"
        self.project = self.base / "project"
        self.project.mkdir()
        (self.project / "train.py").write_text(SCRIPT)
        (self.project / "remote-train.toml").write_text('project = "life"\ncheckpoints = ["out/ckpt.pt"]\n')
        self.breaks: list[Break] = []
        self.run: str | None = None
        self.count = 0

    # ---- what is there ----

    def link(self) -> FarmLink:
        taken, self.breaks = self.breaks, []
        return FarmLink(Place.farm, replace(HOST, state_dir=str(self.root)), taken)

    def training(self) -> Training:
        assert self.run is not None
        return Training(find_run(self.run, self.project), self.link())

    @property
    def attempt(self) -> Path:
        assert self.run is not None
        return Path(layout.attempt_dir(str(self.root), self.run, 1))

    def starts(self, run: str) -> int:
        path = self.base / f"starts-{run}"
        return path.stat().st_size if path.exists() else 0

    def has_run(self) -> bool:
        return self.run is not None

    # ---- what happens ----

    @initialize()
    def begin(self) -> None:
        """Nothing is there yet."""

    @rule(at=st.integers(0, 6000), up=st.booleans())
    def cut(self, at: int, up: bool) -> None:
        """The next connection breaks."""
        self.breaks.append(Break(up=at) if up else Break(down=at))

    @precondition(lambda self: self.run is None)
    @rule()
    def ship_and_start(self) -> None:
        self.count += 1
        name = f"life-{Place.lives}-{self.count}"
        link = self.link()
        Place.patch.setattr(preparing, "make_route", lambda *_: ([link], None))
        args = (str(self.base / f"starts-{name}"), str(self.base / f"end-{name}"))
        request = preparing.Request(script="train.py", args=args, cwd=self.project, name=name, give_up=20.0)
        with contextlib.suppress(*FORGIVEN):
            started = launch(preparing.prepare(request, Silent(), None), Silent())
            started.prepared.reached.session.close()
            started.following.close()
        if (self.root / "runs" / name).exists() and (self.project / "runs" / name / "run.json").exists():
            self.run = name

    @precondition(has_run)
    @rule()
    def reattach(self) -> None:
        """See what there is by now."""
        with contextlib.suppress(*FORGIVEN):
            self.training().catch_up()

    @precondition(has_run)
    @rule()
    def pull(self) -> None:
        with contextlib.suppress(*FORGIVEN):
            self.training().pull(PullWish(give_up=20.0))

    @precondition(has_run)
    @rule()
    def kill_agents(self) -> None:
        for agent in Place.farm.agents():
            with contextlib.suppress(ProcessLookupError):
                os.kill(agent, signal.SIGKILL)

    @precondition(has_run)
    @rule()
    def kill_supervisor(self) -> None:
        record = durable.read_record(str(self.attempt / layout.ATTEMPT))
        if record is not None:
            system.kill_process(record["pid"], record["start_time"], signal.SIGKILL)

    @precondition(has_run)
    @rule()
    def kill_laptop(self) -> None:
        """A laptop of its own follows, and is killed in the middle of it."""
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                self.training().follow(Silent(), shown=set(), pull=False, give_up=5.0)
            os._exit(0)
        until(lambda: Place.farm.agents() or os.waitpid(child, os.WNOHANG)[0], "the laptop's agent")
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)

    @precondition(has_run)
    @rule(code=st.integers(0, 3))
    def end(self, code: int) -> None:
        """The training ends by itself."""
        path = self.base / f"end-{self.run}"
        path.with_suffix(".new").write_text(str(code))
        path.with_suffix(".new").rename(path)

    @precondition(has_run)
    @rule()
    def stop(self) -> None:
        with contextlib.suppress(*FORGIVEN):
            self.training().stop(grace=0.0)

    @precondition(lambda self: self.small)
    @rule()
    def fill_disk(self) -> None:
        with contextlib.suppress(OSError), (self.host / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(65536))

    @precondition(lambda self: self.small)
    @rule()
    def free_disk(self) -> None:
        (self.host / "filler").unlink(missing_ok=True)

    @precondition(has_run)
    @rule()
    def finish(self) -> None:
        """The disk is free, the wire sound: the run ends, and everything of it comes home."""
        self.free_disk()
        self.breaks = []
        self.stop()
        training = self.training()
        with contextlib.suppress(*FORGIVEN):
            training.follow(Silent(), shown=set(), pull=False, give_up=20.0)
        state = training.state()["state"]
        ended = (self.attempt / layout.EXIT).exists()
        assert (state == "ended") == ended, f"I10: {self.run} is said to be {state}"
        begun = (self.attempt / layout.ATTEMPT).exists()
        assert state in (("ended", "lost") if begun else ("not started", "unknown", "created")), state
        check(self.root, [Seat(self.project / "runs")], settled=False, complete=True, starts=self.starts)
        self.run = None

    @invariant()
    def holds(self) -> None:
        check(self.root, [Seat(self.project / "runs")], settled=False, starts=self.starts)

    def teardown(self) -> None:
        try:
            if self.run is not None:
                self.finish()
        finally:
            kill_leftovers(self.root)
            if self.small:
                subprocess.run(["umount", "-l", str(self.host)], check=True)
            shutil.rmtree(self.base, ignore_errors=True)


def mount_small(folder: Path) -> bool:
    """Mount a small disk, where that is allowed; else disks are not filled."""
    if os.geteuid() != 0:
        return False
    argv = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "remote-train-test", str(folder)]
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0


def test_a_whole_life_in_any_order(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pauses(monkeypatch)
    examples, steps = (60, 30) if is_nightly() else (5, 12)
    print(f"seed {seed()}")
    with running_farm(account.home) as farm:
        Place.farm, Place.patch, Place.lives = farm, monkeypatch, 0
        failures = 1
        began = time.monotonic()
        try:
            run_state_machine_as_test(
                hypothesis_seed(seed())(WholeLife),
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=steps,
                    deadline=None,
                    phases=[Phase.generate],  # a failing life takes minutes to shrink
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
            failures = 0
        finally:
            name = "G10 a whole life in any order (hypothesis), lives"
            note(name, Place.lives, failures, time.monotonic() - began, f"{steps} steps each at most")
