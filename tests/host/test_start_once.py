"""`start`: exactly once, whatever is lost, and what it says when something is missing."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.errors import HostUnfit, NameTaken, ProtocolError, UsageError
from remote_train.host import layout
from remote_train.host.fingerprint import fingerprint_now
from remote_train.ship import FactsChanged, Shipment, make_start_message
from tests.host.account_kit import Started, agents_of, make_test_plan, until

if TYPE_CHECKING:
    from tests.host.account_kit import Account

# Every start of the training leaves one line outside of every snapshot.
COUNTING = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(fd, b"x")
"""


def starts(account: Account) -> int:
    return (account.home / "starts").stat().st_size if (account.home / "starts").exists() else 0


def ask(account: Account, package: str, **changes: Any) -> dict[str, Any]:
    return account.message(package, "train.py", str(account.home / "starts"), **changes)


def test_the_same_token_twice_is_one_start(account: Account) -> None:
    session = account.connect()
    package = account.ship(session, {"train.py": COUNTING})
    first = session.request("start", **ask(account, package))
    again = session.request("start", **ask(account, package))
    assert first["attempt"]["pid"] == again["attempt"]["pid"]
    Started(account, "run").end()
    after = session.request("start", **ask(account, package))
    assert after["state"] == "ended"
    assert after["exit"]["code"] == 0
    assert starts(account) == 1


@pytest.mark.parametrize("round_number", range(8))
def test_two_agents_at_once_are_one_start(account: Account, round_number: int) -> None:
    run = f"run{round_number}"
    sessions = [account.connect(), account.connect()]
    package = account.ship(sessions[0], {"train.py": COUNTING})
    gate = threading.Barrier(2)
    answers: list[dict[str, Any]] = []

    def one(number: int) -> None:
        gate.wait()
        answers.append(sessions[number].request("start", **ask(account, package, run=run)))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer["attempt"]["pid"] for answer in answers}) == 1
    assert Started(account, run).end()["code"] == 0
    assert starts(account) == 1


def test_a_lost_answer_is_asked_for_again_and_starts_nothing_new(account: Account) -> None:
    session = account.connect()
    package = account.ship(session, {"train.py": COUNTING})
    session.submit("start", **ask(account, package))
    session.close()  # the request is on its way, nobody hears the answer
    again = account.connect()
    state = again.request("start", **ask(account, package))
    assert state["state"] in ("starting", "running", "ended")
    Started(account, "run").end()
    assert starts(account) == 1


def test_another_token_finds_the_name_taken(account: Account) -> None:
    session = account.connect()
    package = account.ship(session, {"train.py": COUNTING})
    session.request("start", **ask(account, package))
    with pytest.raises(NameTaken):
        session.request("start", **ask(account, package, token="another"))
    with pytest.raises(NameTaken):  # and before any byte of its package would have to travel
        session.request("start", **ask(account, "0" * 64, token="another"))
    Started(account, "run").end()
    assert starts(account) == 1


def test_what_is_missing_is_named_and_nothing_is_claimed(account: Account) -> None:
    session = account.connect()
    root, package = account.package({"train.py": COUNTING, "more.py": "pass"})
    message = ask(account, package.package_id)
    assert session.request("start", **message) == {"need": "manifest"}
    shipment = Shipment(session, root, package)
    shipment._send_manifest({}, package.rows)
    shipment._settle_uploads()
    answer = session.request("start", **message)
    assert answer["need"] == "blobs"
    assert sorted(answer["blobs"]) == sorted(str(row[4]) for row in package.rows)
    assert not (account.root / "runs" / "run").exists()
    shipment._send_blobs(package.rows[:1])
    shipment._settle_uploads()
    assert session.request("start", **message)["blobs"] == [package.rows[1][4]]
    shipment._send_blobs(package.rows[1:])
    assert session.request("start", **message)["state"] in ("starting", "running", "ended")


def test_one_flight_and_the_paths_behind_it(account: Account) -> None:
    """The optimistic shipment ends in the same start when the base is gone, and when nothing is known."""
    session = account.connect()
    root, old = account.package({"train.py": COUNTING, "same.py": "1"})
    root_new, new = account.package({"train.py": COUNTING + "#", "same.py": "1"})
    follow = {"run": "run", "attempt": 1, "outputs": [], "wait": True}
    base = {"package": old.package_id, "rows": old.rows}  # remembered, but the host lost it
    state = Shipment(session, root_new, new).start(base, ask(account, new.package_id), follow)
    assert state["following"]["state"] in ("starting", "running", "ended")
    assert Started(account, "run").end()["code"] == 0
    state = Shipment(session, root, old).start(
        {}, ask(account, old.package_id, run="two"), {**follow, "run": "two"}
    )
    assert Started(account, "two").end()["code"] == 0
    assert starts(account) == 2


def test_a_changed_machine_is_told_and_nothing_starts(account: Account) -> None:
    session = account.connect()
    root, package = account.package({"train.py": COUNTING})
    account.ship(session, {"train.py": COUNTING})
    plan = make_test_plan(package.package_id, ("train.py", str(account.home / "starts")))
    python: dict[str, Any] = {"path": plan.python, "torch_file": None}
    facts: dict[str, Any] = {"python": python, "fingerprint": "another machine"}
    message = make_start_message("run", "token", plan.as_message(), facts, {})
    assert session.request("start", **message) == {"changed": True}
    with pytest.raises(FactsChanged):
        Shipment(session, root, package).start({}, message, {"run": "run", "attempt": 1, "outputs": []})
    assert not (account.root / "runs" / "run").exists()
    facts["fingerprint"] = fingerprint_now(plan.python, None)
    message = make_start_message("run", "token", plan.as_message(), facts, {})
    assert session.request("start", **message)["state"] in ("starting", "running", "ended")


def test_a_start_that_died_after_its_claim_is_taken_up_again(account: Account) -> None:
    """The agent is killed while it writes the snapshot: claimed, half a code folder, no attempt.json."""
    session = account.connect()
    files: dict[str, str | bytes] = {f"data/{number}.txt": "x" * 4000 for number in range(3000)}
    package = account.ship(session, {"train.py": COUNTING, **files})
    folder = account.root / "runs" / "run" / "attempts" / "1"
    session.submit("start", **ask(account, package))
    until((folder / "code" / "data").exists, "the beginning of the snapshot")
    [agent] = agents_of(account.home)
    os.kill(agent, signal.SIGKILL)
    until(lambda: not agents_of(account.home), "the agent's death")
    if (folder / layout.ATTEMPT).exists():
        pytest.skip("this machine wrote the snapshot before it could be interrupted")
    assert (folder / layout.CLAIM).exists()
    again = account.connect()
    with pytest.raises(NameTaken):
        again.request("start", **ask(account, package, token="another"))
    assert again.request("state", run="run")["state"] == "created"
    again.request("start", **ask(account, package))
    assert Started(account, "run").end()["code"] == 0
    assert len(list((folder / "code" / "data").iterdir())) == 3000
    assert starts(account) == 1


def test_a_start_waits_for_the_one_that_holds_the_lock(account: Account) -> None:
    """Two agents, the first one slow: the second one answers only what is true."""
    sessions = [account.connect(), account.connect()]
    files: dict[str, str | bytes] = {f"data/{number}.txt": "x" * 4000 for number in range(3000)}
    package = account.ship(sessions[0], {"train.py": COUNTING, **files})
    folder = account.root / "runs" / "run" / "attempts" / "1"
    sessions[0].submit("start", **ask(account, package))
    until((folder / "code").exists, "the beginning of the snapshot")
    with pytest.raises(NameTaken):
        sessions[1].request("start", **ask(account, package, token="another"))
    assert sessions[1].request("start", **ask(account, package))["state"] in ("starting", "running", "ended")
    Started(account, "run").end()
    assert starts(account) == 1


def test_a_missing_python_is_a_start_error(account: Account) -> None:
    started = account.start("pass", python="/nowhere/python")
    ended = started.end()
    assert "/nowhere/python" in ended["start_error"]
    assert (ended["code"], ended["signal"]) == (None, None)


def test_a_missing_folder_is_a_start_error_that_names_the_folder(account: Account) -> None:
    started = account.start("pass", cwd="not/there")
    assert "not/there" in started.end()["start_error"]


@pytest.mark.parametrize("run", ["../evil", "A", "", "a/b", "x" * 64, 7, None])
def test_no_run_id_leaves_the_state_root(account: Account, run: Any) -> None:
    session = account.connect()
    package = account.ship(session, {"train.py": COUNTING})
    with pytest.raises(UsageError):
        session.request("start", **{**ask(account, package), "run": run})


@pytest.mark.parametrize("key", ["run", "attempt", "plan", "token"])
def test_a_request_without_its_keys_is_answered_not_fatal(account: Account, key: str) -> None:
    session = account.connect()
    package = account.ship(session, {"train.py": COUNTING})
    message = ask(account, package)
    del message[key]
    with pytest.raises(ProtocolError):
        session.request("start", **message)
    assert session.request("list")["runs"] == []


def test_no_free_gpu_is_an_unfit_host(account: Account) -> None:
    session = account.connect()
    package = account.ship(session, {"train.py": COUNTING})
    with pytest.raises(HostUnfit):
        session.request("start", **ask(account, package, device="cuda", gpus={"count": 64}))
    assert starts(account) == 0
