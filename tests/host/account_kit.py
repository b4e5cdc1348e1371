"""An account on a host, in a folder: its HOME, agents brought up by the real bootstrap, and runs under supervisors.

Everything that was started is ended by pid when the test is over.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from remote_train.bootstrap import Agent, read_agent
from remote_train.config.host_spec import make_local
from remote_train.host import attempt, durable, layout, system
from remote_train.host.manifest_format import Rows, make_package_id
from remote_train.package.packing import Package
from remote_train.plan import Plan
from remote_train.reach import HostLink
from remote_train.records import Run, client_root, create_run
from remote_train.session import Session, open_session
from remote_train.ship import Shipment
from remote_train.transport.local import LocalTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from remote_train.transport import Transport

PATIENCE = 40.0
Content = str | bytes
T = TypeVar("T")


@cache
def the_agent() -> Agent:
    """Read our shipped program once: a file that is edited while tests run must not make two of it."""
    return read_agent()


def until(condition: Callable[[], T], what: str = "the condition", seconds: float = PATIENCE) -> T:
    """Return what `condition` gives as soon as it is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.01)
    return value


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_rows(files: dict[str, bytes], programs: tuple[str, ...] = ()) -> Rows:
    """Return the manifest rows of these files."""
    return [
        [path, "f", 0o755 if path in programs else 0o644, len(data), sha256(data)]
        for path, data in sorted(files.items())
    ]


def make_test_plan(package: str, argv: tuple[str, ...], **changes: Any) -> Plan:
    plan = Plan(
        host="local",
        device="cpu",
        python=sys.executable,
        launcher="python",
        processes=1,
        argv=argv,
        cwd="",
        env={},
        default_env={"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
        gpus=None,
        links={},
        persist=(),
        project="project",
        package=package,
        checkpoints=(),
        measure=None,
        cpu={"model": "a CPU", "threads": 1},
        torch="2.0",
        peak_tflops={},
    )
    return replace(plan, **changes)


class Started:
    """One attempt on the account's machine, as its files and the system tell it."""

    def __init__(self, account: Account, run: str) -> None:
        self.account = account
        self.run = run
        self.folder = account.root / "runs" / run / "attempts" / "1"

    @property
    def record(self) -> dict[str, Any]:
        record = durable.read_record(str(self.folder / layout.ATTEMPT))
        assert record is not None
        return record

    def state(self) -> dict[str, Any]:
        return attempt.read_state(str(self.folder))

    def output(self, rank: int = 0) -> bytes:
        path = self.folder / "ranks" / f"{rank}.log"
        return path.read_bytes() if path.exists() else b""

    def says(self, word: bytes, rank: int = 0) -> bytes:
        """Wait for a line that begins with `word`, and return what follows it."""

        def look() -> bytes | None:
            for line in self.output(rank).split(b"\n")[:-1]:
                if line.startswith(word):
                    return line[len(word) :].strip() or b"yes"
            return None

        return until(look, f"{word!r} in the output")  # type: ignore[return-value]  # until returns no None

    def end(self) -> dict[str, Any]:
        """Wait for the exit record."""
        return until(lambda: attempt.read_exit(str(self.folder)), f"the exit record of {self.run}") or {}

    def members(self) -> list[int]:
        """Return the processes that are of this run: marked, or below its supervisor."""
        record = self.record
        alive = system.Family(record["pid"]).members(record["cookie"])
        return sorted(alive)

    def supervisor_lives(self) -> bool:
        record = self.record
        return system.is_alive(record["pid"], record["start_time"])

    def kill_supervisor(self) -> None:
        record = self.record
        assert system.kill_process(record["pid"], record["start_time"], signal.SIGKILL)
        until(lambda: not self.supervisor_lives(), "the supervisor's death")

    def clean(self) -> None:
        """End all of it, whatever the test left."""
        record = durable.read_record(str(self.folder / layout.ATTEMPT))
        if record is None:
            return
        lives = system.is_alive(record["pid"], record["start_time"])
        system.sweep(record["pid"] if lives else None, record["cookie"], 10.0)
        system.kill_process(record["pid"], record["start_time"], signal.SIGKILL)


class Account:
    """A HOME with our state root, and ways to reach it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / ".local" / "state" / "remote-train"
        self.sessions: list[Session] = []
        self._packages = 0

    def connect(self, python: str | None = None, transport: Transport | None = None) -> Session:
        """Return a session whose `open` is on its way, through the real bootstrap."""
        session = open_session(transport or LocalTransport(), the_agent(), python or sys.executable)
        self.sessions.append(session)
        session.submit("open", state_dir=None)
        return session

    def link(self) -> HostLink:
        return HostLink(make_local(), the_agent(), None, [sys.executable])

    def package(self, files: dict[str, Content]) -> tuple[Path, Package]:
        """Write a project and return its folder and package."""
        self._packages += 1
        root = self.home / f"project{self._packages}"
        contents = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
        for path, data in contents.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
        rows = make_rows(contents)
        total = sum(map(len, contents.values()))
        return root, Package(rows, make_package_id(rows), total, (), (), None)

    def ship(self, session: Session, files: dict[str, Content]) -> str:
        """Get a package to the host and return its id; nothing is started."""
        root, package = self.package(files)
        shipment = Shipment(session, root, package)
        shipment._send_manifest({}, package.rows)
        shipment._send_blobs(package.rows)
        shipment._settle_uploads()
        return package.package_id

    def message(self, package: str, *argv: str, run: str = "run", **changes: Any) -> dict[str, Any]:
        """Return a start request."""
        token = changes.pop("token", "token-" + run)
        secrets = changes.pop("secrets", {})
        plan = make_test_plan(package, argv or ("train.py",), **changes).as_message()
        return {"run": run, "attempt": 1, "token": token, "plan": plan, "secrets": secrets}

    def start(self, script: Content, *args: str, run: str = "run", **changes: Any) -> Started:
        """Ship a script, start it, and return the attempt."""
        session = self.connect()
        package = self.ship(session, {"train.py": script})
        state = session.request("start", **self.message(package, "train.py", *args, run=run, **changes))
        assert state["state"] in ("starting", "running", "ended"), state
        session.close()
        return Started(self, run)

    def client_run(self, started: Started) -> Run:
        """Return a record of the run on the laptop's side."""
        plan = started.record["plan"]
        attempts = [{"attempt": 1, "host": "local", "plan": plan}]
        fields = {"project": "project", "root": str(self.home), "host": "local", "state_dir": None}
        more = {"created": 0.0, "state": "running", "exit": None, "attempts": attempts, "package": None}
        return create_run(self.home / "client" / "runs", started.run, {**fields, **more})

    def close(self) -> None:
        for session in self.sessions:
            session.close()
        for folder in (self.root / "runs").glob("*"):
            Started(self, folder.name).clean()


def agents_of(home: Path) -> list[int]:
    """Return the agents whose HOME this is; a supervisor was one too before it took another name."""
    mark = b"\0HOME=" + os.fsencode(home) + b"\0"
    found = []
    for name in [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{name}/cmdline").read_bytes()
            environment = Path(f"/proc/{name}/environ").read_bytes()
            ours = mark in b"\0" + environment and b"binascii" in command and b"-I" in command.split(b"\0")
            if ours and Path(f"/proc/{name}/comm").read_bytes() != b"remote-train\n":
                found.append(int(name))
    return found


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """An account with a home of its own, on this machine."""
    home = tmp_path / "home"
    home.mkdir()
    for name in [name for name in os.environ if name.startswith(("XDG_", "REMOTE_TRAIN_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "laptop"))
    client_root.cache_clear()
    made = Account(home)
    yield made
    made.close()
    client_root.cache_clear()
