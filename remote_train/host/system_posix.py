"""The plain POSIX half of system.py, for macOS and the BSDs: `ps`, `sysctl`, process groups.

One call of ps takes 5 to 10 ms and there is no subreaper, so the supervisor remembers its family (system.Family).
What this half cannot see: a daemon that cleared its environment, left its group and lost its parent between
two observations; and a start time is exact to the second only.
"""

import errno
import os
import subprocess
import sys
from typing import Dict, List, Optional, Tuple

from remote_train.host.process_table import Process, Table

ORPHANS_RETURN = False

_PS_SECONDS = 20.0
# One -o for each column: BSD and macOS take all that follows a first "=" for the heading.
_COLUMNS = ["-o", "pid=", "-o", "ppid=", "-o", "pgid=", "-o", "stat=", "-o", "lstart="]
_WORDS = ["-o", "pid=", "-o", "uid=", "-o", "command="]
# With the environment behind the command: -E is macOS's; elsewhere it is e, and -e means "all processes".
_WITH_ENVIRONMENT = ["-axEww"] if sys.platform == "darwin" else ["axeww"]
# macOS; older macOS and the BSDs; Linux, where CI runs this half.
_BOOT_NAMES = ("kern.bootsessionuuid", "kern.boottime", "kernel.random.boot_id")


def read_boot_id() -> str:
    """Return what the system calls this boot: a UUID, or the time of the boot."""
    for name in _BOOT_NAMES:
        text = read_sysctl(name)
        if text:
            return text
    return ""


def read_sysctl(name: str) -> str:
    """Return one sysctl value as text, empty when this system has none of that name."""
    try:
        return _run(["sysctl", "-n", name])[1].strip()
    except OSError:
        return ""


def parse_process(line: str) -> Optional[Process]:
    """Return a process from one line of ps, or None for a line of another shape."""
    words = line.split(None, 4)
    if len(words) != 5 or not (words[0] + words[1] + words[2]).isdigit():
        return None
    pid, parent, group = (int(word) for word in words[:3])
    return Process(pid, parent, group, words[4].strip(), words[3].startswith("Z"))


def read_process(pid: int) -> Optional[Process]:
    """Return one process, a zombie too, or None when there is none."""
    for line in _run(["ps", *_COLUMNS, "-p", str(pid)])[1].splitlines():
        return parse_process(line)
    return None


def read_table() -> Table:
    """Return all processes but the ps that lists them."""
    lister, text = _run(["ps", "-ax", *_COLUMNS])
    processes = [parse_process(line) for line in text.splitlines()]
    table = {process.pid: process for process in processes if process is not None and process.pid != lister}
    if not table:
        raise OSError(errno.EIO, "ps listed no process")  # never to be read as "all are gone"
    return table


def parse_words(text: str) -> Dict[int, Tuple[int, str]]:
    """Return user id and command line by pid, from the columns pid, uid and command of ps."""
    found = {}
    for line in text.splitlines():
        words = line.split(None, 2)
        if len(words) == 3 and words[0].isdigit() and words[1].isdigit():
            found[int(words[0])] = (int(words[1]), words[2])
    return found


def match_marks(plain: str, full: str, item: str, user: int) -> List[int]:
    """Return the pids whose environment holds `item`, given ps without and with the environment.

    The command is taken off the front, so that an argument that spells the item (of a grep, say) is no match.
    """
    commands = parse_words(plain)
    found = []
    for pid, (owner, line) in parse_words(full).items():
        command = commands.get(pid, (owner, line))[1]
        if owner == user and line.startswith(command) and item in line[len(command) :].split():
            found.append(pid)
    return found


def marked_processes(item: str) -> List[int]:
    """Return the processes of our user whose first environment holds `NAME=VALUE`; never ourselves."""
    full = _run(["ps", *_WITH_ENVIRONMENT, *_WORDS])[1]
    plain = _run(["ps", "-axww", *_WORDS])[1]
    return [pid for pid in match_marks(plain, full, item, os.geteuid()) if pid != os.getpid()]


def become_subreaper() -> bool:
    """Return False: only Linux hands orphans to a chosen process."""
    return False


def set_process_name(name: str) -> None:
    """Do nothing: there is no portable way."""


def kill_process(pid: int, start: str, number: int) -> bool:
    """Send a signal to this process; False when it is gone, is another by now, or may not be signalled."""
    process = read_process(pid)
    if process is None or process.zombie or process.start != start:
        return False
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _run(command: List[str]) -> Tuple[int, str]:
    """Return pid and output of a command, run without our environment: it must not carry a run's mark itself."""
    path = os.environ.get("PATH", os.defpath) + ":/bin:/usr/bin:/sbin:/usr/sbin"
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": path, "LC_ALL": "C"},
    ) as child:
        try:
            output = child.communicate(timeout=_PS_SECONDS)[0]
        except subprocess.TimeoutExpired:
            child.kill()
            raise OSError(errno.ETIMEDOUT, "no answer in %d s" % _PS_SECONDS, command[0]) from None
    return child.pid, output.decode("utf-8", "replace")
