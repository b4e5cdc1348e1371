"""What the user's hosts.toml has the host run before a training: `setup` lines, and the scripts of a conda environment.

Lines of shell run one after the other in one shell, with the training's environment but for its secrets; what they leave of
it is the training's. They are the user's own: a project cannot name any. Their output goes to launcher.log.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time

from remote_train.host import conda, layout
from remote_train.host.launcher import INJECTED, inject

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional

SECONDS = 300.0
MOST_BYTES = 4 << 20
WORDS = 500
_LINE, _END = b"\0line ", b"\0end\0"
_GPUS = "CUDA_VISIBLE_DEVICES"
_OURS = (_GPUS, layout.ERROR_VARIABLE, layout.AFFINITY_VARIABLE)
_SHELLS_OWN = ("_", "PWD", "OLDPWD", "SHLVL")

# `module` is a function of the login shell that a script does not have.
_MODULES = """
if ! command -v module >/dev/null 2>&1; then
  for rt_file in "${MODULESHOME-}/init/sh" "${LMOD_PKG-}/init/sh" \\
      /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh; do
    if [ -r "$rt_file" ]; then . "$rt_file"; break; fi
  done
  unset rt_file
fi
"""


class SetupError(OSError):
    """A line failed, or did not end in time; the text is for people."""


def is_wanted(plan: Dict[str, Any]) -> bool:
    """Tell whether there is anything to run."""
    return bool(plan.get("setup")) or bool(plan.get("conda") and conda.list_scripts(str(plan["conda"])))


def make_script(plan: Dict[str, Any]) -> str:
    """Return the shell script: each line by itself, its number told on descriptor 3 first, the environment at the end."""
    lines = [str(line) for line in plan.get("setup") or ()]
    script = ["exec 3>&0 </dev/null"]
    script += [_MODULES] if any(line.split()[:1] in (["module"], ["ml"]) for line in lines) else []
    if plan.get("conda"):
        # As conda does: whether one of them fails does not matter.
        script += [
            "eval %s 3>&- || :" % _quote(". " + _quote(p)) for p in conda.list_scripts(str(plan["conda"]))
        ]
    for number, line in enumerate(lines, 1):
        script.append("printf '\\000line %d\\000' >&3" % number)
        script.append("eval %s 3>&- || exit $?" % _quote(line))
    return "\n".join([*script, "printf '\\000end\\000' >&3", "env -0 >&3", ""])


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def run_setup(
    folder: str,
    record: Dict[str, Any],
    environment: Dict[str, str],
    is_stopped: Callable[[], bool],
) -> Dict[str, str]:
    """Return the training's environment after the lines; the one that was given when a stop came. Raises SetupError."""
    secrets = {name: environment[name] for name in record.get("secrets", ()) if name in environment}
    given = {key: value for key, value in environment.items() if key not in secrets}
    _drop_injected(given)
    log = os.path.join(folder, layout.LAUNCHER_LOG)
    shell = shutil.which("bash", path=given.get("PATH")) or "/bin/sh"
    said, code = _run(folder, record, shell, given, is_stopped)
    if code is None and is_stopped():
        return environment
    told, end, after = said.partition(_END)
    if code != 0 or not end:
        raise SetupError(_explain(record["plan"], told, code, log))
    found = _parse(after)
    if "PATH" not in found:
        raise SetupError("setup: this host's `env -0` does not tell the environment")
    _check_gpus(record.get("gpus") or [], found.get(_GPUS))
    return _lay_over(found, environment, secrets)


def _run(
    folder: str,
    record: Dict[str, Any],
    shell: str,
    environment: Dict[str, str],
    is_stopped: Callable[[], bool],
) -> "tuple[bytes, Optional[int]]":
    """Return what the shell said on descriptor 3, and its exit code, None when it was ended: by a stop, or the limit."""
    read_fd, write_fd = os.pipe()
    output = os.open(os.path.join(folder, layout.LAUNCHER_LOG), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    place = os.path.join(folder, layout.CODE, record["plan"].get("cwd", ""))
    script = os.path.join(folder, layout.SETUP_SCRIPT)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with os.fdopen(os.open(script, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(make_script(record["plan"]))
    try:
        # Its text comes from a file, for an argument list is for everybody on this host to read.
        process = subprocess.Popen(
            [shell, script],
            stdin=write_fd,  # dup'ed by the script: dash takes no descriptor of two digits
            stdout=output,
            stderr=output,
            cwd=place,
            env=environment,
            start_new_session=True,
        )
    finally:
        os.close(output)
        os.close(write_fd)
    os.set_blocking(read_fd, False)
    try:
        return _wait(process, read_fd, is_stopped)
    finally:
        os.close(read_fd)
        os.unlink(script)


def _wait(
    process: "subprocess.Popen[bytes]", read_fd: int, is_stopped: Callable[[], bool]
) -> "tuple[bytes, Optional[int]]":
    said = bytearray()
    deadline = time.monotonic() + SECONDS
    while process.poll() is None:
        # What a line leaves in the background may hold the pipe open: the shell's own end is what counts.
        select.select([read_fd], [], [], 0.1)
        _take(read_fd, said)
        if is_stopped() or time.monotonic() > deadline:
            _kill(process)
            return bytes(said), None
    _take(read_fd, said)
    return bytes(said), process.returncode


def _take(read_fd: int, said: bytearray) -> None:
    while len(said) < MOST_BYTES:
        try:
            piece = os.read(read_fd, 65536)
        except BlockingIOError:
            return
        if not piece:
            time.sleep(0.01)
            return
        said += piece


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _explain(plan: Dict[str, Any], told: bytes, code: Optional[int], log: str) -> str:
    """Return which line failed, how, and the last it said."""
    lines = [str(line) for line in plan.get("setup") or ()]
    number = told.count(_LINE)
    where = "setup line %d (%s)" % (number, lines[number - 1][:WORDS]) if number else "setup"
    if code is None:
        how = "did not end within %d s" % SECONDS
    else:
        how = "ended the shell" if code == 0 else "ended with code %d" % code
    words = _read_last(log)
    return "%s %s%s" % (where, how, ": %s" % words if words else "")


def _read_last(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 65536))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:WORDS] if said else ""


def _parse(data: bytes) -> Dict[str, str]:
    pairs = (os.fsdecode(item).partition("=") for item in data.split(b"\0") if b"=" in item)
    return {key: value for key, _, value in pairs if key and key not in _SHELLS_OWN}


def _drop_injected(environment: Dict[str, str]) -> None:
    """Take our folder off PYTHONPATH, for the lines may put others before it."""
    kept = [
        item for item in environment.get("PYTHONPATH", "").split(os.pathsep) if item not in ("", INJECTED)
    ]
    environment.pop("PYTHONPATH", None)
    if kept:
        environment["PYTHONPATH"] = os.pathsep.join(kept)


def _check_gpus(gpus: List[Dict[str, Any]], said: Optional[str]) -> None:
    """Raise SetupError where the lines choose other GPUs than the run was given: it would train on somebody else's."""
    named = {item.strip() for item in (said or "").split(",") if item.strip()}
    given = [{str(gpu["index"]), gpu["uuid"]} for gpu in gpus]
    if gpus and said is not None and not (len(named) == len(given) and all(names & named for names in given)):
        words = "setup sets %s=%s, and the run was given GPU %s: write it into `env` of this host in hosts.toml instead"
        raise SetupError(words % (_GPUS, said[:WORDS], ", ".join(str(gpu["index"]) for gpu in gpus)))


def _lay_over(found: Dict[str, str], given: Dict[str, str], secrets: Dict[str, str]) -> Dict[str, str]:
    """Return what the lines left, with what is ours as it was: which GPU, the cookie, where reports go, the secrets."""
    found.update({key: given[key] for key in given if key.startswith("REMOTE_TRAIN_") or key in _OURS})
    found.update(secrets)
    if INJECTED in given.get("PYTHONPATH", "").split(os.pathsep):
        inject(found)
    return found
