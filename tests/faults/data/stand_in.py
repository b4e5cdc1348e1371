#!/usr/bin/env -S python3 -S
"""Stands in for a Python with torch, at a hundredth of its start: `-m torch.distributed.run` does what torchrun does.

Each rank is a process in a session of its own; TERM goes on to the ranks' process groups; any failure ends all; the
exit code is 0 or 1. Everything else is the real Python's.
"""

import os
import signal
import sys

if sys.argv[1:3] != ["-m", "torch.distributed.run"]:
    os.execv(sys.executable, [sys.executable, "-S", *sys.argv[1:]])

count = int(sys.argv[sys.argv.index("--nproc-per-node") + 1])
command = sys.argv[sys.argv.index("--log-dir") + 2 :]
ranks = {}


def pass_on(number: int, _frame: object) -> None:
    for pid in ranks:
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            continue


signal.signal(signal.SIGTERM, pass_on)
for rank in range(count):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), TORCHELASTIC_RESTART_COUNT="0")
        os.execv(command[0], command)
    ranks[pid] = rank
failed = False
while ranks:
    pid, status = os.wait()
    if ranks.pop(pid, None) is not None and status != 0 and not failed:
        failed = True
        pass_on(signal.SIGTERM, None)
sys.exit(int(failed))
