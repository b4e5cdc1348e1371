"""Tickets and turns in this very process: machines that share a home, a lock that is held, a full disk, a driver that hangs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.errors import HostBusy
from remote_train.host import (
    benching,
    commands,
    driver_reader,
    facts,
    gpu_users,
    layout,
    locks,
    nvml,
    tickets,
    waiting,
)
from remote_train.host.driver_reader import SILENT, DriverReader
from remote_train.host.start import Refusal
from remote_train.host.tickets import QueueBusy, Tickets
from remote_train.host.waiting import GpusBusy, Turn, look_at_queue, take_ticket
from remote_train.refusals import make_refusal
from tests.host.account_kit import until
from tests.host.gpu_kit import Driver, library, uuid_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["library"]


@pytest.fixture
def driver(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setenv("REMOTE_TRAIN_NVML", library)
    monkeypatch.setenv("FAKE_NVIDIA_FILE", str(tmp_path / "driver.txt"))
    return Driver(tmp_path / "driver.txt")


class Start:
    """Ways to take tickets of one state root, all given back at the end."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.turns: list[Turn] = []

    def take(self, run: str, wanted: object = 1, on_busy: str = "queue", **more: Any) -> Turn:
        gpus = {"count": wanted, **more} if isinstance(wanted, int) else {"ids": wanted}
        request = {"run": run, "attempt": 1, "plan": {"gpus": gpus}, "on_busy": on_busy}
        self.turns.append(take_ticket(self.root, request))
        return self.turns[-1]

    def live(self) -> list[str]:
        with Tickets(self.root) as locked:
            return [ticket["run"] for ticket in locked.read_live()]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    start = Start(tmp_path / "root")
    yield start
    for turn in start.turns:
        turn.ticket.give_back()


def given(turn: Turn) -> list[str]:
    return [gpu["uuid"] for gpu in turn.gpus]


def boot(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> None:
    """Be a machine of this boot from now on."""
    (folder / name).write_text(name)
    monkeypatch.setenv("REMOTE_TRAIN_BOOT_ID_FILE", str(folder / name))


@pytest.mark.usefixtures("driver")
def test_machines_that_share_a_home_have_queues_of_their_own(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot(monkeypatch, tmp_path, "one")
    holder, queued = start.take("holder", 2), start.take("queued", 2)
    # As where one machine does not see another's locks: the ticket looks dead, and its run is of another boot.
    fcntl.flock(queued.ticket.fd, fcntl.LOCK_UN)
    fcntl.flock(holder.ticket.fd, fcntl.LOCK_UN)

    boot(monkeypatch, tmp_path, "two")
    other = start.take("other")

    assert given(other) == [uuid_of(0)]
    assert start.live() == ["other"]
    assert Path(queued.ticket.path).exists()
    assert Path(holder.ticket.path).exists()


def test_what_boots_of_long_ago_left_is_removed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, age in (("old", tickets.FORGET_SECONDS + 60), ("new", 60)):
        boot(monkeypatch, tmp_path, name)
        assert start.live() == []
        then = time.time() - age
        os.utime(Path(start.root) / layout.TICKETS / name, (then, then))

    boot(monkeypatch, tmp_path, "now")
    assert start.live() == []

    assert {path.name for path in (Path(start.root) / layout.TICKETS).iterdir()} == {"new", "now"}


def test_who_gives_back_a_ticket_that_is_gone_takes_nobody_else_s(start: Start) -> None:
    with Tickets(start.root) as locked:
        lost = locked.add("lost", 1, {"wanted": 1})
        Path(lost.path).unlink()
        other = locked.add("other", 1, {"wanted": 1})
        assert other.path == lost.path
        lost.give_back()
        assert [ticket["run"] for ticket in locked.read_live()] == ["other"]
        other.give_back()


def test_a_ticket_that_cannot_be_written_is_none(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Tickets(start.root) as locked:
        monkeypatch.setattr(tickets, "write_all", refuse)
        with pytest.raises(OSError, match="No space left"):
            locked.add("run", 1, {"wanted": 1})
        assert [path.name for path in Path(locked.folder).iterdir()] == [layout.TICKETS_LOCK]


def test_a_queue_that_is_locked_for_too_long_is_said(start: Start) -> None:
    assert start.live() == []
    (path,) = Path(start.root).glob(f"{layout.TICKETS}/*/{layout.TICKETS_LOCK}")
    lock = locks.open_lock(str(path))
    assert locks.try_lock(lock)
    with pytest.raises(QueueBusy, match="locked for too long"), Tickets(start.root, 0.02):
        pass
    os.close(lock)


@pytest.mark.parametrize("due", [True, False])
def test_who_waits_shows_life_to_machines_that_share_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, due: bool
) -> None:
    monkeypatch.setattr(waiting, "SIGN_SECONDS", 0.0 if due else 60.0)
    turn: Any = SimpleNamespace(wait={}, look_again=lambda: False)
    asked, signs = iter([False, False, True]), list[bool]()

    def rest(_seconds: float) -> None:
        signs.append((tmp_path / layout.QUEUE).exists())
        (tmp_path / layout.QUEUE).unlink(missing_ok=True)

    assert not waiting.await_turn(str(tmp_path), turn, lambda: next(asked), rest)
    assert signs == [due, due]


@pytest.mark.usefixtures("driver")
def test_gpus_are_seen_in_the_order_they_were_named_in(start: Start) -> None:
    assert given(start.take("swapped", ["1", "0"])) == [uuid_of(1), uuid_of(0)]


@pytest.mark.usefixtures("driver")
def test_one_of_those_that_are_named_is_whichever_is_free(start: Start) -> None:
    both = [uuid_of(1), uuid_of(0)]
    first, second = start.take("first", among=both), start.take("second", among=both)
    third = start.take("third", among=both)

    assert (given(first), given(second), given(third)) == ([uuid_of(1)], [uuid_of(0)], [])
    assert (third.wait["gpus"], third.wait["count"]) == ([0, 1], 1)
    first.ticket.give_back()
    until(third.look_again, "its turn")
    assert given(third) == [uuid_of(1)]


def test_share_starts_beside_whoever_is_there(driver: Driver, start: Start) -> None:
    driver.tell(2, (0, os.getpid(), 10**9, "C"))
    held, waits = start.take("held"), start.take("waits")
    assert (given(held), given(waits)) == ([uuid_of(1)], [])

    shares = start.take("shares", on_busy="share")

    assert (given(shares), shares.shared) == ([uuid_of(0)], True)
    assert start.live() == ["held", "waits", "shares"]
    held.ticket.give_back()
    waits.ticket.give_back()
    alone = start.take("alone", on_busy="share")
    assert (given(alone), alone.shared) == ([uuid_of(1)], False)


def test_names_are_asked_for_once_and_not_under_the_lock(
    driver: Driver, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pwd

    locked: list[bool] = []
    real = pwd.getpwuid

    def slow(uid: int) -> Any:
        (path,) = Path(start.root).glob(f"{layout.TICKETS}/*/{layout.TICKETS_LOCK}")
        fd = locks.open_lock(str(path))
        locked.append(not locks.try_lock(fd))
        os.close(fd)
        return real(uid)

    monkeypatch.setattr(pwd, "getpwuid", slow)
    monkeypatch.setattr(gpu_users, "lists_our_pids", lambda: True)
    gpu_users._name_account.cache_clear()
    me = os.getpid()
    driver.tell(2, (0, me, 10**9, "C"), (1, me, 10**9, "C"))

    turn = start.take("waits")
    assert not turn.look_again()

    assert [user["pid"] for user in turn.wait["users"]] == [me, me]
    assert locked == [False]


def test_a_container_does_not_name_the_processes_of_its_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_users, "lists_our_pids", lambda: False)
    assert gpu_users.describe_process(os.getpid()) == {"pid": os.getpid(), "account": None, "process": None}


def test_pids_are_the_drivers_in_the_first_namespace_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("a pid namespace needs root")
    code = "from remote_train.host.nvml import lists_our_pids; print(lists_our_pids())"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(nvml.__file__).parents[2]
    )
    if done.returncode != 0 and "unshare" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.stdout == "False\n", done.stderr


@pytest.fixture
def asking(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The processes that ask a driver that hangs; there they outlive their kill, as in a real one."""
    started: list[Any] = []

    def note() -> Any:
        started.append(facts.start_gpu_reader())
        return started[-1]

    monkeypatch.setattr(driver_reader, "start_gpu_reader", note)
    monkeypatch.setattr(driver_reader, "READER_SECONDS", 0.05)
    monkeypatch.setattr(driver_reader, "END_SECONDS", 0.05)
    monkeypatch.setattr(commands, "KILL_SECONDS", 0.05)
    monkeypatch.setattr(os, "killpg", lambda _group, _number: None)
    driver.hang()
    yield started
    for command in started:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(command.process.pid, signal.SIGKILL)
            os.waitpid(command.process.pid, 0)


def test_the_driver_is_asked_by_one_process_at_a_time(
    driver: Driver, asking: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = DriverReader()
    reader.ask()
    until(lambda: (reader.hear(0.02), reader.why)[1] == SILENT, "it to be given up")

    driver.tell(2)
    for _ in range(3):
        reader.ask()
        assert reader.hear(0.02) is None
    assert len(asking) == 1

    os.kill(asking[0].process.pid, signal.SIGKILL)
    monkeypatch.setattr(driver_reader, "READER_SECONDS", 40.0)

    def ask_again() -> bool:
        reader.ask()
        return len(asking) == 2

    until(ask_again, "the next to ask")
    seen = reader.hear(40.0)
    assert [gpu["uuid"] for gpu in seen or []] == [uuid_of(0), uuid_of(1)]
    assert reader.why is None


def test_who_asks_an_agent_again_and_again_leaves_one_process_at_a_driver_that_hangs(
    asking: list[Any], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_reader, "_reader", DriverReader())
    for _ in range(3):
        answer = look_at_queue(start.root, {"wanted": 1})
        assert (answer["free"], answer["said"]) == (False, SILENT)
    assert len(asking) == 1


@pytest.mark.usefixtures("driver")
def test_no_start_of_cuda_for_who_asks_who_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_TRAIN_LIBCUDA", "/nowhere/libcuda.so")  # to load it would be a gpu_error
    answers: list[dict[str, Any]] = []

    def note(outcome: Any) -> dict[str, Any]:
        answers.append(facts.parse_gpus(outcome))
        return answers[0]

    monkeypatch.setattr(driver_reader, "parse_gpus", note)
    reader = DriverReader()
    reader.ask()
    assert reader.hear(40.0)
    assert answers[0]["gpu_error"] is None


def test_a_queue_whose_driver_shows_no_gpu_is_not_free_and_says_why(
    driver: Driver, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.tell(0)
    answer = look_at_queue(start.root, {"wanted": 1})
    assert (answer["free"], answer["said"]) == (False, "the NVIDIA driver sees no GPU")
    monkeypatch.setenv("FAKE_NVIDIA", "mismatch")
    words = "driver/library version mismatch: the driver was updated, restart the host"
    answer = look_at_queue(start.root, {"wanted": 1})
    assert (answer["free"], answer["said"], answer["queue"]["why"]) == (False, words, words)


def test_the_driver_is_asked_more_and_more_rarely(
    driver: Driver, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is what the test says here."""
    now = [1000.0]
    asked: list[float] = []
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(DriverReader, "ask", lambda _self: asked.append(now[0] - 1000.0))
    monkeypatch.setattr(waiting, "lists_our_pids", lambda: True)
    user = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    driver.tell(1, (0, user.pid, 10**9, "C"))
    turn = start.take("waits")

    def wait_until(moment: float) -> None:
        while now[0] < 1000.0 + moment:
            assert not turn.look_again()
            now[0] += 1.0

    wait_until(160.0)
    assert asked == [0.0, 3.0, 9.0, 21.0, 45.0, 93.0, 153.0]
    user.communicate()
    wait_until(165.0)
    assert asked[7:] == [160.0, 163.0]


def test_a_benchmark_has_its_gpu_alone_or_does_not_begin(driver: Driver, start: Start) -> None:
    plan = {"device": "cuda", "gpus": {"count": 1}}
    held = start.take("held")
    with benching._hold_gpu(start.root, plan) as gpu:
        assert gpu is not None
        assert gpu["uuid"] == uuid_of(1)
        assert start.live() == ["held", "bench"]
        with pytest.raises(GpusBusy):
            start.take("hasty", on_busy="fail")
    assert start.live() == ["held"]
    driver.tell(2, (1, os.getpid(), 10**9, "C"))
    said = "for a GPU that is free: GPU 0 is in use by held; GPU 1"
    with pytest.raises(Refusal, match=said) as refusal, benching._hold_gpu(start.root, plan):
        pass
    error = make_refusal("box", "bench", {"kind": refusal.value.kind, "message": refusal.value.message})
    assert isinstance(error, HostBusy)
    assert error.hint is not None
    assert "--on-busy" not in error.hint
    held.ticket.give_back()
