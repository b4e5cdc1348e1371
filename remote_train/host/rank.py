"""The shim torchrun starts once per rank: `rank.py ATTEMPT_FOLDER PYTHON ARGS…`.

Gives the rank its own output file (stdout and stderr in the order written; two ranks on one file garble each
other), runs the user's Python, and records how it ended, because torchrun exits with 1 for everything. It stays
as the parent instead of exec'ing: nobody else can see a rank's exit status.
"""

import json
import os
import resource
import signal
import sys
import time

TYPE_CHECKING = False  # of typing, which a rank's shim need not import
if TYPE_CHECKING:
    from typing import Mapping

ERROR_LIMIT = 256 * 1024


def _redirect(folder: str, rank: int) -> None:
    path = os.path.join(folder, "ranks", "%d.log" % rank)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def _record(folder: str, rank: int, code: int) -> None:
    """Append one line to ends.jsonl; a single small O_APPEND write is never torn."""
    end = {"code": code if code >= 0 else None, "signal": -code if code < 0 else None}
    _append(folder, "ends.jsonl", rank, end)


def _append(folder: str, name: str, rank: int, facts: "Mapping[str, object]") -> None:
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    row = dict(facts, rank=rank, restart=restart, time=time.monotonic())
    try:
        fd = os.open(os.path.join(folder, "ranks", name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, json.dumps(row).encode("ascii") + b"\n")
        os.close(fd)
    except OSError:  # a full disk: the rank's own end must not change for it
        return


def _keep_error(folder: str, rank: int) -> None:
    """Keep the error file that torch's @record wrote, whose place is torchrun's own and not announced anywhere."""
    try:
        with open(os.environ.get("TORCHELASTIC_ERROR_FILE", ""), "rb") as file:
            data = file.read(ERROR_LIMIT)
        place = os.path.join(folder, "ranks", "%d.error.json" % rank)
        copy = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(copy, data)
        os.close(copy)
    except OSError:  # there is none, or no space for it
        return


def _bind() -> None:
    """Bind this rank to the CPUs that the supervisor gave it, "0,1;2,3" by local rank; what cannot be is left alone."""
    sets = os.environ.pop("REMOTE_TRAIN_AFFINITY", "").split(";")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local < len(sets) and sets[local]:
        try:
            os.sched_setaffinity(0, [int(number) for number in sets[local].split(",")])
        except OSError:  # they went offline meanwhile
            return


def _wait(pid: int) -> int:
    """Return the child's exit code, or minus the signal that ended it."""
    _, status = os.waitpid(pid, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _end_like(code: int) -> None:
    """End as the child ended, without a second core file."""
    if code >= 0:
        os._exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -code)
    os._exit(1)


def main(argv: "list[str]") -> None:
    """Run one rank; never returns."""
    folder, python = argv[1], argv[2]
    rank = int(os.environ["RANK"])
    _redirect(folder, rank)
    _append(folder, "begins.jsonl", rank, {"pid": os.getpid()})
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        _bind()
        try:
            os.execvp(python, [python, "-u", *argv[3:]])  # noqa: S606  (no shell is the point)
        except OSError as error:
            os.write(2, ("remote-train: cannot run %s: %s\n" % (python, error.strerror)).encode())
            os._exit(127)
    # torchrun signals the whole process group: the child gets it too and decides, we only report.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    code = _wait(pid)
    if code != 0:
        _keep_error(folder, rank)
    _record(folder, rank, code)
    _end_like(code)


if __name__ == "__main__":
    main(sys.argv)
