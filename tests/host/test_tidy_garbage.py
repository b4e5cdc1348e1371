"""What tidying removes and what it leaves, what it counts, and how often."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.host import garbage, layout, store, tidy, trees
from remote_train.host.durable import read_record
from tests.host.account_kit import Started, agents_of, sha256, the_agent, until
from tests.host.tidy_kit import DAY, age, write_package

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.account_kit import Account


def tidy_now(root: Path, *, dry: bool = False) -> dict[str, int]:
    """Tidy in this process, and return the bytes freed by kind."""
    doing = tidy.Tidy(str(root), [], dry=dry, thorough=True)
    quiet = os.open(os.devnull, os.O_WRONLY)
    try:
        doing.run(quiet)
    finally:
        os.close(quiet)
    assert doing.failures == []
    return doing.freed


@pytest.fixture
def root(account: Account) -> Path:
    store.open_root(str(account.root))
    return account.root


def blob(root: Path, data: bytes) -> Path:
    return Path(layout.blob_path(str(root), sha256(data)))


def manifest(root: Path, package: str) -> Path:
    return Path(layout.package_path(str(root), package))


def test_contents_go_when_no_manifest_has_them_any_more(root: Path) -> None:
    old = write_package(root, {"a.py": b"only old", "b.py": b"shared"})
    write_package(root, {"b.py": b"shared", "c.py": b"only young"})
    manifest(root, write_package(root, {"stray.py": b"no manifest"})).unlink()
    for path in (root / "blobs").glob("??/*"):
        age(path, 2 * DAY)
    tidy_now(root)
    assert not blob(root, b"no manifest").exists()
    assert blob(root, b"only old").exists()
    age(manifest(root, old), 8 * DAY)
    would = tidy_now(root, dry=True)
    assert blob(root, b"only old").exists()
    assert tidy_now(root) == would
    assert set(would) == {"packages", "blobs"}
    assert not manifest(root, old).exists()
    left = {path.parent.name + path.name for path in (root / "blobs").glob("??/*")}
    assert left == {sha256(b"shared"), sha256(b"only young")}


def test_young_contents_stay_for_the_launch_that_is_under_way(root: Path) -> None:
    write_package(root, {"a.py": b"just sent"})
    for path in (root / "packages").iterdir():
        path.unlink()
    assert tidy_now(root) == {}
    assert blob(root, b"just sent").exists()


def test_a_manifest_that_a_run_has_stays_and_one_that_a_launch_wants_is_used(account: Account) -> None:
    started = account.start("pass")
    started.end()
    kept = manifest(account.root, started.record["plan"]["package"])
    age(kept, 30 * DAY)
    tidy_now(account.root)
    assert kept.exists()
    until(lambda: not started.supervisor_lives(), "the supervisor's end")
    # a second launch of it, refused for want of its contents, is a use as well
    shutil.rmtree(account.root / "runs" / "run")
    blob(account.root, b"pass").unlink()
    answer = account.connect().request("start", **account.message(kept.stem, run="two"))
    assert answer["need"] == "blobs"
    tidy_now(account.root)
    assert kept.exists()


def test_half_written_files_go_when_their_process_is_gone(root: Path) -> None:
    dead = 2**22 + 5
    names = [f"blobs/incoming.{dead}.7", f"packages/x.json.{dead}.tmp", f"usage.json.{dead}.tmp"]
    kept = [f"blobs/incoming.{os.getpid()}.7", f"packages/y.json.{os.getpid()}.tmp"]
    young = f"packages/z.json.{dead}.tmp"
    for name in (*names, *kept, young):
        (root / name).write_bytes(b"half")
        age(root / name, 0 if name == young else 2 * 3600)
    assert set(tidy_now(root)) == {"leftovers"}
    assert [name for name in (*names, *kept, young) if (root / name).exists()] == [*kept, young]


def test_programs_that_nobody_used_for_a_month_go(root: Path) -> None:
    agents = root / "agents"
    names = {name: os.urandom(32).hex() for name in ("old", "recent", "running")}
    places = {name: agents / text for name, text in names.items()}
    places["half"] = agents / (os.urandom(32).hex() + ".0123456789abcdef")
    ages = {"old": 31 * DAY, "recent": 29 * DAY, "running": 31 * DAY, "half": 2 * 3600}
    for name, folder in places.items():
        (folder / "remote_train").mkdir(parents=True)
        (folder / "remote_train" / "__init__.py").write_text("#")
        age(folder, ages[name])
    with subprocess.Popen(
        [sys.executable, "-c", "input()", names["running"]], stdin=subprocess.PIPE
    ) as process:
        until(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes().count(b"\0") > 2, "the command line")
        assert set(tidy_now(root)) == {"agents"}
        assert set(agents.iterdir()) == {places["recent"], places["running"]}
        process.kill()
    assert set(tidy_now(root)) == {"agents"}
    assert list(agents.iterdir()) == [places["recent"]]


def test_a_supervisor_is_known_by_the_program_it_was_forked_from(account: Account) -> None:
    started = account.start("print('up', flush=True); import time; time.sleep(600)")
    started.says(b"up")
    until(lambda: not agents_of(account.home), "the agent's end")
    ours = account.root / "agents" / the_agent().hash
    age(ours, 31 * DAY)
    assert tidy_now(account.root) == {}
    assert the_agent().hash.encode() in Path(f"/proc/{started.record['pid']}/cmdline").read_bytes()
    assert ours.exists()


def test_asking_a_host_to_tidy_notes_that_the_program_is_in_use(account: Account) -> None:
    session = account.connect()
    session.request("list")
    ours = account.root / "agents" / the_agent().hash
    age(ours, 40 * DAY)
    session.request("prune", runs=[], thorough=True)
    assert ours.exists()
    assert garbage.age(str(ours), time.time()) < DAY
    session.close()


def make_claim(root: Path, run: str, attempt: int = 1) -> Path:
    folder = Path(layout.attempt_dir(str(root), run, attempt))
    (folder / "code" / "deep").mkdir(parents=True)
    (folder / "code" / "deep" / "file").write_bytes(b"half a snapshot")
    (folder / layout.LOCK).touch()
    (folder / layout.CLAIM).write_text('{"format": 1, "token": "t"}')
    return folder


def make_old(folder: Path) -> None:
    for path in (folder / layout.CLAIM, folder):
        if path.exists():
            age(path, 2 * garbage.CLAIM_SECONDS)


def test_a_start_that_died_goes_after_a_while(root: Path) -> None:
    make_old(make_claim(root, "dead"))
    unclaimed = make_claim(root, "unclaimed")
    (unclaimed / layout.CLAIM).unlink()
    make_old(unclaimed)
    make_claim(root, "young")
    held = make_claim(root, "held")
    make_old(held)
    from remote_train.host import locks

    lock = locks.open_lock(str(held / layout.LOCK))
    assert locks.try_lock(lock)
    assert set(tidy_now(root)) == {"starts"}
    assert sorted(path.name for path in (root / "runs").iterdir()) == ["held", "young"]
    os.close(lock)
    tidy_now(root)
    assert sorted(path.name for path in (root / "runs").iterdir()) == ["young"]
    assert list((root / layout.TRASH).iterdir()) == []


def test_the_attempts_before_a_start_that_died_stay(account: Account) -> None:
    started = account.start("pass")
    started.end()
    make_old(make_claim(account.root, "run", 2))
    assert set(tidy_now(account.root)) == {"starts"}
    assert [path.name for path in started.folder.parent.iterdir()] == ["1"]
    assert started.state()["state"] == "ended"


def test_the_name_of_a_start_that_died_is_free_again(account: Account) -> None:
    make_old(make_claim(account.root, "run"))
    session = account.connect()
    package = account.ship(session, {"train.py": "pass"})
    session.request("prune", runs=[], thorough=True)
    state = session.request("start", **account.message(package, token="another"))
    assert state["state"] in ("starting", "running", "ended")
    assert Started(account, "run").end()["code"] == 0


def disk_use(root: Path) -> int:
    """What `du` would say of everything but the folders that outlive runs and what is written while counting."""
    total = 0
    for name in ("runs", "blobs", "packages", "peaks", "trash", "agents"):
        for place, _, names in os.walk(root / name):
            total += sum((Path(place) / item).lstat().st_blocks * 512 for item in [".", *names])
    return total


def test_what_all_of_it_takes_is_counted_and_told_with_the_next_start(account: Account) -> None:
    started = account.start("open('big.bin', 'wb').write(bytes(3_000_000))")
    started.end()
    (account.root / "persist" / "project").mkdir(parents=True)
    (account.root / "persist" / "project" / "data").write_bytes(bytes(100_000))
    session = account.connect()
    session.request("prune", runs=[])
    usage = until(lambda: read_record(str(account.root / layout.USAGE)), "usage.json") or {}
    assert usage["total"] == disk_use(account.root)
    assert usage["kinds"]["runs"] > 3_000_000
    assert usage["kinds"]["persist"] >= 100_000
    package = account.ship(session, {"train.py": "pass"})
    state = session.request("start", **account.message(package, run="two"))
    assert state["usage"] == usage
    Started(account, "two").end()


def test_it_is_done_at_most_once_an_hour_unless_there_is_trash(account: Account) -> None:
    session = account.connect()
    session.request("prune", runs=[])
    path = account.root / layout.USAGE
    until(path.exists, "usage.json")
    first = path.stat().st_mtime_ns
    session.request("prune", runs=[])  # nothing is started for it
    assert not tidy.is_due(str(account.root))
    (account.root / layout.TRASH).mkdir(exist_ok=True)
    (account.root / layout.TRASH / "left").mkdir()

    def is_done_after(moment: int) -> bool:
        session.request("prune", runs=[])  # the one before may still hold the lock
        return path.stat().st_mtime_ns > moment

    until(lambda: is_done_after(first), "it to be done again")
    assert not (account.root / layout.TRASH / "left").exists()
    second = path.stat().st_mtime_ns
    age(path, 2 * 3600)
    until(lambda: is_done_after(second), "it to be done an hour later")


def test_one_trouble_keeps_nothing_else(root: Path) -> None:
    """A folder that cannot be read where manifests should be; everything else is tidied and counted."""
    shutil.rmtree(root / "packages")
    (root / "packages").write_text("not a folder")
    make_old(make_claim(root, "dead"))
    doing = tidy.Tidy(str(root), [], dry=False, thorough=True)
    read_fd, write_fd = os.pipe()
    doing.run(write_fd)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as said:
        lines = [json.loads(line) for line in said]
    assert lines[1]["failures"]
    assert set(lines[1]["freed"]) == {"starts"}
    assert (root / layout.USAGE).exists()
    assert list((root / "runs").iterdir()) == []


@pytest.fixture
def waiting(account: Account) -> Iterator[int]:
    """A tidying process that waits for another one; this test is the other one."""
    from remote_train.host import locks

    store.open_root(str(account.root))
    lock = locks.open_lock(str(account.root / layout.TIDY_LOCK))
    assert locks.try_lock(lock)
    session = account.connect()
    session.submit("prune", runs=[], thorough=True)
    [agent] = until(lambda: agents_of(account.home), "the agent")

    def find() -> list[int]:
        return [
            int(path.name)
            for path in Path("/proc").iterdir()
            if path.name.isdigit() and is_tidier(path, account.home) and int(path.name) != agent
        ]

    [found] = until(find, "the process that tidies")
    yield found
    os.close(lock)
    until(lambda: not Path(f"/proc/{found}").exists(), "its end")


def is_tidier(process: Path, home: Path) -> bool:
    try:
        mark = b"\0HOME=" + os.fsencode(home) + b"\0"
        named = (process / "comm").read_bytes() == b"remote-train\n"
        return named and mark in b"\0" + (process / "environ").read_bytes()
    except OSError:
        return False


def test_the_process_that_tidies_holds_nothing_of_its_connection(waiting: int, account: Account) -> None:
    process = Path(f"/proc/{waiting}")
    lock = str(account.root / layout.TIDY_LOCK)
    until(lambda: lock in [str(fd.readlink()) for fd in (process / "fd").iterdir()], "it to wait")
    opened = sorted(str(fd.readlink()) for fd in (process / "fd").iterdir())
    assert opened[:4] == ["/dev/null"] * 3 + [lock]
    assert [name for name in opened[4:] if not name.startswith("pipe:")] == []
    assert len(opened) == 5
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    assert fields[16] == "19"  # nice
    assert os.getsid(waiting) not in (waiting, os.getsid(0))
    [agent] = agents_of(account.home)
    os.kill(agent, signal.SIGKILL)
    until(lambda: not agents_of(account.home), "the agent's death")
    assert process.exists()


def test_measuring_counts_what_is_there_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(bytes(5_000_000))
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "tree" / "loop").symlink_to(tmp_path / "tree")
    before = trees.measure(str(tmp_path / "tree"))
    (tmp_path / "tree" / "sub" / "file").write_bytes(bytes(1_000_000))
    assert 1_000_000 <= trees.measure(str(tmp_path / "tree")) - before < 1_100_000
    assert trees.measure(str(tmp_path / "nothing")) == 0
    trees.erase(str(tmp_path / "tree"))
    assert not (tmp_path / "tree").exists()
    assert (tmp_path / "outside").exists()


def test_a_usage_that_is_no_record_is_not_told(account: Account) -> None:
    session = account.connect()
    package = account.ship(session, {"train.py": "pass"})
    (account.root / layout.USAGE).write_text("half a rec")
    state: dict[str, Any] = session.request("start", **account.message(package))
    assert state["usage"] is None
    Started(account, "run").end()


def make_undeletable(root: Path) -> Path:
    """Leave trash that cannot be emptied: folders in folders, further down than a path can say."""
    entry = root / layout.TRASH / "deep"
    entry.mkdir(parents=True)
    above = os.open(entry, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("f" * 250, dir_fd=above)
        below = os.open("f" * 250, os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = below
    os.close(above)
    return entry


def test_trash_that_cannot_be_emptied_is_tried_once_an_hour(root: Path) -> None:
    entry = make_undeletable(root)
    quiet = os.open(os.devnull, os.O_WRONLY)
    assert tidy.is_due(str(root))
    doing = tidy.Tidy(str(root), [], dry=False, thorough=True)
    doing.run(quiet)
    os.close(quiet)
    assert len(doing.failures) == 1
    assert entry.exists()
    assert not tidy.is_due(str(root))
    (root / layout.TRASH / "new").mkdir()
    assert tidy.is_due(str(root))
    (root / layout.TRASH / "new").rmdir()
    age(root / layout.USAGE, 2 * 3600)
    assert tidy.is_due(str(root))
