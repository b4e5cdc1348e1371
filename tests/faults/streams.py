"""A training that writes until it is told that it is enough, watched by a real `remote-train`: what a fault must not harm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from tests.e2e.machines import write_project
from tests.faults.invariants import Seat, check, expect_no_agents, hash_file
from tests.host.account_kit import sha256, until

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.e2e.machines import Box, Laptop

# Odd chunks on both streams, then an end without a newline, and a code of its own.
SCRIPT = """
import os, random, sys, time
run = os.environ["REMOTE_TRAIN_RUN"].split("/")[0]
chance = random.Random(sys.argv[1])
fd = os.open(os.path.expanduser("~/starts-" + run), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(fd, b"x")
while not os.path.exists(os.path.expanduser("~/enough-" + sys.argv[1])):
    size = chance.choice((1, 7, 61, 1000, 4099, 20001))
    os.write(chance.choice((1, 2)), chance.randbytes(size))
    time.sleep(size / float(sys.argv[3]))
for _ in range(chance.randrange(40)):
    os.write(1, chance.randbytes(chance.randrange(3000)))
os.write(1, b"the end")
sys.exit(int(sys.argv[2]))
"""
SECONDS = 400.0


class Stream:
    """One run of SCRIPT and the command that follows it; stdout and stderr go to files."""

    def __init__(self, laptop: Laptop, box: Box, project: Path, name: str = "s", code: int = 3) -> None:
        self.laptop = laptop
        self.box = box
        self.project = write_project(project, {"train.py": SCRIPT})
        self.name = name
        self.code = code
        self.out = project.parent / f"{project.name}-{name}.out"
        self.err = project.parent / f"{project.name}-{name}.err"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        (self.box.home / f"enough-{self.name}").touch()  # also when the test failed: nothing runs for ever
        self.kill()

    def kill(self) -> None:
        """Kill the command with SIGKILL, if it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def type(self, *argv: str, **options: Any) -> None:
        """Type a command whose output is kept."""
        self.kill()
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = self.laptop.popen(self.project, *argv, stdout=out, stderr=err, **options)

    def run(self, pace: int = 1_000_000) -> None:
        """Type `run`; the script writes so many bytes a second at most."""
        more = ("train.py", self.name, str(self.code), str(pace))
        self.type("run", "--no-fallback", "--name", self.name, *more)

    def ended(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def begun(self) -> Stream:
        """Wait until the script has begun and its output has come."""
        self.grows()
        return self

    def grows(self, seconds: float = 60.0) -> None:
        """Wait until more output comes than has come so far."""
        before = self.out.stat().st_size
        until(lambda: self.out.stat().st_size > before or self.ended(), f"output: {self.words()}", seconds)
        assert not self.ended(), self.words()

    def enough(self) -> None:
        """Tell the script to end."""
        (self.box.home / f"enough-{self.name}").touch()

    def words(self) -> str:
        """What was said to the user so far."""
        return self.err.read_text(errors="replace")

    def starts(self, run: str) -> int:
        """How often a run's script has begun."""
        path = self.box.home / f"starts-{run}"
        return path.stat().st_size if path.exists() else 0

    def finish(self, *, settled: bool = True) -> None:
        """Let it end; every byte came once, the code is right, and the invariants hold."""
        self.enough()
        assert self.process is not None
        assert self.process.wait(SECONDS) == (1 if self.code else 0), self.words()
        assert "Traceback" not in self.words()
        self.verify(settled=settled)

    def verify(self, *, settled: bool = True) -> None:
        """Compare what stdout got, what is mirrored, and what the host has."""
        there = self.box.log(self.name)
        assert there.endswith(b"the end")
        assert hash_file(self.out) == sha256(there), f"{self.out.stat().st_size} of {len(there)} bytes shown"
        assert self.starts(self.name) == 1
        seat = Seat(self.project / "runs")
        check(self.box.root, [seat], complete=True, settled=settled, starts=self.starts, runs=[self.name])

    def check_all(self) -> None:
        """Check the whole host and what commands say; once a test, it takes seconds."""
        seat = Seat(self.project / "runs", self.laptop, self.project)
        check(self.box.root, [seat], complete=True, settled=False, starts=self.starts)
        expect_no_agents(self.box.home)
