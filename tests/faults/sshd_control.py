"""What happens to an sshd: restarted, its sessions killed or stopped, away for a while."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from remote_train.host import system
from tests.host.account_kit import until
from tests.sshd import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sshd import Sshd


def find_listener(sshd: Sshd) -> int:
    """Return the pid of the server itself."""
    config = str(sshd.folder / "sshd_config").encode()
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if process.name.isdigit() and config in words and b"[listener]" in words:
                return int(process.name)
    raise AssertionError(f"no sshd of {sshd.folder} runs")


def list_sessions(sshd: Sshd) -> list[int]:
    """Return the sshd processes of connections, those that a login is handed to aside."""
    below = system.descendants(find_listener(sshd))
    return [pid for pid in below if read_name(pid) == "sshd"]


def read_name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def kill_sessions(sshd: Sshd) -> int:
    """Kill every connection's sshd with SIGKILL; return how many there were."""
    pids = list_sessions(sshd)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


def restart(sshd: Sshd) -> None:
    """Have the listener read its configuration anew, as `systemctl reload ssh` does; sessions stay."""
    before = sshd.read_log().count("Server listening")
    os.kill(find_listener(sshd), signal.SIGHUP)
    until(lambda: sshd.read_log().count("Server listening") > before, "sshd to listen again")


def leave(sshd: Sshd) -> None:
    """End the server and every connection of it."""
    listener = find_listener(sshd)
    sessions = list_sessions(sshd)
    assert sessions, "nobody is connected"
    os.kill(listener, signal.SIGTERM)
    until(lambda: system.start_time(listener) is None, "sshd's end")
    for pid in sessions:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(system.start_time, sessions)), "the sessions' end")


@contextlib.contextmanager
def running_again(sshd: Sshd) -> Iterator[None]:
    """Run an sshd on the same port with the same keys."""
    before = sshd.read_log().count("Server listening")
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    argv = [program, "-D", "-f", str(sshd.folder / "sshd_config"), "-E", str(sshd.folder / "sshd.log")]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        until(lambda: sshd.read_log().count("Server listening") > before, "sshd to listen again")
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)
