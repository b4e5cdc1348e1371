"""What a laptop believes of runs that have left their host, or may have, and what it learns of those that nobody watched."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from remote_train import cleaning
from remote_train.api import Training
from remote_train.cleaning import Cleaning
from remote_train.errors import PullIncomplete
from remote_train.host import layout
from remote_train.listener import Silent
from remote_train.query import make_row
from remote_train.records import Run, create_run
from remote_train.retention import KEEP, Offer, make_wish, note_asked, offer_runs
from tests.host.account_kit import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.account_kit import Account, Started

HERE = ("local", None)
SAVING = """
open("ckpt.pt", "wb").write(b"model" * 1000)
print("saved", flush=True)
"""


def follow(account: Account, started: Started) -> tuple[Run, Training]:
    """Have a laptop that stayed with a run to its end, and pulled."""
    run = account.client_run(started)
    training = Training(run, account.link())
    training.follow(Silent(), shown=set())
    return run, training


def offer(account: Account, run: Run) -> dict[str, object]:
    session = account.connect()
    [result] = offer_runs(session, Offer(HERE, [make_wish(run)], [run]))[0]
    session.close()
    return result


def unmount(account: Account) -> Path:
    """Take the state root away, as a disk that is not mounted."""
    away = account.root.with_name("away")
    account.root.rename(away)
    return away


def mount(account: Account, away: Path) -> None:
    """Bring it back, over what was made meanwhile."""
    account.root.rename(account.root.with_name("meanwhile"))
    away.rename(account.root)


def test_a_run_that_is_not_there_was_not_removed_by_us(account: Account) -> None:
    run, training = follow(account, account.start(SAVING))
    away = unmount(account)
    assert offer(account, run)["gone"]
    record = run.read()
    assert (record.get("pruned"), record["pruning"]) == (None, None)
    mount(account, away)
    (run.files / "ckpt.pt").unlink()
    assert [path.name for path in training.pull().files] == ["ckpt.pt"]
    assert offer(account, run)["removed"]
    assert run.read()["pruned"]


def test_a_run_whose_removal_was_not_answered_was_removed_by_us(account: Account) -> None:
    run, _ = follow(account, account.start(SAVING))
    assert not note_asked(run, HERE)
    session = account.connect()
    session.request("prune", runs=[make_wish(run)])  # and here the laptop died
    session.close()
    assert offer(account, run)["gone"]
    assert run.read()["pruned"]


def test_a_mark_that_is_wrong_is_taken_back(account: Account) -> None:
    run, training = follow(account, account.start(SAVING))
    away = unmount(account)
    (run.files / "ckpt.pt").unlink()
    run.update(pruned=time.time())
    with pytest.raises(PullIncomplete, match="removed from local"):
        training.pull()
    assert training.stop()["state"] == "ended"
    assert run.read()["pruned"]
    mount(account, away)
    assert [path.name for path in training.pull().files] == ["ckpt.pt"]
    assert not run.read()["pruned"]
    run.update(pruned=time.time())
    training.stop()
    assert not run.read()["pruned"]


def test_the_output_of_a_run_that_is_back_is_asked_for(account: Account) -> None:
    run, training = follow(account, account.start(SAVING))
    run.update(pruned=time.time())
    run.attempt(1).output("0").write_bytes(b"sa")
    assert b"".join(training.logs()) == b"saved\n"
    assert not run.read()["pruned"]


def test_nothing_at_home_of_a_removed_run_is_no_success(account: Account) -> None:
    run, training = follow(account, account.start("print('words')"))
    assert offer(account, run)["removed"]
    with pytest.raises(PullIncomplete) as refused:
        training.pull()
    assert "removed from local" in refused.value.message
    assert refused.value.exit_code == 40


def test_a_run_that_is_being_pulled_is_not_offered(account: Account) -> None:
    run, _ = follow(account, account.start(SAVING))
    wish = make_wish(run)
    session = account.connect()
    with run.pulling():
        assert offer_runs(session, Offer(HERE, [wish], [run]))[0] == []
    assert not run.read().get("pruning")
    assert (account.root / "runs" / "run").exists()
    assert offer_runs(session, Offer(HERE, [wish], [run]))[0][0]["removed"]
    session.close()


def leave(account: Account, script: str, name: str) -> Run:
    """Start a run as `-d` does, and have nobody look at it again."""
    started = account.start(script, run=name)
    started.end()
    until(lambda: not started.supervisor_lives(), "the supervisor's end")
    run = account.client_run(started)
    run.attempt(1).write(layout.ATTEMPT, started.record)
    return run


def clean(account: Account) -> Cleaning:
    """Clean up behind a launch that has ten ended runs before it which are younger than those of the test."""
    first, *_ = (account.home / "client" / "runs").iterdir()
    about = Run(first.name, first).read()
    fields = {key: about[key] for key in ("project", "root", "host", "state_dir", "package", "attempts")}
    for number in range(KEEP + 1):
        name, state = f"later{number}", "ended" if number else "running"
        record = {**fields, "created": time.time() + 60, "state": state, "exit": None}
        if not (account.home / "client" / "runs" / name).exists():
            create_run(account.home / "client" / "runs", name, record)
    launched = Run("later0", account.home / "client" / "runs" / "later0")
    session = account.connect()
    doing = Cleaning(launched, session, account.link())
    until(lambda: not doing._thread.is_alive(), "its end")
    session.close()
    return doing


def test_runs_that_nobody_watched_leave_too(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "BRING_BYTES", 100_000)
    plain = leave(account, "print('words')", "plain")
    saving = leave(account, SAVING, "saving")
    loud = leave(account, "print('x' * 200_000)", "loud")
    theirs = leave(account, "print('theirs')", "theirs")
    theirs.attempt(1).write(layout.ATTEMPT, {"token": "ours"})
    clean(account)
    assert plain.read()["pruned"]
    assert not (account.root / "runs" / "plain").exists()
    assert (plain.read()["state"], make_row(plain, None)["exit"]) == ("ended", "0")
    assert plain.attempt(1).output("0").read_bytes() == b"words\n"
    assert saving.attempt(1).output("0").read_bytes() == b"saved\n"
    assert saving.read()["stays"]["why"] == "ckpt.pt"
    assert loud.attempt(1).offset("0") == 0
    assert loud.read()["stays"]["why"] == "the output of rank 0 is not at home"
    assert (theirs.read()["state"], theirs.attempt(1).offset("0")) == ("running", 0)
    Training(saving, account.link()).pull()
    Training(loud, account.link()).catch_up()
    clean(account)
    assert saving.read()["pruned"]
    assert loud.read()["pruned"]
    assert [path.name for path in (account.root / "runs").iterdir()] == ["theirs"]


def test_a_lost_run_that_nobody_watched_is_brought(account: Account) -> None:
    started = account.start("print('up', flush=True); import time; time.sleep(600)")
    started.says(b"up")
    run = account.client_run(started)
    run.attempt(1).write(layout.ATTEMPT, started.record)
    started.kill_supervisor()
    started.clean()
    clean(account)
    assert run.read()["pruned"]
    assert run.attempt(1).output("0").read_bytes() == b"up\n"


def test_a_run_that_goes_on_is_left_alone(account: Account) -> None:
    started = account.start("print('up', flush=True); import time; time.sleep(600)")
    started.says(b"up")
    run = account.client_run(started)
    run.attempt(1).write(layout.ATTEMPT, started.record)
    before = run.read()
    clean(account)
    assert run.read() == before
    assert started.members()
