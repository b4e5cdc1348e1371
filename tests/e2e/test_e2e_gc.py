"""The host's disk is kept: at a launch, by hand, and never at the price of what is not at home."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.host import layout
from tests.e2e.machines import Box, Laptop, make_laptop, poll, write_project
from tests.sshd import free_port

if TYPE_CHECKING:
    from pathlib import Path

SAVING = """
import sys
for step in (1, 2):
    print(f"step {step}/2 | loss {5 - step:.4f} | 20.0 ms | 100 tok/s", flush=True)
open("ckpt.pt", "wb").write(sys.argv[1].encode() * 50_000)
if "two" in sys.argv:
    open("other.pt", "wb").write(b"never asked for")
"""


def train(laptop: Laptop, project: Path, name: str, *args: str, options: tuple[str, ...] = ()) -> None:
    laptop.ok(project, "run", "--launcher", "python", "--name", name, *options, "train.py", name, *args)


def take_away(laptop: Laptop, box: Box) -> None:
    """Have nobody answer where the box was."""
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(port=str(free_port()))}')


def runs_on(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "runs").iterdir())


def record(project: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project / "runs" / name / "run.json").read_text())
    return found


@pytest.fixture
def training(project: Path) -> Path:
    return write_project(project, {"train.py": SAVING})


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.sshd
def test_gc_frees_the_host_of_what_is_at_home_and_nothing_here_is_lost(
    laptop: Laptop, box: Box, training: Path
) -> None:
    for number in (1, 2):
        train(laptop, training, f"run{number}")
    train(laptop, training, "unsafe", "two")
    train(laptop, training, "newest")
    here = read_tree(training / "runs" / "run1")
    dry = laptop.ok(training, "gc", "--keep", "2", "--dry-run")
    assert runs_on(box.root) == ["newest", "run1", "run2", "unsafe"]
    assert "would remove run1" in dry.out.decode()
    done = laptop.ok(training, "gc", "--keep", "1", "--json")
    [row] = [row for row in done.events if row["host"] == "box"]
    assert runs_on(box.root) == ["newest", "unsafe"]
    results = {run["run"]: run for run in row["runs"]}
    assert [name for name, run in results.items() if run["removed"]] == ["run1", "run2"]
    assert results["unsafe"]["hint"] == "remote-train pull unsafe"
    assert results["unsafe"]["why"] == "ckpt.pt"
    assert row["freed"]["runs"] == sum(run["bytes"] for run in results.values() if run["removed"]) > 450_000
    assert row["before"] - row["after"] >= row["freed"]["runs"] - 8192  # the trash itself is a folder
    assert list((box.root / layout.TRASH).iterdir()) == []
    still = read_tree(training / "runs" / "run1")
    assert {name: data for name, data in still.items() if not name.endswith(("run.json", ".lock"))} == {
        name: data for name, data in here.items() if not name.endswith(("run.json", ".lock"))
    }
    laptop.ok(training, "pull", "unsafe")
    text = laptop.ok(training, "gc", "--keep", "1").out.decode()
    assert "removed unsafe" in text
    assert runs_on(box.root) == ["newest"]


@pytest.mark.slow
@pytest.mark.sshd
def test_what_is_at_home_of_a_removed_run_works_with_the_host_away(
    laptop: Laptop, box: Box, training: Path
) -> None:
    train(laptop, training, "old")
    train(laptop, training, "new")
    laptop.ok(training, "gc", "--keep", "1")
    assert runs_on(box.root) == ["new"]
    take_away(laptop, box)
    expected = b"step 1/2 | loss 4.0000 | 20.0 ms | 100 tok/s\nstep 2/2 | loss 3.0000 | 20.0 ms | 100 tok/s\n"
    assert laptop.ok(training, "logs", "old").out == expected
    assert laptop.ok(training, "logs", "-f", "old").out == expected
    assert laptop.ok(training, "logs", "--tail", "1", "old").out == expected.splitlines(keepends=True)[1]
    assert [event["step"] for event in laptop.ok(training, "metrics", "--json", "old").events] == [1, 2]
    shown = laptop.ok(training, "show", "old")
    assert "from box on" in shown.out.decode()
    assert laptop.ok(training, "show", "--json", "old").event("run")["pruned"] > time.time() - 600
    rows = {event["run"]: event for event in laptop.ok(training, "ps", "--json").events}
    assert (rows["old"]["state"], rows["old"]["exit"]) == ("ended", "0")
    pulled = laptop.ok(training, "pull", "old")
    assert "removed from box on" in pulled.err
    assert "ckpt.pt" in pulled.err
    refused = laptop.type(training, "pull", "--all", "old").expect(40)
    assert "removed from box on" in refused.err
    (training / "runs" / "old" / "files" / "ckpt.pt").write_bytes(b"mine now")
    assert "not as it was pulled" in laptop.type(training, "pull", "old").expect(40).err
    laptop.ok(training, "stop", "old")
    assert record(training, "old")["state"] == "ended"


def test_what_an_older_attempt_made_comes_only_to_a_folder_apart(alone: Laptop, training: Path) -> None:
    train(alone, training, "one", options=("--local", "--no-pull"))
    files = training / "runs" / "one" / "files"
    for words in (("--attempt", "1"), ("--attempt", "1", "--to", str(files / "apart"))):
        alone.type(training, "pull", *words, "one").expect(2)
    assert not files.exists()
    alone.ok(training, "pull", "--attempt", "1", "--to", "apart", "one")
    assert (training / "apart" / "ckpt.pt").read_bytes() == b"one" * 50_000


@pytest.mark.slow
def test_launches_keep_the_last_ten_runs(alone: Laptop, training: Path) -> None:
    """Twelve runs, one of them with a checkpoint that never came home; and one of another project of the same name."""
    other = write_project(training.parent / "elsewhere" / training.name, {"train.py": SAVING})
    train(alone, other, "foreign", options=("--local",))
    train(alone, training, "unsafe", "two", options=("--local",))
    names = [f"run{number:02}" for number in range(11)]
    for name in names:
        train(alone, training, name, options=("--local",))
    train(alone, training, "last", options=("--local", "-d"))
    poll(lambda: "run00" not in runs_on(alone.root), "the oldest one to go")
    assert runs_on(alone.root) == sorted(["foreign", "unsafe", "last", *names[1:]])
    poll(lambda: record(training, "run00").get("pruned"), "its record to say so")
    assert record(training, "unsafe")["stays"]["why"] == "ckpt.pt"
    assert (training / "runs" / "run00" / "files" / "ckpt.pt").read_bytes() == b"run00" * 50_000


@pytest.mark.sshd
@pytest.mark.slow
def test_a_run_of_another_laptop_stays(laptop: Laptop, box: Box, training: Path, tmp_path: Path) -> None:
    """Both work on the same project on the same box; each cleans up behind itself."""
    second = make_laptop(tmp_path / "second laptop", box)
    copy = write_project(tmp_path / "second" / training.name, {"train.py": SAVING})
    train(laptop, training, "first1")
    train(second, copy, "second1")
    train(laptop, training, "first2")
    train(second, copy, "second2")
    laptop.ok(training, "gc", "--keep", "0")
    assert runs_on(box.root) == ["second1", "second2"]
    # seen from here, even with all of it pulled, it is theirs
    second.ok(copy, "gc", "--keep", "1")
    laptop.ok(training, "pull", "box:second2")
    laptop.ok(training, "logs", "box:second2")
    laptop.ok(training, "gc", "--keep", "0")
    assert runs_on(box.root) == ["second2"]


@pytest.mark.sshd
def test_a_host_that_keeps_much_is_said_after_the_start(laptop: Laptop, box: Box, training: Path) -> None:
    train(laptop, training, "one")
    usage = box.root / layout.USAGE
    poll(usage.exists, "it to be counted")
    usage.write_text(json.dumps({"format": 1, "total": 23_400_000_000, "kinds": {}, "when": time.time()}))
    told = laptop.ok(training, "run", "-d", "train.py", "x").err
    assert "remote-train keeps 23.4 GB on box; `remote-train gc` frees some" in told
    usage.write_text(json.dumps({"format": 1, "total": 19_000_000_000, "kinds": {}, "when": time.time()}))
    assert "remote-train keeps" not in laptop.ok(training, "run", "-d", "train.py", "x").err


@pytest.mark.slow
@pytest.mark.sshd
def test_a_host_that_is_away_does_not_keep_the_others(laptop: Laptop, box: Box, training: Path) -> None:
    train(laptop, training, "here", options=("--local",))
    train(laptop, training, "there")
    take_away(laptop, box)
    done = laptop.type(training, "gc", "--keep", "0", "--json").expect(10)
    rows = {row["host"]: row for row in done.events}
    assert rows["box"]["exit_code"] == 10
    assert rows["box"]["trouble"]
    assert [run["removed"] for run in rows["local"]["runs"]] == [True]
    assert runs_on(laptop.root) == []
    assert runs_on(box.root) == ["there"]
    laptop.type(training, "gc", "--host", "nowhere").expect(2)


def test_records_that_lead_nowhere_are_forgotten(alone: Laptop, training: Path) -> None:
    """Twelve that never began, two of them with something in them; and one in the index that was deleted by hand."""
    runs = training / "runs"
    train(alone, training, "good", options=("--local",))
    train(alone, training, "deleted", options=("--local",))
    for number in range(14):
        folder = runs / f"dead{number:02}"
        (folder / "attempts" / "1" / "ranks").mkdir(parents=True)
        base = {**record(training, "good"), "run": folder.name, "state": "not started", "created": number}
        (folder / "run.json").write_text(json.dumps(base))
    (runs / "dead00" / "attempts" / "1" / "ranks" / "0.log").write_text("words")
    (runs / "dead01" / "files").mkdir()
    (runs / "dead01" / "files" / "mine.pt").write_text("mine")
    for path in (runs / "deleted").rglob("*"):
        if path.is_file():
            path.unlink()
    index = alone.home / "state" / "remote-train" / "client" / "index"
    (index / "unplugged").write_text(str(training.parent / "not mounted" / "runs" / "unplugged"))
    alone.ok(training, "gc")
    left = sorted(path.name for path in runs.glob("dead*"))
    assert left == ["dead00", "dead01", *[f"dead{number:02}" for number in range(4, 14)]]
    assert sorted(path.name for path in index.iterdir()) == ["good", "unplugged"]
    assert (runs / "dead01" / "files" / "mine.pt").read_text() == "mine"


def test_a_disk_that_is_away_for_a_while_removes_nothing(alone: Laptop, training: Path) -> None:
    train(alone, training, "run1", options=("--local", "--no-pull"))
    away = alone.root.with_name("away")
    alone.root.rename(away)
    alone.ok(training, "gc", "--keep", "0")
    assert not record(training, "run1").get("pruned")
    alone.root.rename(alone.root.with_name("meanwhile"))
    away.rename(alone.root)
    alone.ok(training, "pull", "run1")
    assert (training / "runs" / "run1" / "files" / "ckpt.pt").read_bytes() == b"run1" * 50_000
    assert "removed run1" in alone.ok(training, "gc", "--keep", "0").out.decode()


def test_ps_brings_the_output_of_a_run_that_has_ended(alone: Laptop, training: Path) -> None:
    train(alone, training, "one", options=("--local", "-d"))
    poll((alone.attempt("one") / layout.EXIT).exists, "its end")
    [row] = alone.ok(training, "ps", "--json").events
    assert (row["state"], row["step"]) == ("ended", 2)
    here = training / "runs" / "one" / "attempts" / "1" / "ranks" / "0.log"
    assert here.read_bytes() == (alone.attempt("one") / "ranks" / "0.log").read_bytes()
