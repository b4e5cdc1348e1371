"""A training the kernel kills for want of memory, and one that cannot be killed: by control groups of our own, as root."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from remote_train.errors import StopIncomplete
from remote_train.follow import Outcome
from remote_train.outcome import make_verdict
from tests.faults.counts import PATIENT
from tests.faults.invariants import check
from tests.host.account_kit import until
from tests.host.test_supervisor_stops import begin, stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.host.account_kit import Account

pytestmark = PATIENT

GROUPS = Path("/sys/fs/cgroup")

GREEDY = """
import sys
print("on", flush=True)
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
held = []
while True:
    held.append(b"x" * (1 << 20))
"""
WAITING = "import os, time; print('on', os.getpid(), flush=True); time.sleep(600)"


@pytest.fixture
def make_group() -> Iterator[Callable[[str], Path]]:
    """Make control groups (v1) and take them away again."""
    made = []

    def make(controller: str) -> Path:
        group = GROUPS / controller / f"remote-train-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError as error:
            pytest.skip(f"no control group may be made here: {error}")
        made.append(group)
        return group

    yield make
    for group in made:
        until(lambda group=group: not (group / "cgroup.procs").read_text(), "the group's processes to end")  # type: ignore[misc]
        group.rmdir()


def test_a_training_out_of_memory_is_told_as_such(
    account: Account, make_group: Callable[[str], Path]
) -> None:
    group = make_group("memory")
    (group / "memory.limit_in_bytes").write_text(str(64 << 20))
    started = account.start(GREEDY, str(group))
    ended = started.end()
    assert (ended["signal"], ended["stopped"]) == (signal.SIGKILL, False)
    assert ended["oom_kills"] >= 1
    verdict = make_verdict("run", "box", Outcome("ended", ended))
    assert verdict is not None
    assert verdict.exit_code == 1
    assert "the host ran out of memory" in verdict.message
    check(account.root)


def test_a_training_that_cannot_die_is_named_and_a_later_stop_ends_it(
    account: Account, make_group: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen process takes no signal until it is thawed, as one in an uninterruptible wait."""
    monkeypatch.setattr("remote_train.stop.MARGIN_SECONDS", 1.0)
    group = make_group("freezer")
    started = begin(account, WAITING)
    training = int(started.says(b"on"))
    (group / "cgroup.procs").write_text(str(training))
    (group / "freezer.state").write_text("FROZEN")
    try:
        until(lambda: (group / "freezer.state").read_text().strip() == "FROZEN", "the freezing")
        with pytest.raises(StopIncomplete) as stuck:
            stop(account, started, grace=0.0)
        assert stuck.value.exit_code == 50
        assert stuck.value.facts["survivors"] == [training]
    finally:
        (group / "freezer.state").write_text("THAWED")
    assert stop(account, started, grace=0.0)["exit"]["stopped"]
    assert started.members() == []
    check(account.root)
