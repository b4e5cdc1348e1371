"""A hostile agent: whatever it says, every command ends with a documented exit code, and harms nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from remote_train.cleaning import Cleaning
from remote_train.errors import ProtocolError
from remote_train.listener import Silent
from remote_train.records import client_root, create_run
from remote_train.session import End
from tests.faults.hostile_agent import HONEST, OUTPUTS
from tests.faults.hostile_cases import CASES
from tests.faults.hostile_talk import HostileLink, hurry, outcome, talk

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def test_an_honest_host_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = talk(tmp_path, HONEST, monkeypatch)
    assert set(held.codes.values()) == {0}, outcome(held)
    assert list(held.codes) == ["run", "show", "logs", "pull", "stop", "ps", "gc"]
    assert "pulled" in held.shown


def test_there_are_enough_kinds_of_nonsense() -> None:
    print(f"kinds of nonsense: {len(CASES)}")
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_agent_harms_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    held = talk(tmp_path, case, monkeypatch)
    codes = set(held.codes.values())
    assert codes & case.codes, outcome(held)
    assert codes <= case.codes | {0} | ({1} if case.failing else set()), outcome(held)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].where == "reply prune"])
def test_nonsense_about_old_runs_does_not_end_a_stream(name: str) -> None:
    """It was asked beside the stream of a run: who asked hears of it, and every byte of the run still comes."""
    session = HostileLink(CASES[name]).connect()
    wish = {"run": "old", "attempts": {}, "files": []}
    number = session.submit("prune", runs=[wish])
    if CASES[name].codes == {60} and name != "a run removed that nobody named":  # which the asker checks
        with pytest.raises(ProtocolError):
            session.wait(number)
    else:
        session.wait(number)
    outputs = [{"stream": 77, "name": "0", "offset": 0}]
    session.request("follow", run="run", attempt=1, outputs=outputs, wait=True)
    data = b""
    while not isinstance(item := session.next_item(5.0), End):
        assert item is not None
        data += getattr(item, "payload", b"")
    session.close()
    assert data == OUTPUTS["0"]


class Ears(Silent):
    """A listener that remembers."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def tell(self, kind: str, **facts: object) -> None:
        self.told.append(f"{kind}: {facts['text']}")


@pytest.mark.parametrize("name", ["a total of words", "a run that stays because of escapes"])
def test_nonsense_about_old_runs_is_told_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    client_root.cache_clear()
    attempts = [{"attempt": 1, "host": "box"}]
    run = create_run(tmp_path / "runs", "run", {"host": "box", "state": "running", "attempts": attempts})
    link, ears = HostileLink(CASES[name]), Ears()
    session = link.connect()
    doing = Cleaning(run, session, link)
    doing._thread.join(20.0)
    session.close()
    client_root.cache_clear()
    doing.tell_trouble(ears)
    doing.tell_trouble(ears)
    wrong = CASES[name].codes == {60}
    text = "warn: old runs were not cleaned up: box answered `prune` with after.total: 'all' instead of a"
    assert [words[: len(text)] for words in ears.told] == [text] * wrong
