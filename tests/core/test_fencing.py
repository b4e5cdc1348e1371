"""A fence stops, at the first contact with a host, the attempt that counts no more there, and nothing else."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.along import pull_now
from remote_train.attempt_list import append_attempt, retract_attempt
from remote_train.attempts import is_superseded, item_of, newest_of, places_of, update_newest
from remote_train.collect import make_hint
from remote_train.errors import LocalSpace, PullIncomplete
from remote_train.fencing import fence, fences_of, lift, list_pending
from remote_train.flocks import open_lock, try_lock
from remote_train.host import layout
from remote_train.listener import Silent
from remote_train.pull import PullWish
from remote_train.records import RESUME_LOCK
from remote_train.retention import make_wish
from tests.host.account_kit import until
from tests.host.test_supervisor_stops import OBEDIENT, begin

if TYPE_CHECKING:
    from pathlib import Path

    from remote_train.records import Run
    from tests.host.account_kit import Account, Started


def make_run(account: Account, started: Started) -> Run:
    run = account.client_run(started)
    run.attempt(1).prepare()
    run.attempt(1).write(layout.ATTEMPT, started.record)
    return run


def go_on(run: Run, number: int = 2) -> None:
    """Note that the next attempt was started on another host, whatever the one before still does."""
    plan = item_of(run.read(), 1)["plan"]
    entry = {"attempt": number, "host": "elsewhere", "state_dir": "/somewhere", "plan": plan}
    append_attempt(run, entry, supersede=True)
    run.update(state="running")


def test_the_first_contact_stops_what_counts_no_more(account: Account) -> None:
    started = begin(account, OBEDIENT)
    run = make_run(account, started)
    go_on(run)
    assert list_pending(run) == [(1, "local")]
    assert started.state()["state"] == "running"
    account.link().connect().close()
    ended = started.end()
    assert (ended["stopped"], ended["superseded_by"]) == (True, 2)
    assert started.members() == []
    assert list_pending(run) == [(1, "local")]  # that it has ended was not heard yet
    until(lambda: not started.supervisor_lives(), "the supervisor's end")
    account.link().connect().close()
    assert list_pending(run) == []
    first = item_of(run.read(), 1)
    assert first["fenced"] > 0
    assert (first["state"], first["exit"]["superseded_by"]) == ("ended", 2)
    assert run.read()["state"] == "running"


def test_a_dead_supervisor_does_not_save_its_training(account: Account) -> None:
    started = begin(account, OBEDIENT)
    run = make_run(account, started)
    started.kill_supervisor()
    go_on(run)
    account.link().connect().close()
    until(lambda: not started.members(), "the end of what was orphaned")
    assert started.end()["superseded_by"] == 2


def test_a_fence_that_the_record_does_not_know_of_stops_nothing(account: Account) -> None:
    """The command was killed between the two writes: nothing was started, so the attempt still counts."""
    started = begin(account, OBEDIENT)
    run = make_run(account, started)
    fence(run, 1, 2)
    assert not is_superseded(run.read(), 1)
    lock = open_lock(run.folder / RESUME_LOCK)
    assert lock is not None
    assert try_lock(lock)
    account.link().connect().close()
    assert list(
        fences_of("local", None).glob("*.json")
    )  # whoever holds the lock may be about to record attempt 2
    os.close(lock)
    account.link().connect().close()
    assert started.state()["state"] == "running"
    assert not list(fences_of("local", None).glob("*.json"))


def test_a_fence_can_be_lifted_when_nothing_was_started(account: Account) -> None:
    started = begin(account, OBEDIENT)
    run = make_run(account, started)
    go_on(run)
    retract_attempt(run)
    assert not list_pending(run)
    account.link().connect().close()
    assert started.state()["state"] == "running"
    assert "superseded" not in item_of(run.read(), 1)


def test_a_host_that_does_not_know_the_run_is_asked_once(account: Account) -> None:
    started = begin(account, OBEDIENT)
    run = make_run(account, started)
    go_on(run)
    lift(run, 1)
    go_on(run, 3)
    folder = fences_of("elsewhere", "/somewhere")
    folder.rename(fences_of("local", None))  # the name means another machine now
    account.link().connect().close()
    assert not list(fences_of("local", None).glob("*.json"))
    assert started.state()["state"] == "running"


def test_where_no_fence_can_be_kept_nothing_counts_less(account: Account) -> None:
    if os.geteuid() == 0:
        fences_of("local", None).parent.parent.mkdir(parents=True, exist_ok=True)
        fences_of("local", None).parent.write_text("a file stands where the folder should")
    else:
        fences_of("local", None).mkdir(parents=True, mode=0o500)
    run = make_run(account, begin(account, OBEDIENT))
    with pytest.raises(LocalSpace) as refused:
        go_on(run)
    assert "nothing is started elsewhere" in refused.value.message
    assert "superseded" not in item_of(run.read(), 1)


SAVING = """
open("ckpt.json", "w").write("{}")
print("on", flush=True)
"""


def test_nothing_of_what_counts_no_more_is_pulled(account: Account) -> None:
    started = begin(account, SAVING)
    run = make_run(account, started)
    started.end()
    go_on(run)
    with pytest.raises(PullIncomplete) as refused:
        pull_now(run, 1, account.link(), PullWish(everything=True), Silent())
    assert "attempt 1 of run counts no more" in refused.value.message
    assert not (run.files / "ckpt.json").exists()
    retract_attempt(run)
    pull_now(run, 1, account.link(), PullWish(everything=True), Silent())
    assert (run.files / "ckpt.json").read_text() == "{}"


def test_what_it_made_stays_until_it_was_brought_aside(account: Account, tmp_path: Path) -> None:
    plan: dict[str, Any] = {"checkpoints": ("ckpt.json",)}
    started = account.start(SAVING, **plan)
    started.end()
    until(lambda: not started.supervisor_lives(), "the supervisor's end")
    run = make_run(account, started)
    for name in ("0", "launcher"):
        source = started.folder / ("ranks/0.log" if name == "0" else "launcher.log")
        run.attempt(1).output(name).write_bytes(source.read_bytes() if source.exists() else b"")
    session = account.connect()
    [stays] = session.request("prune", runs=[make_wish(run)])["runs"]
    assert (stays["removed"], stays["kind"]) == (False, "checkpoint")
    go_on(run)
    place = ("local", None)
    [stays] = session.request("prune", runs=[make_wish(run, place)])["runs"]
    assert (stays["removed"], stays["why"], stays["attempt"]) == (False, "ckpt.json", 1)
    pull_now(run, 1, account.link(), PullWish(to=tmp_path / "aside", aside=True), Silent())
    assert (tmp_path / "aside" / "ckpt.json").read_text() == "{}"
    assert not run.files.exists()
    [gone] = session.request("prune", runs=[make_wish(run, place)])["runs"]
    assert gone["removed"]


def test_gc_names_the_command_for_what_an_older_attempt_made() -> None:
    stays: dict[str, Any] = {"run": "one", "kind": "checkpoint", "attempt": 1}
    assert make_hint(stays, 2) == "remote-train pull --attempt 1 --to DIR one"
    assert make_hint(stays, 1) == "remote-train pull one"
    assert make_hint({**stays, "kind": "output"}, 2) == "remote-train logs --attempt 1 one"
    assert make_hint({**stays, "kind": "busy"}, 2) is None


def test_the_end_of_what_counts_no_more_is_not_the_runs(account: Account) -> None:
    run = make_run(account, begin(account, OBEDIENT))
    go_on(run)
    update_newest(run, 1, state="ended", exit={"code": 0})
    assert run.read()["state"] == "running"
    update_newest(run, 2, state="ended")
    assert run.read()["state"] == "ended"
    assert places_of(run.read()) == {("local", None): [1], ("elsewhere", "/somewhere"): [2]}


def test_changes_of_the_record_from_many_sides_are_all_kept(account: Account) -> None:
    run = make_run(account, begin(account, OBEDIENT))

    def work(name: str) -> None:
        for number in range(20):
            run.update(**{name: number})

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    go_on(run)
    for thread in threads:
        thread.join()
    record = run.read()
    assert [record[name] for name in "abcd"] == [19] * 4
    assert newest_of(record) == 2
