"""Lines of setup: what they set the training gets, and a line that fails, hangs or ends the shell is told; real supervisors."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.host import layout, setup
from tests.host.account_kit import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.account_kit import Account, Started

pytestmark = pytest.mark.timeout(60)
SHOW = "import json, os\nprint('env', json.dumps(dict(os.environ)), flush=True)\n"


def train(account: Account, *lines: str, **changes: Any) -> tuple[Started, dict[str, Any]]:
    started = account.start(SHOW, setup=lines, **changes)
    return started, started.end()


def environment_of(started: Started) -> dict[str, str]:
    found: dict[str, str] = json.loads(started.says(b"env "))
    return found


def launcher_log(started: Started) -> str:
    return (started.folder / layout.LAUNCHER_LOG).read_text()


def test_the_training_gets_what_the_lines_leave(account: Account, tmp_path: Path) -> None:
    (tmp_path / "env.sh").write_text("export SOURCED='from a file'\n")
    lines = (
        f". {tmp_path}/env.sh",
        'export QUOTED="it\'s \\"so\\"\n\tand so"',
        "export PATH=/opt/cuda/bin:$PATH LD_LIBRARY_PATH=/opt/cuda/lib64",
        "local_only=1; unset OMP_NUM_THREADS; cd /",
        f"env > {tmp_path}/seen; export TOKEN=theirs",
        "echo loaded; sleep 300 & echo in the background >&2",
    )
    started, end = train(account, *lines, secrets={"TOKEN": "the-canary-itself"})
    found = environment_of(started)
    seen = (tmp_path / "seen").read_text()

    assert end["code"] == 0
    assert "SOURCED=" in seen
    assert "the-canary-itself" not in seen
    assert "TOKEN=" not in seen
    assert found["TOKEN"] == "the-canary-itself"
    assert found["SOURCED"] == "from a file"
    assert found["QUOTED"] == 'it\'s "so"\n\tand so'
    assert found["PATH"].startswith("/opt/cuda/bin:")
    assert found["LD_LIBRARY_PATH"] == "/opt/cuda/lib64"
    assert not {"local_only", "OMP_NUM_THREADS"} & found.keys()
    assert launcher_log(started) == "loaded\nin the background\n"
    assert not (started.folder / "setup.sh").exists()
    assert end["survivors"] == []
    assert not started.members()


def test_what_is_ours_the_lines_do_not_change(account: Account) -> None:
    lines = ("export REMOTE_TRAIN_COOKIE=x REMOTE_TRAIN_STOP=y PYTHONPATH=/theirs",)
    started, _ = train(account, *lines)
    found = environment_of(started)

    assert found[layout.COOKIE] == started.record["cookie"]
    assert found[layout.STOP_VARIABLE].endswith("/stop")
    first, second = found["PYTHONPATH"].split(":")
    assert first.endswith("/inject")
    assert second == "/theirs"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("module_of_nowhere load cuda", "ended with code 127"),
        ("echo no such module >&2; false", "ended with code 1: no such module"),
        ("exit 0", "ended the shell"),
        ("echo 'unbalanced", "ended with code"),
    ],
)
def test_a_line_that_fails_is_a_start_that_failed(account: Account, line: str, words: str) -> None:
    started, end = train(account, "export A=1", line, "touch never")

    assert end["start_kind"] == "start-failed"
    assert end["start_error"].startswith(f"setup line 2 ({line}) ")
    assert words in end["start_error"]
    assert not (started.folder / "code" / "never").exists()
    assert started.output() == b""


@pytest.mark.parametrize(
    ("said", "fit"),
    [(None, True), ("GPU-b", True), ("1", True), ("0", False), ("", False), ("0,1", False), ("GPU-a", False)],
)
def test_lines_that_choose_another_gpu_end_the_start(said: str | None, fit: bool) -> None:
    given = [{"index": 1, "uuid": "GPU-b"}]
    with contextlib.nullcontext() if fit else pytest.raises(setup.SetupError, match="CUDA_VISIBLE_DEVICES"):
        setup._check_gpus(given, said)
    setup._check_gpus([], said)


def test_a_line_that_hangs_is_stopped_with_all_it_started(account: Account) -> None:
    started = account.start(SHOW, setup=("sleep 300 & echo hanging; sleep 300",))
    log = started.folder / layout.LAUNCHER_LOG
    until(lambda: log.exists() and log.read_bytes() == b"hanging\n", "the line")
    assert started.state()["phase"] == "setup"
    session = account.connect()
    try:
        session.request("stop", run=started.run, attempt=1, grace=1.0)
    finally:
        session.close()
    end = started.end()

    assert end["stopped"]
    assert end["survivors"] == []
    assert started.output() == b""
    assert not started.members()


def test_a_conda_environment_is_activated_as_conda_would(account: Account, tmp_path: Path) -> None:
    prefix = tmp_path / "envs" / "torch"
    scripts = prefix / "etc" / "conda" / "activate.d"
    scripts.mkdir(parents=True)
    (scripts / "1 first.sh").write_text('export FIRST="$CONDA_PREFIX"\nfalse\n')
    (scripts / "2.sh").write_text('export SECOND="after $FIRST"\n')
    (scripts / "3.fish").write_text("set -x THIRD 3\n")
    started, end = train(account, 'export MINE="$SECOND"', conda=str(prefix))
    found = environment_of(started)

    assert end["code"] == 0
    assert found["CONDA_PREFIX"] == found["FIRST"] == str(prefix)
    assert found["CONDA_DEFAULT_ENV"] == "torch"
    assert found["MINE"] == f"after {prefix}"
    assert found["PATH"].split(":")[0] == f"{prefix}/bin"
    assert "THIRD" not in found
