"""Where a run goes on, and after what it does not."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.attempts import are_left
from remote_train.errors import (
    ConnectionGivenUp,
    HostKeyRefused,
    LoginRefused,
    RemoteTrainError,
    RunLost,
    RunStopped,
    TrainingFailed,
)
from remote_train.failover import choose_route, may_go_on
from remote_train.reconnect import Losses, Patience, reconnect
from remote_train.records import Run
from remote_train.restorable import Checkpoint, File, NothingGained, check_progress, list_beside
from tests.core.cutting_link import CuttingLink, Ears

if TYPE_CHECKING:
    from pathlib import Path

SILENT = ConnectionGivenUp("nobody there", silence=61.0)
LOST = RunLost("gone")


@pytest.mark.parametrize(
    ("host", "lost", "fallback", "route"),
    [
        ("a", False, True, ["b", "c", "local"]),
        ("b", False, True, ["c", "a", "local"]),
        ("c", False, False, ["a", "b"]),
        ("a", True, True, ["b", "c", "a", "local"]),  # its host is there: it comes before this machine
        ("a", True, False, ["b", "c", "a"]),
        ("elsewhere", False, True, ["a", "b", "c", "local"]),  # resumed there by hand
        ("local", False, True, ["a", "b", "c"]),
        ("local", True, True, ["a", "b", "c", "local"]),
    ],
)
def test_the_route(host: str, lost: bool, fallback: bool, route: list[str]) -> None:
    record = {"host": host, "job": {"hosts": ["a", "b", "c"], "fallback": fallback}}
    assert choose_route(record, lost=lost) == route


@pytest.mark.parametrize(
    ("error", "state", "superseded", "goes_on"),
    [
        (SILENT, "running", False, True),
        (LOST, "lost", False, True),
        (SILENT, "unknown", False, False),  # nobody knows whether it was started
        (LOST, "unknown", False, True),  # its host has forgotten it
        (SILENT, "ended", False, False),
        (SILENT, "running", True, False),  # another process was first
        (ConnectionGivenUp("our agent dies again and again"), "running", False, False),
        (HostKeyRefused("changed"), "running", False, False),
        (LoginRefused("no"), "running", False, False),
        (TrainingFailed("code 1"), "ended", False, False),
        (RunStopped("by stop"), "ended", False, False),
    ],
)
def test_after_what_it_goes_on(
    tmp_path: Path, error: RemoteTrainError, state: str, superseded: bool, goes_on: bool
) -> None:
    record: dict[str, Any] = {
        "format": 1,
        "host": "a",
        "state": state,
        "attempts": [{"attempt": number, "host": "a"} for number in range(1, 2 + superseded)],
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert may_go_on(error, Run("run", tmp_path), 1) is goes_on


def test_patience_ends_when_it_is_said_to_and_says_how_long_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from remote_train import reconnect as reconnecting
    from remote_train.errors import ConnectionLost

    class Nowhere(CuttingLink):
        def connect(self) -> Any:
            raise ConnectionLost("nobody there")

    monkeypatch.setattr(reconnecting, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(reconnecting, "choose_pause", lambda *_: 3600.0)
    patience = Patience("run", 0.2, Ears(), Losses())
    with pytest.raises(ConnectionGivenUp) as given_up:
        reconnect(Nowhere([]), ConnectionLost("cut"), patience, lambda _session: None)
    silence = given_up.value.facts["silence"]
    assert isinstance(silence, float)
    assert silence > 0.2


@pytest.mark.parametrize(
    ("older", "left"),
    [
        ({"superseded": True}, True),
        ({"state": "ended"}, True),
        ({"state": "running"}, False),
        ({"host": "c", "state_dir": None, "superseded": True}, False),
    ],
)
def test_back_at_a_host_what_counts_no_more_there_may_be_stopped(older: dict[str, Any], left: bool) -> None:
    attempts = [{"attempt": 1, "host": "a", "state_dir": None, **older}, {"attempt": 2, "host": "b"}]
    assert are_left({"host": "b", "state": "ended", "attempts": attempts}, ("a", None)) is left


def make_checkpoint(unit: str, attempt: int = 1, seconds: float = 0.0) -> Checkpoint:
    return Checkpoint(unit, attempt, (File(unit, 1, int(seconds * 1e9), None),))


@pytest.mark.parametrize(
    ("sources", "chosen", "goes_on"),
    [
        ((1, 1), 1, True),
        ((1, 1, 1), 1, False),
        ((1, 1, 1), 4, True),
        ((1, 1, 3), 3, True),
        ((None, None, None), None, False),
        ((None, None, 3), None, True),
    ],
)
def test_a_run_that_is_lost_again_and_again_at_one_place_is_left(
    sources: tuple[int | None, ...], chosen: int | None, goes_on: bool
) -> None:
    hops = [{"checkpoint": {"attempt": source} if source else None} for source in sources]
    checkpoint = make_checkpoint("a.pt", chosen) if chosen else None
    with contextlib.nullcontext() if goes_on else pytest.raises(NothingGained, match="lost 3 times"):
        check_progress({"run": "r", "attempts": [{}, *hops]}, checkpoint)


def test_what_was_written_beside_a_checkpoint_is_named() -> None:
    chosen = make_checkpoint("out/model-20.pt", seconds=100)
    found = [
        chosen,
        make_checkpoint("out/model-10.pt", seconds=99),
        make_checkpoint("out/optim-20.pt", seconds=101),
        make_checkpoint("out/first.pt", seconds=10),
        make_checkpoint("out/optim.pt", 2, 100),
        make_checkpoint("other/optim.pt", seconds=100),
    ]
    assert list_beside(chosen, found) == ["out/optim-20.pt"]
