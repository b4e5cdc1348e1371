"""The two machines of a benchmark: a laptop and a host, each with a home of its own, and a line of chosen length between.

Both are this machine. The host is an sshd on a loopback port with own keys, behind the delay proxy; sessions there have
its home by `SetEnv`. Everything lies in one temporary folder. Every process started on either side carries a mark in
its environment, so that what is left over can be found, and nothing else is ever ended. Needs Linux's /proc.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.line import DelayProxy
from tests.sshd import USER, Sshd, public_line, running_sshd

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = "REMOTE_TRAIN_BENCH"
HOST = "bench"
MEASURED = "bench-measured"
"""The same host under a second name, without a configured peak: a launch there measures one first."""
SHARED = "bench-shared"
"""The same host by ssh's ControlMaster; for comparison, by hand only."""
# What of this machine a laptop may see; everything else of its environment is made here.
KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR")
PATIENCE = 30.0

HELLO = """\
import time
from changed import VALUE

now = time.time()
print(f"hello {VALUE}", flush=True)
print(f"printed {now:.6f}", flush=True)
time.sleep(0.3)  # as a training would, it goes on; its end is no part of its start
"""
FILE_BYTES = 1000
SFTP = "Subsystem sftp internal-sftp"  # what scp uses; we do not


@dataclass
class Project:
    """The same files twice: ours in git, with our records beside them; the other for rsync, without either."""

    name: str
    ours: Path
    by_hand: Path
    value: int = 0

    def change(self) -> None:
        """Change one file on both sides; the script's first line tells which version ran."""
        self.value += 1
        # rsync goes by size and whole seconds of mtime: two edits of equal size within a second are one to it
        padding = "#" * (self.value % 64)
        for folder in (self.ours, self.by_hand):
            (folder / "changed.py").write_text(f"VALUE = {self.value}  {padding}\n")

    @property
    def first_line(self) -> bytes:
        """What the script prints first."""
        return f"hello {self.value}\n".encode()


@dataclass(frozen=True)
class Machines:
    """Where everything is."""

    folder: Path
    sshd: Sshd
    proxy: DelayProxy
    mark: str

    @property
    def laptop(self) -> Path:
        """The laptop's home."""
        return self.folder / "laptop"

    @property
    def host(self) -> Path:
        """The host's home."""
        return self.folder / "host"

    @property
    def ssh_config(self) -> Path:
        """The laptop's ~/.ssh/config: ours and by hand go by the same one."""
        return self.laptop / ".ssh" / "config"

    @property
    def hosts_file(self) -> Path:
        """The laptop's hosts.toml."""
        return self.laptop / "config" / "remote-train" / "hosts.toml"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of what is typed on the laptop."""
        kept = {key: os.environ[key] for key in KEPT if key in os.environ}
        places = {
            f"XDG_{kind}_HOME": str(self.laptop / kind.lower()) for kind in ("CONFIG", "STATE", "CACHE")
        }
        git = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        return {**kept, **places, **git, "HOME": str(self.laptop), "NO_COLOR": "1", MARK: self.mark}

    def forget_host(self) -> None:
        """Take away every trace of earlier launches, on both machines."""
        for folder in (self.host, self.laptop / "state", self.laptop / "cache"):
            self._set_aside(folder)
        self.host.mkdir()

    def drop_old_runs(self) -> None:
        """Take away the snapshots of all runs but the last, as `gc` would in time."""
        runs = sorted(
            (self.host / ".local/state/remote-train/runs").glob("*"), key=lambda run: run.stat().st_mtime
        )
        for run in runs[:-1]:
            self._set_aside(run)

    def _set_aside(self, folder: Path) -> None:
        """Move a folder out of the way; all is deleted at the end.

        ext4 does not give freed inodes out again for minutes and searches past them: making 20,000 files just after
        20,000 were deleted takes seconds of its time, which nobody's launch does.
        """
        if folder.exists():
            aside = self.folder / "aside"
            aside.mkdir(exist_ok=True)
            folder.rename(aside / str(len(list(aside.iterdir()))))

    def settle(self) -> None:
        """Wait until nothing that was started runs any more; end what does not end by itself."""
        end = time.monotonic() + PATIENCE
        while find_marked(self.mark):
            if time.monotonic() > end:
                names = ", ".join(_name(pid) for pid in find_marked(self.mark))
                sys.stderr.write(f"bench: still there after {PATIENCE:g} s, ended now: {names}\n")
                self.end_leftovers()
            time.sleep(0.01)

    def end_leftovers(self) -> None:
        """End every process that was started on either side."""
        for pid in find_marked(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def find_marked(mark: str) -> list[int]:
    """Return the processes that carry a mark; zombies have no environment and do not count."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return f"{pid} ({words.strip()[:80]})"
    return str(pid)


@contextlib.contextmanager
def running_machines(place: Path | None = None) -> Iterator[Machines]:
    """Set both machines up in a new folder under `place`; end and remove everything afterwards."""
    mark = secrets.token_hex(8)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rt-bench-", dir=place)))
        session = f'SetEnv "HOME={folder / "host"}" {MARK}={mark}'
        sshd = stack.enter_context(running_sshd(folder / "sshd", [session, "LogLevel INFO", SFTP]))
        proxy = stack.enter_context(DelayProxy(sshd.port))
        machines = Machines(folder, sshd, proxy, mark)
        stack.callback(machines.end_leftovers)
        machines.host.mkdir()
        _configure(machines)
        yield machines


def _configure(machines: Machines) -> None:
    """Write the laptop's configuration; its user has logged in before, and keeps hosts.toml to themselves."""
    machines.ssh_config.parent.mkdir(mode=0o700, parents=True)
    known = machines.laptop / ".ssh" / "known_hosts"
    known.write_text(f"[127.0.0.1]:{machines.proxy.port} {public_line(machines.sshd.host_keys[0])}\n")
    machines.ssh_config.write_text(
        f"Host {SHARED}\n  ControlMaster auto\n  ControlPath {machines.folder}/mux\n  ControlPersist 60\n"
        f"Host {HOST} {MEASURED} {SHARED}\n  HostName 127.0.0.1\n  Port {machines.proxy.port}\n  User {USER}\n"
        f"  IdentityFile {machines.sshd.user_key}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {known}\n  StrictHostKeyChecking yes\n"
    )
    hosts = machines.hosts_file
    hosts.parent.mkdir(parents=True)
    fit = f'python = "{sys.executable}"\ndevice = "cpu"\n'
    peak = f"[hosts.{HOST}.peak_tflops]\nfp32 = 1.0\n"
    hosts.write_text(f"[hosts.{HOST}]\n{fit}{peak}[hosts.{MEASURED}]\n{fit}")
    hosts.chmod(0o600)


def read_file_system(place: Path | None) -> str:
    """Return the kind of file system that the temporary folder will lie on; snapshots of many files depend on it."""
    folder = (place or Path(tempfile.gettempdir())).resolve()
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(point, kind) for point, kind in mounts if folder.is_relative_to(point)]
    return max(holding, key=lambda mount: len(mount[0]))[1]


def make_project(machines: Machines, name: str, files: int, seed: int) -> Project:
    """Write a project of `files` files of about 1 kB, 100 to a folder, on both sides; ours is committed to git."""
    project = Project(name, machines.folder / "ours" / name, machines.folder / "by-hand" / name)
    project.by_hand.mkdir(parents=True)
    (project.by_hand / "hello.py").write_text(HELLO)
    noise = random.Random(seed)
    for number in range(files - 2):
        path = project.by_hand / f"part{number // 100:03}" / f"module{number % 100:02}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# {number}\n" + "".join(f"{noise.random()}\n" for _ in range(FILE_BYTES // 19)))
    shutil.copytree(project.by_hand, project.ours)
    project.change()
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "work"]):
        argv = ["git", "-c", "user.name=bench", "-c", "user.email=bench@bench.example", *words]
        subprocess.run(argv, cwd=project.ours, env=machines.environment, check=True)
    return project
