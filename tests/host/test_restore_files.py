"""A later attempt: which may start beside the others, and the files of an older one in its snapshot."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.errors import NameTaken, ProtocolError, StartFailed
from remote_train.host import attempt, files, layout
from remote_train.host.durable import read_record
from tests.host.account_kit import Account, Started, sha256, until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from remote_train.session import Session

MAKING = """
import os
os.makedirs("out", exist_ok=True)
open("out/ckpt.pt", "wb").write(b"state of step 5")
"""
READING = """
import sys
print("found", open(sys.argv[1]).read() if len(sys.argv) > 1 else "", flush=True)
"""
SLEEPING = 'import time\nprint("up", flush=True); time.sleep(600)\n'
STATE = b"state of step 5"


class Later(Started):
    """An attempt that is not the first."""

    def __init__(self, account: Account, number: int) -> None:
        super().__init__(account, "run")
        self.folder = account.root / "runs" / "run" / "attempts" / str(number)


def row(path: str = "out/ckpt.pt", content: bytes = STATE, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "path": path,
        "mode": 0o644,
        "size": len(content),
        "sha256": sha256(content),
        "attempt": 1,
    }
    return made | changes


def ask(
    account: Account, session: Session, script: str, restore: Sequence[dict[str, Any]] = (), **changes: Any
) -> dict[str, Any]:
    """Start attempt 2 of the run that reads a file."""
    package = account.ship(session, {"train.py": script, "own/ckpt.pt": "of the package"})
    number = changes.pop("attempt", 2)
    more = {key: changes.pop(key) for key in ("known", "supersede") if key in changes}
    place = restore[0]["path"] if restore else "train.py"
    message = account.message(
        package, "train.py", place, restore=tuple(restore), token=f"t{number}", **changes
    )
    return session.request("start", **(message | {"attempt": number} | more))


@pytest.fixture
def first(account: Account) -> Started:
    """A run whose first attempt has ended."""
    started = account.start(MAKING)
    assert started.end()["code"] == 0
    return started


def test_a_file_of_an_older_attempt_lies_at_its_place(account: Account, first: Started) -> None:
    session = account.connect()
    ask(account, session, READING, [row(sha256=None)])
    later = Later(account, 2)
    assert later.end()["code"] == 0
    assert later.says(b"found") == STATE
    assert later.end()["attempt"] == 2
    assert later.record["restored"] == [row()]
    copy, old = later.folder / "code" / "out" / "ckpt.pt", first.folder / "code" / "out" / "ckpt.pt"
    assert copy.stat().st_ino != old.stat().st_ino  # what the new attempt writes changes no other
    made = files.list_made(str(account.root), str(later.folder), later.record, [])
    assert made == []  # it has made nothing itself


@pytest.mark.usefixtures("first")
def test_a_file_of_the_store_lies_at_its_place_and_is_asked_for_first(account: Account) -> None:
    session = account.connect()
    content = b"from the laptop"
    wanted = row(content=content, attempt=None)
    assert ask(account, session, READING, [wanted]) == {"need": "blobs", "blobs": [sha256(content)]}
    account.ship(session, {"x": content})
    ask(account, session, READING, [wanted])
    assert Later(account, 2).says(b"found") == content


def test_it_replaces_the_packages_own_file(account: Account, first: Started) -> None:
    code = first.folder / "code" / "own"
    code.mkdir()
    (code / "ckpt.pt").write_bytes(STATE)
    ask(account, account.connect(), READING, [row("own/ckpt.pt")])
    assert Later(account, 2).says(b"found") == STATE


@pytest.mark.parametrize("kind", ["gone", "longer", "other contents", "link", "link above", "folder"])
def test_what_is_not_that_file_is_not_put_there(
    account: Account, first: Started, tmp_path: Path, kind: str
) -> None:
    place = first.folder / "code" / "out" / "ckpt.pt"
    secret = tmp_path / "secret"
    secret.write_bytes(STATE)
    place.unlink()
    if kind == "longer":
        place.write_bytes(STATE + b"!")
    elif kind == "other contents":
        place.write_bytes(STATE[::-1])
    elif kind == "link":
        place.symlink_to(secret)
    elif kind == "link above":
        place.parent.rmdir()
        place.parent.symlink_to(tmp_path)
        secret.rename(tmp_path / "ckpt.pt")
    elif kind == "folder":
        place.mkdir()
    with pytest.raises(StartFailed, match=r"out/ckpt\.pt"):
        ask(account, account.connect(), READING, [row()])
    assert not Later(account, 2).folder.exists()  # and nothing is left in the way of another try
    assert attempt.list_attempts(str(account.root), "run") == [1]


@pytest.mark.usefixtures("first")
def test_no_link_of_the_snapshot_leads_a_file_out_of_it(account: Account, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with pytest.raises(StartFailed, match="stands where"):
        ask(account, account.connect(), READING, [row()], links={"out": str(outside)})
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "../x"},
        {"path": "/x"},
        {"path": "a/../../x"},
        {"path": ""},
        {"attempt": 2},
        {"attempt": 0},
        {"attempt": "1"},
        {"attempt": None, "sha256": None},
        {"sha256": "../../../x"},
        {"size": -1},
        {"size": True},
    ],
    ids=str,
)
@pytest.mark.usefixtures("first")
def test_rows_that_name_no_such_file_are_refused(account: Account, changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        ask(account, account.connect(), READING, [row(**changes)])
    assert not Later(account, 2).folder.exists()


def test_an_older_attempt_that_lives_is_in_the_way(account: Account) -> None:
    first = account.start(SLEEPING)
    first.says(b"up")
    session = account.connect()
    with pytest.raises(NameTaken, match="attempt 1 of run is still running"):
        ask(account, session, READING)
    assert first.state()["state"] == "running"
    assert not Later(account, 2).folder.exists()

    ask(account, session, READING, supersede=True)

    assert Later(account, 2).end()["code"] == 0
    ended = first.end()
    assert ended["stopped"]
    assert first.members() == []
    assert (read_record(str(first.folder / layout.STOP)) or {})["superseded_by"] == 2


@pytest.mark.usefixtures("first")
def test_a_lower_attempt_than_the_highest_is_refused(account: Account) -> None:
    session = account.connect()
    ask(account, session, READING, attempt=3)
    assert Later(account, 3).end()["code"] == 0
    with pytest.raises(NameTaken, match="attempt 3 of run has been started"):
        ask(account, session, READING, attempt=2)
    assert attempt.list_attempts(str(account.root), "run") == [1, 3]


def test_a_first_attempt_that_comes_late_is_refused(account: Account) -> None:
    session = account.connect()
    ask(account, session, READING, attempt=2)
    assert Later(account, 2).end()["code"] == 0
    with pytest.raises(NameTaken, match="attempt 2 of run has been started"):
        ask(account, session, READING, attempt=1)
    assert attempt.list_attempts(str(account.root), "run") == [2]


def test_a_run_of_another_laptop_with_the_same_name_is_left_alone(account: Account, first: Started) -> None:
    session = account.connect()
    with pytest.raises(NameTaken, match="another laptop"):
        ask(account, session, READING, known={"1": "not its token"})
    ask(account, session, READING, known={"1": first.record["token"]})
    assert Later(account, 2).end()["code"] == 0


@pytest.mark.usefixtures("first")
def test_two_starts_of_one_attempt_are_one(account: Account) -> None:
    sessions = [account.connect(), account.connect()]
    package = account.ship(sessions[0], {"train.py": READING})
    answers: list[str] = []
    gate = threading.Barrier(2)

    def start(session: Session, token: str) -> None:
        message = account.message(package, "train.py", token=token)
        gate.wait()
        try:
            answers.append(session.request("start", **{**message, "attempt": 2})["attempt"]["token"])
        except NameTaken:
            answers.append("refused")

    threads = [
        threading.Thread(target=start, args=(session, f"t{place}")) for place, session in enumerate(sessions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "refused" in answers
    until(lambda: Later(account, 2).state()["state"] == "ended", "its end")
    assert Later(account, 2).record["token"] in answers


def test_a_big_file_is_whole(account: Account, first: Started) -> None:
    content = os.urandom(5 << 20)
    (first.folder / "code" / "big").write_bytes(content)
    ask(account, account.connect(), "pass", [row("big", content)])
    assert Later(account, 2).end()["code"] == 0
    assert sha256((Later(account, 2).folder / "code" / "big").read_bytes()) == sha256(content)
