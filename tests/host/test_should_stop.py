"""`report.should_stop()`: a training that asks leaves by itself and is not terminated; one that only asks is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from remote_train.host import layout
from remote_train.host.durable import write_record
from tests.host.account_kit import until
from tests.host.test_supervisor_stops import begin, stop

if TYPE_CHECKING:
    import pytest

    from tests.host.account_kit import Account

# Its worker stands for those of a DataLoader: TERM to the process group would end it before the training can save.
ASKING = """
import os, signal, subprocess, sys, time
from remote_train import report
signal.signal(signal.SIGTERM, lambda *_: print("terminated", flush=True))
worker = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
report.should_stop()
print("on", flush=True)
while not report.should_stop():
    time.sleep(0.01)
assert worker.poll() is None
open("ckpt.pt", "w").write("saved")
worker.kill()
"""

IGNORING = """
import time
from remote_train import report
report.should_stop()
print("on", flush=True)
time.sleep(600)
"""


def test_a_training_that_asks_leaves_by_itself(account: Account) -> None:
    started = begin(account, ASKING)
    state = stop(account, started, grace=300.0)
    assert (state["exit"]["code"], state["exit"]["signal"], state["exit"]["stopped"]) == (0, None, True)
    assert (started.folder / "code" / "ckpt.pt").read_text() == "saved"
    assert b"terminated" not in started.output()
    assert started.members() == []


def test_one_that_leaves_before_its_supervisor_has_looked_was_stopped(account: Account) -> None:
    started = begin(account, ASKING)
    record = started.record
    os.kill(record["pid"], signal.SIGSTOP)
    write_record(str(started.folder / layout.STOP), {"asked": 1.0, "grace": 300.0})
    until(lambda: read_process_state(record["child"]) == "Z", "the end of the training")
    os.kill(record["pid"], signal.SIGCONT)
    assert (started.end()["code"], started.end()["stopped"]) == (0, True)


def read_process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_one_that_asked_once_and_goes_on_is_killed_after_the_grace(account: Account) -> None:
    started = begin(account, IGNORING)
    state = stop(account, started, grace=0.3)
    assert (state["exit"]["signal"], state["exit"]["stopped"]) == (signal.SIGKILL, True)
    assert started.members() == []


def test_outside_of_us_the_answer_is_no_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(layout.STOP_VARIABLE, raising=False)
    code = "from remote_train import report; print(report.should_stop())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert done.stdout == b"False\n"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_does_not_stop_the_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_file = tmp_path / "gone" / "stop"
    code = "from remote_train import report; print(report.should_stop())"
    monkeypatch.setenv(layout.STOP_VARIABLE, str(stop_file))
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"False\n"
