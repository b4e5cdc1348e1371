"""`doctor` over a line like a modem's: what it sends to measure is bounded by what the line carries, and it says what that is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from remote_train.doctor import BURST_BYTES, measure_down, measure_up
from remote_train.transport.paramiko_ssh import ParamikoTransport
from tests.faults.chaos_proxy import ChaosProxy, Program
from tests.sshd import known_line_for, running_sshd

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.account_kit import Account

pytestmark = [pytest.mark.sshd, pytest.mark.slow]

RATE = 50_000
"""Bytes a second; a file of 64 MB would take twenty minutes."""


def test_a_slow_line_is_measured_with_little(account: Account, tmp_path: Path) -> None:
    with (
        running_sshd(tmp_path / "sshd", [f'SetEnv "HOME={account.home}"']) as sshd,
        ChaosProxy(sshd.port) as proxy,
    ):
        account.connect().request("clock")  # our program is there: it is no part of this
        proxy.program = lambda _number: Program(rate=RATE, slice=1400)
        known = tmp_path / "known"
        known.write_text(known_line_for(sshd, proxy.port))
        session = account.connect(
            transport=ParamikoTransport(sshd.target(port=proxy.port, known_hosts_files=(known,)))
        )
        session.request("clock")
        before = dict(proxy.lines[-1].passed)
        began = time.monotonic()
        down = measure_down(session)
        up = measure_up(session, down)
        print(f"{time.monotonic() - began:.1f} s, down {down}, up {up}")
        after = dict(proxy.lines[-1].passed)

    assert down == pytest.approx(RATE, rel=0.5)
    assert up == pytest.approx(RATE, rel=0.5)
    moved = sum(after[way] - before[way] for way in after)
    assert moved < 6 * RATE < BURST_BYTES / 100
