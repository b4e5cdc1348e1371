"""A training that is hard to end: how hard is told by its arguments; its processes bear its first argument in their command.

worker: a child, as a DataLoader's; session: one in a session of its own; daemon: double-forked; bare: without an environment;
baredaemon: both; deaf: none of them hears TERM, the training included; saving: it saves on TERM and then leaves; forking:
a child that forks and ends, over and over.
"""

import os
import pathlib
import signal
import sys
import time

mark, kinds = sys.argv[1], sys.argv[2:]
deaf = "deaf" in kinds
ready_read, ready_write = os.pipe()
os.set_inheritable(ready_write, True)


def become(environment: "dict[str, str]") -> None:
    quiet = "signal.signal(15, signal.SIG_IGN)" if deaf else "0"
    code = f"import os, signal, time; {quiet}; os.close({ready_write}); time.sleep(600)"
    os.execve(sys.executable, [sys.executable, "-S", "-c", code, mark], environment)


def fork_on() -> None:
    os.close(ready_write)
    while True:
        if os.fork() > 0:
            os._exit(0)
        time.sleep(0.001)


def begin(kind: str) -> None:
    if os.fork() > 0:
        return
    if kind in ("session", "daemon", "baredaemon"):
        os.setsid()
    if kind in ("daemon", "baredaemon") and os.fork() > 0:
        os._exit(0)
    if kind == "forking":
        fork_on()
    become({} if kind.startswith("bare") else dict(os.environ))


for kind in kinds:
    if kind in ("worker", "session", "daemon", "bare", "baredaemon", "forking"):
        begin(kind)
os.close(ready_write)
while os.read(ready_read, 1):
    pass


def save(*_: object) -> None:
    pathlib.Path("saved").write_text("saved")
    os._exit(0)


signal.signal(signal.SIGTERM, save if "saving" in kinds else signal.SIG_IGN if deaf else signal.SIG_DFL)
print("on", flush=True)
if "short" in kinds:
    time.sleep(0.15)
    os._exit(0)
time.sleep(600)
