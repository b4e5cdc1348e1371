"""Stop, and the deaths that nobody asked for: of the supervisor, of the machine, of torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.errors import RunStopped, StopIncomplete
from remote_train.follow import Outcome
from remote_train.host import layout
from remote_train.listener import Silent
from remote_train.outcome import make_verdict
from remote_train.query import keep_state
from remote_train.records import Run
from remote_train.stop import stop_run
from tests.host.account_kit import Started, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.account_kit import Account

OBEDIENT = "import time; print('on', flush=True); time.sleep(600)"

DEAF = """
import signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
print("on", flush=True)
while True:
    time.sleep(1)
"""

SAVING = """
import signal, sys, time
def save(*_):
    time.sleep(0.3)
    open("ckpt.pt", "w").write("saved")
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("on", flush=True)
while True:
    time.sleep(0.01)
"""

# A worker, a daemon of two forks, one in a session of its own, one without any environment; all deaf.
SPREADING = """
import os, signal, sys, time
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
ready_read, ready_write = os.pipe()
def go(environment):
    os.set_inheritable(ready_write, True)
    code = "import os; os.close(%d); %s" % (ready_write, deaf)
    os.execve(sys.executable, [sys.executable, "-S", "-c", code], environment)
if os.fork() == 0:
    go(os.environ)
if os.fork() == 0:
    os.setsid()
    go(os.environ)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        go({})
    os._exit(0)
if os.fork() == 0:
    go({})
os.close(ready_write)
while os.read(ready_read, 1):
    pass
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("on", flush=True)
time.sleep(600)
"""


def stop(account: Account, started: Started, grace: float = 30.0) -> dict[str, Any]:
    session = account.connect()
    run = Run(started.run, account.home / "nowhere")
    try:
        return stop_run(session, run, 1, grace, Silent())
    finally:
        session.close()


def begin(account: Account, script: str, **changes: Any) -> Started:
    started = account.start(script, **changes)
    started.says(b"on")
    return started


def test_an_obedient_training_ends_at_once(account: Account) -> None:
    started = begin(account, OBEDIENT)
    state = stop(
        account, started, grace=300.0
    )  # far beyond the test's own limit: only TERM can have ended it
    assert state["state"] == "ended"
    assert state["exit"]["stopped"]
    assert state["exit"]["signal"] == signal.SIGTERM
    assert started.members() == []
    verdict = make_verdict("run", "local", Outcome("ended", state["exit"]))
    assert isinstance(verdict, RunStopped)


def test_a_training_may_save_before_it_goes(account: Account) -> None:
    started = begin(account, SAVING)
    state = stop(account, started, grace=300.0)
    assert (state["exit"]["code"], state["exit"]["stopped"]) == (0, True)
    assert (started.folder / "code" / "ckpt.pt").read_text() == "saved"


def test_a_deaf_training_is_killed_after_the_grace(account: Account) -> None:
    started = begin(account, DEAF)
    state = stop(account, started, grace=0.3)
    assert state["exit"]["stopped"]
    assert state["exit"]["signal"] == signal.SIGKILL
    assert state["exit"]["seconds"] > 0.3
    assert started.members() == []


def test_nobody_escapes(account: Account) -> None:
    command = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(command) as bystander:
        try:
            started = begin(account, SPREADING)
            assert len(started.members()) == 5
            before = started.members()
            state = stop(account, started, grace=0.2)
            assert state["state"] == "ended"
            assert state["exit"]["survivors"] == []
            assert [pid for pid in before if is_ours(pid)] == []
            assert bystander.poll() is None
        finally:
            bystander.kill()


def is_ours(pid: int) -> bool:
    """Tell whether the process is one of SPREADING's, not another that got its pid."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123  (proc)
            return b"time.sleep(600)" in file.read()
    except OSError:
        return False


def test_stop_twice_and_after_the_end(account: Account) -> None:
    started = begin(account, DEAF)
    sessions = [account.connect(), account.connect()]
    first = sessions[0].submit("stop", run="run", attempt=1, grace=0.5)
    second = sessions[1].submit("stop", run="run", attempt=1, grace=0.5)
    assert sessions[0].wait(first)["state"] in ("stopping", "ended")
    assert sessions[1].wait(second)["state"] in ("stopping", "ended")
    ended = started.end()
    assert ended["stopped"]
    again = stop(account, started)
    assert (again["state"], again["exit"]) == ("ended", started.end())


def test_stop_of_a_run_that_ended_by_itself_changes_nothing(account: Account) -> None:
    started = account.start("print('done')")
    ended = started.end()
    state = stop(account, started)
    assert state["exit"] == ended
    assert not state["exit"]["stopped"]


def test_stop_of_an_unknown_run(account: Account) -> None:
    session = account.connect()
    answer = session.request("stop", run="nobody", attempt=1, grace=1.0)
    assert answer == {"state": "unknown", "survivors": []}


def test_a_run_is_stopping_between_the_stop_and_the_end(account: Account) -> None:
    started = begin(account, DEAF)
    session = account.connect()
    session.request("stop", run="run", attempt=1, grace=300.0)
    assert session.request("state", run="run")["state"] == "stopping"
    assert started.members() != []


def test_sigterm_to_the_supervisor_is_a_stop(account: Account) -> None:
    started = begin(account, OBEDIENT)
    os.kill(started.record["pid"], signal.SIGTERM)
    ended = started.end()
    assert (ended["stopped"], ended["signal"]) == (True, signal.SIGTERM)


def test_without_its_supervisor_a_run_goes_on_and_can_be_stopped(account: Account) -> None:
    script = (
        "import time\nfor n in range(60000):\n    print('on' if n == 0 else n, flush=True); time.sleep(0.01)"
    )
    started = begin(account, script)
    started.kill_supervisor()
    size = len(started.output())
    until(lambda: len(started.output()) > size, "more output without the supervisor")
    session = account.connect()
    state = session.request("state", run="run")
    assert (state["state"], state["supervised"]) == ("running", False)
    after = stop(account, started, grace=60.0)
    assert (after["state"], after["exit"]["stopped"]) == ("ended", True)
    assert after["exit"]["unsupervised"]
    assert after["exit"]["outputs"] == {"0": len(started.output())}
    assert started.members() == []


def test_without_its_supervisor_a_training_may_save_before_it_goes(account: Account) -> None:
    started = begin(account, SAVING)
    started.kill_supervisor()
    assert stop(account, started, grace=60.0)["state"] == "ended"
    assert (started.folder / "code" / "ckpt.pt").read_text() == "saved"


def test_without_its_supervisor_a_deaf_training_is_killed_after_the_grace(account: Account) -> None:
    started = begin(account, DEAF)
    started.kill_supervisor()
    sessions = [account.connect(), account.connect()]
    asked = [session.submit("stop", run="run", attempt=1, grace=0.3) for session in sessions]
    assert [session.wait(number)["state"] for session, number in zip(sessions, asked, strict=True)] == [
        "stopping"
    ] * 2
    ended = started.end()
    assert (ended["stopped"], ended["code"], ended["signal"]) == (True, None, None)
    assert started.members() == []


def test_another_boot_is_a_lost_run(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("first")
    monkeypatch.setenv("REMOTE_TRAIN_BOOT_ID_FILE", str(boot))
    started = begin(account, OBEDIENT)
    session = account.connect()
    assert session.request("state", run="run")["state"] == "running"
    boot.write_text("second")
    state = session.request("state", run="run")
    assert (state["state"], state["supervised"]) == ("lost", False)
    boot.write_text("first")
    stop(account, started)


def test_a_stop_before_the_training_began_starts_nothing(account: Account) -> None:
    """The stop file is there when the supervisor comes to the training."""
    session = account.connect()
    package = account.ship(session, {"train.py": "open('began', 'w')"})
    folder = account.root / "runs" / "run" / "attempts" / "1"
    folder.mkdir(parents=True)
    (folder / layout.STOP).write_text('{"format": 1, "grace": 1.0}')
    session.request("start", **account.message(package))
    ended = Started(account, "run").end()
    assert (ended["stopped"], ended["code"]) == (True, None)
    assert not (folder / "code" / "began").exists()


def test_a_full_disk_neither_ends_the_training_nor_hides_its_end(account: Account) -> None:
    """The state folder is a file system of 2 MiB that the training fills to the last byte."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    account.root.mkdir(parents=True, mode=0o700)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", str(account.root)], check=False
    )
    if mount.returncode != 0:
        pytest.skip("no tmpfs may be mounted here")
    try:
        script = """
import os, sys, time
fd = os.open("big", os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(fd, b"x" * 4096)
except OSError:
    pass
try:
    while True:
        os.write(fd, b"x")
except OSError:
    pass
for n in range(3):
    try:
        os.write(1, b"lost\\n")
    except OSError:
        pass
    time.sleep(1)
os.mkdir(sys.argv[1])
sys.exit(5)
"""
        goal = account.home / "reached"
        started = account.start(script, str(goal))
        until(goal.exists, "the training's own end")
        ended = started.end()
        assert ended["code"] == 5
        until(lambda: not started.supervisor_lives(), "the supervisor's end")
    finally:
        subprocess.run(["umount", "-l", str(account.root)], check=True)


def test_a_stop_works_on_a_full_disk(account: Account) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    account.root.mkdir(parents=True, mode=0o700)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", str(account.root)], check=False
    )
    if mount.returncode != 0:
        pytest.skip("no tmpfs may be mounted here")
    try:
        started = begin(account, OBEDIENT)
        with open(account.root / "filling", "wb", buffering=0) as file:  # noqa: PTH123  (unbuffered)
            for size in (4096, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue
        state = stop(account, started, grace=1.0)
        assert state["exit"]["stopped"]
        assert started.members() == []
    finally:
        for started in [Started(account, "run")]:
            started.clean()
        subprocess.run(["umount", "-l", str(account.root)], check=True)


def test_without_its_supervisor_a_second_stop_shortens_the_grace(account: Account) -> None:
    started = begin(account, DEAF)
    started.kill_supervisor()
    session = account.connect()
    assert session.request("stop", run="run", attempt=1, grace=600.0)["state"] == "stopping"
    state = session.request("state", run="run")
    assert (state["state"], state["supervised"], state["why"]) == ("stopping", True, None)
    assert stop(account, started, grace=0.0)["state"] == "ended"
    assert started.members() == []


def test_a_halted_supervisor_is_woken_to_stop(account: Account) -> None:
    started = begin(account, OBEDIENT)
    os.kill(started.record["pid"], signal.SIGSTOP)
    assert stop(account, started, grace=60.0)["exit"]["stopped"]


def test_a_run_that_its_host_does_not_know_is_not_taken_for_stopped(account: Account) -> None:
    started = begin(account, OBEDIENT)
    run = account.client_run(started)
    run.update(state="starting")
    session = account.connect()
    unknown = replace(run, id="elsewhere")
    with pytest.raises(StopIncomplete, match="is not known on local"):
        stop_run(session, unknown, 1, 0.0, Silent())
    assert keep_state(run, {"state": "unknown"})["state"] == "starting"
    assert stop(account, started)["state"] == "ended"


def test_a_stop_on_the_heels_of_a_start_is_a_stop(account: Account) -> None:
    """Both requests leave at once: the supervisor is signalled the moment that anybody can know of it."""
    session = account.connect()
    package = account.ship(session, {"train.py": OBEDIENT})
    for number in range(15):
        run = f"run-{number}"
        asked = session.submit("start", **account.message(package, run=run))
        stopped = session.submit("stop", run=run, attempt=1, grace=0.0)
        session.wait(asked)
        assert session.wait(stopped)["state"] in ("stopping", "ended")
        ended = Started(account, run).end()
        assert ended["stopped"], run
