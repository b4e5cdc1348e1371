"""An environment that does not run, or is not wanted, while a run may use it: here, on a machine with the same home, by another name."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from remote_train.fitness import hint_environment
from remote_train.host import durable, env_builder, env_garbage, environments, layout, locks, shared, system
from remote_train.host.commands import finish_commands, start_command
from remote_train.host.start import Refusal
from tests.host.tidy_kit import DAY, Ended
from tests.host.uv_kit import make_program

if TYPE_CHECKING:
    from collections.abc import Iterator

HOUR = 3600.0


@pytest.fixture(autouse=True)
def laptop() -> Iterator[IO[bytes]]:
    """Who waits for the environment: the other end of what is stdin here."""
    reading, writing = os.pipe()
    kept = os.dup(0)
    os.dup2(reading, 0)
    os.close(reading)
    with os.fdopen(writing, "wb") as end:
        yield end
    os.dup2(kept, 0)
    os.close(kept)


@pytest.fixture
def used(tmp_path: Path) -> tuple[Ended, Path, dict[str, Any]]:
    """A run under way, the Python of an environment that it uses, and what would build that."""
    ended = Ended(tmp_path)
    key = "0" * 64
    python = Path(layout.env_path(str(ended.root), key)) / layout.VENV / "bin" / "python"
    python.parent.mkdir(parents=True)
    record = durable.read_record(str(ended.folder / layout.ATTEMPT))
    assert record is not None
    life = {"start_time": system.start_time(os.getpid()), "plan": {**record["plan"], "python": str(python)}}
    durable.write_record(str(ended.folder / layout.ATTEMPT), {**record, **life})
    job = {"root": str(ended.root), "key": key, "files": [["pyproject.toml", "1" * 64, 1]]}
    (ended.folder / layout.EXIT).rename(tmp_path / "exit")
    return ended, python, {**job, "uv": "uv", "script": None, "frozen": False, "env": {}}


@pytest.mark.parametrize("how", ["is silent", "cannot be started now", "has no memory to be loaded into"])
def test_an_environment_that_does_not_answer_is_left_alone(
    used: tuple[Ended, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    _, python, job = used
    monkeypatch.setattr(environments, "START_SECONDS", 0.2)
    make_program(python, "exit 127" if how == "has no memory to be loaded into" else "sleep 1000")
    if how == "cannot be started now":
        python.chmod(0o600)  # for one of many reasons that may pass

    with pytest.raises(Refusal, match="does not answer there now") as refused:
        env_builder.build(job)

    assert refused.value.kind == "host-unfit"
    assert "it is built anew" in str(hint_environment(refused.value.message))
    assert python.exists()


@pytest.mark.parametrize("how", ["fails", "gone"])
def test_an_environment_that_is_broken_is_cleared_once_no_run_uses_it(
    used: tuple[Ended, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    ended, python, job = used
    if how == "fails":
        make_program(python, "exit 3")
    else:
        python.symlink_to("/no/such/python3")

    with pytest.raises(env_builder.BuildError, match="is broken there, and run, under way, uses") as refused:
        env_builder.build(job)
    assert "remote-train stop" in str(hint_environment(str(refused.value)))
    assert os.path.lexists(python)

    (tmp_path / "exit").rename(ended.folder / layout.EXIT)
    monkeypatch.setattr(env_builder, "STARTS_SECONDS", 0.1)
    starting = locks.hold_off_cleaning(job["root"], 1.0, lambda: None)
    assert starting is not None
    with pytest.raises(env_builder.BuildError, match="are being started there"):
        env_builder.build(job)
    assert os.path.lexists(python)
    os.close(starting)
    assert env_builder.build(job) == {"need": "files"}
    assert not os.path.lexists(python)


@pytest.mark.parametrize("busy", [False, True])
def test_a_builder_that_nobody_waits_for_clears_nothing(
    used: tuple[Ended, Path, dict[str, Any]], tmp_path: Path, laptop: IO[bytes], *, busy: bool
) -> None:
    ended, python, job = used
    python.symlink_to("/no/such/python3")
    (tmp_path / "exit").rename(ended.folder / layout.EXIT)
    starting = locks.hold_off_cleaning(job["root"], 1.0, lambda: None) if busy else None
    laptop.close()

    with pytest.raises(env_builder.GoneError):
        env_builder.build(job)

    assert os.path.lexists(python)
    if starting is not None:
        os.close(starting)


def silence(folder: Path, seconds: float) -> None:
    for path in folder.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


@pytest.mark.parametrize("sign", [layout.ATTEMPT, layout.QUEUE, layout.TELEMETRY, layout.CLOCK])
def test_a_run_of_a_machine_with_the_same_home_keeps_what_it_uses(
    used: tuple[Ended, Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sign: str,
) -> None:
    ended, python, job = used
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + DAY)  # up for long
    python.symlink_to("/no/such/python3")  # on this machine
    monkeypatch.setenv("REMOTE_TRAIN_BOOT_ID_FILE", str(tmp_path / "boot"))
    (tmp_path / "boot").write_text("this one")
    (ended.folder / sign).touch()
    silence(ended.folder, 40 * DAY)
    os.utime(ended.folder / sign)

    with pytest.raises(env_builder.BuildError, match="is broken there, and run, under way, uses"):
        env_builder.build(job)
    assert env_garbage.find_unused(job["root"], time.time() + 35 * DAY) == []
    assert os.path.lexists(python)

    silence(ended.folder, HOUR + 60)
    assert env_builder.build(job) == {"need": "files"}, "its machine was restarted, or is gone"


def test_a_run_that_a_restart_ended_is_no_other_machines() -> None:
    assert [shared.choose_silence(uptime) for uptime in (5.0, 600.0, DAY)] == [120.0, 600.0, HOUR]


@pytest.mark.parametrize("linked", ["root", "plan"])
def test_a_run_that_names_the_environment_otherwise_uses_it(
    used: tuple[Ended, Path, dict[str, Any]], tmp_path: Path, linked: str
) -> None:
    ended, python, job = used
    python.symlink_to("/no/such/python3")
    (tmp_path / "link").symlink_to(ended.root)
    root = str(tmp_path / "link")
    if linked == "plan":
        record = durable.read_record(str(ended.folder / layout.ATTEMPT)) or {}
        named = f"{ended.root}/../link/envs/{python.relative_to(ended.root / layout.ENVS)}"
        plan = {**record["plan"], "python": named}
        durable.write_record(str(ended.folder / layout.ATTEMPT), {**record, "plan": plan})
        root = str(ended.root)

    assert env_garbage.list_users(root, job["key"]) == ["run"]
    assert env_garbage.list_users(root, "1" * 64) == []
    with pytest.raises(env_builder.BuildError, match="is broken there, and run, under way, uses"):
        env_builder.build({**job, "root": root})


def test_a_program_that_could_not_run_now_may_the_next_time() -> None:
    ends = ["exit 126", "exit 127", "exit 137", "kill -TERM $$", "kill -BUS $$", "kill -KILL $$"]
    lasting = ["exit 0", "exit 1", "exit 3"]
    commands = [start_command(["/bin/sh", "-c", line]) for line in (*ends, *lasting)]
    passing = [outcome.passing for outcome in finish_commands(commands, 20.0)]
    assert passing == [True] * len(ends) + [False] * len(lasting)
