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


def _redirect(folder: str, rank: int) -> None:
    path = os.path.join(folder, "ranks", "%d.log" % rank)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def _record(folder: str, rank: int, code: int) -> None:
    """Append one line to ends.jsonl; a single small O_APPEND write is never torn."""
    end = {
        "rank": rank,
        "code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "time": time.monotonic(),
        "restart": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    }
    path = os.path.join(folder, "ranks", "ends.jsonl")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, json.dumps(end).encode("ascii") + b"\n")
    os.close(fd)


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
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        try:
            os.execvp(python, [python, "-u", *argv[3:]])  # noqa: S606  (no shell is the point)
        except OSError as error:
            os.write(2, ("remote-train: cannot run %s: %s\n" % (python, error.strerror)).encode())
            os._exit(127)
    # torchrun signals the whole process group: the child gets it too and decides, we only report.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    code = _wait(pid)
    _record(folder, rank, code)
    _end_like(code)


if __name__ == "__main__":
    main(sys.argv)
