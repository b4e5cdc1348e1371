"""Attempts that wait for GPUs: real supervisors under real agents, and a driver whose words the tests choose."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.errors import HostUnfit
from remote_train.host import layout
from remote_train.host.nvml import lists_our_pids
from remote_train.host.start import start
from remote_train.host.tickets import Tickets
from tests.host.account_kit import Account, Started, agents_of, until
from tests.host.gpu_kit import TRAINING, Driver, driver, library, queue_of, uuid_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["driver", "library"]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def foreign() -> Iterator[int]:
    """A process of somebody else's, as far as our runs go."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.kill()
    process.communicate()


class Host:
    """An account with GPUs, and short ways to start trainings on them."""

    def __init__(self, account: Account) -> None:
        self.account = account
        session = account.connect()
        self.package = account.ship(session, {"train.py": TRAINING})

    def end_file(self, run: str) -> Path:
        return self.account.home / f"end-{run}"

    def start(self, run: str, wanted: object = 1, **more: Any) -> Started:
        gpus = {"count": wanted} if isinstance(wanted, int) else {"ids": wanted}
        session = self.account.connect()
        argv = ("train.py", str(self.end_file(run)))
        message = self.account.message(self.package, *argv, run=run, gpus=gpus)
        session.request("start", **message, **more)
        session.close()
        return Started(self.account, run)

    def finish(self, started: Started) -> dict[str, Any]:
        self.end_file(started.run).touch()
        return started.end()

    def tickets(self) -> list[dict[str, Any]]:
        with Tickets(str(self.account.root)) as tickets:
            return tickets.read_live()


@pytest.fixture
def host(account: Account, driver: Driver) -> Host:
    assert driver.path.exists()
    return Host(account)


def has_gpus(started: Started) -> list[str]:
    return [gpu["uuid"] for gpu in started.record["gpus"]]


def test_a_free_gpu_is_taken_at_once_and_seen_alone(host: Host) -> None:
    first, second = host.start("first"), host.start("second")

    assert first.says(b"gpus") == uuid_of(0).encode()
    assert second.says(b"gpus") == uuid_of(1).encode()
    assert (has_gpus(first), has_gpus(second)) == ([uuid_of(0)], [uuid_of(1)])
    host.finish(first)
    assert [ticket["run"] for ticket in host.tickets()] == ["second"]


def test_the_queue_is_served_in_order_when_every_laptop_is_gone(host: Host) -> None:
    holder = host.start("holder", 2)
    waiting = [host.start(f"wait{number}", 2) for number in range(3)]
    states = [started.state() for started in waiting]
    assert [(state["state"], state["phase"]) for state in states] == [("starting", "queued")] * 3
    assert [state["queue"]["place"] for state in states] == [1, 2, 3]
    assert [item["run"] for item in states[2]["queue"]["ahead"]] == ["wait0", "wait1"]
    assert {user["run"] for user in states[0]["queue"]["users"]} == {"holder"}
    for session in host.account.sessions:
        session.close()

    began = []
    for last, following in zip([holder, *waiting], waiting, strict=False):
        end = host.finish(last)
        assert end["code"] == 0
        assert following.says(b"gpus") == f"{uuid_of(0)},{uuid_of(1)}".encode()
        assert has_gpus(following) == [uuid_of(0), uuid_of(1)]
        began.append(following.record["started"])
        for later in waiting[waiting.index(following) + 1 :]:
            assert later.output() == b""
    assert began == sorted(began)
    host.finish(waiting[-1])
    assert host.tickets() == []


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_starts_at_the_same_instant_never_share_a_gpu(host: Host, count: int) -> None:
    names = [f"run{number}" for number in range(count)]
    with ThreadPoolExecutor(count) as pool:
        runs = list(pool.map(host.start, names))

    done: set[str] = set()
    while len(done) < len(runs):
        tickets = host.tickets()
        held = [uuid for ticket in tickets for uuid in ticket["gpus"]]
        assert len(held) == len(set(held))
        going = [run for run in runs if run.run not in done and run.output().endswith(b"\n")]
        seen = [run.says(b"gpus") for run in going]
        assert len(seen) == len(set(seen)) <= 2
        for run in going:
            assert host.finish(run)["code"] == 0
            done.add(run.run)
        time.sleep(0.05)
    arrived = sorted(runs, key=lambda run: float(run.record["started"]))
    assert {run.says(b"gpus") for run in arrived} == {uuid_of(0).encode(), uuid_of(1).encode()}


@pytest.mark.slow
def test_a_later_run_takes_a_gpu_that_nobody_before_it_waits_for(host: Host) -> None:
    host.start("holder", ["0"])
    waiting = host.start("waiting", ["0"])
    other = host.start("other", 1)

    assert other.says(b"gpus") == uuid_of(1).encode()
    assert waiting.state()["phase"] == "queued"


def test_a_foreign_process_is_waited_for_and_a_desktop_is_not(
    host: Host, driver: Driver, foreign: int
) -> None:
    us = os.getpid()
    desktop = ((0, us, 3 * 10**9, "G"), (1, us, 200_000_000, "B"))
    driver.tell(2, *desktop, (0, foreign, 10**9, "C"), (1, foreign, 10**9, "C"), used=4 * 10**9)
    waiting = host.start("waiting")

    user = queue_of(waiting)["users"][0]
    assert (user["gpu"], user["pid"]) == (0, foreign)
    assert (user["process"] or "").startswith("python") is lists_our_pids()
    driver.tell(2, *desktop, (0, foreign, 10**9, "C"), used=4 * 10**9)

    assert waiting.says(b"gpus") == uuid_of(1).encode()


@pytest.mark.slow
def test_memory_of_processes_that_are_not_seen_is_waited_for(host: Host, driver: Driver) -> None:
    driver.tell(1, used=6 * 10**9)
    waiting = host.start("waiting")
    assert queue_of(waiting)["users"] == [{"gpu": 0, "memory_bytes": 6 * 10**9}]

    driver.tell(1, used=400_000_000)

    assert waiting.says(b"gpus") == uuid_of(0).encode()


def test_who_does_not_want_to_wait_hears_who_uses_it(host: Host, driver: Driver, foreign: int) -> None:
    driver.tell(2, (1, foreign, 10**9, "C"))
    host.start("holder")

    with pytest.raises(HostUnfit) as refusal:
        host.start("hasty", on_busy="fail")

    assert "GPU 0 is in use by holder" in refusal.value.message
    assert f"pid {foreign}" in refusal.value.message
    assert refusal.value.exit_code == 13
    assert [ticket["run"] for ticket in host.tickets()] == ["holder"]
    assert not (host.account.root / "runs" / "hasty").exists()


def test_a_start_that_comes_to_nothing_leaves_no_ticket(host: Host) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "no space")

    message = host.account.message(host.package, "train.py", gpus={"count": 1})
    with pytest.raises(OSError, match="no space"):
        start(str(host.account.root), message, fail)

    (folder,) = (host.account.root / layout.TICKETS).iterdir()
    assert [path.name for path in folder.iterdir()] == [layout.TICKETS_LOCK]


def test_a_stop_ends_a_waiting_run_at_once_and_the_next_moves_up(host: Host) -> None:
    host.start("holder", 2)
    stopped, last = host.start("stopped", 1), host.start("last", 1)
    session = host.account.connect()

    session.request("stop", run="stopped", attempt=1, grace=30.0)

    end = stopped.end()
    assert end["stopped"]
    assert end["seconds"] < 30
    assert end["gpu_held"] == []
    assert stopped.record["gpus"] == []
    assert stopped.output() == b""
    until(lambda: queue_of(last)["place"] == 1, "the last to move up")


def test_a_waiting_run_whose_supervisor_is_killed_keeps_no_place(host: Host) -> None:
    holder = host.start("holder", 2)
    killed, last = host.start("killed", 2), host.start("last", 2)

    killed.kill_supervisor()

    assert killed.state()["state"] == "lost"
    until(lambda: queue_of(last)["place"] == 1, "the last to move up")
    host.finish(holder)
    assert last.says(b"gpus")
    assert killed.output() == b""


def test_a_waiting_run_outlives_the_loss_of_its_ticket(host: Host) -> None:
    holder, waiting = host.start("holder", 2), host.start("waiting", 1)
    (file,) = (host.account.root / layout.TICKETS).glob(f"*/{layout.TICKET % 2}")
    file.write_bytes(b"")

    host.finish(holder)

    assert waiting.says(b"gpus")
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name, layout.TICKETS_LOCK]


def test_a_run_whose_supervisor_is_killed_keeps_its_gpus_while_it_trains(host: Host) -> None:
    orphan = host.start("orphan", 2)
    waiting = host.start("waiting", 2)
    assert orphan.says(b"gpus")

    orphan.kill_supervisor()

    with Tickets(str(host.account.root)) as tickets:
        assert [bool(ticket["gpus"]) for ticket in tickets.read_live()] == [True, False]
    host.end_file("orphan").touch()  # its processes end by themselves
    assert waiting.says(b"gpus")


def test_gpus_are_kept_until_their_memory_is_released(host: Host, driver: Driver) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    holder = host.start("holder", 2)
    waiting = host.start("waiting", 2)
    assert holder.says(b"gpus")
    driver.tell(2, (0, dead.pid, 10**9, "C"))  # the driver holds what a process of it had, who is gone

    host.end_file("holder").touch()
    until(lambda: not holder.members(), "its processes to end")
    assert waiting.output() == b""
    assert holder.state()["exit"] is None
    driver.tell(2)

    assert waiting.says(b"gpus")
    assert holder.end()["gpu_held"] == []


def test_a_driver_that_hangs_gives_no_gpu_and_lets_a_stop_through(
    host: Host, driver: Driver, foreign: int
) -> None:
    driver.tell(2, (0, foreign, 10**9, "C"), (1, foreign, 10**9, "C"))
    waiting = host.start("waiting")
    driver.hang()
    supervisor = waiting.record["pid"]
    until(lambda: set(waiting.members()) - {supervisor}, "a process that asks it and gets no answer")

    session = host.account.connect()
    session.request("stop", run="waiting", attempt=1, grace=30.0)

    assert waiting.end()["stopped"]
    assert waiting.output() == b""
    assert waiting.members() == []


@pytest.mark.slow
def test_who_waits_says_what_the_driver_says(host: Host, driver: Driver, foreign: int) -> None:
    driver.tell(2, (0, foreign, 10**9, "C"), (1, foreign, 10**9, "C"))
    waiting = host.start("waiting")
    driver.tell(0)
    until(lambda: queue_of(waiting)["why"] == "the NVIDIA driver sees no GPU", "why it waits")

    driver.tell(1)

    assert waiting.says(b"gpus")


def test_a_shutdown_is_no_stop_of_a_user_s(host: Host) -> None:
    host.start("holder", 2)
    waiting = host.start("waiting")

    os.kill(waiting.record["pid"], signal.SIGTERM)

    end = waiting.end()
    assert not end["stopped"]
    assert "SIGTERM" in end["start_error"]
    assert waiting.output() == b""


def test_a_cpu_run_takes_no_ticket(host: Host) -> None:
    started = host.account.start("print('hello')")
    started.end()
    assert not (host.account.root / layout.TICKETS).exists()


def test_a_queued_run_is_alive_for_who_tidies(host: Host) -> None:
    host.start("holder", 2)
    waiting = host.start("waiting", 1)
    session = host.account.connect()
    wish = {"run": "waiting", "attempts": {"1": {"token": "token-waiting", "outputs": {}}}, "files": []}

    answer = session.request("prune", runs=[wish], thorough=True)

    assert not answer["runs"][0]["removed"]
    assert waiting.supervisor_lives()
    assert queue_of(waiting)["place"] == 1


@pytest.mark.slow
def test_the_agent_may_die_and_the_queue_goes_on(host: Host) -> None:
    holder = host.start("holder", 2)
    waiting = host.start("waiting", 2)
    for session in host.account.sessions:
        session.close()
    for pid in agents_of(host.account.home):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)

    host.finish(holder)
    assert waiting.says(b"gpus")
