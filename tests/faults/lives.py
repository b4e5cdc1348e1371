"""A whole life of a run in this process, from the first byte to the verdict, on a state root of its own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from remote_train import preparing
from remote_train import reconnect as reconnecting
from remote_train.api import training_of
from remote_train.config.host_spec import HostSpec
from remote_train.errors import ConnectionLost, HostUnfit, RemoteTrainError
from remote_train.launching import launch
from tests.core.cutting_link import Ears
from tests.faults.agent_farm import Break, Farm, FarmLink
from tests.faults.invariants import AGENT_SECONDS, Seat, check
from tests.host.account_kit import until

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

SCRIPT = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(fd, b"x")
print("some output", flush=True)
print("the end without a newline", end="", flush=True)
sys.exit(3)
"""
HOST = HostSpec(name="box", device="cpu", peak_tflops={"float32": 0.1})


def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a lost connection be taken up again at once."""
    monkeypatch.setattr(reconnecting, "FIRST_PAUSE", 0.002)
    monkeypatch.setattr(reconnecting, "LONGEST_PAUSE", 0.01)


class Life:
    """One trial: a project, a state root and a link that is cut as told."""

    def __init__(self, farm: Farm, name: str, breaks: Iterable[Break] = ()) -> None:
        self.root = farm.folder / name / "remote-train"
        self.project = farm.folder / name / "project"
        self.project.mkdir(parents=True)
        self.begun = farm.folder / name / "starts"
        (self.project / "train.py").write_text(SCRIPT)
        (self.project / "remote-train.toml").write_text('project = "life"\n')
        self.link = FarmLink(farm, replace(HOST, state_dir=str(self.root)), breaks)
        self.ears = Ears()
        self.code: int | None = None
        self.words = ""
        self.facts: dict[str, Any] = {}
        self.run = ""

    def starts(self, _run: str) -> int:
        return self.begun.stat().st_size if self.begun.exists() else 0

    def prepare(self, monkeypatch: pytest.MonkeyPatch) -> preparing.Prepared:
        """Prepare over our link; a user whose connection is lost before anything was started types it again."""
        monkeypatch.setattr(preparing, "make_route", lambda *_: ([self.link], None))
        request = preparing.Request(script="train.py", args=(str(self.begun),), cwd=self.project)
        for _ in range(3):
            try:
                return preparing.prepare(request, self.ears, None)
            except (ConnectionLost, HostUnfit):
                assert not (self.root / "runs").exists() or not list((self.root / "runs").iterdir())
        return preparing.prepare(request, self.ears, None)

    def live(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From nothing to the verdict, whose exit code is kept."""
        prepared = self.prepare(monkeypatch)
        started = launch(prepared, self.ears)
        self.run = started.run.id
        training = training_of(started)
        try:
            training.follow(self.ears, shown={0}, pull=False)
            self.code = 0
        except RemoteTrainError as error:
            self.code, self.words = error.exit_code, error.message
            self.facts = error.facts

    def verify(self, *, settled: bool = True) -> None:
        """One run, started once, told truly, and all of it here."""
        until(lambda: not self.link.farm.agents(), "I8: the end of all agents", AGENT_SECONDS)
        assert (self.code, self.facts.get("code")) == (1, 3), f"exit {self.code}: {self.words}"
        (here,) = (self.project / "runs").glob("*/run.json")
        assert [path.name for path in (self.root / "runs").iterdir()] == [self.run] == [here.parent.name]
        check(self.root, [Seat(self.project / "runs")], complete=True, starts=self.starts, settled=settled)
        assert self.starts(self.run) == 1
        assert bytes(self.ears.heard) == b"some output\nthe end without a newline"
        assert "fallback" not in self.ears.kinds()

    def clean(self) -> None:
        """Drop what a sound trial left."""
        for transport in self.link.transports:
            transport.close()
        shutil.rmtree(self.root.parent)
