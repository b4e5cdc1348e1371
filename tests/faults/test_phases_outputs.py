"""A reader that has enough, and streams that were never open: every command that prints ends quietly."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import running_box
from tests.faults.counts import PATIENT
from tests.faults.phases import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.sshd, PATIENT]

STEPS = """
print("number of parameters: 10.00M")
for n in range(1, 50):
    print(f"step {n}/50 | loss {5 - n / 100:.4f} | 10.0 ms | 1,000 tok/s", flush=True)
"""
COMMANDS = [
    "run train.py",
    "run --json train.py",
    "run --dry-run train.py",
    "logs",
    "logs -f",
    "logs -f --json",
    "ps",
    "ps --json",
    "show",
    "show --json",
    "metrics",
    "metrics --csv",
    "hosts list",
    "hosts list --json",
    "hosts check",
    "--help",
    "run --help",
]
QUIET = {0, 141}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("outputs")
    with running_box(folder / "box") as box:
        yield World.make(folder, box)


@pytest.fixture(scope="module")
def project(world: World) -> Path:
    """A project with a run that has ended, with metrics."""
    folder = world.project({"train.py": STEPS})
    world.laptop.ok(folder, "run", "train.py")
    return folder


def assert_quiet(command: str, code: int, err: str) -> None:
    assert code in QUIET, f"{command}: exit {code}\n{err}"
    for noise in ("Traceback", "Exception ignored", "bug of ours", "Broken"):
        assert noise not in err, f"{command}\n{err}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_gone(world: World, project: Path, command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = world.laptop.popen(project, *command.split(), stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert_quiet(command, process.returncode, err.decode())


@pytest.mark.parametrize(
    ("command", "redirection"),
    [
        (command, redirection)
        for command in ("run train.py", "logs -f", "ps", "ps --json", "metrics --csv")
        for redirection in (">&-", "2>&-", ">&- 2>&- <&-")
    ],
)
def test_streams_that_were_never_open(world: World, project: Path, command: str, redirection: str) -> None:
    line = f"exec {shlex.join(world.laptop.command)} {command} {redirection}"
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=project,
        env=world.laptop.environment,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert_quiet(line, done.returncode, done.stderr.decode())


@pytest.mark.parametrize("command", ["logs", "ps", "show --json", "metrics --csv"])
def test_an_output_on_a_full_disk_is_said(world: World, project: Path, command: str) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123  (a device)
        process = world.laptop.popen(project, *command.split(), stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 42
    assert "cannot write the output" in err.decode()
