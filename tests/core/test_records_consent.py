"""What this laptop keeps: runs and how they are found, a user's yes, memory of hosts; and verdicts, pauses, refusals."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train import errors, records
from remote_train import reconnect as reconnecting
from remote_train.config.project_spec import ProjectSpec
from remote_train.consent import choose_environment
from remote_train.errors import ConnectionLost, HostKeyRefused, HostUnfit, LoginRefused, NameTaken, UsageError
from remote_train.follow import Outcome
from remote_train.host import layout
from remote_train.jobs import make_run_id
from remote_train.memory import consent_path, host_memory
from remote_train.outcome import make_verdict, render_end
from remote_train.reconnect import Patience, choose_pause, reconnect
from remote_train.records import (
    client_root,
    create_run,
    drop_run,
    find_run,
    list_runs,
    remember_json,
)
from remote_train.refusals import NoSuchFile, SourceChanged, make_refusal
from tests.core.cutting_link import CuttingLink, Ears

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from remote_train.transport import Ask


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "laptop"))
    client_root.cache_clear()
    yield
    client_root.cache_clear()


def make_run(home: Path, name: str, created: float = 0.0) -> records.Run:
    return create_run(home, name, {"created": created, "state": "running", "attempts": [{"attempt": 1}]})


def test_a_run_is_found_by_id_by_prefix_and_as_the_latest(tmp_path: Path) -> None:
    project, other = tmp_path / "a", tmp_path / "b"
    first = make_run(project / "runs", "proj-0101-abcd", 1.0)
    second = make_run(project / "runs", "proj-0102-abce", 2.0)
    third = make_run(other / "runs", "other-0101-wxyz", 3.0)
    assert find_run("proj-0101-abcd", None) == first
    assert find_run("proj-0101", other) == first
    assert find_run("o", None) == third
    assert find_run(None, project) == second
    assert find_run(None, other) == third
    assert [run.id for run in list_runs()] == [first.id, second.id, third.id]
    assert [run.id for run in list_runs(other)] == [third.id]


@pytest.mark.parametrize(
    ("text", "word"), [("proj", "may mean"), ("nobody", "no run is named"), ("proj-0101-abcdx", "no run")]
)
def test_unknown_and_ambiguous_names_are_exit_2(tmp_path: Path, text: str, word: str) -> None:
    make_run(tmp_path / "runs", "proj-0101-abcd")
    make_run(tmp_path / "runs", "proj-0102-abce")
    with pytest.raises(UsageError, match=word) as caught:
        find_run(text, None)
    assert caught.value.exit_code == 2


def test_an_id_that_is_a_prefix_of_another_is_that_id(tmp_path: Path) -> None:
    exact = make_run(tmp_path / "runs", "exp")
    make_run(tmp_path / "runs", "exp-2")
    assert find_run("exp", None) == exact


def test_no_run_and_no_project(tmp_path: Path) -> None:
    for project in (None, tmp_path):
        with pytest.raises(UsageError, match="no run yet"):
            find_run(None, project)


def test_a_copied_project_finds_its_runs_without_the_index(tmp_path: Path) -> None:
    run = make_run(tmp_path / "p" / "runs", "proj-1")
    (client_root() / "index" / run.id).unlink()
    assert find_run("proj-1", tmp_path / "p").folder == run.folder
    assert list_runs() == []


def test_a_moved_or_deleted_run_is_not_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "proj-1")
    drop_run(run)
    assert list_runs() == []
    assert not run.folder.exists()
    again = make_run(tmp_path / "runs", "proj-1")
    again.folder.rename(tmp_path / "elsewhere")
    assert list_runs() == []


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "name")
    with pytest.raises(NameTaken) as caught:
        make_run(tmp_path / "runs", "name")
    assert caught.value.exit_code == 21


def test_the_folder_of_a_run_is_ours_and_git_ignores_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "name")
    assert (run.folder / ".gitignore").read_text() == "*\n"
    record = json.loads((run.folder / "run.json").read_text())
    assert next(iter(record)) == "format" or "remote_train_format" in record
    run.update(state="ended")
    assert run.read()["state"] == "ended"
    assert run.read()["remote_train_format"] == records.RUN_FORMAT
    assert run.attempt(1).offset("0") == 0


def test_a_folder_without_a_record_is_an_error_of_ours(tmp_path: Path) -> None:
    run = records.Run("x", tmp_path)
    with pytest.raises(UsageError, match="no record"):
        run.read()
    (tmp_path / "run.json").write_text("{damaged")
    with pytest.raises(UsageError, match="no record"):
        run.read()


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,80}", fullmatch=True), st.floats(0, 4e9))
def test_every_run_id_may_name_a_folder(project: str, now: float) -> None:
    assert layout.is_run_id(make_run_id(project, now))


def test_memory_of_hosts_may_be_damaged(tmp_path: Path) -> None:
    memory = host_memory("4070ti", None)
    assert memory.read_facts(["python3"]) is None
    memory.write_facts(["python3"], {"fingerprint": "x"})
    assert memory.read_facts(["python3"]) == {"fingerprint": "x"}
    assert memory.read_facts(["python"]) is None
    memory.write_facts(["uv:" + "a" * 64], {"fingerprint": "a"})
    memory.write_facts(["uv:" + "b" * 64], {"fingerprint": "b"})
    assert memory.read_facts(["uv:" + "a" * 64]) == {"fingerprint": "a"}
    assert memory.read_facts(["python3"]) == {"fingerprint": "x"}
    memory.write_base(tmp_path, "p", [["a"]])
    assert memory.read_base(tmp_path) == {"package": "p", "rows": [["a"]]}
    assert memory.read_base(tmp_path / "other") == {}
    for path in memory.folder.iterdir():
        path.write_text("{damaged")
    assert (memory.read_facts(["python3"]), memory.read_base(tmp_path)) == (None, {})
    assert host_memory("a/../b", None).folder.parent == host_memory("x", None).folder.parent
    assert host_memory("x", "/other").folder != host_memory("x", None).folder


def make_ask(asked: list[str], *, answer: bool) -> Ask:
    """Return somebody at a terminal who always answers the same."""

    def ask(question: str) -> bool:
        asked.append(question)
        return answer

    return ask


WISHES = ProjectSpec("p", env_forward=("RT_PLAIN",), env_secret=("RT_SECRET",))


@pytest.fixture
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RT_PLAIN", "1")
    monkeypatch.setenv("RT_SECRET", "hush")


@pytest.mark.usefixtures("_variables")
def test_without_a_terminal_the_flags_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        choose_environment(tmp_path, WISHES, (), (), None)
    assert caught.value.exit_code == 2
    assert "--env RT_PLAIN --secret RT_SECRET" in str(caught.value.hint)
    assert choose_environment(tmp_path, WISHES, ("RT_PLAIN",), ("RT_SECRET",), None) == (
        {"RT_PLAIN": "1"},
        {"RT_SECRET": "hush"},
    )


@pytest.mark.usefixtures("_variables")
def test_a_yes_is_remembered_for_this_project_only(tmp_path: Path) -> None:
    asked: list[str] = []
    both = ({"RT_PLAIN": "1"}, {"RT_SECRET": "hush"})
    assert choose_environment(tmp_path, WISHES, (), (), make_ask(asked, answer=True)) == both
    assert "RT_PLAIN, RT_SECRET" in asked[0]
    assert choose_environment(tmp_path, WISHES, (), (), None) == both
    assert b"hush" not in consent_path(tmp_path).read_bytes()
    with pytest.raises(UsageError):
        choose_environment(tmp_path / "other", WISHES, (), (), None)


@pytest.mark.usefixtures("_variables")
def test_what_was_a_secret_once_is_never_recorded(tmp_path: Path) -> None:
    choose_environment(tmp_path, WISHES, (), (), make_ask([], answer=True))
    moved = ProjectSpec("p", env_forward=("RT_PLAIN", "RT_SECRET"))
    assert choose_environment(tmp_path, moved, (), (), None) == ({"RT_PLAIN": "1"}, {"RT_SECRET": "hush"})
    other = tmp_path / "other"
    assert choose_environment(
        other, ProjectSpec("p", env_forward=("RT_SECRET",)), (), ("RT_SECRET",), None
    ) == (
        {},
        {"RT_SECRET": "hush"},
    )
    with pytest.raises(UsageError, match="would record"):
        choose_environment(other, ProjectSpec("p"), ("RT_SECRET",), ("RT_SECRET",), None)


@pytest.mark.usefixtures("_variables")
def test_names_that_an_older_yes_did_not_tell_apart_are_all_secret(tmp_path: Path) -> None:
    remember_json(consent_path(tmp_path), {"names": ["RT_PLAIN", "RT_SECRET"]})
    both = {"RT_PLAIN": "1", "RT_SECRET": "hush"}
    assert choose_environment(tmp_path, WISHES, (), (), None) == ({}, both)


@pytest.mark.usefixtures("_variables")
def test_a_no_passes_nothing_and_is_not_remembered(tmp_path: Path) -> None:
    for _ in range(2):
        asked: list[str] = []
        assert choose_environment(tmp_path, WISHES, (), (), make_ask(asked, answer=False)) == ({}, {})
        assert len(asked) == 1


def test_what_is_not_set_here_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RT_PLAIN", raising=False)
    monkeypatch.delenv("RT_SECRET", raising=False)
    assert choose_environment(tmp_path, WISHES, (), (), None) == ({}, {})
    for given_, secret in ((("RT_PLAIN",), ()), ((), ("RT_SECRET",))):
        with pytest.raises(UsageError, match="no value here"):
            choose_environment(tmp_path, ProjectSpec("p"), given_, secret, None)


@pytest.mark.parametrize(("item", "expected"), [("A=1", "1"), ("A=", ""), ("A=b=c", "b=c"), ("A= x ", " x ")])
def test_given_variables(tmp_path: Path, item: str, expected: str) -> None:
    assert choose_environment(tmp_path, ProjectSpec("p"), (item,), (), None)[0] == {"A": expected}


@pytest.mark.parametrize("item", ["=1", "1A=1", "A-B=1", "", "\u00e4=1", "A B=1"])
def test_names_that_are_none(tmp_path: Path, item: str) -> None:
    with pytest.raises(UsageError):
        choose_environment(tmp_path, ProjectSpec("p"), (item,), (), None)


def ended(**changes: Any) -> dict[str, Any]:
    return {
        "code": 0,
        "signal": None,
        "first_failure": None,
        "stopped": False,
        "start_error": None,
        "outputs": {"0": 1},
        **changes,
    }


@pytest.mark.parametrize(
    ("state", "exit_record", "code", "word"),
    [
        ("ended", ended(), 0, ""),
        ("ended", ended(code=7), 1, "code 7"),
        ("ended", ended(code=None, signal=9), 1, "SIGKILL"),
        ("ended", ended(code=None, signal=200), 1, "200"),
        (
            "ended",
            ended(code=3, first_failure={"rank": 1, "code": 3, "signal": None}, outputs={"0": 1, "1": 1}),
            1,
            "rank 1",
        ),
        ("ended", ended(stopped=True, code=None, signal=15), 15, "stopped"),
        ("ended", ended(stopped=True), 15, "stopped"),
        ("ended", ended(code=None, start_error="/x: No such file"), 22, "/x"),
        ("lost", None, 31, "gone"),
    ],
)
def test_verdicts(state: str, exit_record: dict[str, Any] | None, code: int, word: str) -> None:
    verdict = make_verdict("run", "box", Outcome(state, exit_record))
    assert (verdict.exit_code if verdict else 0) == code
    assert word in str(verdict)


def test_every_end_has_words() -> None:
    assert render_end(0, None) == "ended with code 0"
    assert render_end(None, 11) == "ended by signal 11 (SIGSEGV)"
    assert "unknown" in render_end(None, 199)


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_pauses_are_between_one_second_and_a_minute(failures: int, chance: float) -> None:
    pause = choose_pause(failures, chance)
    assert 1.0 <= pause <= 60.0
    assert pause <= max(1.0, 2.0 ** min(failures, 10))


def test_pauses_grow() -> None:
    assert [choose_pause(number, 1.0) for number in (0, 1, 2, 5, 6, 99)] == [1.0, 2.0, 4.0, 32.0, 60.0, 60.0]


class Failing(CuttingLink):
    def __init__(self, *troubles: Exception) -> None:
        super().__init__()
        self.troubles = list(troubles)

    def connect(self) -> Any:
        self.connections += 1
        if self.troubles:
            raise self.troubles.pop(0)
        return "a session"


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(reconnecting, "LONGEST_PAUSE", 0.002)


@pytest.mark.usefixtures("_quick")
def test_reconnecting_goes_on_through_what_may_pass() -> None:
    link = Failing(ConnectionLost("a"), errors.Unreachable("b"), HostUnfit("c"), ConnectionLost("d"))
    session: object = reconnect(link, ConnectionLost("why"), Patience("run", None, Ears()), lambda _: None)
    assert session == "a session"
    assert link.connections == 5


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("error", [HostKeyRefused("changed"), LoginRefused("no key")])
def test_reconnecting_ends_at_once_where_security_says_no(error: Exception) -> None:
    link = Failing(ConnectionLost("a"), error)
    with pytest.raises(type(error)):
        reconnect(link, ConnectionLost("why"), Patience("run", None, Ears()), lambda _: None)
    assert link.connections == 2


@pytest.mark.usefixtures("_quick")
def test_a_host_that_stays_unfit_is_believed() -> None:
    link = Failing(*[HostUnfit("no python") for _ in range(50)])
    with pytest.raises(HostUnfit):
        reconnect(link, ConnectionLost("why"), Patience("run", None, Ears()), lambda _: None)
    assert link.connections == reconnecting.UNFIT_TRIES


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("start name-taken", errors.NameTaken),
        ("start host-space", errors.HostSpace),
        ("state host-unfit", errors.HostUnfit),
        ("start start-failed", errors.StartFailed),
        ("start usage", errors.UsageError),
        ("blobs verification-failed", errors.VerificationFailed),
        ("state protocol", errors.ProtocolError),
        ("follow run-lost", errors.RunLost),
        ("get changed", SourceChanged),
        ("get no-such-file", NoSuchFile),
        ("state changed", errors.ProtocolError),
        ("follow name-taken", errors.ProtocolError),
        ("state host-key", errors.ProtocolError),
        ("start login", errors.ProtocolError),
        ("files connection-given-up", errors.ProtocolError),
    ],
)
def test_refusals_become_our_errors_where_they_have_a_place(kind: str, expected: type[Exception]) -> None:
    op, kind = kind.split()
    refusal = make_refusal("box", op, {"kind": kind, "message": "words"})
    assert type(refusal) is expected
    assert str(refusal).startswith("box")
    assert str(refusal).endswith(": words")


@pytest.mark.parametrize("junk", [None, 7, [], {}, {"kind": [], "message": {}}])
def test_a_refusal_that_is_junk_is_a_protocol_error(junk: object) -> None:
    assert isinstance(make_refusal("box", "state", junk), errors.ProtocolError)


def test_the_state_of_this_laptop_is_closed_to_others() -> None:
    remember_json(client_root() / "told" / "x.json", {})
    assert os.stat(client_root()).st_mode & 0o077 == 0  # noqa: PTH116  (as the system says it)
