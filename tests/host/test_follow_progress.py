"""What a follower is told beside the output: silence, a lost supervisor, ranks started anew."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.host import system
from remote_train.host.follow import QUIET_SECONDS
from remote_train.session import Event
from tests.host.account_kit import until

if TYPE_CHECKING:
    from remote_train.session import Session
    from tests.host.account_kit import Account, Started

WAITING = "import time; print('on', flush=True); time.sleep(600)"


def follow(account: Account, started: Started) -> Session:
    session = account.connect()
    session.request("follow", run=started.run, attempt=1, outputs=[], wait=True)
    return session


def await_event(session: Session, kind: str) -> dict[str, Any]:
    def take() -> dict[str, Any] | None:
        item = session.next_item(1.0)
        return item.facts if isinstance(item, Event) and item.kind == kind else None

    return until(take, f"the event {kind}") or {}


def age_output(started: Started, seconds: float) -> None:
    path = started.folder / "ranks" / "0.log"
    written = path.stat().st_mtime - seconds
    os.utime(path, (written, written))


def test_a_long_silence_is_told_and_again_when_it_has_doubled(account: Account) -> None:
    started = account.start(WAITING)
    started.says(b"on")
    session = follow(account, started)
    age_output(started, QUIET_SECONDS + 1)
    first = await_event(session, "quiet")
    assert QUIET_SECONDS < first["seconds"] < QUIET_SECONDS + 120
    age_output(started, 2 * first["seconds"])
    assert await_event(session, "quiet")["seconds"] > 2 * first["seconds"]


def test_a_dead_supervisor_is_told_and_the_run_is_lost_when_it_ends(account: Account) -> None:
    started = account.start(
        "import pathlib, time\nprint('on', flush=True)\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)"
    )
    started.says(b"on")
    session = follow(account, started)
    started.kill_supervisor()
    told = await_event(session, "state")
    assert (told["state"], told["supervised"], told["why"]) == ("running", False, "its supervisor was killed")
    (started.folder / "code" / "go").touch()
    ended = await_event(session, "ended")
    assert (ended["state"], ended["exit"], ended["why"]) == ("lost", None, "its supervisor was killed")


SAVING = """
import os, time, zipfile
from remote_train import report
def save(path, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", data)
def wait(name):
    while not os.path.exists(name):
        time.sleep(0.01)
save("first.pt", b"1")
print("saved", flush=True)
wait("go")
os.mkdir("checkpoint-2")
save("checkpoint-2/optimizer.pt", b"22")
report.checkpoint("checkpoint-2")
print("reported", flush=True)
time.sleep(600)
"""


def test_a_checkpoint_is_told_once_it_is_committed_and_to_whoever_attaches_later(account: Account) -> None:
    started = account.start(SAVING, launcher="python")
    started.says(b"saved")
    session = account.connect()
    asked = {"outputs": [], "wait": True, "checkpoints": ["*.pt", "checkpoint-*/**"]}
    session.request("follow", run=started.run, attempt=1, **asked)
    size = (started.folder / "code" / "first.pt").stat()
    first = {"unit": "first.pt", "size": size.st_size, "count": 1, "mtime_ns": size.st_mtime_ns}
    told = await_event(session, "checkpoint")
    assert told == {"event": "checkpoint", "run": started.run, "attempt": 1, **first}
    (started.folder / "code" / "go").touch()
    started.says(b"reported")
    second = await_event(session, "checkpoint")
    assert (second["unit"], second["count"]) == ("checkpoint-2", 1)
    later = account.connect()
    later.request("follow", run=started.run, attempt=1, **asked)
    assert [await_event(later, "checkpoint")["unit"] for _ in range(2)] == ["first.pt", "checkpoint-2"]


@pytest.mark.torch
def test_ranks_that_torchrun_starts_anew_are_told(account: Account) -> None:
    pytest.importorskip("torch")
    script = "import os, sys; sys.exit(1 if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' else 0)"
    started = account.start(script, launcher="torchrun", processes=1, max_restarts=1)
    assert await_event(follow(account, started), "restarted")["restarts"] == 1
    assert started.end()["code"] == 0


def test_a_run_whose_folder_is_removed_is_over(account: Account) -> None:
    started = account.start(WAITING)
    started.says(b"on")
    record = started.record
    session = account.connect()
    outputs = [{"stream": session.new_stream(), "name": "0", "offset": 0}]
    session.request("follow", run=started.run, attempt=1, outputs=outputs, wait=True)
    shutil.rmtree(started.folder.parent.parent)
    ended = await_event(session, "ended")
    assert (ended["state"], ended["exit"]) == ("unknown", None)
    stopped = session.request("stop", run=started.run, attempt=1, grace=0.0, cookie=record["cookie"])
    assert stopped == {"state": "unknown", "survivors": []}
    assert system.marked_processes(record["cookie"]) == []
    system.kill_process(record["pid"], record["start_time"], signal.SIGKILL)
