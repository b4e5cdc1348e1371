"""A pull through a real sshd whose connections break at random bytes; pulls, agents and supervisors that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from remote_train.blocks import BLOCK
from remote_train.landing import PARTIAL
from remote_train.partial import JOURNAL
from tests.e2e.machines import write_project
from tests.faults.chaos_proxy import DOWN, FIN, RST, ChaosProxy, Cut, Program
from tests.faults.counts import PATIENT, Goal, is_nightly
from tests.faults.invariants import Seat, check, find_supervisors, hash_file
from tests.faults.tiny_disk import tiny_ext4
from tests.host.account_kit import agents_of, until

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.machines import Box, Laptop

pytestmark = [pytest.mark.sshd, PATIENT]

MB = 1 << 20
SIZE, CUTS = (1000 * MB, 100) if is_nightly() else (64 * MB, 5)
HANDSHAKE = 16_000
"""Bytes down that a connection takes before a file comes, at most."""
SAVES = """
import os, sys, time
with open("big.bin", "wb") as file:
    for _ in range(int(sys.argv[1])):
        file.write(os.urandom(1 << 20))
print("saved", flush=True)
while len(sys.argv) > 2 and not os.path.exists(os.path.expanduser("~/" + sys.argv[2])):
    time.sleep(0.02)
"""
ALL = ("--match", "big.bin")


def save(laptop: Laptop, project: Path, size: int, *words: str, name: str = "one") -> None:
    write_project(project, {"train.py": SAVES})
    argv = ("-d",) if words else ("--no-pull",)
    laptop.ok(project, "run", *argv, "--name", name, "train.py", str(size // MB), *words)


def files_of(project: Path, name: str = "one") -> Path:
    return project / "runs" / name / "files"


def test_cuts_cost_a_block_each_and_nothing_has_its_name_before_it_is_whole(
    proxied: Laptop, proxy: ChaosProxy, box: Box, project: Path
) -> None:
    name = f"H1 a pull of {SIZE // MB} MB with {CUTS} random cuts: right, and few bytes more than it has"
    with Goal(name, reduced=CUTS, nightly=CUTS) as goal:
        for trial in goal:
            with trial:
                save(proxied, project, SIZE)
                trial.weight = pull_through_cuts(trial.chance, proxied, proxy, box, project)


def pull_through_cuts(
    chance: random.Random, laptop: Laptop, proxy: ChaosProxy, box: Box, project: Path
) -> int:
    """Pull the file while connections break; return how many did."""
    first = len(proxy.lines)
    proxy.program = lambda number: make_program(chance, number - first)
    process = laptop.popen(project, "pull", *ALL, "one")
    place, made = files_of(project) / "big.bin", hash_file(box.code("one") / "big.bin")
    while process.poll() is None:
        assert not place.exists() or hash_file(place) == made
    out, err = process.communicate()
    assert process.returncode == 0, (out, err)
    assert hash_file(place) == made
    lines = proxy.lines[first:]
    broken = sum(line.broken is not None for line in lines)
    assert broken in {CUTS, CUTS + 1}  # the last one, which we close with bytes unread, may look broken too
    passed = sum(line.passed[DOWN] for line in lines)
    print(f"{passed / SIZE:.4f} of the size in {len(lines)} connections, {broken} of them cut")
    assert passed <= 1.02 * SIZE + broken * BLOCK + len(lines) * HANDSHAKE
    check(box.root, [Seat(project / "runs")])
    return broken


def make_program(chance: random.Random, number: int) -> Program:
    """Break the first CUTS connections, so early that there is something left for the last."""
    if number >= CUTS:
        return Program()
    at = HANDSHAKE + chance.randrange(SIZE // (CUTS + 1))
    return Program(cuts=(Cut(DOWN, at, chance.choice((FIN, RST))),))


class Pulling:
    """A pull through a slow line, which can be killed in the middle."""

    def __init__(self, laptop: Laptop, proxy: ChaosProxy, box: Box, project: Path, name: str) -> None:
        self.laptop, self.box, self.project, self.name = laptop, box, project, name
        save(laptop, project, 12 * MB, f"over-{name}", name=name)
        until(lambda: b"saved" in box.log(name), "the file")
        proxy.program = lambda _number: Program(rate=16e6)
        self.process: subprocess.Popen[bytes] = laptop.popen(project, "pull", *ALL, name)

    def reaches(self, share: float) -> None:
        journal = self.project / "runs" / self.name / JOURNAL
        wanted = int(share * 3)
        until(
            lambda: (
                (journal.exists() and journal.read_bytes().count(b"\n") > wanted)
                or self.process.poll() is not None
            ),
            "some blocks",
        )

    def finish(self, code: int = 0) -> None:
        """Let it end, or pull again; everything is here then."""
        _, err = self.process.communicate(timeout=90)
        assert self.process.returncode in {code, -signal.SIGKILL}, err
        assert b"Traceback" not in err
        self.laptop.ok(self.project, "pull", *ALL, self.name)
        place = files_of(self.project, self.name) / "big.bin"
        assert hash_file(place) == hash_file(self.box.code(self.name) / "big.bin")
        assert [
            path for path in files_of(self.project, self.name).rglob("*") if path.name.endswith(PARTIAL)
        ] == []
        (self.box.home / f"over-{self.name}").touch()
        until(lambda: (self.box.attempt(self.name) / "exit.json").exists() or self.lost(), "the run's end")
        check(self.box.root, [Seat(self.project / "runs")], settled=False)

    def lost(self) -> bool:
        """Tell whether the supervisor was killed: its run has no end."""
        return not self.box.processes(self.name)


@pytest.mark.parametrize("victim", ["laptop", "agent", "supervisor"])
def test_whoever_is_killed_during_a_pull(
    proxied: Laptop, proxy: ChaosProxy, box: Box, project: Path, victim: str
) -> None:
    goal = Goal(f"H2 kill -9 of the {victim} during a pull, then pull again", reduced=1, nightly=30)
    with goal:
        for trial in goal:
            with trial:
                pulling = Pulling(proxied, proxy, box, project, f"{victim}{trial.number}")
                pulling.reaches(trial.chance.random())
                kill(pulling, victim)
                proxy.program = lambda _number: Program()
                pulling.finish()


def kill(pulling: Pulling, victim: str) -> None:
    if victim == "laptop":
        pulling.process.kill()
    elif victim == "agent":
        for pid in agents_of(pulling.box.home):
            os.kill(pid, signal.SIGKILL)
    else:
        for pid in find_supervisors(pulling.box.attempt(pulling.name)):
            os.kill(pid, signal.SIGKILL)


def test_a_full_disk_on_the_host_hinders_no_pull(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    with tiny_ext4(box.root, tmp_path / "image", 40 * MB) as disk:
        save(laptop, project, 4 * MB)
        disk.fill()
        laptop.ok(project, "pull", *ALL, "one")
        assert hash_file(files_of(project) / "big.bin") == hash_file(box.code("one") / "big.bin")


def test_a_disk_that_fills_up_here_gives_back_what_the_pull_took(
    alone: Laptop, project: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    with tiny_ext4(there, tmp_path / "image", 40 * MB) as disk:
        write_project(project, {"train.py": SAVES})
        alone.ok(project, "run", "--local", "--no-pull", "--name", "one", "train.py", "24")
        free = disk.free
        process = alone.popen(project, "pull", *ALL, "--limit", "20MB/s", "--to", str(there), "one")
        until(lambda: free - disk.free > 5 * MB or process.poll() is not None, "some of it")
        disk.fill()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 42, err
        disk.release()
        assert free - disk.free < MB
        alone.ok(project, "pull", *ALL, "--to", str(there), "one")
        assert hash_file(there / "big.bin") == hash_file(alone.attempt("one") / "code" / "big.bin")


@pytest.fixture
def no_case(tmp_path: Path) -> Iterator[Path]:
    """A folder in which upper and lower case are one: vfat, or ext4 with casefold."""
    image, place = tmp_path / "image", tmp_path / "no case"
    image.touch()
    os.truncate(image, 20 * MB)
    place.mkdir()
    makes = (["mkfs.vfat", str(image)], ["mkfs.ext4", "-q", "-F", "-O", "casefold", str(image)])
    for make in makes:
        try:
            made = subprocess.run(make, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            continue
        if (
            made
            and subprocess.run(
                ["mount", "-o", "loop", image, place], capture_output=True, check=False
            ).returncode
            == 0
        ):
            break
    else:
        pytest.skip("no file system that folds case can be made and mounted here")
    try:
        folder = place / "files"
        folder.mkdir()
        subprocess.run(["chattr", "+F", folder], capture_output=True, check=False)
        (folder / "a").touch()
        if not (folder / "A").exists():
            pytest.skip("this file system tells a from A")
        (folder / "a").unlink()
        yield folder
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_names_that_are_one_here_lose_nothing(alone: Laptop, project: Path, no_case: Path) -> None:
    saves = "open('Model.pt', 'w').write('upper'); open('model.pt', 'w').write('lower')"
    write_project(project, {"train.py": saves})
    alone.ok(project, "run", "--local", "--no-pull", "--name", "one", "train.py")
    refused = alone.type(project, "pull", "--all", "--to", str(no_case), "one").expect(40)
    assert "on this disk the same file as" in refused.err
    [place] = no_case.iterdir()
    kept = place.read_text()
    assert kept in {"upper", "lower"}
    alone.type(project, "pull", "--all", "--to", str(no_case), "one").expect(40)
    assert place.read_text() == kept
