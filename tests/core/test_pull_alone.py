"""Several pulls of one run on one laptop: each waits for its turn, and none takes another's bytes for its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from remote_train import along, partial
from remote_train.blocks import Blocks, Fetcher
from remote_train.errors import PullIncomplete
from remote_train.landing import PARTIAL
from remote_train.partial import PullInterrupted, pulling_alone
from remote_train.pull import Pull, PullWish
from remote_train.records import Run
from remote_train.refusals import SourceChanged
from tests.core.cutting_link import CuttingLink, Ears
from tests.host.account_kit import sha256, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from remote_train.session import Inbox
    from tests.host.account_kit import Account

SIZE = 9_000_000
"""More than one window of credit."""
HOLDING = """
import os, sys, time
from pathlib import Path
from remote_train.partial import pulling_alone
from remote_train.records import Run

run, place = Run("run", Path(sys.argv[1])), Path(sys.argv[2])
of = {"path": "big.pt", "attempt": 1}
folder = os.open(place.parent, os.O_RDONLY)
with pulling_alone(run, lambda: None) as partials, partials.writing(place, folder, of) as partial:
    partial.identify({"size": 8, "mtime_ns": 1, "inode": "1"})
    partial.write(memoryview(b"half"))
    partial.confirm()
    print("holding", flush=True)
    time.sleep(600)
"""
WAITING = """
import sys
from pathlib import Path
from remote_train.partial import pulling_alone
from remote_train.records import Run

def wait():
    print("waiting", flush=True)

try:
    with pulling_alone(Run("run", Path(sys.argv[1])), wait):
        print("mine", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.fixture
def run(account: Account) -> Run:
    started = account.start(f"import os; open('big.pt', 'wb').write(os.urandom({SIZE}))")
    assert started.end()["code"] == 0
    return account.client_run(started)


@contextmanager
def holding(run: Run, place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Have another process pull the run, in the middle of a file."""
    place.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-c", HOLDING, str(run.folder), str(place)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"holding\n"
            yield process
        finally:
            process.kill()


def made(account: Account) -> bytes:
    return (account.root / "runs" / "run" / "attempts" / "1" / "code" / "big.pt").read_bytes()


def partials(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(PARTIAL)]


class Meeting(Fetcher):
    """Another pull of the run begins while the first has half of the file."""

    second: Callable[[], object] | None = None

    def _take(self, inbox: Inbox, path: str, blocks: Blocks) -> dict[str, Any]:
        second, self.second = self.second, None
        if second is not None:
            second()
        return super()._take(inbox, path, blocks)


def test_a_second_pull_waits_and_finds_the_file_here(
    account: Account, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "WORD_SECONDS", 0.2)
    ears = Ears()
    link = CuttingLink()
    late = Pull(run, 1, link, link.connect(), ears)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(late.bring(PullWish())))

    def meet() -> None:
        thread.start()
        until(lambda: ears.told, "the word that it waits")

    first = Pull(run, 1, link, link.connect(), Ears())
    first.fetcher = meeting = Meeting(run.id, 1, first.fetcher.line, "local")
    meeting.second = meet
    brought = first.bring(PullWish())
    thread.join(30)
    [late_result] = results
    place = run.files / "big.pt"
    assert (brought.files, late_result.files, late_result.unchanged) == ([place], [], [place])
    assert sha256(place.read_bytes()) == sha256(made(account))
    [(kind, facts)] = ears.told
    assert (kind, "another pull of run" in facts["text"]) == ("note", True)
    assert partials(run.folder) == []
    for pull in (first, late):
        pull.session.close()


def test_who_waits_can_be_interrupted_and_keeps_the_run_in_use(run: Run, tmp_path: Path) -> None:
    with holding(run, tmp_path / "there" / "big.pt") as holder:
        argv = [sys.executable, "-c", WAITING, str(run.folder)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as waiter:
            assert waiter.stdout is not None
            assert waiter.stdout.readline() == b"waiting\n"
            holder.kill()
            assert waiter.stdout.readline() == b"mine\n"
            assert waiter.wait(15) == 0
    assert not run.in_use()
    with holding(run, tmp_path / "there" / "big.pt"):
        assert run.in_use()
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as waiter:
            assert waiter.stdout is not None
            assert waiter.stdout.readline() == b"waiting\n"
            waiter.send_signal(signal.SIGINT)
            assert waiter.stdout.readline() == b"interrupted\n"
            assert waiter.wait(15) == 0


def test_what_a_killed_pull_left_goes_with_the_next_wherever_it_lies(
    account: Account, run: Run, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    with holding(run, there / "big.pt"):
        assert len(partials(there)) == 1
    assert len(partials(there)) == 1
    link = CuttingLink()
    pull = Pull(run, 1, link, link.connect(), Ears())
    pull.bring(PullWish())
    pull.session.close()
    assert partials(tmp_path) == []
    assert (run.files / "big.pt").read_bytes() == made(account)


def test_a_link_where_the_partial_is_to_be_is_not_followed(run: Run, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    run.files.mkdir()
    (run.files / f".big.pt.{os.getpid()}{PARTIAL}").symlink_to(precious)
    link = CuttingLink()
    pull = Pull(run, 1, link, link.connect(), Ears())
    with pytest.raises(PullIncomplete):
        pull.bring(PullWish())
    pull.session.close()
    assert precious.read_text() == "mine"


def test_a_partial_goes_from_the_folder_that_it_was_made_in(tmp_path: Path) -> None:
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    there.mkdir()
    folder = os.open(there, os.O_RDONLY)
    of = {"path": "big.pt", "attempt": 1}
    with (
        pulling_alone(Run("run", tmp_path), int) as begun,
        suppress(SourceChanged),
        begun.writing(there / "big.pt", folder, of) as made,
    ):
        made.identify({"size": 8, "mtime_ns": 1, "inode": "1"})
        shutil.copytree(there, elsewhere)
        there.rename(tmp_path / "moved")
        there.symlink_to(elsewhere)
        raise SourceChanged
    os.close(folder)
    assert [path.parent for path in partials(tmp_path)] == [elsewhere]


def test_a_connection_that_was_followed_on_is_closed_where_no_pull_begins_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    session = SimpleNamespace(close=lambda: closed.append("it"))

    def fail(_folder: Path) -> None:
        raise PermissionError

    (tmp_path / "run.json").write_text('{"state": "ended"}')
    monkeypatch.setattr(along, "_stay", lambda *_: session)
    monkeypatch.setattr(along, "drop_leftovers", fail)
    link: Any = None
    with pytest.raises(PermissionError):
        along.pull_along(Run("run", tmp_path), 1, link, PullWish(match=("*",)), Ears())
    assert closed == ["it"]


@pytest.mark.usefixtures("account")
def test_a_pull_that_is_told_to_leave_off_does_not_wait_for_an_answer() -> None:
    session = CuttingLink().connect()

    def stop() -> None:
        raise PullInterrupted

    with pytest.raises(PullInterrupted):
        session.wait(10**9, 600.0, stop)  # an answer that never comes
    session.close()
