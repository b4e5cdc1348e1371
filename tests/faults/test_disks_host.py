"""A host whose disk is full, read-only or failing: nothing half-done, a stop that works, and the gap on record."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.errors import HostSpace, HostUnfit, VerificationFailed
from remote_train.follow import OUTPUTS_ALWAYS, Following, Outcome, Wish
from remote_train.host import layout, system
from remote_train.ship import Shipment
from remote_train.transport.local import LocalTransport
from tests.core.cutting_link import Ears
from tests.faults.counts import PATIENT, Goal
from tests.faults.invariants import check
from tests.faults.tiny_disk import TinyDisk, tiny_ext4, tiny_tmpfs
from tests.host.account_kit import Account, Started, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from remote_train.package.packing import Package
    from remote_train.records import Run
    from remote_train.session import Session
    from remote_train.transport.local import LocalChannel
    from tests.host.account_kit import Content

pytestmark = PATIENT

SIZE = 8 << 20
TOUGH = """
import os, sys, time
print("up", flush=True)
number = 0
while not os.path.exists(sys.argv[1]):
    number += 1
    try:
        os.write(1, b"%07d " % number + b"x" * 991 + b"\\n")
    except OSError:
        pass
    time.sleep(0.01)
sys.exit(int(sys.argv[2]))
"""
"""A training that outlives a full disk: it ends once the file that it is given is there."""


@pytest.fixture
def disk(account: Account) -> Iterator[TinyDisk]:
    """The account's state root, on a file system of its own."""
    with tiny_tmpfs(account.root, SIZE) as mounted:
        yield mounted
        account.close()


def start_tough(account: Account, tmp_path: Path, code: int = 0) -> tuple[Started, Path]:
    over = tmp_path / "over"
    started = account.start(TOUGH, str(over), str(code))
    started.says(b"up")
    until(lambda: read_lines(started.folder / layout.CLOCK), "the clock's first line")
    return started, over


def leftovers(account: Account) -> list[str]:
    """Return temporary files below the state root."""
    found = [*account.root.rglob("*.tmp"), *account.root.rglob("incoming.*")]
    return [str(path) for path in found if layout.CODE not in path.parts]


def ship_random(account: Account, session: Session, size: int) -> str:
    data = random.Random(size).randbytes(size)
    return account.ship(session, {"train.py": "print('done')", "data.bin": data})


def test_a_package_that_finds_no_space_leaves_nothing_and_comes_once_there_is_some(
    account: Account, disk: TinyDisk
) -> None:
    session = account.connect()
    session.request("list")
    disk.fill(leave=256 << 10)
    with pytest.raises(HostSpace) as refused:
        ship_random(account, session, 2 << 20)
    assert "No space left on device" in refused.value.message
    assert str(account.root / "blobs") in refused.value.message
    assert "2,097,152 bytes were to be written" in refused.value.message
    until(lambda: leftovers(account) == [], "the agent to take away what it wrote")
    check(account.root)

    disk.release()
    package = ship_random(account, session, 2 << 20)
    session.request("start", **account.message(package))
    assert Started(account, "run").end()["code"] == 0
    check(account.root)


@pytest.mark.parametrize("leave", [0, 96 << 10])
def test_a_start_that_finds_no_space_has_started_nothing_and_works_later(
    account: Account, disk: TinyDisk, leave: int
) -> None:
    """With nothing left not even the claim can be written; with 96 KiB the snapshot cannot."""
    session = account.connect()
    package = ship_random(account, session, 1 << 20)
    disk.fill(leave)
    with pytest.raises(HostSpace, match="No space left"):
        session.request("start", **account.message(package))
    folder = account.root / "runs" / "run" / "attempts" / "1"
    assert {path.name for path in folder.glob("*")} <= {layout.LOCK}
    assert leftovers(account) == []

    disk.release()
    session.request("start", **account.message(package, token="of another command"))
    assert Started(account, "run").end()["code"] == 0
    check(account.root)


def test_a_read_only_disk_is_told_as_such_and_nothing_is_started(account: Account, disk: TinyDisk) -> None:
    session = account.connect()
    package = account.ship(session, {"train.py": "print('done')"})
    session.close()
    disk.remount("ro")
    again = account.connect()
    with pytest.raises(HostSpace, match="Read-only file system"):
        again.request("start", **account.message(package))
    with pytest.raises(HostSpace, match="Read-only file system"):
        account.ship(again, {"train.py": "print('another')"})
    disk.remount("rw")
    again.request("start", **account.message(package))
    assert Started(account, "run").end()["code"] == 0


def test_the_first_contact_on_a_full_disk_says_so_and_leaves_no_half_agent(
    account: Account, disk: TinyDisk
) -> None:
    disk.fill()
    with pytest.raises(HostSpace, match="No space left"):
        account.connect()
    assert list((account.root / "agents").glob("*")) == []
    disk.release()
    account.connect().request("list")


def test_a_disk_that_fills_up_costs_neither_the_stop_nor_the_end(
    account: Account, disk: TinyDisk, tmp_path: Path
) -> None:
    started, _ = start_tough(account, tmp_path)
    session = account.connect()
    disk.fill()
    session.request("stop", run="run", attempt=1, grace=5.0)
    ended = started.end()
    assert ended["stopped"]
    assert ended["survivors"] == []
    assert started.members() == []
    (gap,) = ended["gaps"]
    assert gap["reason"] == "ENOSPC"
    assert gap["begin"]["sizes"]["0"] <= ended["outputs"]["0"]
    disk.release()
    check(account.root)


def test_the_gap_is_in_the_clock_and_in_the_end_and_the_training_goes_on(
    account: Account, disk: TinyDisk, tmp_path: Path
) -> None:
    started, over = start_tough(account, tmp_path, 3)
    clock = started.folder / layout.CLOCK
    disk.fill()
    stuck = until_still(started)
    disk.release()
    told = until(lambda: [line for line in read_lines(clock) if "gap" in line], "the gap in the clock")
    assert started.supervisor_lives()
    over.touch()
    ended = started.end()
    assert (ended["code"], ended["stopped"]) == (3, False)
    (gap,) = ended["gaps"]
    assert told == [{"gap": gap}]
    assert gap["begin"]["sizes"]["0"] <= stuck <= gap["end"]["sizes"]["0"] <= ended["outputs"]["0"]
    assert gap["begin"]["mono"] < gap["end"]["mono"]
    numbers = [int(line[:7]) for line in started.output().split(b"\n")[1:-1] if line[:7].isdigit()]
    assert numbers[-1] > len(numbers), "the training lost lines, or this test shows nothing"
    check(account.root)


def until_still(started: Started) -> int:
    """Return the size of the output once a full disk holds it."""
    seen: list[int] = []

    def look() -> bool:
        seen.append(len(started.output()))
        return len(seen) > 60 and len(set(seen[-50:])) == 1

    until(look, "the output to stand still")
    return seen[-1]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of the clock; one that a full disk cut short is none."""
    lines = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def test_the_end_waits_for_space_where_even_the_reserve_is_gone(
    account: Account, disk: TinyDisk, tmp_path: Path
) -> None:
    started, over = start_tough(account, tmp_path)
    take_reserve(started, disk)
    over.touch()
    log = started.folder / layout.SUPERVISOR_LOG
    until(lambda: not set(started.members()) - {started.record["pid"]}, "the training's end")
    assert started.supervisor_lives()
    assert not (started.folder / layout.EXIT).exists()
    disk.release()
    assert started.end()["code"] == 0
    assert log.exists()
    check(account.root)


def take_reserve(started: Started, disk: TinyDisk) -> None:
    """Fill the disk and take what is held back too, before the supervisor can hold it anew."""
    reserve = started.folder / layout.RESERVE
    disk.fill()
    while reserve.exists():
        reserve.unlink()
        disk.fill()


def test_the_large_reserve_is_freed_so_that_the_words_go_on(account: Account, tmp_path: Path) -> None:
    with tiny_ext4(account.root, tmp_path / "image", 3 << 30) as disk:
        started, over = start_tough(account, tmp_path)
        reserve = started.folder / layout.LARGE_RESERVE
        until(reserve.exists, "the large reserve")
        assert reserve.stat().st_blocks * 512 >= 16 << 20
        disk.fill()
        until(lambda: not reserve.exists(), "the reserve to be freed")
        before = len(started.output())
        until(lambda: len(started.output()) > before + 20_000, "the words to go on")
        over.touch()
        ended = started.end()
        assert ended["code"] == 0
        assert [gap["reason"] for gap in ended["gaps"]] == ["ENOSPC"]
        account.close()


def test_a_folder_that_is_removed_under_a_run_does_not_orphan_it(account: Account, tmp_path: Path) -> None:
    started, _ = start_tough(account, tmp_path)
    record = started.record
    shutil.rmtree(started.folder, ignore_errors=True)
    try:
        # two ticks later it still answers: TERM to the supervisor ends what it started
        system.kill_process(record["pid"], record["start_time"], signal.SIGTERM)
        child = record["child"]
        until(lambda: system.start_time(child) is None, "the training's end")
        assert system.is_alive(record["pid"], record["start_time"])
    finally:
        system.sweep(record["pid"], record["cookie"], 10.0)
        system.kill_process(record["pid"], record["start_time"], signal.SIGKILL)


class LimitedTransport(LocalTransport):
    """This machine, with a limit that the login's shell sets."""

    def __init__(self, limit: str) -> None:
        super().__init__()
        self.limit = limit

    def open(self, command: str) -> LocalChannel:
        return super().open(f"{self.limit}; {command}")


@pytest.mark.parametrize(
    ("limit", "words"), [("ulimit -f 512", "`ulimit -f`"), ("ulimit -n 12", "`ulimit -n`")]
)
def test_a_limit_of_the_login_is_named(account: Account, limit: str, words: str) -> None:
    account.connect().request("list")  # the agent is there: its own files are below the limit on sizes
    session = account.connect(transport=LimitedTransport(limit))
    root, package = account.package({"train.py": "x = 1", "data.bin": random.Random(1).randbytes(1 << 20)})
    with pytest.raises(HostUnfit) as refused:
        ship_and_start(session, root, package, account.message(package.package_id))
    assert words in refused.value.message
    assert leftovers(account) == []


def test_any_byte_of_a_disk_may_be_the_last(account: Account, disk: TinyDisk) -> None:
    """Fill at a random byte, try, check; free, and the same request brings the one run."""
    account.connect().request("list")
    goal = Goal("G8 host disk full at a random byte: exit 14 or done, then done", reduced=3, nightly=200)
    with goal:
        for trial in goal:
            with trial:
                fill_ship_start(account, disk, trial.chance, f"run{trial.number}")


def fill_ship_start(account: Account, disk: TinyDisk, chance: random.Random, run: str) -> None:
    files: dict[str, Content] = {
        "train.py": "print('done', flush=True)",
        "data.bin": chance.randbytes(chance.randrange(900_000)),
    }
    root, package = account.package(files)
    message = account.message(package.package_id, run=run)
    disk.fill(leave=chance.randrange(3 << 20))
    with contextlib.suppress(HostSpace):
        ship_and_start(account.connect(), root, package, message)
    assert leftovers(account) == []
    check(account.root, runs={run})
    disk.release()
    ship_and_start(account.connect(), root, package, message)
    started = Started(account, run)
    ended = started.end()
    assert started.output() == (b"done\n" if ended["code"] == 0 else started.output())
    check(account.root)
    for folder in (account.root / "runs" / run, account.root / "blobs", account.root / "packages"):
        shutil.rmtree(folder)


def ship_and_start(session: Session, root: Path, package: Package, message: dict[str, Any]) -> None:
    follow = {"run": message["run"], "attempt": 1, "outputs": [], "wait": False}
    try:
        Shipment(session, root, package).start({}, {**message, "expect": None}, follow)
    finally:
        session.close()


def test_bytes_that_a_power_cut_took_from_the_host_stay_here_and_are_told(
    account: Account, tmp_path: Path
) -> None:
    """The mirror has more than the host then: the run is lost, and so is what the host says of its end."""
    over = tmp_path / "over"
    started = account.start(TOUGH, str(over), "0")
    started.says(b"up")
    run = account.client_run(started)
    first, again = Ears(), Ears()
    attend(account, run, first, until_end=False)
    held = run.attempt(1).output("0").read_bytes()
    assert held.startswith(b"up\n")

    started.kill_supervisor()
    system.sweep(None, started.record["cookie"], 10.0)
    log = started.folder / "ranks" / "0.log"
    os.truncate(log, 2)
    (started.folder / layout.CLOCK).unlink(missing_ok=True)

    outcome = attend(account, run, again, until_end=True)
    assert (outcome.state, outcome.exit) == ("lost", None)
    told = [facts["text"] for kind, facts in again.told if kind == "warn"]
    assert f"local lost bytes 2 to {len(held):,} of rank 0's output when it went down" in told
    assert run.attempt(1).output("0").read_bytes() == held
    assert again.heard == b""


def test_an_output_that_somebody_has_cut_is_no_protocol_error(account: Account, tmp_path: Path) -> None:
    over = tmp_path / "over"
    started = account.start(TOUGH, str(over), "0")
    started.says(b"up")
    run = account.client_run(started)
    attend(account, run, Ears(), until_end=False)
    held = run.attempt(1).output("0").read_bytes()
    over.touch()
    started.end()
    os.truncate(started.folder / "ranks" / "0.log", 1)
    with pytest.raises(VerificationFailed, match="somebody has cut it"):
        attend(account, run, Ears(), until_end=True)
    assert run.attempt(1).output("0").read_bytes() == held


def attend(account: Account, run: Run, listener: Ears, *, until_end: bool) -> Outcome:
    """Follow a run from what is here of it."""
    wish = Wish(run, 1, ["0", *OUTPUTS_ALWAYS], {0}, until_end=until_end)
    following = Following(wish, account.link(), listener, writing=True)
    following.begin(following.link.connect())
    try:
        return following.run()
    finally:
        following.close()
