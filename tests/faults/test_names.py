"""One name, one run: whoever comes second is refused, and before anything of the package has travelled."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import Box, Laptop, make_laptop, write_project
from tests.faults.chaos_proxy import UP, ChaosProxy
from tests.faults.counts import PATIENT, Goal
from tests.faults.invariants import Seat, check

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sshd, PATIENT]

# Every beginning of the script leaves one byte outside of every snapshot.
COUNTING = """
import os, sys
fd = os.open(os.path.expanduser("~/starts-" + os.environ["REMOTE_TRAIN_RUN"].split("/")[0]),
             os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(fd, b"x")
print("I am of", sys.argv[1], flush=True)
"""
LARGE = 3 << 20


def starts(box: Box, run: str) -> int:
    path = box.home / f"starts-{run}"
    return path.stat().st_size if path.exists() else 0


def second_laptop(tmp_path: Path, box: Box, port: int | None = None) -> Laptop:
    made = make_laptop(tmp_path / "other laptop", box)
    if port is not None:
        made.trust(f"[127.0.0.1]:{port} {box.sshd.known_hosts.read_text().partition(' ')[2].strip()}")
        made.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(port=str(port))}')
    return made


@pytest.mark.slow
def test_a_name_that_this_laptop_knows_is_refused_without_a_connection(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    write_project(project, {"train.py": COUNTING})
    laptop.ok(project, "run", "--name", "one", "train.py", "first")
    logins = box.sshd.read_log().count("Connection from")

    refused = laptop.type(project, "run", "--name", "one", "train.py", "second").expect(21)
    elsewhere = write_project(tmp_path / "elsewhere", {"train.py": COUNTING})
    also = laptop.type(elsewhere, "run", "--name", "one", "train.py", "third").expect(21)

    assert "remote-train show one" in refused.err
    assert str(project) in also.err
    assert box.sshd.read_log().count("Connection from") == logins
    assert laptop.ok(project, "logs", "one").out == b"I am of first\n"
    assert not (elsewhere / "runs").exists()
    check(
        box.root,
        [Seat(project / "runs", laptop, project)],
        complete=True,
        starts=lambda run: starts(box, run),
    )


@pytest.mark.slow
def test_a_name_that_the_host_knows_is_refused_before_the_package_travels(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    write_project(project, {"train.py": COUNTING})
    laptop.ok(project, "run", "--name", "one", "train.py", "first")
    heavy = write_project(tmp_path / "heavy", {"train.py": COUNTING})
    with ChaosProxy(box.sshd.port) as proxy:
        other = second_laptop(tmp_path, box, proxy.port)
        other.ok(heavy, "run", "train.py", "before")  # from now on what is new would leave at once
        (heavy / "data.bin").write_bytes(random.Random(1).randbytes(LARGE))
        held = box.blobs()
        refused = other.type(heavy, "run", "--name", "one", "train.py", "second").expect(21)
        assert sum(line.passed[UP] for line in proxy.lines) < LARGE // 2

    assert "one" in refused.err
    assert "--name" in refused.err
    assert box.blobs() == held
    assert not (heavy / "runs" / "one").exists()
    assert starts(box, "one") == 1
    check(box.root, [Seat(project / "runs", laptop, project), Seat(heavy / "runs")], complete=True)


@pytest.mark.slow
def test_of_two_laptops_that_want_one_name_at_once_one_gets_it(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    other = second_laptop(tmp_path, box)
    projects = [project, tmp_path / "project of the other"]
    for place in projects:
        write_project(place, {"train.py": COUNTING})
    with Goal("G3 two laptops want one name at once: one run", reduced=2, nightly=40) as goal:
        for trial in goal:
            with trial:
                race(box, [laptop, other], projects, f"both-{trial.number}")


def race(box: Box, laptops: list[Laptop], projects: list[Path], name: str) -> None:
    typed = [
        who.popen(where, "run", "--name", name, "train.py", word)
        for who, where, word in zip(laptops, projects, ("first", "second"), strict=True)
    ]
    ends = [process.communicate(timeout=60) for process in typed]
    codes = [process.returncode for process in typed]
    assert sorted(codes) == [0, 21], (codes, ends)
    winner = codes.index(0)
    assert ends[winner][0] == f"I am of {('first', 'second')[winner]}\n".encode()
    assert not (projects[1 - winner] / "runs" / name).exists()
    seats = [Seat(place / "runs") for place in projects]
    check(box.root, seats, complete=True, starts=lambda run: starts(box, run))


def test_crossed_laptops_never_mix_runs(laptop: Laptop, box: Box, project: Path, tmp_path: Path) -> None:
    """Two laptops start at once on one host, each its own project; each sees its own output and files only."""
    other = second_laptop(tmp_path, box)
    script = (
        COUNTING
        + "import pathlib\npathlib.Path('out').mkdir()\n"
        + (
            "pathlib.Path('out/ckpt.pt').write_text(sys.argv[1])\nfor n in range(2000): print(sys.argv[1], n)\n"
        )
    )
    projects = [project, tmp_path / "project of the other"]
    with Goal("G3 two laptops start at once: runs never mix", reduced=1, nightly=30) as goal:
        for trial in goal:
            with trial:
                words = [f"{name}-{trial.number}" for name in ("first", "second")]
                for place in projects:
                    write_project(place, {"train.py": script, "trial": str(trial.number)})
                typed = [
                    who.popen(where, "run", "--json", "--checkpoints", "out/*.pt", "train.py", word)
                    for who, where, word in zip((laptop, other), projects, words, strict=True)
                ]
                for process, word, place in zip(typed, words, projects, strict=True):
                    out, err = process.communicate(timeout=60)
                    assert process.returncode == 0, err
                    events = [json.loads(line) for line in out.splitlines()]
                    run = next(event["run"] for event in events if event["event"] == "started")
                    text = "".join(event["data"] for event in events if event["event"] == "output")
                    assert text.splitlines() == [f"I am of {word}", *(f"{word} {n}" for n in range(2000))]
                    assert (place / "runs" / run / "files" / "out" / "ckpt.pt").read_text() == word
                check(box.root, [Seat(place / "runs") for place in projects], complete=True)
