"""Data and downloads: sent once per content, shared by runs, mapped where they lie already, kept from run to run."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import stat
from typing import TYPE_CHECKING

import pytest

from remote_train.host import layout
from tests.e2e.machines import Box, Laptop, make_laptop, poll, read_until, run_git, write_project

if TYPE_CHECKING:
    from pathlib import Path

READING = """
import hashlib, os, sys
for path in sys.argv[1:]:
    names = [path] if os.path.isfile(path) else sorted(
        os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
    )
    for name in names:
        print(name, os.path.getsize(name), hashlib.sha256(open(name, "rb").read()).hexdigest()[:8])
    try:
        open(os.path.join(path, "new") if os.path.isdir(path) else path, "ab").close()
        assert os.getuid() == 0, "a user may write into shared data"
    except PermissionError:
        pass
"""
FETCHING = """
import os, sys, time
place = sys.argv[1]
os.makedirs(place, exist_ok=True)
path = os.path.join(place, "set.bin")
if os.path.exists(path):
    print("there already", open(path).read())
else:
    print("downloading")
    with open(path + ".%d" % os.getpid(), "w") as file:
        file.write("by " + os.environ["REMOTE_TRAIN_RUN"])
    os.replace(path + ".%d" % os.getpid(), path)
"""
PERSIST = '[package]\npersist = ["data/mnist", ".cache"]\n'
CONFIG = '[package]\ndata = ["data/owt"]\n'


def run(laptop: Laptop, project: Path, name: str, *args: str) -> str:
    """Run something to its end and return what it printed."""
    return laptop.ok(project, "run", "--launcher", "python", "--name", name, *args).out.decode()


def data_of(box: Box) -> list[str]:
    """The data folders at the host, whole or not."""
    folder = box.root / layout.DATA
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def write_reader(project: Path, **files: bytes) -> Path:
    write_project(
        project, {"train.py": READING, "remote-train.toml": CONFIG, ".gitignore": "data/\nruns/\n"}, git=True
    )
    return write_project(
        project, {"data/owt/" + name.replace("_", "/"): data for name, data in files.items()}
    )


@pytest.mark.sshd
def test_data_travels_once_and_two_runs_projects_and_laptops_share_it(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    files = {"train": os.urandom(9 << 20), "val": b"small", "deep_er": os.urandom(2 << 20)}
    write_reader(project, **files)
    (project / "data/owt/link").symlink_to("val")
    (project / "data/owt/out").symlink_to("/etc/hostname")
    (project / "data/owt/.env").write_text("TOKEN=1")
    first = laptop.ok(
        project, "run", "--launcher", "python", "--name", "one", "--json", "train.py", "data/owt"
    )
    told = first.event("data")
    assert (told["place"], told["bytes"]) == ("data/owt", sum(map(len, files.values())))
    assert sum(event["bytes"] for event in first.events if event["event"] == "sent") >= 11 << 20
    notes = [event["text"] for event in first.events if event["event"] == "note"]
    assert any("data/owt/.env: looks like a secret" in text for text in notes)
    assert any("data/owt/out: points out" in text for text in notes)
    assert b"\n".join(line for line in box.log("one").splitlines()).count(b"data/owt/") == 4
    (data_id,) = data_of(box)
    folder = box.root / layout.DATA / data_id
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()} == {
        "train",
        "val",
        "link",
        "deep/er",
        *(["new"] if os.getuid() == 0 else []),  # the run wrote it; nobody will see it again
    }
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((folder / "deep").stat().st_mode) == 0o500
    assert stat.S_IMODE((folder / "train").stat().st_mode) == 0o400
    assert (folder / "train").stat().st_nlink == 2  # the blob, and no other copy
    assert (box.code("one") / "data/owt").readlink() == folder

    again = laptop.ok(
        project, "run", "--launcher", "python", "--name", "two", "--json", "train.py", "data/owt"
    )
    assert [event for event in again.events if event["event"] in ("data", "sending")] == []
    assert again.event("sent")["files"] == 0
    assert box.log("two") == box.log("one")

    other = write_reader(tmp_path / "other", **files)
    (other / "data/owt/link").symlink_to("val")
    another = make_laptop(tmp_path / "another", box)
    more = another.ok(
        other, "run", "--launcher", "python", "--name", "three", "--json", "train.py", "data/owt"
    )
    assert [event for event in more.events if event["event"] == "data"] == []
    assert data_of(box) == [data_id]
    assert box.log("three") == box.log("one")


@pytest.mark.sshd
def test_changed_data_has_another_name_and_only_what_changed_travels(
    laptop: Laptop, box: Box, project: Path
) -> None:
    write_reader(project, train=os.urandom(9 << 20), val=b"small")
    before = run(laptop, project, "one", "train.py", "data/owt")
    (project / "data/owt/val").write_bytes(b"other")
    second = laptop.ok(
        project, "run", "--launcher", "python", "--name", "two", "--json", "train.py", "data/owt"
    )
    assert second.event("data")["bytes"] == len(b"other")
    assert len(data_of(box)) == 2
    after = box.log("two").decode()
    assert before.splitlines()[0] == after.splitlines()[0]
    assert before.splitlines()[1] != after.splitlines()[1]


@pytest.mark.sshd
def test_data_that_the_host_has_lost_is_sent_again(laptop: Laptop, box: Box, project: Path) -> None:
    write_reader(project, train=os.urandom(5 << 20), val=b"small")
    before = run(laptop, project, "one", "train.py", "data/owt")
    (data_id,) = data_of(box)
    folder = box.root / layout.DATA / data_id
    folder.chmod(0o700)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    for blob in (box.root / layout.BLOBS).glob("??/*"):
        blob.unlink()
    assert run(laptop, project, "two", "train.py", "data/owt") == before


@pytest.mark.sshd
def test_one_file_from_a_folder_inside_and_data_that_is_mapped(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    mapped = tmp_path / "ssd"
    write_project(mapped, {"there.bin": b"mapped"})
    laptop.write_hosts(
        f'default = ["box"]\n[hosts.box]\n{box.describe()}[hosts.box.data]\n"data/owt" = "{mapped}"\n'
    )
    write_project(project, {"sub/train.py": READING, "remote-train.toml": CONFIG, ".gitignore": "*.bin\n"})
    write_project(project, {"sub/one.bin": b"one file", "sub/more/two.bin": b"two"})
    run_git(project, "init", "-q")
    out = run(laptop, project / "sub", "mapped", "train.py", "../data/owt")
    assert "there.bin 6 " in out
    assert data_of(box) == []
    out = run(
        laptop, project / "sub", "one", "--data", "one.bin", "--data", "more", "train.py", "one.bin", "more"
    )
    assert "one.bin 8 " in out
    assert "more/two.bin 3 " in out
    assert len(data_of(box)) == 2
    assert (box.code("one") / "sub/one.bin").resolve().name == "one.bin"


@pytest.mark.sshd
def test_data_that_cannot_be_sent_is_named(laptop: Laptop, box: Box, project: Path, tmp_path: Path) -> None:
    write_project(project, {"train.py": READING})
    write_project(tmp_path / "elsewhere", {"x": b"secret"})
    (project / "link").symlink_to(tmp_path / "elsewhere")
    (project / "empty").mkdir()
    cases = {
        "nowhere": (2, "[hosts.box.data]"),
        "link": (20, "leads out of the project"),
        "empty": (20, "no file in it"),
        "../elsewhere": (2, "must stay inside the project"),
        ".": (2, "not the project itself"),
    }
    for place, (code, words) in cases.items():
        told = laptop.type(project, "run", "--data", place, "train.py").expect(code)
        assert words in told.err
    assert not (box.root / "runs").exists() or list((box.root / "runs").iterdir()) == []


@pytest.mark.sshd
def test_an_upload_whose_laptop_was_killed_goes_on_at_the_next_launch(
    laptop: Laptop, box: Box, project: Path
) -> None:
    size = 96 << 20
    write_reader(project, train=os.urandom(size))
    process = laptop.popen(project, "run", "--launcher", "python", "--json", "train.py", "data/owt")
    incoming = box.root / layout.BLOBS / layout.INCOMING
    poll(lambda: any(path.stat().st_size >= 16 << 20 for path in incoming.glob("*")), "a part of it")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert data_of(box) == []
    again = laptop.ok(project, "run", "--launcher", "python", "--json", "train.py", "data/owt")
    assert again.event("data")["bytes"] <= size - (16 << 20)
    assert len(data_of(box)) == 1
    assert list(incoming.iterdir()) == []


@pytest.mark.sshd
@pytest.mark.parametrize("place", ["code/table.bin", "data/owt/table.bin"])
def test_a_file_that_another_launch_is_sending_is_waited_for_and_that_is_said(
    laptop: Laptop, box: Box, project: Path, place: str
) -> None:
    table = os.urandom(5 << 20)
    write_reader(project, small=b"1")
    run(laptop, project, "one", "train.py", "data/owt")
    write_project(project, {place: table})
    incoming = box.root / layout.incoming_path(".", hashlib.sha256(table).hexdigest())
    incoming.parent.mkdir(mode=0o700, exist_ok=True)
    with incoming.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = laptop.popen(project, "run", "--launcher", "python", "train.py", place)
        assert b"another command is sending " + place.encode() in read_until(
            process.stderr, b"waiting for it"
        )
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.sshd
def test_a_run_that_downloads_does_it_once(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": FETCHING, "remote-train.toml": PERSIST})
    assert run(laptop, project, "one", "train.py", "data/mnist") == "downloading\n"
    assert run(laptop, project, "two", "train.py", "data/mnist") == "there already by one/1\n"
    assert run(laptop, project, "three", "train.py", ".cache/inner") == "downloading\n"
    together = [
        laptop.popen(project, "run", "--launcher", "python", "--name", name, "train.py", ".cache/inner")
        for name in ("four", "five")
    ]
    for process in together:
        assert process.communicate(timeout=60)[0] == b"there already by three/1\n"


def test_a_download_of_a_run_on_this_machine_stays_in_the_project(alone: Laptop, project: Path) -> None:
    write_project(project, {"train.py": FETCHING, "remote-train.toml": PERSIST})
    assert run(alone, project, "here", "train.py", "data/mnist") == "downloading\n"
    assert (project / "data/mnist/set.bin").read_text() == "by here/1"
    assert run(alone, project, "again", "train.py", "data/mnist") == "there already by here/1\n"


@pytest.mark.sshd
def test_a_long_upload_is_seen(laptop: Laptop, box: Box, project: Path) -> None:
    write_reader(project, train=os.urandom(2 << 20))
    process = laptop.popen(project, "run", "--launcher", "python", "train.py", "data/owt")
    said = read_until(process.stderr, b"runs there share it")
    assert b"sending data/owt to box: 2.10 MB" in said
    assert b"stays here" not in said
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(data_of(box)) == 1


@pytest.mark.sshd
def test_a_run_goes_on_with_the_data_it_began_with(laptop: Laptop, box: Box, project: Path) -> None:
    write_reader(project, train=b"as it was")
    before = run(laptop, project, "one", "train.py", "data/owt")
    (project / "data/owt/train").write_bytes(b"another thing")
    again = laptop.ok(project, "resume", "one")
    assert again.out.decode() == before
    assert "data/owt is not here any more as one began with it" in again.err
    assert len(data_of(box)) == 1


@pytest.mark.slow
@pytest.mark.sshd
def test_gc_lists_data_and_downloads_and_removes_them_when_asked(
    laptop: Laptop, box: Box, project: Path
) -> None:
    write_reader(project, train=os.urandom(300_000))
    (project / "remote-train.toml").write_text('project = "mine"\n' + CONFIG + 'persist = [".cache"]\n')
    run(laptop, project, "one", "train.py", "data/owt")
    (box.root / layout.PERSIST / "mine/.cache/file").write_bytes(b"x" * 200_000)
    (data_id,) = data_of(box)
    listed = laptop.ok(project, "gc", "--host", "box").out.decode()
    assert f"data {data_id[:12]} (mine/data/owt), 30" in listed
    assert "stays, unused for 0 days: `remote-train gc --data`" in listed
    assert "what mine persists, 20" in listed
    refused = laptop.type(project, "gc", "--host", "box", "--persist").expect(2)
    assert "--yes" in refused.err
    dry = laptop.ok(project, "gc", "--host", "box", "--persist", "--data", "--dry-run").out.decode()
    assert f"would remove data {data_id[:12]}" in dry
    assert "would remove what mine persists" in dry
    assert data_of(box) == [data_id]
    done = laptop.ok(project, "gc", "--host", "box", "--persist", "--data", "--yes", "--json")
    [row] = [event for event in done.events if event["host"] == "box"]
    assert [item["removed"] for item in (*row["data"], *row["persist"])] == [True, True]
    assert row["freed"]["data"] >= 300_000
    assert row["freed"]["persist"] >= 200_000
    assert row["before"] - row["after"] >= 300_000 - 4096
    assert data_of(box) == []
    assert list((box.root / layout.PERSIST).iterdir()) == []
    assert "train 300000 " in run(laptop, project, "two", "train.py", "data/owt")
