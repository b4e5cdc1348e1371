"""No process of a run survives a sweep, and nobody else is touched: real trees under both halves of system.py."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.host_system.conftest import Supervised, find_python, read_command

Supervise = Callable[..., Supervised]
COOKIE = "REMOTE_TRAIN_COOKIE"


@pytest.fixture
def bystanders() -> Iterator[Callable[[str], list["subprocess.Popen[bytes]"]]]:
    """Processes of the same user that look like the run: same program, its cookie as an argument, or one like it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(cookie: str) -> list["subprocess.Popen[bytes]"]:
        script = str(Path(__file__).with_name("growing_family.py"))
        wait = ["-c", "import sys; sys.stdout.write('.'); sys.stdout.flush(); sys.stdin.read()"]
        plain = {key: value for key, value in os.environ.items() if key != COOKIE}
        for arguments, env in (
            ([*wait, script, "1", "0"], plain),
            ([*wait, f"{COOKIE}={cookie}"], plain),
            (wait, {**plain, COOKIE: cookie + "0"}),
            (wait, {**plain, "OLD_" + COOKIE: cookie}),
        ):
            command = [sys.executable, *arguments]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
            started.append(process)
            assert process.stdout is not None
            assert process.stdout.read(1) == b"."
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_ranks_and_their_workers_go_and_bystanders_stay(
    supervise: Supervise, bystanders: Callable[[str], list["subprocess.Popen[bytes]"]]
) -> None:
    family = supervise("ranks")
    family.wait_for(launcher=1, rank=2, worker=4)
    others = bystanders(family.cookie)
    everybody = sorted(pid for pids in family.pids.values() for pid in pids)

    assert family.ask("descendants") == everybody
    assert sorted(family.ask("marked")) == everybody
    assert family.ask("members") == everybody
    assert family.ask("sweep") == []
    assert family.is_extinct()
    assert [process.poll() for process in others] == [None] * 4
    assert family.process.poll() is None


@pytest.mark.parametrize("member", ["daemon", "bare"])
def test_a_daemon_that_left_its_parent_and_its_session_goes(supervise: Supervise, member: str) -> None:
    family = supervise(member)
    family.wait_for(launcher=1, **{member: 1})
    family.ask("observe")
    family.ask("orphan")
    (orphan,) = family.pids[member][-1:]

    assert orphan in family.ask("members")
    assert family.ask("sweep") == []
    assert family.is_extinct()


def test_an_orphan_that_was_never_observed_is_known_by_its_cookie(supervise: Supervise) -> None:
    family = supervise("daemon")
    family.wait_for(launcher=1, daemon=1)
    family.ask("orphan")
    os.kill(family.pids["launcher"][0], 9)

    assert family.ask("sweep") == []
    assert family.is_extinct()


def test_processes_that_fork_while_they_are_killed_go(supervise: Supervise) -> None:
    family = supervise("chain", "reviver", "chain")
    family.wait_for(launcher=1, chain=2, reviver=1)
    family.ask("observe")

    assert family.ask("sweep-reap") == []
    assert family.is_extinct()


@pytest.mark.parametrize("half", ["linux"], indirect=True)  # ps cannot tell the two apart
def test_a_process_whose_first_thread_ended_is_not_taken_for_a_zombie(supervise: Supervise) -> None:
    family = supervise("ghost")
    family.wait_for(launcher=1, ghost=1)

    assert family.pids["ghost"][0] in family.ask("descendants")
    assert family.ask("sweep") == []
    assert family.is_extinct()


def test_the_launcher_can_be_kept_and_its_end_is_left_to_its_parent(supervise: Supervise) -> None:
    family = supervise("ranks", "assistant")
    family.wait_for(launcher=1, rank=2, worker=4, assistant=1)
    family.ask("observe")

    assert family.ask("sweep-keep") == []
    assert family.ask("child") is None
    assert family.ask("members") == family.pids["launcher"]
    os.kill(family.pids["launcher"][0], 9)
    assert family.is_extinct()


def test_a_subreaper_leaves_no_zombie(supervise: Supervise) -> None:
    family = supervise("ranks", "daemon")
    family.wait_for(launcher=1, rank=2, worker=4, daemon=1)
    family.ask("observe")
    family.ask("orphan")

    assert family.ask("sweep-reap") == []
    assert family.is_extinct()
    assert family.ask("sweep-reap") == []
    assert family.ask("children") == 0


def test_after_the_supervisor_died_the_cookie_alone_finds_its_run(
    supervise: Supervise, system: "object", bystanders: Callable[[str], list["subprocess.Popen[bytes]"]]
) -> None:
    family = supervise("ranks", "daemon")
    family.wait_for(launcher=1, rank=2, worker=4, daemon=1)
    others = bystanders(family.cookie)
    family.process.kill()
    family.process.wait()

    assert system.sweep(None, family.cookie, 20.0) == []  # type: ignore[attr-defined]
    assert family.is_extinct()
    assert [process.poll() for process in others] == [None] * 4


def test_a_second_run_is_another_run(supervise: Supervise) -> None:
    first, second = supervise("ranks"), supervise("ranks")
    for family in (first, second):
        family.wait_for(launcher=1, rank=2, worker=4)

    assert first.ask("sweep") == []
    assert first.is_extinct()
    assert len(second.ask("members")) == 7


@pytest.mark.parametrize("version", ["3.8", "3.13"])
def test_the_oldest_and_the_newest_python_sweep_too(supervise: Supervise, version: str) -> None:
    family = supervise("ranks", "bare", "reviver", python=find_python(version))
    family.wait_for(launcher=1, rank=2, worker=4, bare=1, reviver=1)
    family.ask("observe")
    family.ask("orphan")

    assert ".".join(str(part) for part in family.ask("hello")["python"]) == version
    assert family.ask("sweep") == []
    assert family.is_extinct()


def test_an_ordinary_user_sweeps_its_own(supervise: Supervise, tmp_path: Path) -> None:
    """Most of /proc cannot be read then."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become somebody else")
    python = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3")
    script = str(Path(__file__).with_name("growing_family.py"))
    if subprocess.run([*python, "-c", f"open({script!r})"], check=False, cwd=tmp_path.root).returncode != 0:
        pytest.skip("an ordinary user cannot read this folder")
    family = supervise("ranks", "daemon", python=python)
    family.wait_for(launcher=1, rank=2, worker=4, daemon=1)
    family.ask("observe")
    family.ask("orphan")

    assert family.ask("sweep") == []
    assert family.is_extinct()


def test_only_linux_has_subreapers(supervise: Supervise, half: str) -> None:
    family = supervise()
    family.wait_for(launcher=1)

    assert family.ask("hello")["subreaper"] is (half == "linux")


def test_the_helpers_of_these_tests_see_a_living_tree(supervise: Supervise) -> None:
    family = supervise("ranks")
    family.wait_for(launcher=1, rank=2, worker=4)

    assert b"growing_family.py" in read_command(family.pids["worker"][0])
