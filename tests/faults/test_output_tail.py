"""The last lines of a long log come without the log; an ended run that is all here needs no host."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.host import files, layout
from remote_train.metrics.numbers import weigh_median
from remote_train.metrics.rated import RECENT
from remote_train.mirror import hash_file
from tests.e2e.machines import make_laptop, read_until, write_project
from tests.faults.counts import PATIENT, is_nightly, note
from tests.faults.memory import Growth
from tests.host.account_kit import agents_of, until

if TYPE_CHECKING:
    from tests.e2e.machines import Box, Laptop

pytestmark = [pytest.mark.sshd, PATIENT]

SECONDS = 900.0
DATA = Path(__file__).parents[1] / "metrics" / "data"
# A nanoGPT that has said much since it started: its start lines, filler, and steps until a file appears.
LONG = """\
import os, sys, time

text = open("nanogpt.txt").read()
start, _, steps = text.partition("step 0:")
print(start, end="")
filler = b"".join(b"filler %07d\\n" % number for number in range(20_000))
for _ in range(int(sys.argv[1]) // len(filler)):
    sys.stdout.buffer.write(filler)
print("step 0:" + steps, end="")
print("all of it", flush=True)
number = 0
while not os.path.exists("go"):
    print(f"waiting {number}", flush=True)
    number += 1
    time.sleep(0.05)
print("the end")
sys.exit(3)
"""


def start_long(laptop: Laptop, box: Box, project: Path) -> str:
    """Start the long script, detached; return its run when all but the end is printed."""
    size = 1_000_000_000 if is_nightly() else 8_000_000
    text = (DATA / "nanogpt_cpu.txt").read_text()
    write_project(project, {"train.py": LONG, "nanogpt.txt": text})
    run = laptop.ok(project, "run", "-d", "train.py", str(size)).run_id()
    log = Path(layout.rank_log(str(box.attempt(run)), 0))
    until(lambda: b"all of it" in read_end(log), "the log", SECONDS)
    return run


def read_end(log: Path, size: int = 4096) -> bytes:
    if not log.exists():
        return b""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return file.read()


def mirror_of(project: Path, run: str) -> Path:
    return project / "runs" / run / "attempts" / "1" / "ranks" / "0.log"


def end_long(box: Box, run: str) -> None:
    (box.code(run) / "go").touch()


@pytest.mark.slow
def test_the_last_lines_of_a_long_log_come_alone(box: Box, laptop: Laptop, project: Path) -> None:
    run = start_long(laptop, box, project)
    log = Path(layout.rank_log(str(box.attempt(run)), 0))
    done = laptop.ok(project, "logs", "--tail", "1000")
    lines = done.out.splitlines()
    assert len(lines) >= 1000
    assert b"all of it" in lines
    assert done.out in log.read_bytes()
    mirror = mirror_of(project, run)
    assert not mirror.exists() or mirror.stat().st_size == 0
    began = time.perf_counter()
    place = files.find_tail(str(log), 1000)
    took = time.perf_counter() - began
    note(f"G16 tail of {place['size']:,} bytes", 1, int(took > 0.2), took)
    assert place["size"] - place["offset"] < 100_000
    end_long(box, run)
    # a command that wants all of it completes the mirror
    whole = laptop.ok(project, "logs")
    until((box.attempt(run) / layout.EXIT).exists, "the end")
    assert whole.out in log.read_bytes()
    assert laptop.ok(project, "logs").out == log.read_bytes()
    assert hash_file(mirror) == hash_file(log)


def test_following_from_the_last_lines_is_live_at_once_and_whole_at_the_end(
    box: Box, laptop: Laptop, project: Path
) -> None:
    run = start_long(laptop, box, project)
    log, mirror = Path(layout.rank_log(str(box.attempt(run)), 0)), mirror_of(project, run)
    process = laptop.popen(project, "logs", "-f", "--tail", "3", "--no-pull")
    growth = Growth(process.pid, box.home)
    heard = read_until(process.stdout, b"waiting")
    seen_then = int(heard.rpartition(b"waiting ")[2].split()[0] or 0)
    heard += read_until(process.stdout, b"waiting %d" % (seen_then + 20))  # it goes on by itself
    growth.look()
    held = mirror.read_bytes()
    assert len(held) < 1 << 20
    assert log.read_bytes().startswith(held)
    assert held.startswith(b"Overriding")  # the head is here: metrics need it
    end_long(box, run)
    rest, err = process.communicate(timeout=600)
    heard += rest
    assert process.returncode == 1, err.decode()
    assert b"ended with code 3" in err
    assert b"bringing the rest of the log" in err
    whole = log.read_bytes()
    assert whole.endswith(heard)
    assert heard.count(b"\n") < 3000
    assert hash_file(mirror) == hash_file(log)
    note(f"logs -f --tail 3 of {len(whole):,} bytes", 1, 0, 0.0, growth.check())


def test_metrics_from_the_last_lines_are_those_of_the_whole_log(
    box: Box, laptop: Laptop, project: Path
) -> None:
    run = start_long(laptop, box, project)
    end_long(box, run)
    until((box.attempt(run) / layout.EXIT).exists, "the end")
    live = laptop.type(project, "logs", "-f", "--tail", "40", "--json", "--no-pull").expect(1)
    shown = [event for event in live.events if event["event"] == "metric"]
    whole = laptop.ok(project, "metrics", "--json").events
    assert whole[-1]["mfu"] is not None
    for key in ("step", "loss", "mfu", "flops_per_second"):
        assert shown[-1][key] == whole[-1][key], key
    shown_run = laptop.ok(project, "show", "--json").event("run")
    recent = [event["mfu"] for event in whole if event.get("mfu") is not None][-RECENT:]
    assert shown_run["last"]["step"] == whole[-1]["step"]
    assert shown_run["last"]["mfu"] == weigh_median([(mfu, 1) for mfu in recent])


def test_a_cut_while_following_from_the_last_lines_loses_nothing(
    box: Box, laptop: Laptop, project: Path
) -> None:
    run = start_long(laptop, box, project)
    process = laptop.popen(project, "logs", "-f", "--tail", "3", "--no-pull")
    heard = read_until(process.stdout, b"waiting")
    for pid in agents_of(box.home):
        os.kill(pid, signal.SIGKILL)
    heard += read_until(process.stdout, b"waiting %d" % (int(heard.rpartition(b"waiting ")[2] or 0) + 60))
    end_long(box, run)
    rest, _ = process.communicate(timeout=600)
    log = Path(layout.rank_log(str(box.attempt(run)), 0)).read_bytes()
    assert log.endswith(heard + rest)
    assert hash_file(mirror_of(project, run)) == hash_file(log_of(box, run))


def log_of(box: Box, run: str) -> Path:
    return Path(layout.rank_log(str(box.attempt(run)), 0))


@pytest.mark.usefixtures("box")
def test_an_ended_run_that_is_all_here_needs_no_host(laptop: Laptop, project: Path) -> None:
    script = "import sys\nfor n in range(100): print('line', n)\nsys.exit(4)"
    write_project(project, {"train.py": script})
    laptop.type(project, "run", "--no-pull", "train.py").expect(1)
    laptop.write_hosts('default = ["box"]\n[hosts.box]\naddress = ["127.0.0.1"]\nport = 1\n')
    for words in (
        ["logs", "-f"],
        ["logs", "-f", "--tail", "2"],
        ["logs", "-f", "--rank", "all", "--tail", "2"],
    ):
        done = laptop.type(project, *words).expect(1)
        assert done.out.endswith(b"line 98\nline 99\n")
        assert done.out.count(b"\n") == (2 if "--tail" in words else 100)
        assert "ended with code 4" in done.err
    assert laptop.ok(project, "logs", "--tail", "1").out == b"line 99\n"


def test_another_laptop_sees_the_last_lines_of_the_same_run(
    box: Box, laptop: Laptop, project: Path, tmp_path: Path
) -> None:
    run = start_long(laptop, box, project)
    other = make_laptop(tmp_path / "other", box)
    done: Any = other.ok(tmp_path, "logs", "--tail", "5", f"box:{run}")
    assert done.out in log_of(box, run).read_bytes()
    assert done.out.count(b"\n") >= 5
    end_long(box, run)


TWO_RANKS = """\
import os, sys, time

rank = int(os.environ["RANK"])
sys.stdout.write("".join(f"rank {rank} line {n:06d}\\n" for n in range(100_000 if rank else 100)))
print("now", rank, flush=True)
while not os.path.exists("go"):
    time.sleep(0.05)
print("end", rank)
"""


@pytest.mark.torch
def test_each_rank_has_its_own_last_lines(box: Box, laptop: Laptop, project: Path) -> None:
    """Rank 1 has printed 2.3 MB and rank 0 hardly anything: one mirror is completed, the other is not."""
    write_project(project, {"train.py": TWO_RANKS})
    run = laptop.ok(project, "run", "-d", "--nproc-per-node", "2", "train.py").run_id()
    logs = [Path(layout.rank_log(str(box.attempt(run)), rank)) for rank in (0, 1)]
    until(lambda: all(b"now" in read_end(log) for log in logs), "both ranks")
    assert laptop.ok(project, "logs", "--rank", "1", "--tail", "2").out == b"rank 1 line 099999\nnow 1\n"
    done = laptop.ok(project, "logs", "--rank", "all", "--tail", "1")
    assert sorted(done.out.splitlines()) == [b"[0] now 0", b"[1] now 1"]
    mirrors = [mirror_of(project, run).with_name(f"{rank}.log") for rank in (0, 1)]
    assert mirrors[0].read_bytes() == logs[0].read_bytes()
    assert not mirrors[1].exists()
    process = laptop.popen(project, "logs", "-f", "--rank", "all", "--tail", "1", "--no-pull")
    heard = read_until(process.stdout, b"[1] now 1\n")
    end_long(box, run)
    heard += process.communicate(timeout=100)[0]
    assert process.returncode == 0
    assert sorted(heard.splitlines()) == [b"[0] end 0", b"[0] now 0", b"[1] end 1", b"[1] now 1"]
    assert [hash_file(path) for path in mirrors] == [hash_file(path) for path in logs]
    laptop.hosts_file.write_text('default = ["box"]\n[hosts.box]\naddress = ["127.0.0.1"]\nport = 1\n')
    for rank in (0, 1):
        done = laptop.ok(project, "logs", "-f", "--rank", str(rank), "--tail", "1")
        assert done.out == b"end %d\n" % rank
