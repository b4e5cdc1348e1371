"""The process that builds one environment: a lock, uv in a temporary folder, a rename. The end of stdin ends it.

One job comes as a line of JSON; what it says are lines of JSON: `line` of uv's own, and at last `python` or `error`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys

from remote_train.host import env_garbage, layout, locks
from remote_train.host.durable import sync_folder
from remote_train.host.environments import find_ready
from remote_train.host.start import Refusal
from remote_train.host.trees import throw_away

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List

LINE = 500
MOST_SAID = 2000
KEPT = 6
PAUSE = 0.05
STARTS_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_NOT_ITS = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "UV_PROJECT_ENVIRONMENT", "UV_PYTHON")


class GoneError(Exception):
    """Nobody waits for the environment any more."""


class BuildError(Exception):
    """The environment could not be built; the text is for people."""


def main() -> None:
    """Build what the line on stdin asks for, and say so."""
    signal.signal(signal.SIGTERM, _leave)
    job = json.loads(sys.stdin.buffer.readline())
    try:
        end = build(job)
    except GoneError:
        return
    except (BuildError, Refusal, OSError) as error:
        end = {"error": str(error)[: LINE * KEPT]}
    with contextlib.suppress(GoneError):
        _say(end)


def _leave(*_: object) -> None:
    raise GoneError


def build(job: Dict[str, Any]) -> Dict[str, Any]:
    """Return the environment's `python`, and whether it was `built` just now, or what it would `need`; raise GoneError, BuildError, Refusal or OSError."""
    root, key = job["root"], job["key"]
    os.makedirs(os.path.join(root, layout.ENVS), 0o700, exist_ok=True)
    lock = _take_lock(layout.env_path(root, key) + layout.ENV_LOCK)
    try:
        python = find_ready(root, key)
        if python is not None:
            return {"python": python, "built": False}
        _clear_parts(root, key)
        if os.path.exists(layout.env_path(root, key)):
            _clear_broken(root, key)
        return _build_new(job)
    finally:
        os.close(lock)


def _take_lock(path: str) -> int:
    told = False
    while True:
        fd = locks.open_lock(path)
        while not locks.try_lock(fd, fcntl.LOCK_EX):
            if not told:
                _say({"line": "another run is building this environment: waiting for it"})
                told = True
            try:
                _check_stdin(PAUSE)
            except GoneError:
                os.close(fd)
                raise
        if locks.is_at(fd, path):
            return fd
        os.close(fd)


def _check_stdin(seconds: float) -> None:
    """Raise GoneError once stdin has ended."""
    if select.select([0], [], [], seconds)[0] and not os.read(0, 1):
        raise GoneError


def _clear_parts(root: str, key: str) -> None:
    """Take away what builders have left that were killed; the lock is held."""
    folder = os.path.join(root, layout.ENVS)
    for name in os.listdir(folder):
        if name.startswith(key + ".") and name.endswith(layout.ENV_PART):
            throw_away(root, os.path.join(folder, name))


def _clear_broken(root: str, key: str) -> None:
    """Take away an environment that will never run again; raise BuildError while an attempt that uses it is under way, or GoneError.

    No start comes in between. Who holds them off and then wants the environment's lock (`remove_unused`) does not wait for it.
    """
    place = layout.env_path(root, key)
    cleaning = locks.hold_off_starts(root, STARTS_SECONDS, lambda: _check_stdin(0.0))
    if cleaning is None:
        raise BuildError("runs are being started there all the time, and an environment is to be built anew")
    try:
        _check_stdin(0.0)
        runs = env_garbage.list_users(root, key)
        if runs:
            words = "the Python of this project's environment is broken there, and %s, under way, uses what is left in %s"
            raise BuildError(words % (", ".join(runs), place))
        throw_away(root, place)
    finally:
        os.close(cleaning)


def _build_new(job: Dict[str, Any]) -> Dict[str, Any]:
    place = layout.env_path(job["root"], job["key"])
    part = "%s.%d%s" % (place, os.getpid(), layout.ENV_PART)
    try:
        source = os.path.join(part, "source")
        if not _write_files(job, source):
            return {"need": "files"}
        _run_uv(job, source, os.path.join(part, layout.VENV))
        shutil.rmtree(source)
        _check_stdin(0.0)
        os.rename(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync_folder(os.path.dirname(place))
    return {"python": os.path.join(place, layout.VENV, "bin", "python"), "built": True}


def _write_files(job: Dict[str, Any], source: str) -> bool:
    """Write what uv goes by; return False when some of it was tidied away since it was looked for."""
    os.makedirs(source, 0o700)
    for path, sha256, _ in job["files"]:
        target = os.path.join(source, path)
        os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
        blob = layout.blob_path(job["root"], sha256)
        if not os.path.exists(blob):
            return False
        shutil.copyfile(blob, target)
    return True


def _run_uv(job: Dict[str, Any], source: str, venv: str) -> None:
    """Have uv make the virtual environment and fill it, as the project's own rules say."""
    uv, script = job["uv"], job["script"]
    env = {key: value for key, value in os.environ.items() if key not in _NOT_ITS}
    env.update(job["env"], NO_COLOR="1", UV_NO_PROGRESS="1")
    make = [uv, "venv", "--relocatable"]
    sync = [uv, "sync", "--no-editable", *(["--frozen"] if job["frozen"] else [])]
    if script is None:
        env["UV_PROJECT_ENVIRONMENT"] = venv
        sync.append("--no-install-project")
    else:
        make += [
            "--no-project",
            "--python",
            _run([uv, "python", "find", "--script", script], source, env)[-1],
        ]
        env["VIRTUAL_ENV"] = venv
        sync += ["--script", script, "--active"]
    _run([*make, venv], source, env)
    _run(sync, source, env)


def _run(argv: List[str], cwd: str, env: Dict[str, str]) -> List[str]:
    """Run a command of uv's, tell what it says, and return its last lines; raise BuildError or GoneError."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=env,
        start_new_session=True,
        preexec_fn=_die_with_us,  # noqa: PLW1509  (this process has one thread)
    )
    try:
        last = _relay(process.stdout.fileno())  # type: ignore[union-attr]  # it has a pipe
        while process.poll() is None:
            _check_stdin(PAUSE)
    finally:
        _kill(process)
        process.stdout.close()  # type: ignore[union-attr]  # as above
    if process.returncode != 0:
        raise BuildError("`uv %s` failed there: %s" % (argv[1], " | ".join(last) or process.returncode))
    if not last and argv[1] == "python":
        raise BuildError("uv finds no Python there that the script can run with")
    return last


def _die_with_us() -> None:
    """Have the kernel end uv when this process is killed; where it cannot, the next builder clears what is left."""
    if sys.platform.startswith("linux"):
        import ctypes  # noqa: PLC0415  (Linux only)

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a command with all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _relay(fd: int) -> List[str]:
    """Tell the lines that come, until there are no more; return the last."""
    rest, said = b"", 0
    last: List[str] = []
    while True:
        ready = select.select([0, fd], [], [])[0]
        if 0 in ready and fd not in ready:
            _check_stdin(0.0)
        if fd not in ready:
            continue
        piece = os.read(fd, 8192)
        *whole, rest = (rest + piece).split(b"\n") if piece else [rest, b""]
        rest = rest[-LINE:]
        for line in whole:
            text = line.decode("utf-8", "replace").strip()[:LINE]
            if text:
                last = [*last, text][-KEPT:]
                said += 1
                if said <= MOST_SAID:
                    _say({"line": text})
        if not piece:
            return last
        if 0 in ready:
            _check_stdin(0.0)


def _say(words: Dict[str, Any]) -> None:
    """Write a line, as long as somebody reads; raise GoneError."""
    data = json.dumps(words).encode("ascii") + b"\n"
    try:
        while data:
            data = data[os.write(1, data) :]
    except OSError:
        raise GoneError from None
