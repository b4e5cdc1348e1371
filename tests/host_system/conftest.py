"""Both halves of system.py side by side, and supervisors of real process trees."""

import importlib.util
import json
import os
import select
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HALVES = ("linux", "posix")
PYENV = Path("~/.pyenv/versions").expanduser()
PATIENCE = 30.0


def find_python(version: str) -> str:
    """Return an interpreter of this version, or skip the test."""
    for folder in sorted(PYENV.glob(version + ".*")) if PYENV.is_dir() else []:
        return str(folder / "bin" / "python")
    pytest.skip(f"no Python {version} here")


def half_environment(half: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "REMOTE_TRAIN_SYSTEM"}
    return {**kept, "REMOTE_TRAIN_SYSTEM": "posix"} if half == "posix" else kept


def skip_foreign_half(half: str) -> None:
    if half == "linux" and sys.platform != "linux":
        pytest.skip("the Linux half needs Linux")


@pytest.fixture(params=HALVES)
def half(request: pytest.FixtureRequest) -> str:
    skip_foreign_half(request.param)
    return str(request.param)


@pytest.fixture
def system(half: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """system.py, loaded afresh for one half."""
    monkeypatch.setenv("REMOTE_TRAIN_SYSTEM", half)
    path = REPOSITORY / "remote_train" / "host" / "system.py"
    spec = importlib.util.spec_from_file_location(f"system_with_{half}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Supervised:
    """A supervisor in its own process, its tree, and the pipe that ends when the last process of the tree has."""

    def __init__(self, half: str, python: Sequence[str], members: tuple[str, ...]) -> None:
        self.cookie = uuid.uuid4().hex
        self.pids: dict[str, list[int]] = {}
        self._pipe, ready = os.pipe()
        script = Path(__file__).with_name("sweeping_supervisor.py")
        self.process = subprocess.Popen(
            [*python, str(script), str(REPOSITORY), self.cookie, str(ready), *members],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(ready,),
            env=half_environment(half),
        )
        os.close(ready)

    def ask(self, question: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(question.encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["answer"]

    def wait_for(self, **counts: int) -> None:
        """Return when so many processes of each name have said that they live."""
        while any(len(self.pids.get(name, ())) < count for name, count in counts.items()):
            for line in self._read().decode().splitlines():
                name, pid = line.split()
                self.pids.setdefault(name, []).append(int(pid))

    def is_extinct(self) -> bool:
        """Tell whether nobody holds the pipe any more: every process of the tree is gone, known to us or not."""
        while select.select([self._pipe], [], [], 5.0)[0]:
            if not os.read(self._pipe, 65536):
                return True
        return False

    def _read(self) -> bytes:
        ready = select.select([self._pipe], [], [], PATIENCE)[0]
        assert ready, f"nobody announced itself for {PATIENCE} s; so far {self.pids}"
        data = os.read(self._pipe, 65536)
        assert data, f"the tree died early; so far {self.pids}"
        return data

    def close(self) -> None:
        """End everything by the system's own word, without the code under test."""
        self.process.kill()
        self.process.communicate()
        for pid in [pid for pids in self.pids.values() for pid in pids]:
            if b"growing_family.py" in read_command(pid):
                os.kill(pid, 9)
        os.close(self._pipe)


def read_command(pid: int) -> bytes:
    done = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False)
    return done.stdout


@pytest.fixture
def supervise(half: str) -> Iterator[Callable[..., Supervised]]:
    """Start supervisors of trees: `supervise("ranks", "daemon", python=...)`."""
    started: list[Supervised] = []

    def start(*members: str, python: str | Sequence[str] = sys.executable) -> Supervised:
        command = [python] if isinstance(python, str) else python
        started.append(Supervised(half, command, members))
        return started[-1]

    yield start
    for supervised in started:
        supervised.close()
