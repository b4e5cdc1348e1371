"""Ranks that fail, are killed with or without our shim, hang, or are restarted: who was first, and what is left."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from remote_train.host import ends, layout, stopping
from tests.host.account_kit import until
from tests.host.test_torchrun_attempt import start

if TYPE_CHECKING:
    from tests.host.account_kit import Account, Started

pytestmark = pytest.mark.torch
pytest.importorskip("torch")

WAITING = "import os, time; print('pid', os.getpid(), os.getppid(), flush=True); time.sleep(600)"

# Rank 1 fails at once; rank 0 does not hear TERM, as a rank that hangs in a collective does not.
DEAF = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    print("on", flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("on", flush=True)
time.sleep(600)
"""

EARLY = "import os, time; os.environ['RANK'] == '1' and (time.sleep(3), print('late', flush=True))"

RECORDED = """
import os
from torch.distributed.elastic.multiprocessing.errors import record
@record
def main():
    if os.environ["RANK"] == "1":
        raise ValueError("the loss is made of cheese")
main()
"""

RESTARTED = """
import os, sys
count = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
print("round", count, flush=True)
sys.exit(5 if count < int(sys.argv[1]) and os.environ["RANK"] == "1" else 0)
"""


def pids(started: Started, rank: int) -> tuple[int, int]:
    """Return the pids of a rank's training and of the shim above it."""
    own, parent = started.says(b"pid", rank).split()
    return int(own), int(parent)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_rank_that_is_killed_is_named_with_its_signal(account: Account, number: int) -> None:
    started = start(account, WAITING)
    pids(started, 0)
    os.kill(pids(started, 1)[0], number)
    ended = started.end()
    assert ended["first_failure"] == {"rank": 1, "code": None, "signal": number}
    assert (ended["code"], ended["signal"]) == (None, number)
    assert started.members() == []


def test_a_rank_killed_with_its_shim_is_found_in_torchruns_words(account: Account) -> None:
    started = start(account, WAITING)
    pids(started, 0)
    training, shim = pids(started, 1)
    os.kill(shim, signal.SIGKILL)
    ended = started.end()
    assert ended["first_failure"] == {"rank": 1, "code": None, "signal": signal.SIGKILL}
    assert not Path(f"/proc/{training}").exists()  # it outlived its shim, and was swept
    assert started.members() == []


def test_a_rank_deaf_to_torchrun_does_not_hold_a_failed_run(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_TRAIN_DEAF_SECONDS", "0.5")
    started = start(account, DEAF)
    ended = started.end()
    assert ended["first_failure"] == {"rank": 1, "code": 3, "signal": None}
    assert ended["seconds"] < stopping.DEAF_SECONDS
    assert not ended["stopped"]
    assert started.members() == []


def test_a_rank_that_ends_well_does_not_hurry_the_others(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_TRAIN_DEAF_SECONDS", "0.2")
    started = start(account, EARLY)
    assert started.end()["code"] == 0
    assert started.output(1) == b"late\n"


@pytest.mark.slow
def test_the_error_file_of_a_recorded_main_is_kept(account: Account) -> None:
    ended = start(account, RECORDED).end()
    first = ended["first_failure"]
    assert (first["rank"], first["code"]) == (1, 1)
    assert "the loss is made of cheese" in first["error"]
    assert first["error_file"] == "ranks/1.error.json"


def test_torchrun_restarts_as_often_as_it_may(account: Account) -> None:
    started = start(account, RESTARTED, "2", max_restarts=2)
    ended = started.end()
    assert (ended["code"], ended["first_failure"], ended["restarts"]) == (0, None, 2)
    # Of the rank that fails: torchrun may end the other before it has said so.
    assert started.output(1) == b"round 0\nround 1\nround 2\n"


def test_a_failure_of_the_last_round_is_the_one_that_counts(account: Account) -> None:
    ended = start(account, RESTARTED, "9", max_restarts=1).end()
    assert (ended["code"], ended["restarts"]) == (5, 1)
    assert ended["first_failure"] == {"rank": 1, "code": 5, "signal": None}


def test_torn_lines_of_ranks_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    lines = b'{"rank": 1, "code": 4, "signal": null, "time": 2.0, "restart": 0}\n{"rank": 0, "co\n[]\n'
    (tmp_path / "ranks" / layout.RANK_ENDS).write_bytes(lines)
    assert ends.find_first_failure(str(tmp_path), 0) == {"rank": 1, "code": 4, "signal": None}


def test_a_rank_without_a_word_is_unknown_when_torchrun_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / layout.RANK_BEGINS).write_text('{"rank": 2, "restart": 0, "time": 1.0, "pid": 7}\n')
    assert ends.find_first_failure(str(tmp_path), 0) == {"rank": 2, "code": None, "signal": None}


def test_the_kernels_count_of_processes_killed_for_memory_is_read() -> None:
    told = [line for line in Path("/proc/vmstat").read_text().splitlines() if line.startswith("oom_kill ")]
    assert ends.count_oom_kills() == (int(told[0].split()[1]) if told else None)


def test_a_run_whose_end_is_known_waits_for_nobody(account: Account) -> None:
    started = start(account, "pass")
    assert started.end()["code"] == 0
    until(lambda: not started.supervisor_lives(), "the supervisor's end")
