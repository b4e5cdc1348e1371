"""Kill, or fail, the host's programs at any system call: from the first contact to the exit record.

After each hit the same request is made again, undisturbed: it must give the one run, and every record must be whole.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.errors import ConnectionLost, HostSpace, HostUnfit, RunLost, StartFailed
from remote_train.host import durable, layout
from remote_train.ship import Shipment
from tests.faults.counts import PATIENT, Goal, is_nightly, seed
from tests.faults.invariants import check
from tests.faults.syscalls import (
    Hit,
    TracedTransport,
    attached,
    choose,
    count_calls,
    list_failures,
    list_kills,
    need_strace,
    was_felt,
)
from tests.host.account_kit import Account, Started, until

if TYPE_CHECKING:
    from pathlib import Path

    from remote_train.package.packing import Package
    from remote_train.session import Session
    from tests.host.account_kit import Content

pytestmark = PATIENT

MOST = 400
TOLD = (ConnectionLost, HostSpace, HostUnfit, StartFailed, RunLost)
"""What a hit may be told as; anything else is a bug: exit 60 or 70."""
SCRIPT = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(fd, b"x")
print("done", flush=True)
"""


class Life:
    """One run of one package on one account, as often as it is tried."""

    def __init__(self, account: Account, folder: Path) -> None:
        self.account = account
        self.starts = folder / "starts"
        self.log = folder / "strace.log"
        self.files: dict[str, Content] = {
            "train.py": SCRIPT,
            "data.bin": random.Random(1).randbytes(3000),
            "a/b.txt": "b",
            "a/c": "",
        }
        self.root, self.package = account.package(self.files)
        self.message = account.message(self.package.package_id, "train.py", str(self.starts))
        self.attempt = Started(account, "run")

    def try_once(self, hit: Hit | None, *, traced: bool = True) -> Exception | None:
        """Ask for the run; return what it was refused with."""
        transport = TracedTransport(self.log, hit) if traced else None
        session = None
        try:
            session = self.account.connect(transport=transport)
            ask(session, self.root, self.package, self.message)
        except TOLD as error:
            return error
        finally:
            self._settle()
            if session is not None:
                session.close()
            if transport is not None:
                transport.close()
        return None

    def prepare(self) -> None:
        """Bring it as far as an agent does that dies right after its claim: the next calls are the supervisor's."""
        session = self.account.connect()
        self.account.ship(session, self.files)
        session.close()
        self.attempt.folder.mkdir(parents=True)
        claim = {"token": self.message["token"]}
        durable.write_record(str(self.attempt.folder / layout.CLAIM), claim, sync=False)

    def _settle(self) -> None:
        """Wait until a supervisor, if there is one, has come to its end; it may have been killed."""
        with contextlib.suppress(AssertionError):  # no record yet
            until(lambda: not self.attempt.supervisor_lives(), "the supervisor's end")

    def clear(self, *, agents: bool = False) -> None:
        """Forget the run, and what was shipped; with `agents` make the account one that nobody has been to."""
        self.account.close()
        self.account.sessions.clear()
        for folder in self.account.root.glob("*"):
            if agents or folder.name != layout.AGENTS:
                shutil.rmtree(folder, ignore_errors=True)
        self.starts.unlink(missing_ok=True)

    def count_starts(self) -> int:
        return self.starts.stat().st_size if self.starts.exists() else 0


def ask(session: Session, root: Path, package: Package, message: dict[str, Any]) -> None:
    follow = {"run": message["run"], "attempt": 1, "outputs": [], "wait": False}
    Shipment(session, root, package).start({}, {**message, "expect": None}, follow)


@pytest.fixture
def life(account: Account, tmp_path: Path) -> Life:
    need_strace()
    return Life(account, tmp_path)


def judge(life: Life, *, settled: bool) -> None:
    """Check; ask again, undisturbed; check again."""
    check(life.account.root, starts=lambda _run: life.count_starts(), settled=settled)
    refused = life.try_once(None, traced=False)
    assert refused is None, refused
    state = life.attempt.state()
    assert state["state"] in ("ended", "lost"), state
    assert life.count_starts() <= 1
    ended = state["exit"]
    if ended is not None and ended["code"] == 0:
        assert life.attempt.output() == b"done\n"
        assert life.count_starts() == 1
    check(life.account.root, starts=lambda _run: life.count_starts(), settled=settled)


FIRST, RUN, START = "first contact, ship, start", "ship, start", "start, state write, exit record"
PHASES = {FIRST: 2, RUN: 4, START: 4}
"""What is hit, and how often in the reduced number."""


def begin(life: Life, phase: str) -> None:
    """Make the account as it is when the phase begins."""
    life.clear(agents=phase == FIRST)
    if phase == START:
        life.prepare()


def watch(life: Life, phase: str) -> dict[str, int]:
    """Return what calls the phase makes; but for the first contact the agent is there already, and compiled."""
    counts: dict[str, int] = {}
    for _ in range(2):
        begin(life, phase)
        assert life.try_once(None) is None
        assert life.attempt.end()["code"] == 0
        counts = count_calls(life.log)
    return counts


def try_all(life: Life, goal: Goal, phase: str, hits: list[Hit]) -> None:
    """Hit and judge each; most of the hits must have come to pass."""
    felt = 0
    with goal:
        for trial in goal:
            with trial:
                begin(life, phase)
                hit = hits[trial.number]
                refused = life.try_once(hit)
                felt += was_felt(life.log)
                print(hit, repr(refused))
                # the call that failed may have been the one that takes a temporary file away
                judge(life, settled="error" in hit.how and not hit.call.startswith(("unlink", "rmdir")))
        assert felt >= max(1, int(goal.made * 0.7)), f"of {goal.made} hits {felt} came to pass"


@pytest.mark.parametrize("phase", PHASES)
def test_killed_at_any_system_call(life: Life, phase: str) -> None:
    kills = list_kills(watch(life, phase))
    chosen = choose(kills, len(kills) if is_nightly() else PHASES[phase], random.Random(seed()))
    name = f"G6 host killed at any system call of {phase}"
    goal = Goal(name, reduced=len(chosen), nightly=len(chosen), remark=f"{len(kills)} places")
    try_all(life, goal, phase, chosen)


@pytest.mark.parametrize("phase", PHASES)
def test_failed_at_any_system_call(life: Life, phase: str) -> None:
    failures = list_failures(watch(life, phase))
    chosen = choose(failures, MOST if is_nightly() else PHASES[phase], random.Random(seed()))
    name = f"G9 host failed at any system call of {phase}: told as 13, 14, 22, or not noticed"
    goal = Goal(name, reduced=len(chosen), nightly=len(chosen), remark=f"{len(failures)} places")
    try_all(life, goal, phase, chosen)


WAITING = SCRIPT.replace(
    'print("done"',
    'import time\nwhile not os.path.exists(sys.argv[1] + "-over"): time.sleep(0.01)\nprint("done"',
)


class Ending:
    """A supervisor that is traced from the moment its training runs, until both have ended."""

    def __init__(self, account: Account, folder: Path) -> None:
        self.account = account
        self.folder = folder
        self.log = folder / "strace.log"
        self.number = 0

    def end_once(self, hit: Hit | None) -> Started:
        self.number += 1
        mark = self.folder / f"mark-{self.number}"
        started = self.account.start(WAITING, str(mark), run=f"run-{self.number}")
        until(mark.exists, "the training's beginning")
        until(lambda: started.state()["attempt"]["phase"] == "running", "its record")
        with attached(started.record["pid"], self.log, hit):
            mark.with_name(mark.name + "-over").touch()
            until(lambda: not started.supervisor_lives(), "the supervisor's end")
        until(lambda: not started.members(), "the training's end")
        return started


def choose_endings(account: Account, tmp_path: Path, *, kills: bool) -> tuple[Ending, list[Hit], int]:
    need_strace()
    ending = Ending(account, tmp_path)
    ending.end_once(None)
    counts = count_calls(ending.log)
    found = list_kills(counts) if kills else list_failures(counts)
    return ending, choose(found, MOST if is_nightly() else 4, random.Random(seed())), len(found)


def test_a_supervisor_killed_at_any_system_call_of_its_end_leaves_a_whole_record_or_none(
    account: Account, tmp_path: Path
) -> None:
    ending, hits, places = choose_endings(account, tmp_path, kills=True)
    goal = Goal("G6 exit record: killed", reduced=len(hits), nightly=len(hits), remark=f"{places} places")
    felt = 0
    with goal:
        for trial in goal:
            with trial:
                started = ending.end_once(hits[trial.number])
                felt += was_felt(ending.log)
                assert started.state()["state"] in ("ended", "lost")
                check(account.root, runs={started.run}, settled=False)
        # how often a process writes depends on when it looks: the last of its calls may not be made this time
        assert felt >= max(1, int(goal.made * 0.7)), f"of {goal.made} hits {felt} came to pass"


def test_a_supervisor_failed_at_any_system_call_of_its_end_writes_it_all_the_same(
    account: Account, tmp_path: Path
) -> None:
    ending, hits, places = choose_endings(account, tmp_path, kills=False)
    goal = Goal("G9 exit record: failed", reduced=len(hits), nightly=len(hits), remark=f"{places} places")
    with goal:
        for trial in goal:
            with trial:
                hit = hits[trial.number]
                print(hit)
                started = ending.end_once(hit)
                assert started.end()["code"] == 0, hit
                check(account.root, runs={started.run}, settled=not hit.call.startswith("unlink"))
