"""A hostile agent: whatever it says, every command ends with a documented exit code, and harms nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.hostile_agent import HONEST
from tests.faults.hostile_cases import CASES
from tests.faults.hostile_talk import hurry, outcome, talk

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
