"""The commands themselves against a hostile program that stands where the host's Python should be, behind a real sshd."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import box, laptop, project
from tests.e2e.machines import PYTHON, REPOSITORY, write_project
from tests.faults.counts import PATIENT, is_nightly
from tests.faults.hostile_cases import CASES
from tests.faults.hostile_talk import DOCUMENTED, check_screen, check_talk

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.machines import Box, Laptop

__all__ = ["box", "laptop", "project"]

pytestmark = pytest.mark.sshd

MEMORY = 700_000
"""Kilobytes that a command may take at most: 272 MB of what a host sent, and itself."""
SAMPLE = (
    "FAIL of a megabyte of escapes",
    "a frame of 2^32-1 bytes",
    "a file named by escapes",
)
NIGHTLY = (
    "an attempt number that is a path",
    "an end whose start error is escapes",
    "honest",
    "READY twice",
    "a CPU whose name is escapes",
    "a refusal of 900 kB",
    "data beyond the credit",
    "data of nothing for ever",
    "events for ever",
    "a hook of git's",
    "a file with more bytes than it has",
    "a clock of 10^400",
    "survivors that are texts",
)
SLOW = {
    "no answer",
    "drip",
    "silence",
    "one byte",
    "never",
    "nothing is taken",
    "breaks off",
    "pages",
    "for ever",
}
"""Words in the names of cases that end only by a deadline of a minute or more."""


def stand_in(box: Box, laptop: Laptop, case: str) -> None:
    """Put the hostile program where hosts.toml says that the host's Python is."""
    python = box.home / "python3"
    python.write_text(
        f"#!/bin/sh\nPYTHONPATH='{REPOSITORY}' exec '{PYTHON}' -m tests.faults.hostile_agent '{case}' \"$@\"\n"
    )
    python.chmod(0o755)
    link = box.home.parent / "hostile"  # a path without the space in that of the home
    link.unlink(missing_ok=True)
    link.symlink_to(python)
    described = box.describe(python=f'"{link}"')
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{described}')


def type_hostile(laptop: Laptop, project: Path, *words: str) -> int:
    """Type a command; check how it ends, what it shows, and what it takes."""
    process = laptop.popen(project, *words)
    out, err = process.communicate(timeout=90)
    shown = (out + err).decode("utf-8", "surrogateescape")
    assert process.returncode in DOCUMENTED, (words, shown)
    assert "Traceback" not in shown
    assert "a bug of ours" not in shown
    check_talk(err.decode("utf-8", "surrogateescape"))
    check_screen(err.decode("utf-8", "surrogateescape"))
    return int(process.returncode)


def choose() -> list[str]:
    """Return the cases to try: a sample, at night everything that does not wait for a deadline of minutes."""
    names = [name for name in CASES if not any(word in name for word in SLOW)]
    return list(dict.fromkeys([*SAMPLE, *([*NIGHTLY, *names] if is_nightly() else [])]))


@PATIENT
def test_commands_survive_a_hostile_program(box: Box, laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "print('hello')\n"})
    outside = project.parent / "neighbour"
    outside.mkdir()
    known: set[str] = set()
    for name in choose():
        stand_in(box, laptop, name)
        shutil.rmtree(laptop.home / "state" / "remote-train" / "client" / "hosts", ignore_errors=True)
        codes = {"run": type_hostile(laptop, project, "run", "--give-up", "1", "train.py")}
        for run in {path.name for path in (project / "runs").glob("*")} - known:
            known.add(run)
            for words in (["logs", "-f", run], ["show", run], ["ps"], ["pull", "--all", run], ["stop", run]):
                give_up = ["--give-up", "1"] if words[0] in {"logs", "pull"} else []
                codes[words[0]] = type_hostile(laptop, project, *words, *give_up)
        print(name, codes)
        case = CASES.get(name)
        if case is not None and case.where == "reply prune":  # which ends no stream
            assert codes["run"] == 0
            codes["gc"] = type_hostile(laptop, project, "gc", "--keep", "0")
        if case is not None:
            assert set(codes.values()) & case.codes, (name, codes)
        assert list(outside.iterdir()) == []
        assert not (project / ".git").exists()


@PATIENT
@pytest.mark.skipif(not is_nightly(), reason="a minute each: REMOTE_TRAIN_FAULTS=nightly")
@pytest.mark.parametrize("name", ["data beyond the credit", "data of nothing for ever"])
def test_a_flood_takes_bounded_memory(name: str, box: Box, laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "print('hello')\n"})
    stand_in(box, laptop, name)
    process = laptop.popen(project, "run", "train.py", stdout=-3, stderr=-3)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    print(f"{name}: exit {process.returncode}, {usage.ru_maxrss / 1000:.0f} MB")
    assert process.returncode == 60
    assert usage.ru_maxrss < MEMORY
