"""The telemetry of a real attempt under its supervisor."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from remote_train.host import layout
from tests.host.account_kit import until

if TYPE_CHECKING:
    from tests.host.account_kit import Account

BUSY = """
import os, subprocess, sys
held = bytearray(b"1") * (64 << 20)
code = "import os, sys\\nwhile not os.path.exists(sys.argv[1]): sum(range(10000))"
subprocess.run([sys.executable, "-S", "-c", code, sys.argv[1]], check=True)
"""


def test_a_busy_loop_below_the_training_is_seen(account: Account) -> None:
    enough = account.root.parent / "enough"
    started = account.start(BUSY, str(enough))
    path = started.folder / layout.TELEMETRY
    until(lambda: path.exists() and path.read_bytes().endswith(b"\n"), "the first line of telemetry")
    enough.touch()
    assert started.end()["code"] == 0
    first = json.loads(path.read_bytes().splitlines()[0])
    # One thread: no more than one CPU, give or take the ticks that it is counted in. On a crowded machine less.
    assert 0.02 < first["cpu"]["run"] < 1.2
    assert 0.0 < first["cpu"]["busy"] <= 1.0
    assert 64 << 20 < first["memory"]["run"] < first["memory"]["total"]
    assert first["gpus"] == []
