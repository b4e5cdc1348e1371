"""G5: a stop leaves nothing of a run, whatever it has started, and touches nobody else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.errors import RemoteTrainError
from remote_train.host import layout, system
from remote_train.listener import Silent
from remote_train.records import Run
from remote_train.stop import stop_run
from tests.faults.counts import PATIENT, Goal
from tests.faults.invariants import check
from tests.host.account_kit import Started, until

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from tests.host.account_kit import Account

pytestmark = PATIENT

DATA = Path(__file__).parent / "data"
SCRIPTS: dict[str, str | bytes] = {name: (DATA / name).read_text() for name in ("spreading.py", "loading.py")}
OTHER = f"bystander-{os.getpid()}"
"""Its name is looked for among all processes: other tests have an `other` too."""
KINDS = ("worker", "session", "daemon", "bare", "baredaemon", "deaf", "saving", "forking", "short")


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """A Python that starts ranks as torchrun does, without torch."""
    path = tmp_path / "stand_in.py"
    text = (DATA / "stand_in.py").read_text().partition("\n")[2]
    path.write_text(f"#!{Path(sys.executable).resolve()} -S\n{text}")
    path.chmod(0o700)
    return str(path)


@pytest.fixture
def bystanders() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes of the same user that are nobody's business: one in our session, one in its own."""
    command = [sys.executable, "-S", "-c", "import time; time.sleep(3600)"]
    own = {key: value for key, value in os.environ.items() if key != layout.COOKIE}
    started = [subprocess.Popen(command, env=own, start_new_session=new) for new in (False, True)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def bearers(mark: str) -> list[int]:
    """Return the living processes with this argument in their command line, however they came to be."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return [pid for pid in found if not system.is_zombie(pid)]


class Stopper:
    """One account whose runs are started and stopped."""

    def __init__(self, account: Account, python: str) -> None:
        self.account = account
        self.python = python
        self.session = account.connect()
        self.package = account.ship(self.session, SCRIPTS)

    def begin(self, run: str, script: str, *args: str, real: bool = False, **changes: Any) -> Started:
        launcher = {"launcher": "torchrun", "processes": 2, "python": sys.executable if real else self.python}
        message = self.account.message(self.package, script, run, *args, run=run, **(launcher | changes))
        self.session.request("start", **message)
        return Started(self.account, run)

    def stop(self, started: Started, grace: float) -> dict[str, Any]:
        return stop_run(self.session, Run(started.run, self.account.home / "nowhere"), 1, grace, Silent())

    def clean(self, started: Started) -> None:
        """Take a run away once it was looked at, or a thousand of them lie there."""
        subprocess.run(["rm", "-rf", str(started.folder.parent.parent)], check=True)


def choose_kinds(chance: random.Random) -> list[str]:
    return [kind for kind in KINDS if chance.random() < 0.35]


def try_stop(stopper: Stopper, run: str, chance: random.Random) -> None:
    """Start something, stop it at some moment, and look at what is left."""
    kinds = choose_kinds(chance)
    alone = chance.random() < 0.3
    changes: dict[str, Any] = {"launcher": "python", "processes": 1} if alone else {}
    started = stopper.begin(run, "spreading.py", *kinds, **changes)
    if chance.random() < 0.7:
        started.says(b"on")
    if chance.random() < 0.1:
        os.kill(started.record["pid"], signal.SIGTERM)
    if chance.random() < 0.2:  # somebody else asks too
        stopper.session.request("stop", run=run, attempt=1, grace=chance.choice((0.0, 600.0)))
    state = stopper.stop(started, chance.choice((0.0, 0.05, 0.3)))
    assert_nothing_left(stopper, started, state)


def assert_nothing_left(stopper: Stopper, started: Started, state: dict[str, Any]) -> None:
    assert state["state"] == "ended", state
    assert state["exit"]["survivors"] == []
    assert started.members() == []
    assert bearers(started.run) == []
    check(stopper.account.root, runs=[started.run])
    until(lambda: not started.supervisor_lives(), "the supervisor's end")


def test_stops_leave_nothing_and_hurt_nobody(
    account: Account, stand_in: str, bystanders: list[subprocess.Popen[bytes]]
) -> None:
    stopper = Stopper(account, stand_in)
    other = stopper.begin(OTHER, "spreading.py", "worker", "bare", "daemon")
    for rank in range(2):
        other.says(b"on", rank)
    before = other.members()
    with Goal("G5 stops, a stand-in for torchrun", reduced=8, nightly=475) as goal:
        for trial in goal:
            with trial:
                try_stop(stopper, f"run-{os.getpid()}-{trial.number}", trial.chance)
                assert other.members() == before
                assert [process.poll() for process in bystanders] == [None, None]
            stopper.clean(Started(account, f"run-{os.getpid()}-{trial.number}"))
    stopper.stop(other, 0.0)
    assert bearers(OTHER) == []


@pytest.mark.torch
def test_stops_of_the_real_torchrun_with_dataloader_workers(
    account: Account, stand_in: str, bystanders: list[subprocess.Popen[bytes]]
) -> None:
    pytest.importorskip("torch")
    stopper = Stopper(account, stand_in)
    with Goal("G5 stops, real torchrun and DataLoader workers", reduced=1, nightly=25) as goal:
        for trial in goal:
            with trial:
                run = f"real-{os.getpid()}-{trial.number}"
                started = stopper.begin(run, "loading.py", real=True)
                started.says(b"on", rank=trial.number % 2)
                assert len(started.members()) >= 7
                assert_nothing_left(
                    stopper, started, stopper.stop(started, trial.chance.choice((0.0, 0.2, 30.0)))
                )
                assert [process.poll() for process in bystanders] == [None, None]


def test_a_stop_of_what_never_was_says_so(account: Account, stand_in: str) -> None:
    stopper = Stopper(account, stand_in)
    with contextlib.suppress(RemoteTrainError):
        stopper.session.request("stop", run="nobody", attempt=1, grace=0.0)
    assert list((account.root / "runs").iterdir()) == []
