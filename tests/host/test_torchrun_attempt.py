"""Attempts of two ranks under the real torchrun, on the CPU: outputs, first failure, deaths, stop."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.host import layout, system
from tests.host.account_kit import Started, until
from tests.host.test_supervisor_stops import stop

if TYPE_CHECKING:
    from tests.host.account_kit import Account

pytestmark = pytest.mark.torch
pytest.importorskip("torch")

TALKING = """
import os, sys, time
rank = int(os.environ["RANK"])
for number in range(50):
    os.write(1, b"rank %d out %d\\n" % (rank, number))
    os.write(2, b"rank %d err %d\\n" % (rank, number))
sys.stdout.write("end of %d" % rank)
if sys.argv[1:] == ["fail"]:
    if rank == 1:
        sys.exit(9)
    time.sleep(600)
"""

# Rank 0 leaves quickly when asked; rank 1 saves for longer than torchrun's own 30 s default would be tested by.
DEAF = """
import os, signal, time
if os.environ["RANK"] == "1":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("on", flush=True)
time.sleep(600)
"""


def start(account: Account, script: str, *args: str, **changes: Any) -> Started:
    """The plan's own defaults for torchrun are part of the test."""
    default = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    more = {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT", "PET_SHUTDOWN_TIMEOUT": "3600"}
    environment = {**default, **more}
    return account.start(script, *args, launcher="torchrun", processes=2, default_env=environment, **changes)


def read_ends(started: Started) -> list[dict[str, Any]]:
    path = started.folder / "ranks" / layout.RANK_ENDS
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_each_rank_has_its_own_file_and_cpus(account: Account) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    own = [(cpus[0],), (cpus[-1],)]
    telling = TALKING + "print('', *os.sched_getaffinity(0), 'REMOTE_TRAIN_AFFINITY' in os.environ, end='')\n"
    started = start(account, telling, affinity=tuple(own))
    ended = started.end()
    assert (ended["code"], ended["signal"], ended["first_failure"]) == (0, None, None)
    for rank in range(2):
        lines = [b"rank %d %s %d\n" % (rank, word, n) for n in range(50) for word in (b"out", b"err")]
        assert started.output(rank) == b"".join(lines) + b"end of %d %d False" % (rank, *own[rank])
    assert ended["outputs"] == {str(rank): len(started.output(rank)) for rank in range(2)}
    assert sorted((end["rank"], end["code"]) for end in read_ends(started)) == [(0, 0), (1, 0)]


def test_the_first_failing_rank_and_its_own_code_are_recorded(account: Account) -> None:
    started = start(account, TALKING, "fail")
    ended = started.end()
    assert (ended["code"], ended["signal"]) == (9, None)  # torchrun itself ends with 1 for everything
    assert ended["first_failure"] == {"rank": 1, "code": 9, "signal": None}
    ends = {end["rank"]: end for end in read_ends(started)}
    assert ends[1]["code"] == 9
    assert ends[0]["signal"] in (signal.SIGTERM, signal.SIGKILL)
    assert started.members() == []


def test_a_killed_torchrun_takes_its_ranks_with_it(account: Account) -> None:
    started = start(account, DEAF)
    for rank in range(2):
        started.says(b"on", rank)
    until(lambda: started.record.get("child"), "the launcher's pid in the record")
    os.kill(started.record["child"], signal.SIGKILL)
    ended = started.end()
    assert ended["signal"] == signal.SIGKILL
    assert ended["survivors"] == []
    assert system.marked_processes(started.record["cookie"]) == []
    until(lambda: not started.supervisor_lives(), "the supervisor's end")


def test_a_stop_ends_deaf_ranks_after_the_grace(account: Account) -> None:
    started = start(account, DEAF)
    for rank in range(2):
        started.says(b"on", rank)
    state = stop(account, started, grace=1.0)
    assert state["exit"]["stopped"]
    assert state["exit"]["seconds"] < 30
    assert started.members() == []


SAVING = """
import os, signal, sys, time
def save(*_):
    time.sleep(1.0)
    open("ckpt%s.pt" % os.environ["RANK"], "w").write("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("on", flush=True)
while True:
    time.sleep(0.01)
"""


def test_ranks_may_save_before_they_go(account: Account) -> None:
    started = start(account, SAVING)
    for rank in range(2):
        started.says(b"on", rank)
    state = stop(account, started, grace=300.0)
    assert state["exit"]["stopped"]
    assert sorted(path.name for path in (started.folder / "code").glob("ckpt*")) == ["ckpt0.pt", "ckpt1.pt"]
