"""Where a secret's value comes from: the environment, a person who types it unseen, or nobody, which is exit 2."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from remote_train import redaction
from remote_train.config.project_spec import ProjectSpec
from remote_train.consent import choose_environment, read_secrets, recall_environment, recall_secrets
from remote_train.errors import UsageError
from remote_train.find import link_of, read_hosts_file
from remote_train.records import Run, create_run, is_ours
from tests.e2e.machines import Laptop, write_project
from tests.e2e.terminal import open_terminal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.machines import Box

VALUE = "typed-and-never-shown"


class Typist:
    """Somebody at a terminal."""

    def __init__(self, *typed: str, answer: bool = True) -> None:
        self.typed = list(typed)
        self.answer = answer
        self.asked: list[str] = []

    def __call__(self, question: str) -> bool:
        self.asked.append(question)
        return self.answer

    def hidden(self, question: str) -> str:
        self.asked.append(question)
        return self.typed.pop(0)


def choose(
    tmp_path: Path, *names: str, ask: Any = None, **spec: Any
) -> tuple[dict[str, str], dict[str, str]]:
    return choose_environment(tmp_path, ProjectSpec("p", **spec), (), names, ask)


def test_what_is_not_set_is_asked_for_once_and_then_hidden(tmp_path: Path) -> None:
    person = Typist(VALUE)
    assert choose(tmp_path, "TOKEN_OF_MINE", "TOKEN_OF_MINE", ask=person)[1] == {"TOKEN_OF_MINE": VALUE}
    assert len(person.asked) == 1
    assert VALUE.encode() in redaction.hidden_forms()


@pytest.mark.parametrize("typed", ["", "a\0b"])
def test_nothing_typed_is_exit_2(tmp_path: Path, typed: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose(tmp_path, "TOKEN_OF_MINE", ask=Typist(typed))
    assert caught.value.exit_code == 2


def test_nobody_there_is_exit_2_with_the_line_to_type(tmp_path: Path) -> None:
    for ask in (None, lambda _question: True):
        with pytest.raises(UsageError) as caught:
            choose(tmp_path, "TOKEN_OF_MINE", ask=ask)
        assert "export TOKEN_OF_MINE=" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["", "1A", "A-B", "ä", "A B", "$(touch x)", "-rf"])
def test_a_name_that_is_none_is_never_asked_for(tmp_path: Path, name: str) -> None:
    person = Typist(VALUE)
    with pytest.raises(UsageError, match="not the name of a variable"):
        choose(tmp_path, name, ask=person)
    assert person.asked == []


def test_a_value_on_the_command_line_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        choose(tmp_path, f"TOKEN={VALUE}", ask=None)
    assert VALUE not in caught.value.message + str(caught.value.hint)


def test_a_projects_wish_is_passed_after_a_yes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_MINE", VALUE)
    wish = {"env_secret": ("TOKEN_OF_MINE",)}
    assert choose(tmp_path, ask=Typist(answer=False), **wish) == ({}, {})
    assert choose(tmp_path, ask=Typist(), **wish)[1] == {"TOKEN_OF_MINE": VALUE}
    with pytest.raises(UsageError):
        choose(tmp_path / "another", ask=None, **wish)


def make_run(home: Path, **record: Any) -> Run:
    entry = {"attempt": 1, "host": "box", "state_dir": None}
    whole = {"root": str(home.parent), "host": "box", "attempts": [entry], "state": "ended", **record}
    return create_run(
        home, "run-1", {"job": {"secrets": ["TOKEN_OF_MINE"], "hosts_file": "/evil.toml"}, **whole}
    )


def test_who_looks_at_a_run_later_has_its_secrets_hidden_where_they_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_OF_MINE", VALUE)
    monkeypatch.setenv("HOME", str(tmp_path))
    entry = {"attempt": 1, "host": "local", "state_dir": None}
    script: dict[str, Any] = {"script": "train.py", "module": None, "spec": {}, "cwd": ""}
    job = {"secrets": ["TOKEN_OF_MINE", "NOT_SET"], "hosts_file": None, **script}
    more = {"host": "local", "root": str(tmp_path / "clone"), "attempts": [entry], "job": job}
    own = make_run(tmp_path / "clone" / "runs", **more)
    link_of(own, None, None)
    assert VALUE.encode() in redaction.hidden_forms()
    monkeypatch.setattr(redaction, "_forms", ())
    link_of(make_foreign(own, tmp_path / "clone" / "moved" / "run-1"), None, None)
    assert redaction.hidden_forms() == ()  # a stranger's record could name what is to be seen


def make_foreign(run: Run, place: Path) -> Run:
    """Return the run as it lies in a clone: with its record, and unknown to this laptop."""
    place.parent.mkdir(parents=True)
    run.folder.rename(place)
    return Run(run.id, place)


def test_a_run_that_goes_on_gets_its_secrets_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, spec = make_run(tmp_path / "runs"), ProjectSpec("p", env_secret=("TOKEN_OF_MINE", "OTHER_TOKEN"))
    known = {"TOKEN_OF_MINE": VALUE}
    # What this process has already is asked of nobody: a failover has nobody to ask.
    assert recall_environment(run, spec, (), known, None) == known
    with pytest.raises(UsageError, match="no value here"):
        recall_environment(run, spec, (), {}, None)
    assert recall_environment(run, spec, (), {}, Typist(VALUE)) == known
    assert recall_secrets(run, Typist(VALUE)) == known
    monkeypatch.setenv("TOKEN_OF_MINE", VALUE)
    assert recall_environment(run, spec, (), {}, None) == known
    assert VALUE not in (run.folder / "run.json").read_text()


def test_a_record_that_came_with_a_project_is_believed_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_OF_MINE", VALUE)
    monkeypatch.setenv("HOME", str(tmp_path))
    own = make_run(tmp_path / "a" / "runs")
    assert is_ours(own)
    assert str(read_hosts_file(own)) == "/evil.toml"
    clone = tmp_path / "clone"
    run = make_foreign(own, clone / "runs" / "run-1")
    assert not is_ours(run)
    assert read_hosts_file(run) is None
    assert recall_secrets(run, None) == {}
    with pytest.raises(UsageError, match="asks for TOKEN_OF_MINE"):
        recall_environment(run, ProjectSpec("p"), (), {}, None)
    assert recall_environment(run, ProjectSpec("p"), (), {}, Typist(answer=False)) == {}
    with pytest.raises(UsageError, match="another folder"):
        link_of(run, None, None)


@pytest.mark.parametrize("host", ["me@evil.example", "evil.example:22", "::1"])
def test_a_record_that_came_with_a_project_leads_to_no_address(tmp_path: Path, host: str) -> None:
    entry = {"attempt": 1, "host": host, "state_dir": None}
    own = make_run(tmp_path / "a" / "runs", host=host, attempts=[entry], root=str(tmp_path / "clone"))
    run = make_foreign(own, tmp_path / "clone" / "runs" / "run-1")
    with pytest.raises(UsageError, match="not made on this machine"):
        link_of(run, None, None)


def test_values_do_not_stand_in_what_is_printed_of_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    from remote_train.failover import Failover
    from remote_train.preparing import Prepared
    from remote_train.resume import ResumeWish

    monkeypatch.setenv("TOKEN_OF_MINE", VALUE)
    values: Any = read_secrets(["TOKEN_OF_MINE"], None)
    nothing: Any = None
    prepared = Prepared(*(nothing,) * 6, values)
    assert prepared.secret_env == values
    told = [prepared, replace(ResumeWish(), known=values), Failover(nothing, nothing, secrets=values)]
    assert VALUE not in repr(told)


@pytest.mark.sshd
def test_typed_on_a_terminal_it_reaches_the_training_and_no_screen(
    laptop: Laptop, box: Box, project: Path
) -> None:
    script = "import os; print('it is', os.environ['TOKEN_OF_MINE'], len(os.environ['TOKEN_OF_MINE']))"
    write_project(project, {"train.py": script})
    with open_terminal(laptop, project, "run", "--secret", "TOKEN_OF_MINE", "train.py") as terminal:
        terminal.wait_for("Value of TOKEN_OF_MINE")
        terminal.key(VALUE.encode() + b"\n")
        assert terminal.end() == 0
    assert "it is [hidden] 21" in terminal.text
    assert VALUE.encode() not in terminal.raw
    run = next(path.name for path in (project / "runs").iterdir())
    # The mirror is exact: it is the training's own output.
    assert VALUE.encode() in box.log(run)
    assert laptop.ok(project, "logs").out == box.log(run)
    assert VALUE not in json.dumps(laptop.ok(project, "show", "--json").events)
