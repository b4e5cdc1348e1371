"""Nothing grows, nothing is lost: launches racing with tidying, tidying killed anywhere, a thousand crashed starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.api import Training
from remote_train.errors import ConnectionLost, HostUnfit
from remote_train.host import attempt, garbage, layout, locks, tidy
from remote_train.host.durable import read_record
from remote_train.listener import Silent
from remote_train.records import list_runs
from remote_train.retention import make_wish, pick_old
from remote_train.ship import Shipment
from tests.faults.counts import PATIENT, Goal
from tests.host.account_kit import Started, agents_of, until
from tests.host.tidy_kit import DAY, age, tidiers_of

if TYPE_CHECKING:
    from remote_train.session import Session
    from tests.host.account_kit import Account

FOLLOW = {"attempt": 1, "outputs": [], "wait": False}


def make_old(root: Path) -> None:
    """Make every manifest and blob look as if nobody had wanted it for a month, and every claim given up."""
    for pattern in ("packages/*", "blobs/??/*", "runs/*/attempts/*/claim.json", "runs/*/attempts/*"):
        for path in root.glob(pattern):
            try:
                age(path, 30 * DAY)
            except FileNotFoundError:
                continue


def tidy_until(root: Path, stop: threading.Event, done: list[int]) -> None:
    """Tidy all the time."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    while not stop.is_set():
        tidy.Tidy(str(root), [], dry=False, thorough=True).run(quiet)
        done.append(1)
    os.close(quiet)


@PATIENT
def test_a_start_that_races_with_tidying_never_fails(account: Account) -> None:
    """Everything the starts rely on looks out of use, claims of their very names lie about, and tidying never rests."""
    root, package = account.package({"train.py": "print('ran')", **{f"{n}.py": f"# {n}" for n in range(40)}})
    session = account.connect()
    account.ship(session, {"train.py": "print('ran')"})
    stop, done = threading.Event(), list[int]()
    tidying = threading.Thread(target=tidy_until, args=(account.root, stop, done))
    tidying.start()
    try:
        with Goal("starts that race with tidying", reduced=6, nightly=500) as goal:
            for trial in goal:
                with trial:
                    run = f"run{trial.number}"
                    if trial.chance.random() < 0.7:
                        leave_dead_start(account.root, run)
                    make_old(account.root)
                    base = {"package": package.package_id, "rows": package.rows}
                    message = account.message(package.package_id, run=run)
                    state = Shipment(session, root, package).start(base, message, {**FOLLOW, "run": run})
                    assert state["state"] in ("starting", "running", "ended")
                    assert Started(account, run).end()["code"] == 0
                    assert Started(account, run).output() == b"ran\n"
                    forget(Started(account, run))
    finally:
        stop.set()
        tidying.join()
    assert done


def leave_dead_start(root: Path, run: str) -> None:
    """Leave what an earlier start of this name left; tidying may already be at it."""
    folder = Path(layout.attempt_dir(str(root), run, 1))
    with contextlib.suppress(FileNotFoundError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / layout.LOCK).touch()


def forget(started: Started) -> None:
    """Remove a run, so that nothing refers to its package any more."""
    until(lambda: not started.supervisor_lives(), "the supervisor's end")
    shutil.rmtree(started.folder.parents[1], ignore_errors=True)  # tidying removes what gets empty


def fill(account: Account, number: int) -> None:
    """Leave something of every kind to tidy away: a dead start, trash, contents and a manifest out of use."""
    root = account.root
    folder = Path(layout.attempt_dir(str(root), f"dead{number}", 1))
    for place in (folder / "code", root / layout.TRASH / f"left{number}"):
        for item in range(60):
            (place / f"{item % 7}").mkdir(parents=True, exist_ok=True)
            (place / f"{item % 7}" / f"{item}.py").write_text("x")
    (folder / layout.LOCK).touch()
    for item in range(60):
        (root / "blobs" / "00").mkdir(exist_ok=True)
        (root / "blobs" / "00" / f"{number % 256:02x}{item:060x}").write_bytes(b"unwanted")
    (root / "packages" / f"{number:064x}.json").write_text("[]")


@PATIENT
def test_sigkill_of_tidying_anywhere_leaves_what_the_next_one_finishes(account: Account) -> None:
    started = account.start("open('ckpt.pt', 'wb').write(b'x' * 9); print('kept')")
    started.end()
    kept = started.record["plan"]["package"]
    with Goal("kill -9 of tidying", reduced=5, nightly=300) as goal:
        for trial in goal:
            with trial:
                fill(account, trial.number)
                make_old(account.root)
                session = account.connect()
                number = session.submit("prune", runs=[], thorough=True)
                await_tidying(account, session, number)
                # wherever it is by then
                time.sleep(trial.chance.random() ** 2 * 0.06)
                agents = agents_of(account.home) if trial.chance.random() < 0.5 else []
                for pid in (*tidiers_of(account.home), *agents):
                    os.kill(pid, signal.SIGKILL)
                settle(session, number)
                check_loads(account, kept)
    session = account.connect()
    session.request("prune", runs=[], thorough=True)
    make_old(account.root)
    answer = session.request("prune", runs=[], thorough=True)
    assert answer["failures"] == []
    assert names_in(account.root / layout.TRASH) == []
    assert names_in(account.root / "packages") == [f"{kept}.json"]
    assert attempt.list_runs(str(account.root)) == ["run"]
    assert len(list((account.root / "blobs").glob("??/*"))) == 1
    assert read_record(str(account.root / layout.USAGE))


def await_tidying(account: Account, session: Session, number: int) -> None:
    """Wait for it to be seen at work, or to be done: it is quick."""
    until(lambda: tidiers_of(account.home) or number in session._replies, "tidying")


def settle(session: Session, number: int) -> None:
    """Wait for what has been killed to be gone, whatever it answered before."""
    with contextlib.suppress(ConnectionLost, HostUnfit):
        session.wait(number, 20.0)
    session.close()


def check_loads(account: Account, package: str) -> None:
    """See that the state root is one: its runs are listed, the ended one is whole, and its manifest is there."""
    until(lambda: not tidiers_of(account.home), "its end")
    session = account.connect()
    listed = {run["run"]: run["state"] for run in session.request("list")["runs"]}
    assert listed.pop("run") == "ended"
    assert set(listed.values()) <= {"unknown", "created"}
    assert Started(account, "run").output() == b"kept\n"
    assert (account.root / "packages" / f"{package}.json").exists()
    session.close()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def list_files(root: Path) -> set[str]:
    return {os.path.join(place, name) for place, _, names in os.walk(root) for name in names}  # noqa: PTH118


def count_descriptors() -> int:
    return len(names_in(Path("/proc/self/fd")))


@PATIENT
def test_attaching_and_detaching_leaves_nothing(account: Account) -> None:
    """One run, watched and left again and again: no file, process, thread or descriptor more than after the first time."""
    started = account.start("print('up', flush=True); import time; time.sleep(600)")
    started.says(b"up")
    run = account.client_run(started)
    training = Training(run, account.link())
    training.catch_up()
    until((started.folder / layout.CLOCK).exists, "the first line of the clock")
    until((started.folder / layout.TELEMETRY).exists, "the first sample of the host's load")
    there, here = list_files(account.root), list_files(run.folder)
    descriptors, threads = count_descriptors(), threading.active_count()
    with Goal("attach and detach", reduced=20, nightly=1000) as goal:
        for trial in goal:
            with trial:
                attach_once(account, training, cut=trial.chance.random() < 0.3)
    until(lambda: not agents_of(account.home), "the last agent's end")
    until(lambda: threading.active_count() <= threads, "the last thread's end")
    assert list_files(account.root) == there
    assert list_files(run.folder) == here
    assert count_descriptors() <= descriptors
    assert started.supervisor_lives()
    opened = len(names_in(Path(f"/proc/{started.record['pid']}/fd")))
    assert opened < 12
    assert len(started.members()) == 1


def attach_once(account: Account, training: Training, *, cut: bool) -> None:
    """Watch for a moment; leave, or have the agent killed."""
    if not cut:
        training.catch_up()
        return
    session = account.connect()
    session.submit("follow", run=training.id, attempt=1, outputs=[{"stream": 9, "name": "0", "offset": 0}])
    until(lambda: session.next_item(0.5) is not None, "the stream")
    for agent in agents_of(account.home):
        os.kill(agent, signal.SIGKILL)
    until(lambda: not agents_of(account.home), "the agent's death")
    session.close()


@PATIENT
def test_crashed_starts_leave_nothing_after_tidying(account: Account) -> None:
    """The agent is killed somewhere in a start. What came of it is a run, or is tidied away."""
    files: dict[str, str | bytes] = {f"data/{number}.txt": "x" * 2000 for number in range(400)}
    session = account.connect()
    package = account.ship(session, {"train.py": "pass", **files})
    session.close()
    until(lambda: not agents_of(account.home), "the agent's end")
    began: set[str] = set()
    descriptors = count_descriptors()
    with Goal("starts whose agent was killed", reduced=10, nightly=1000) as goal:
        for trial in goal:
            with trial:
                run = f"crash{trial.number}"
                crash(account, account.message(package, run=run), trial.chance.random() * 0.08)
                if has_begun(Started(account, run).folder):
                    began.add(run)
                    await_end(Started(account, run))
                if trial.number % 25 == 24:
                    tidy_crashes(account, began)
    tidy_crashes(account, began)
    assert agents_of(account.home) == []
    assert count_descriptors() <= descriptors + 1


def tidy_crashes(account: Account, began: set[str]) -> None:
    """Tidy, and see that nothing is there but what really ran; that is then removed as a person would."""
    for path in account.root.glob("runs/*/attempts/*"):
        for place in (path / layout.CLAIM, path):
            if place.exists():
                age(place, 2 * garbage.CLAIM_SECONDS)
    session = account.connect()
    answer = session.request("prune", runs=[], thorough=True)
    session.close()
    until(lambda: not agents_of(account.home), "the agent's end")
    assert answer["failures"] == []
    assert set(attempt.list_runs(str(account.root))) == began
    assert names_in(account.root / layout.TRASH) == []
    assert len(names_in(account.root / "packages")) == 1
    assert len(list(account.root.glob("blobs/??/*"))) == 2
    assert not list(account.root.glob("**/*.tmp"))


def has_begun(folder: Path) -> bool:
    """Tell whether a start came to something, once nobody is at it any more."""
    if not (folder / layout.LOCK).exists():
        return False
    lock = locks.open_lock(str(folder / layout.LOCK))
    until(lambda: (folder / layout.ATTEMPT).exists() or locks.try_lock(lock), "the lock, or a supervisor")
    os.close(lock)
    return (folder / layout.ATTEMPT).exists()


def await_end(started: Started) -> None:
    until(lambda: started.state()["state"] in ("ended", "lost"), "its end")


def crash(account: Account, message: dict[str, Any], seconds: float) -> None:
    """Kill the agent so long after it was asked to start a run."""
    session = account.connect()
    session.request("list")
    [agent] = agents_of(account.home)
    number = session.submit("start", **message)
    time.sleep(seconds)
    os.kill(agent, signal.SIGKILL)
    with contextlib.suppress(ConnectionLost):
        session.wait(number, 20.0)
    session.close()
    until(lambda: not agents_of(account.home), "the agent's death")


def test_launches_leave_no_more_than_the_runs_that_stay(account: Account) -> None:
    """Launch after launch of a project whose runs come home: what they leave is bounded by what stays."""
    sizes = []
    for number in range(6):
        started = account.start("open('ckpt.pt', 'wb').write(bytes(200_000))", run=f"run{number}")
        run = account.client_run(started)
        Training(run, account.link()).follow(Silent(), shown=set())

        old = pick_old(list_runs(account.home / "client"), "local", None, keep=2)
        session = account.connect()
        answer = session.request("prune", runs=[make_wish(item) for item in old], thorough=True)
        for item, result in zip(old, answer["runs"], strict=True):
            assert result["removed"]
            item.update(pruned=time.time())
        sizes.append(answer["after"]["kinds"]["runs"])
        session.close()
    assert len(attempt.list_runs(str(account.root))) == 2
    assert max(sizes[2:]) <= sizes[1]
