"""Busy GPUs as a user sees them: two hosts behind real sshds, whose drivers say what the tests want."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from remote_train.host import layout, locks
from tests.e2e.machines import (
    ONE_THREAD,
    PYTHON,
    Box,
    kill_leftovers,
    known_line,
    make_laptop,
    poll,
    read_until,
    running_box,
    write_project,
)
from tests.host.gpu_kit import Driver, library, uuid_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["library"]
pytestmark = [pytest.mark.sshd, pytest.mark.timeout(120)]

PYTHON_FOLDER = f"python{sys.version_info[0]}.{sys.version_info[1]}"
WAITING = """
import os, sys, time
print("gpus", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
"""
RUN = ("run", "--launcher", "python", "--nproc-per-node", "1")


def make_cuda_python(folder: Path) -> Path:
    """Make an interpreter that has a torch with CUDA, as far as its version says."""
    packages = folder / "lib" / PYTHON_FOLDER / "site-packages" / "torch"
    packages.mkdir(parents=True)
    (packages / "__init__.py").write_text("")
    (packages / "version.py").write_text("__version__ = '2.6.0'\ncuda = '12.4'\nhip = None\n")
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.symlink_to(PYTHON.resolve())
    (folder / "pyvenv.cfg").write_text(f"home = {PYTHON.resolve().parent}\n")
    return python


@contextlib.contextmanager
def gpu_box(folder: Path, library: str) -> Iterator[tuple[Box, Driver]]:
    """Run a host with two GPUs of the stand-in driver."""
    folder.mkdir()
    told = folder / "driver.txt"
    words = {
        "HOME": folder / "home of box",
        "REMOTE_TRAIN_NVML": library,
        "REMOTE_TRAIN_LIBCUDA": "/nowhere/libcuda.so",
        "FAKE_NVIDIA_FILE": told,
        **ONE_THREAD,
    }
    line = "SetEnv " + " ".join(f'"{name}={value}"' for name, value in words.items())
    driver = Driver(told)
    with running_box(folder, [line]) as box:
        yield box, driver


class Place:
    """Two hosts, a laptop that has both, and a project."""

    def __init__(self, folder: Path, one: tuple[Box, Driver], two: tuple[Box, Driver]) -> None:
        self.boxes, self.drivers = (one[0], two[0]), (one[1], two[1])
        self.end = folder / "end"
        self.laptop = make_laptop(folder / "laptop")
        python = make_cuda_python(folder / "cuda")
        self.laptop.trust(*map(known_line_of, self.boxes))
        lines = [
            f"[hosts.{name}]\n" + box.describe(python=f'"{python}"', device='"cuda"')
            for name, box in zip(("one", "two"), self.boxes, strict=True)
        ]
        self.laptop.write_hosts('default = ["one"]\n' + "".join(lines))
        self.project = write_project(folder / "project", {"train.py": WAITING})

    def start(self, name: str, *options: str) -> None:
        self.laptop.ok(self.project, *RUN, "-d", "--name", name, *options, "train.py", str(self.end))

    def occupy(self, box: int) -> None:
        """Have somebody else compute on both GPUs of a host."""
        self.drivers[box].tell(2, (0, 1, 10**9, "C"), (1, 1, 10**9, "C"))

    def show(self, name: str) -> str:
        return self.laptop.ok(self.project, "show", name).out.decode()


def known_line_of(box: Box) -> str:
    return known_line(box.sshd)


@pytest.fixture
def place(tmp_path: Path, library: str) -> Iterator[Place]:
    with gpu_box(tmp_path / "one", library) as one, gpu_box(tmp_path / "two", library) as two:
        made = Place(tmp_path, one, two)
        yield made
        kill_leftovers(made.laptop.root)


def test_a_queued_run_says_its_place_is_detached_from_and_starts_later(place: Place) -> None:
    place.start("holder", "--gpus", "all")
    place.start("first", "--gpus", "all")
    argv = [*RUN, "--name", "mine", "--gpus", "0,", "train.py", str(place.end)]
    process = place.laptop.popen(place.project, *argv)
    try:
        said = read_until(process.stderr, b"in use by holder").decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.communicate()

    assert "waiting for GPU 0 of one: place 2 of 2, behind first (since " in said
    rows = {line.split()[0]: line for line in place.laptop.ok(place.project, "ps").out.decode().splitlines()}
    assert "queued, place 1" in rows["first"]
    assert "queued, place 2" in rows["mine"]
    assert "behind first" in place.show("mine")

    place.laptop.type(place.project, "stop", "first").expect(0)
    assert "stopped" in place.show("first")
    place.end.touch()  # the holder ends, and nobody of ours is there
    done = place.laptop.ok(place.project, "logs", "-f", "mine", "--json")
    assert done.event("ended")["exit"]["code"] == 0
    assert place.boxes[0].log("mine") == f"gpus {uuid_of(0)}\n".encode()
    assert "RTX 4070 Ti" in place.show("mine")


@pytest.mark.slow
def test_a_run_that_is_followed_from_the_queue_on_shows_all_of_it(place: Place) -> None:
    place.occupy(0)
    argv = [*RUN, "--json", "--name", "mine", "train.py", str(place.end)]
    process = place.laptop.popen(place.project, *argv)
    try:
        said = read_until(process.stdout, b'"place": 1')
        place.end.touch()
        place.drivers[0].tell(2)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, err
    assert b'"phase": "queued"' in said
    assert uuid_of(0).encode() in said + out
    record = (place.project / "runs" / "mine" / "attempts" / "1" / "attempt.json").read_text()
    assert uuid_of(0) in record


@pytest.mark.slow
def test_a_free_host_comes_before_a_busy_one(place: Place) -> None:
    place.occupy(0)

    done = place.laptop.ok(
        place.project,
        *RUN,
        "-d",
        "--name",
        "mine",
        "--host",
        "one",
        "--host",
        "two",
        "train.py",
        str(place.end),
    )

    assert "mine on two (cuda)" in done.err
    assert "passed over: one: GPU 0 is in use by root" in done.err


@pytest.mark.parametrize(
    ("hosts", "on_busy"),
    [
        (("one", "two"), "next"),
        (("one",), "fail"),
        pytest.param(("one",), "next", marks=pytest.mark.slow),
        pytest.param(("one", "two"), "fail", marks=pytest.mark.slow),
    ],
)
def test_who_does_not_want_to_wait_gets_exit_13(place: Place, hosts: tuple[str, ...], on_busy: str) -> None:
    place.occupy(0)
    place.occupy(1)
    named = [word for name in hosts for word in ("--host", name)]

    done = place.laptop.type(
        place.project, *RUN, "--json", "--on-busy", on_busy, *named, "train.py", str(place.end)
    ).expect(13)

    error = done.event("error")
    assert error["kind"] == "host-busy"
    assert "one: GPU 0 is in use by root (" in error["message"]
    assert ("two: GPU 0" in error["message"]) is (on_busy == "next" and len(hosts) > 1)
    assert not list((place.boxes[0].root / "runs").glob("*"))


@pytest.mark.slow
def test_a_host_that_is_taken_between_the_look_and_the_start_is_passed_over(place: Place) -> None:
    root = place.boxes[0].root
    root.mkdir(parents=True, exist_ok=True)
    lock = locks.take(str(root / layout.GC_LOCK), fcntl.LOCK_EX, 10.0)
    assert lock is not None
    argv = [*RUN, "-d", "--on-busy", "next", "--host", "one", "--host", "two", "train.py", str(place.end)]
    process = place.laptop.popen(place.project, *argv)
    try:
        poll(lambda: any(root.glob("runs/*/attempts/1")) or any(root.glob("packages/*")), "its package there")
        place.occupy(0)
        os.close(lock)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, err
    assert b"passed over: one: GPU 0 is in use by root" in err
    assert list((place.boxes[1].root / "runs").glob("*"))
    assert len(place.laptop.ok(place.project, "ps").out.splitlines()) == 2


@pytest.mark.slow
def test_who_shares_starts_on_a_busy_host(place: Place) -> None:
    place.occupy(0)
    place.start("mine", "--host", "one", "--host", "two", "--on-busy", "share")
    poll(lambda: place.boxes[0].log("mine").startswith(b"gpus GPU-"), "its first line")


@pytest.mark.slow
def test_where_all_are_busy_it_waits_on_the_first(place: Place) -> None:
    place.occupy(0)
    place.occupy(1)

    place.start("mine", "--host", "one", "--host", "two")

    assert "waiting for one of GPUs 0, 1 of one: place 1 of 1; in use by root (" in place.show("mine")
    place.drivers[0].tell(2)
    place.end.touch()
    poll((place.boxes[0].attempt("mine") / "exit.json").exists, "its end")


@pytest.mark.slow
def test_a_failover_takes_a_free_host_and_waits_where_all_are_busy(place: Place) -> None:
    """The run on `one` is lost; `two` is busy: it is waited for there, not fallen back from."""
    place.occupy(1)
    argv = [
        *RUN,
        "--failover",
        "--name",
        "mine",
        "--host",
        "one",
        "--host",
        "two",
        "train.py",
        str(place.end),
    ]
    process = place.laptop.popen(place.project, *argv)
    try:
        read_until(process.stdout, b"gpus")
        record = json.loads((place.boxes[0].attempt("mine") / "attempt.json").read_text())
        place.occupy(0)
        os.kill(record["pid"], signal.SIGKILL)
        kill_leftovers(place.boxes[0].root)
        said = read_until(process.stderr, b"waiting for one of GPUs 0, 1 of two")
        place.drivers[1].tell(2)
        place.end.touch()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, err
    assert b"GPU 0 is in use by root" in said
    second = Path(layout.attempt_dir(str(place.boxes[1].root), "mine", 2))
    assert (second / "exit.json").exists()
