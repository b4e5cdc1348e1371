"""A laptop and a box for end-to-end tests: each with a home of its own; between them a real sshd, or nobody.

`Laptop` types commands as its user would, in processes of their own; `Box` is what lies on the host afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.host import layout
from tests.sshd import PATIENCE, Sshd, public_line, running_sshd, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

PYTHON = Path(sys.executable)
COMMAND = PYTHON.with_name("remote-train")
SECONDS = 60.0
REPOSITORY = Path(__file__).parents[2]
# What of this machine a laptop may see; everything else of its environment is made here.
KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR")


@dataclass
class Done:
    """A command that has ended."""

    code: int
    out: bytes
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """What `--json` printed, one event a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def event(self, kind: str) -> dict[str, Any]:
        """The one event of a kind."""
        (found,) = [event for event in self.events if event["event"] == kind]
        return found

    def expect(self, code: int) -> Done:
        """Assert how it ended, and that no traceback was shown."""
        assert self.code == code, (
            f"exit {self.code}, not {code}\n{self.out.decode(errors='replace')}\n{self.err}"
        )
        assert "Traceback" not in self.err
        return self

    def run_id(self) -> str:
        """The id that `run` printed."""
        line = next(line for line in self.err.splitlines() if " on " in line and line.endswith(HOW))
        return line.split()[1]


# Threads that wait for each other on cores that other tests use spin: a small training took four times the CPU time with two.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
HOW = (", python", "processes", ", torchrun")


@dataclass
class Laptop:
    """A user's machine: home, configuration, and a shell to type in."""

    home: Path
    extra: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = (str(COMMAND),)
    started: list[subprocess.Popen[Any]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of what is typed here."""
        kept = {key: os.environ[key] for key in KEPT if key in os.environ}
        ours = {
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_SYSTEM": "/dev/null",
            "NO_COLOR": "1",
            "COLUMNS": "120",
            **ONE_THREAD,
        }
        return {**kept, **ours, **self.extra}

    @property
    def root(self) -> Path:
        """The state root of runs on this machine itself."""
        return self.home / ".local" / "state" / "remote-train"

    def attempt(self, run: str) -> Path:
        """The folder of a local run's first attempt."""
        return Path(layout.attempt_dir(str(self.root), run, 1))

    @property
    def hosts_file(self) -> Path:
        """The user's hosts.toml."""
        return self.home / "config" / "remote-train" / "hosts.toml"

    def write_hosts(self, text: str) -> None:
        """Describe hosts, as a careful user: only they may read it."""
        self.hosts_file.parent.mkdir(parents=True, exist_ok=True)
        self.hosts_file.write_text(text)
        self.hosts_file.chmod(0o600)

    def trust(self, *lines: str) -> None:
        """Know host keys, and have ssh look for them in this home."""
        ssh = self.home / ".ssh"
        ssh.mkdir(mode=0o700, exist_ok=True)
        (ssh / "known_hosts").write_text("".join(f"{line}\n" for line in lines))
        (ssh / "config").write_text(f"Host *\n  UserKnownHostsFile {ssh}/known_hosts\n")

    def popen(self, cwd: Path, *args: str, env: Mapping[str, str] | None = None, **options: Any) -> Any:
        """Start a command; stdin is empty, stdout and stderr are pipes unless said otherwise."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {**self.environment, **(env or {})}
        process = subprocess.Popen([*self.command, *args], cwd=cwd, env=environment, **(streams | options))
        self.started.append(process)
        return process

    def end(self) -> None:
        """End what a failed test left: commands with their pipes, then what is training here."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()
                for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
                    pipe.close()
        kill_leftovers(self.root)

    def type(
        self, cwd: Path, *args: str, env: Mapping[str, str] | None = None, seconds: float = SECONDS
    ) -> Done:
        """Type a command and wait for its end."""
        process = self.popen(cwd, *args, env=env)
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{args} did not end\n{out!r}\n{err.decode()}") from None
        return Done(process.returncode, out, err.decode())

    def ok(self, cwd: Path, *args: str, **options: Any) -> Done:
        """Type a command that must succeed."""
        return self.type(cwd, *args, **options).expect(0)


@dataclass
class Box:
    """A host: sshd, and the home that its sessions have."""

    sshd: Sshd
    home: Path

    @property
    def root(self) -> Path:
        """The state root that remote-train makes there."""
        return self.home / ".local" / "state" / "remote-train"

    def attempt(self, run: str) -> Path:
        """The folder of a run's first attempt."""
        return Path(layout.attempt_dir(str(self.root), run, 1))

    def log(self, run: str, rank: int = 0) -> bytes:
        """A rank's output, as it lies on the host."""
        path = Path(layout.rank_log(str(self.attempt(run)), rank))
        return path.read_bytes() if path.exists() else b""

    def code(self, run: str) -> Path:
        """The snapshot that a run works in."""
        return self.attempt(run) / layout.CODE

    def blobs(self) -> set[str]:
        """The contents that the host keeps, by hash."""
        return {path.parent.name + path.name for path in (self.root / layout.BLOBS).glob("??/*")}

    def cookie(self, run: str) -> str:
        """What marks the processes of a run."""
        return str(json.loads((self.attempt(run) / layout.ATTEMPT).read_text())["cookie"])

    def processes(self, run: str) -> list[int]:
        """The processes that carry a run's cookie."""
        return find_marked(self.cookie(run))

    def describe(self, **keys: str) -> str:
        """Return the lines of hosts.toml below its table's name."""
        facts = {
            "address": '["127.0.0.1"]',
            "port": str(self.sshd.port),
            "identity_file": f'"{self.sshd.user_key}"',
            "python": f'"{PYTHON}"',
            "device": '"cpu"',
            # a figure of the user's own: nothing has to be measured, which would take seconds of each test
            "peak_tflops": "{ fp32 = 0.1 }",
        } | keys
        return "".join(f"{key} = {value}\n" for key, value in facts.items() if value)


def find_marked(cookie: str) -> list[int]:
    """Return the processes of this machine with a cookie in their environment, zombies aside."""
    marked = f"{layout.COOKIE}={cookie}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and marked in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def write_project(root: Path, files: Mapping[str, str | bytes], *, git: bool = False) -> Path:
    """Write a project's files; with git, commit them."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    if git:
        run_git(root, "init", "-q")
        commit(root)
    return root


def run_git(cwd: Path, *args: str) -> str:
    """Run git as a user with a name and nothing configured."""
    who = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "HOME": str(cwd)}
    argv = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always", *args]
    done = subprocess.run(argv, cwd=cwd, env=os.environ | who, check=True, capture_output=True, text=True)
    return done.stdout


def commit(root: Path) -> None:
    """Commit everything that git does not ignore."""
    run_git(root, "add", "-A")
    run_git(root, "commit", "-q", "-m", "work")


@contextlib.contextmanager
def running_box(folder: Path, lines: Sequence[str] = ()) -> Iterator[Box]:
    """Run a host until the block ends; whatever still trains there is killed then."""
    home = folder / "home of box"
    home.mkdir(parents=True)
    one_thread = " ".join(f"{name}={value}" for name, value in ONE_THREAD.items())
    quoted = f'SetEnv "HOME={home}" {one_thread}'
    with running_sshd(folder / "sshd", [*lines, quoted]) as sshd:
        box = Box(sshd, home)
        try:
            yield box
        finally:
            kill_leftovers(box.root)


def kill_leftovers(root: Path) -> None:
    """Kill what a failed test left training, supervisors first: they hold the lock and would note an end."""
    for path in root.glob("runs/*/attempts/*/attempt.json"):
        record = json.loads(path.read_text())
        for pid in find_marked(record["cookie"]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


def make_laptop(home: Path, box: Box | None = None) -> Laptop:
    """Make a laptop; one that knows a box calls it `box` and trusts its key."""
    home.mkdir(parents=True)
    laptop = Laptop(home)
    laptop.trust(*([known_line(box.sshd)] if box else []))
    if box is not None:
        laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe()}')
    return laptop


def known_line(sshd: Sshd) -> str:
    """Return the line of known_hosts that trusts a host."""
    return f"[127.0.0.1]:{sshd.port} {public_line(sshd.host_keys[0])}"


def make_python_without_torch(folder: Path) -> Path:
    """Make an environment with everything that this one has, less torch; return its Python."""
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith("torch"):
            (packages / path.name).symlink_to(path)
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.symlink_to(Path(sys.executable).resolve())
    (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    return python


def poll(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds, a minute at most."""
    wait_until(condition, what)


def read_until(stream: Any, words: bytes, seconds: float = PATIENCE) -> bytes:
    """Read a pipe until its output holds some words; return all that came."""
    os.set_blocking(stream.fileno(), False)
    held, end = b"", time.monotonic() + seconds
    while words not in held:
        assert time.monotonic() < end, f"waited {seconds:g} s for {words!r}, had {held!r}"
        piece = stream.read(65536)
        assert piece != b"", f"ended before {words!r}: {held!r}"
        held += piece or b""
        time.sleep(0 if piece else 0.01)
    os.set_blocking(stream.fileno(), True)
    return held
