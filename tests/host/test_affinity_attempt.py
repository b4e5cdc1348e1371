"""A training on a processor made out to be hybrid: what it, its ranks and the measurement are really bound to."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from remote_train.affinity import choose_affinity
from remote_train.host.fingerprint import THREADS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.account_kit import Account

SCRIPT = """
import json, os
print("bound", json.dumps([sorted(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS"),
                           os.environ.get("REMOTE_TRAIN_AFFINITY"), os.environ.get("LOCAL_RANK")]), flush=True)
"""
CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="two CPUs that this process may use")


@pytest.fixture
def hybrid(account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    """Make the last CPU an efficiency core, and each of the others a performance core, for an account's agents."""
    text = ",".join(map(str, CPUS))
    fast = ",".join(map(str, CPUS[:-1]))
    for name, words in {
        "sys/devices/system/cpu/online": text,
        "sys/devices/cpu_core/cpus": fast,
        "sys/devices/cpu_atom/cpus": str(CPUS[-1]),
        **{f"sys/devices/system/cpu/cpu{n}/topology/core_cpus_list": str(n) for n in CPUS},
    }.items():
        path = tmp_path / "machine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(words + "\n")
    monkeypatch.setenv("REMOTE_TRAIN_CPU_ROOT", str(tmp_path / "machine"))
    for word in THREADS:
        monkeypatch.delenv(word, raising=False)
    return account


def test_a_training_is_bound_to_the_performance_cores(hybrid: Account, tmp_path: Path) -> None:
    """From the agent's facts to the process itself; the measurement before it is bound too, the supervisor is not."""
    session = hybrid.connect()
    facts = session.request("facts", pythons=[sys.executable])
    session.close()
    affinity = choose_affinity(facts["cpu"], facts["thread_env"], 1)
    assert affinity == (tuple(CPUS[:-1]),)
    stand_in = tmp_path / "torch"
    stand_in.mkdir()
    log = tmp_path / "measured"
    (stand_in / "torch.py").write_text(
        f"import os\nopen({str(log)!r}, 'w').write(str(sorted(os.sched_getaffinity(0))))\nraise ImportError\n"
    )
    threads = str(len(CPUS) - 1)
    measure = {"device": "cpu", "name": "x", "threads": len(CPUS) - 1, "torch": "2.0", "cpus": CPUS[:-1]}
    started = hybrid.start(
        SCRIPT,
        affinity=affinity,
        env={"PYTHONPATH": str(stand_in)},
        default_env={"OMP_NUM_THREADS": threads},
        measure=measure,
    )
    supervisor = started.record["pid"]

    assert json.loads(started.says(b"bound")) == [CPUS[:-1], threads, None, None]
    assert log.read_text() == str(CPUS[:-1])
    if started.supervisor_lives():
        assert sorted(os.sched_getaffinity(supervisor)) == CPUS
    assert started.end()["code"] == 0


def test_a_word_of_the_users_leaves_it_alone(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts that were remembered may be older than the login's own setting."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    started = account.start(SCRIPT, affinity=((CPUS[0],),), default_env={"OMP_NUM_THREADS": "1"})

    assert json.loads(started.says(b"bound"))[:2] == [CPUS, "2"]
    assert started.end()["code"] == 0
