"""Whatever a training prints, its mirror and a pipe get it byte for byte, and neither end grows."""

from __future__ import annotations

import base64
import hashlib
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.host import layout
from remote_train.mirror import hash_file
from tests.e2e.machines import write_project
from tests.faults.counts import PATIENT, is_nightly, note, seed
from tests.faults.memory import Growth
from tests.host.account_kit import until

if TYPE_CHECKING:
    from tests.e2e.machines import Box, Laptop

pytestmark = [pytest.mark.sshd, PATIENT]

SCRIPT = Path(__file__).with_name("hostile_output.py").read_text()
KINDS = {  # bytes in CI, and at night: 10 million lines, 1 GB, a line of 100 MB
    "lines": (10_000_000, 100_000_000),
    "line": (5_000_000, 100_000_000),
    "binary": (50_000_000, 1_000_000_000),
    "torn": (1_000_000, 20_000_000),
    "bars": (200_000, 10_000_000),
    "escapes": (2_000_000, 100_000_000),
}
SECONDS = 900.0


def run_output(laptop: Laptop, project: Path, kind: str, size: int, *options: str, **streams: Any) -> Any:
    write_project(project, {"train.py": SCRIPT})
    return laptop.popen(project, "run", "--no-pull", *options, "train.py", kind, str(size), **streams)


def read_hash(stream: Any, growth: Growth) -> str:
    """Read a pipe to its end, looking at the memory of who writes it; return the hash of what came."""
    digest, looked = hashlib.sha256(), 0.0
    deadline = time.monotonic() + SECONDS
    while True:
        assert select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0], "it has stopped"
        data = os.read(stream.fileno(), 1 << 20)
        if not data:
            return digest.hexdigest()
        digest.update(data)
        if time.monotonic() - looked > 0.2:
            looked = time.monotonic()
            growth.look()


def only_run(project: Path) -> Path:
    (run,) = (project / "runs").iterdir()
    return run


def find_attempt(project: Path, box: Box) -> Path:
    """Return the folder of the only run's first attempt on its host."""
    return box.attempt(only_run(project).name)


def check_everywhere(project: Path, box: Box, heard: str | None) -> None:
    """Assert that what was written, the host's file, the mirror and what was heard are the same bytes."""
    there = find_attempt(project, box)
    written = (there / layout.CODE / "out" / "sha256").read_text()
    mirror = only_run(project) / "attempts" / "1" / "ranks" / "0.log"
    assert hash_file(layout.rank_log(str(there), 0)) == written
    assert hash_file(mirror) == written
    assert heard in {None, written}


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_of_any_output_comes_home(kind: str, box: Box, laptop: Laptop, project: Path) -> None:
    size = KINDS[kind][is_nightly()]
    began = time.monotonic()
    process = run_output(laptop, project, kind, size)
    growth = Growth(process.pid, box.home)
    heard = read_hash(process.stdout, growth)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err.decode()
    check_everywhere(project, box, heard)
    figures = growth.check() if size > 10_000_000 else ""
    note(f"G16 {kind}, {size:,} bytes through a pipe", 1, 0, time.monotonic() - began, figures)


def test_json_events_hold_every_byte_of_a_binary_output(box: Box, laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": SCRIPT})
    done = laptop.ok(project, "run", "--json", "--no-pull", "train.py", "torn", "300000")

    events = [event for event in done.events if event["event"] == "output"]
    pieces = [
        base64.b64decode(event["data_base64"]) if "data_base64" in event else event["data"].encode()
        for event in events
    ]
    check_everywhere(project, box, hashlib.sha256(b"".join(pieces)).hexdigest())


def test_a_reader_that_reads_nothing_does_not_hold_up_the_training(
    box: Box, laptop: Laptop, project: Path
) -> None:
    """The pipe behind `run` is full from the first 64 kB on: the script ends all the same, and its end is recorded."""
    size = KINDS["binary"][is_nightly()] // 2
    process = run_output(laptop, project, "binary", size, stderr=subprocess.STDOUT)
    until(lambda: (project / "runs").exists() and list((project / "runs").glob("*/run.json")), "the run")
    there = find_attempt(project, box)
    until((there / layout.EXIT).exists, "the end on the host", SECONDS)
    assert process.poll() is None
    growth = Growth(process.pid, box.home)
    growth.look()
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    took = time.monotonic() - began
    note("G4 prompt from a stuck pipe", 1, int(took > 1.5), took, f"seed {seed()}")
    assert took < 5
    process.stdout.close()
    laptop.ok(project, "logs", "--tail", "0")
    process = laptop.popen(project, "logs")
    assert read_hash(process.stdout, Growth(process.pid, box.home)) != ""
    process.communicate(timeout=SECONDS)
    check_everywhere(project, box, None)
