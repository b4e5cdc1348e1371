"""What a host says while it should be building an environment: bounded, and refused where it makes no sense."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from remote_train import environments
from remote_train.answers import check_answer
from remote_train.environments import MOST_TOLD, Environment
from remote_train.errors import HostUnfit, ProtocolError
from tests.e2e.machines import write_project

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Host:
    """A session with a host that says these things."""

    host = "box"

    def __init__(self, answers: Iterable[Any]) -> None:
        self.answers = iter(answers)

    def request(self, op: str, **fields: Any) -> dict[str, Any]:
        return check_answer("box", op, fields, next(self.answers))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    write_project(tmp_path, {"pyproject.toml": "[project]\n"})
    monkeypatch.setattr(environments, "send_contents", lambda *_: None)
    return Environment(tmp_path, True, None, {})


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"need": "files"},
        {"need": "uv"},
        {"need": "passwd"},
        {"python": 3},
        {"lines": ["x" * 601]},
        [],
        {"lines": [3]},
    ],
)
def test_an_answer_that_makes_no_sense_ends_it(made: Environment, answer: object) -> None:
    with pytest.raises(ProtocolError):
        made.build(Host(itertools.repeat(answer)), lambda _line: None)  # type: ignore[arg-type]  # all of a session that is used


def test_a_host_that_never_stops_talking_is_not_passed_on_for_ever(made: Environment) -> None:
    said: list[str] = []
    talk = [{"building": True, "lines": ["x"] * 900}] * 5

    assert made.build(Host([*talk, {"python": "/p", "built": True}]), said.append) == "/p"  # type: ignore[arg-type]  # as above

    assert len(said) == MOST_TOLD


def test_a_project_that_says_nothing_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(HostUnfit, match=r"no pyproject\.toml") as caught:
        Environment(tmp_path, True, None, {}).build(Host([]), lambda _line: None)  # type: ignore[arg-type]  # as above
    assert "uv init" in str(caught.value.hint)
