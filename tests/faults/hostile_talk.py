"""A whole conversation with a host that cannot be trusted: run, show, logs -f, pull, stop; and what must hold after it."""

from __future__ import annotations

import io
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remote_train import (
    blocks,
    collect,
    finish,
    gate,
    launching,
    lister,
    preparing,
    reach,
    reconnect,
    session,
    ship,
    stop,
    uplink,
)
from remote_train.api import Training, training_of
from remote_train.bootstrap import Agent as OurAgent
from remote_train.config.host_spec import HostSpec
from remote_train.errors import ConnectionGivenUp, ConnectionLost, RemoteTrainError
from remote_train.host import wire
from remote_train.preparing import Request
from remote_train.pull import PullWish
from remote_train.query import make_row
from remote_train.reach import HostLink
from remote_train.records import Run, client_root, list_runs
from remote_train.session import Session, open_session
from remote_train.show.display import Display
from remote_train.show.kept import render_kept
from remote_train.show.live import LiveListener
from remote_train.show.screen import Screen
from remote_train.show.tables import Look, render_run, render_runs
from remote_train.transport.fake import FakeTransport
from tests.faults.hostile_agent import Case, Frame, play
from tests.faults.hostile_cases import FORGED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

DOCUMENTED = {0, 1, 2, 10, 11, 12, 13, 14, 15, 20, 21, 22, 30, 31, 40, 41, 42, 50, 60}
"""DESIGN §7, less our bugs and what signals end."""
STEP_SECONDS = 20.0
MINE = b"a file of the user's own"

_COLOUR = re.compile(r"\x1b\[[0-9;:]*m|\r\x1b\[K")
_CONTROL = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_OURS = {
    "run.json",
    ".gitignore",
    "attempts",
    "files",
    "pulled.json",
    "mirror.lock",
    "pull.lock",
    "puller.lock",
}


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten every deadline: what is tested is that there is one."""
    for module, name, seconds in (
        (gate, "HELD_BYTES", 32 << 20),
        (gate, "DROPPED_CHECKPOINTS", 10_000),
        (session, "REQUEST_SECONDS", 2.0),
        (lister, "LISTING_SECONDS", 2.0),
        (ship, "REQUEST_SECONDS", 2.0),
        (ship, "START_SECONDS", 2.0),
        (reach, "FACTS_SECONDS", 2.0),
        (lister, "MAX_FILES", 20_000),
        (session, "BOOTSTRAP_SECONDS", 2.5),
        (session, "SEND_SECONDS", 1.0),
        (uplink, "SEND_SECONDS", 1.0),
        (blocks, "STALL_SECONDS", 1.0),
        (finish, "TAIL_SECONDS", 2.0),
        (stop, "MARGIN_SECONDS", 1.0),
        (wire, "SILENCE_SECONDS", 2.5),
        (wire, "HEARTBEAT_SECONDS", 0.3),
        (reconnect, "FIRST_PAUSE", 0.02),
        (reconnect, "LONGEST_PAUSE", 0.2),
    ):
        assert hasattr(module, name)
        monkeypatch.setattr(module, name, seconds)


class HostileLink(HostLink):
    """A way to the hostile host, in this process."""

    def __init__(self, case: Case) -> None:
        super().__init__(HostSpec("box", device="cpu"), OurAgent("a" * 64, b"{}"), None, ["python3"])
        self.said: list[tuple[str, Frame]] = []
        self.host_plays = play(case, self.said)
        self.connections = 0

    def dial(self) -> None:
        """There is no network."""

    def connect(self) -> Session:
        self.connections += 1
        opened = open_session(FakeTransport(self.host_plays, "box"), self.agent, None)
        opened.submit("open", state_dir=None)
        return opened


class Paper(io.BytesIO):
    """A stream that keeps what was written; our screen takes it for a terminal."""


@dataclass
class Talk:
    """One conversation, its exit codes by step, and everything that the terminal got."""

    folder: Path
    case: Case
    monkeypatch: pytest.MonkeyPatch
    codes: dict[str, int] = field(default_factory=dict)
    shown: str = ""
    training: Training | None = None

    def __post_init__(self) -> None:
        self.link = HostileLink(self.case)
        self.project = self.folder / "project"
        self.monkeypatch.setattr(preparing, "make_route", lambda *_: ([self.link], None))

    def hold(self) -> None:
        """Hold it, and check after it."""
        self._prepare()
        before = self._list_outside()
        self.step("run", self._run)
        run = self._find()
        if run is not None:
            self.training = Training(run, self.link)
            run.files.mkdir(exist_ok=True)
            (run.files / "mine.pt").write_bytes(MINE)
            for name, act in (
                ("show", self._show),
                ("logs", self._logs),
                ("pull", self._pull),
                ("stop", self._stop),
                ("ps", self._ps),
                ("gc", self._gc),
            ):
                self.step(name, act)
        assert self._list_outside() == before, "something was written outside the run's folder"
        self._check_run(run)

    def step(self, name: str, act: Callable[[LiveListener], None]) -> None:
        """Do what a command does, and note what it would end with."""
        out, err = Paper(), Paper()
        screen = Display(
            Screen(
                out,
                io.TextIOWrapper(err, "utf-8"),
                stdout_is_terminal=True,
                stderr_is_terminal=True,
                width=lambda: 100,
                colour=False,
            )
        )
        began = time.monotonic()
        error: RemoteTrainError | None = None
        with screen:
            try:
                act(LiveListener(screen))
            except RemoteTrainError as refused:
                error = refused
            except ConnectionLost as lost:
                error = ConnectionGivenUp(str(lost))
            if error is not None:
                screen.error(error.message, error.hint)
        self.codes[name] = error.exit_code if error else 0
        took = time.monotonic() - began
        written = (out.getvalue() + err.getvalue()).decode("utf-8", "surrogateescape")
        self.shown += written
        assert self.codes[name] in DOCUMENTED, f"{name}: {error!r}"
        assert took < STEP_SECONDS, f"{name} took {took:.0f} s"
        check_screen(written)
        check_talk(err.getvalue().decode("utf-8", "surrogateescape"))
        # What a training says is shown as it comes: of a flood, as much as was taken before the breach was found.
        shown = len(out.getvalue()) if name == "run" else 0
        assert len(written) - shown < 1 << 17, f"{name} said {len(written)} bytes"
        assert shown < gate.HELD_BYTES, f"{name} showed {shown} bytes"

    def _prepare(self) -> None:
        self.project.mkdir(parents=True)
        (self.project / "train.py").write_text("print('hello')\n")
        (self.project / "checkpoint.pt").write_bytes(MINE)
        (self.folder / "neighbour").mkdir()
        (self.folder / "neighbour" / "exit.json").write_bytes(MINE)

    def _find(self) -> Run | None:
        found = list_runs(self.project)
        return found[-1] if found else None

    def _run(self, listener: LiveListener) -> None:
        request = Request(script="train.py", cwd=self.project, give_up=1.0)
        started = launching.start(request, listener, None)
        if started.state["state"] != "ended":
            training_of(started).follow(listener, shown={0}, give_up=1.0)

    def _show(self, listener: LiveListener) -> None:
        training = self._get()
        training.state()
        if not training.is_complete():
            training.catch_up()
        listener.screen.output(
            render_run(training.describe(), Look(100, terminal=True, colour=False)).encode()
        )
        for _ in training.metrics():
            pass

    def _logs(self, listener: LiveListener) -> None:
        self._get().follow(listener, shown=set(), give_up=1.0)

    def _pull(self, listener: LiveListener) -> None:
        self._get().pull(PullWish(everything=True, give_up=1.0), listener)

    def _stop(self, listener: LiveListener) -> None:
        self._get().stop(0.0, listener)

    def _ps(self, listener: LiveListener) -> None:
        row = make_row(self._get().run, None)
        listener.screen.output(render_runs([row], Look(100, terminal=True, colour=False)).encode())

    def _gc(self, listener: LiveListener) -> None:
        row = {"host": "box", "dry_run": False, "trouble": None, "exit_code": 0}
        row |= collect.clean_host(self.link, [self._get().run], collect.Wish(keep=0))
        listener.screen.output(render_kept(row).encode())

    def _get(self) -> Training:
        assert self.training is not None
        return self.training

    def _list_outside(self) -> dict[str, bytes]:
        """Everything that no command may touch."""
        ours = (self.project / "runs", client_root())
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and not any(path.is_relative_to(folder) for folder in ours)
        }

    def _check_run(self, run: Run | None) -> None:
        runs = sorted(path.name for path in (self.project / "runs").glob("*"))
        assert runs == ([run.id] if run else [])
        if run is None:
            return
        assert {path.name for path in run.folder.iterdir()} <= _OURS
        assert all(path.name.isdigit() for path in (run.folder / "attempts").iterdir())
        assert (run.files / "mine.pt").read_bytes() == MINE
        left = [path for path in run.folder.rglob("*") if path.name.endswith(("partial", ".tmp"))]
        assert left == []
        assert not any(path.is_symlink() for path in run.folder.rglob("*"))


def check_screen(written: str) -> None:
    """Nothing that a terminal would obey but colours and our own erasing."""
    plain = _COLOUR.sub("", written)
    found = _CONTROL.search(plain)
    assert found is None, repr(plain[max(0, found.start() - 80) : found.end() + 20])


def check_talk(written: str) -> None:
    """No line of a host's that passes for one of ours; what the training prints itself is another matter."""
    for line in re.split(r"[\r\n]", _COLOUR.sub("", written)):
        assert not re.match(rf"remote-train: (error: |warning: )?{FORGED}", line), line


def talk(folder: Path, case: Case, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Hold a conversation in a case, with a laptop of its own."""
    state = folder / "laptop"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setenv("HOME", str(folder / "home"))
    client_root.cache_clear()
    held = Talk(folder, case, monkeypatch)
    held.hold()
    return held


def outcome(held: Talk) -> dict[str, Any]:
    """Return what a failing test shows of a conversation."""
    return {"codes": held.codes, "connections": held.link.connections}
