"""The agent on a host never outlives three heartbeats of its laptop, and never fails without a word."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.bootstrap import make_bootstrap, parse_verdict
from remote_train.errors import AgentFailed
from remote_train.host import layout, wire
from remote_train.transport.local import LocalTransport
from tests.faults.counts import PATIENT
from tests.host.account_kit import Account, Started, account, agents_of, make_test_plan, the_agent, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from remote_train.transport.local import LocalChannel

__all__ = ["account"]

pytestmark = PATIENT
SLACK = 3.0  # for a busy machine
COUNTING = "import os, sys\nos.write(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT), b'x')\n"


class Mute:
    """A laptop that says what a test tells it, and is silent from then on: no heartbeat, no end."""

    def __init__(self) -> None:
        nonce = secrets.token_hex(8)
        self.channel: LocalChannel = LocalTransport().open(
            make_bootstrap(the_agent().hash, nonce, sys.executable)
        )
        held = b""
        while (verdict := parse_verdict(held, nonce)) is None or verdict.word != "READY":
            if verdict is not None and verdict.word == "NEED":
                self.channel.send(the_agent().upload())
                held = verdict.rest
            held += self.channel.receive(20.0) or b""
        self.pid = self.channel._child.pid
        self._number = 0
        self.say("open", state_dir=None)

    def say(self, op: str, **fields: Any) -> None:
        self._number += 1
        self.channel.send(wire.make_control({"id": self._number, "op": op, **fields}))

    def lives(self) -> bool:
        return self.channel._child.poll() is None


@contextlib.contextmanager
def held_lock(account: Account, run: str) -> Iterator[None]:
    """Hold the lock of an attempt, as another starter does that takes its time."""
    folder = Path(layout.attempt_dir(str(account.root), run, 1))
    folder.mkdir(parents=True)
    with (folder / layout.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def test_an_agent_ends_without_its_laptop_whatever_it_is_doing(account: Account) -> None:
    session = account.connect()
    small = account.ship(session, {"train.py": COUNTING})
    large = account.ship(session, {f"f{number}": str(number) for number in range(9000)})
    slow = account.home / "slow python"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    session.close()
    frozen: list[int] = []

    def freeze_a_writer(mute: Mute) -> None:
        (writer, *_) = until(lambda: children_of(mute.pid), "a process that writes the snapshot")
        os.kill(writer, signal.SIGSTOP)
        frozen.append(writer)

    def nothing(_mute: Mute) -> None:
        pass

    cases: dict[str, tuple[str, dict[str, Any], Callable[[Mute], None]]] = {
        "at rest": ("state", {"run": "none"}, nothing),
        "waiting for another starter": ("start", account.message(small, run="locked"), nothing),
        "writing a snapshot": ("start", account.message(large, run="large"), freeze_a_writer),
        "looking at the machine": ("facts", {"pythons": [str(slow)]}, nothing),
    }
    ended: dict[str, float] = {}

    def leave(name: str) -> None:
        op, fields, then = cases[name]
        mute = Mute()
        mute.say(op, **fields)
        said = time.monotonic()
        then(mute)
        until(lambda: not mute.lives(), f"the end of an agent {name}", wire.SILENCE_SECONDS + SLACK + 5)
        ended[name] = time.monotonic() - said
        mute.channel.close()

    with held_lock(account, "locked"):
        threads = [threading.Thread(target=leave, args=(name,)) for name in cases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    print({name: round(seconds, 1) for name, seconds in ended.items()})
    assert set(ended) == set(cases)
    assert all(seconds < wire.SILENCE_SECONDS + SLACK for seconds in ended.values()), ended
    assert not Path(f"/proc/{frozen[0]}").exists(), "its helpers end with it"
    until(lambda: not agents_of(account.home), "nothing of them is left")
    again = account.connect()
    for run in ("locked", "large"):
        assert not Started(account, run).folder.joinpath(layout.ATTEMPT).exists()
        op, fields, _ = next(case for case in cases.values() if case[1].get("run") == run)
        assert again.request(op, **fields)["state"] in ("starting", "running", "ended"), "an abandoned start"


def test_a_start_whose_laptop_hung_up_can_be_asked_for_again(account: Account) -> None:
    session = account.connect()
    package = account.ship(session, {"train.py": COUNTING})
    message = account.message(package, "train.py", str(account.home / "starts"))
    mute = Mute()
    with held_lock(account, "run"):
        mute.say("start", **message)
        began = time.monotonic()
        mute.channel.close()
        until(lambda: not mute.lives(), "its end", SLACK)
        print(f"an agent whose laptop hung up ended within {time.monotonic() - began:.2f} s")
    assert not (account.home / "starts").exists()
    assert session.request("start", **message)["state"] in ("starting", "running", "ended")
    Started(account, "run").end()
    assert (account.home / "starts").read_bytes() == b"x"


def test_what_the_laptop_says_during_a_start_is_answered_after_it(account: Account) -> None:
    session = account.connect()
    package = account.ship(session, {"train.py": COUNTING})
    with held_lock(account, "run"):
        start = session.submit("start", **account.message(package, "train.py", str(account.home / "starts")))
        later = [session.submit("state", run="none") for _ in range(1000)]
    assert session.wait(start)["state"] in ("starting", "running", "ended")
    assert {session.wait(number)["state"] for number in later} == {"unknown"}


def test_a_mistake_of_ours_on_the_host_is_told_and_kept(account: Account) -> None:
    session = account.connect()
    package = account.ship(session, {"train.py": COUNTING})
    message = account.message(package)
    message["plan"] = {
        **make_test_plan(package, ("train.py",)).as_message(),
        "gpus": 5,
    }  # not what the code expects
    with pytest.raises(AgentFailed, match="AttributeError") as failed:
        session.request("start", **message)
    assert failed.value.exit_code == 70
    log = account.root / layout.AGENT_LOG
    until(lambda: log.exists() and "Traceback" in log.read_text(), "the traceback")
    assert log.stat().st_mode & 0o77 == 0

    log.write_text("x" * 100_000)
    with pytest.raises(AgentFailed):
        account.connect().request("start", **message)
    until(lambda: log.stat().st_size < 20_000, "a log begun anew")
