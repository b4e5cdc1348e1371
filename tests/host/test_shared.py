"""Data folders on a host: whole or not there, made once, spoilt by nobody; and what of them and of downloads goes when."""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.datasets import make_contents
from remote_train.errors import HostUnfit, ProtocolError
from remote_train.host import arrivals, datasets, layout, store, tidy
from remote_train.host.durable import read_record
from remote_train.package.data_folder import DataSet, hash_data, walk_data
from remote_train.upload import send_contents, send_manifest
from tests.faults.tiny_disk import tiny_ext4
from tests.host.account_kit import sha256, until
from tests.host.tidy_kit import DAY, age, write_package

if TYPE_CHECKING:
    from remote_train.session import Session
    from tests.host.account_kit import Account

FILES = {"a/train.bin": b"x" * 3000, "a/b/val.bin": b"y" * 5000, "empty": b""}
ROOT = os.getuid() == 0


@pytest.fixture
def root(account: Account) -> str:
    store.open_root(str(account.root))
    return str(account.root)


def tidy_now(root: str, *, dry: bool = False, data: bool = False, persist: str | None = None) -> tidy.Tidy:
    """Tidy in this process."""
    doing = tidy.Tidy(root, [], dry=dry, thorough=True)
    doing.all_data, doing.project = data, persist
    quiet = os.open(os.devnull, os.O_WRONLY)
    try:
        doing.run(quiet)
    finally:
        os.close(quiet)
    assert doing.failures == []
    return doing


def make_here(root: str, files: dict[str, bytes]) -> tuple[str, Path]:
    """Have a data folder on the host, as an upload leaves it; return its id and place."""
    data_id = write_package(Path(root), files)
    assert datasets.have_data(root, data_id) == {"here": True}
    return data_id, Path(layout.data_path(root, data_id))


def try_here(root: str, files: dict[str, bytes]) -> str | None:
    """Do the same while data is being removed; None when it went before it was made."""
    data_id = write_package(Path(root), files)
    return data_id if datasets.have_data(root, data_id).get("here") else None


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def data_there(root: str) -> list[str]:
    folder = Path(root, layout.DATA)
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def send_data(session: Session, data: DataSet) -> None:
    """Send a data folder as a launch does."""
    assert session.request("data", data=data.data_id) == {"need": "manifest"}
    session.wait(send_manifest(session, data.data_id, {}, data.rows))
    assert session.request("data", data=data.data_id) == {"need": "contents"}
    send_contents(session, make_contents(data), lambda _done, _total: None)
    assert session.request("data", data=data.data_id) == {"here": True}


def write_data(folder: Path, files: dict[str, bytes]) -> DataSet:
    for name, content in files.items():
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return hash_data(walk_data(folder, "data"), folder / "cache.json")


def test_a_data_folder_is_made_of_what_was_sent(account: Account, tmp_path: Path) -> None:
    data = write_data(tmp_path / "project", FILES)
    session = account.connect()
    send_data(session, data)
    place = Path(layout.data_path(str(account.root), data.data_id))
    assert read_files(place) == FILES
    assert {path.stat().st_mode & 0o777 for path in place.rglob("*") if path.is_file()} == {0o400}
    assert {path.stat().st_mode & 0o777 for path in [place, *place.rglob("*")] if path.is_dir()} == {0o500}
    assert session.request("data", data=data.data_id) == {"here": True}


def test_many_who_make_it_at_once_make_one(root: str) -> None:
    data_id = write_package(Path(root), {f"{number}": b"%d" % number for number in range(300)})
    answers: list[Any] = []
    makers = [
        threading.Thread(target=lambda: answers.append(datasets.have_data(root, data_id))) for _ in range(6)
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert answers == [{"here": True}] * 6
    assert data_there(root) == [data_id]
    assert len(read_files(Path(layout.data_path(root, data_id)))) == 300


def test_a_maker_that_was_killed_leaves_nothing_that_counts(account: Account, root: str) -> None:
    data_id = write_package(Path(root), {f"{number}": b"%d" % number for number in range(4_000)})
    child = os.fork()
    if child == 0:
        datasets.have_data(root, data_id)
        os._exit(0)
    until(lambda: data_there(root), "the folder that is being made")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert data_id not in data_there(root)
    assert account.connect().request("data", data=data_id) == {"here": True}
    assert len(read_files(Path(layout.data_path(root, data_id)))) == 4_000
    for name in data_there(root):
        age(Path(root, layout.DATA, name), DAY)
    tidy_now(root)
    assert data_there(root) == [data_id]


def test_a_disk_that_takes_no_more_leaves_nothing_half_made(account: Account, tmp_path: Path) -> None:
    with tiny_ext4(account.root, tmp_path / "image", 8 << 20) as disk:
        store.open_root(str(account.root))
        data_id = write_package(account.root, {f"{number}/file": b"%d" % number for number in range(50)})
        (account.root / layout.DATA).mkdir()
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            datasets.have_data(str(account.root), data_id)
        assert data_there(str(account.root)) == []
        disk.release()
        assert datasets.have_data(str(account.root), data_id) == {"here": True}


def test_a_file_system_without_hard_links_gets_copies(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    _, place = make_here(root, FILES)
    assert read_files(place) == FILES


@pytest.mark.skipif(not ROOT, reason="only root may write into what is closed")
@pytest.mark.parametrize("harm", ["overwritten", "longer", "another file", "one less"])
def test_what_root_has_spoilt_is_made_anew(account: Account, tmp_path: Path, harm: str) -> None:
    data = write_data(tmp_path / "project", FILES)
    session = account.connect()
    send_data(session, data)
    place = Path(layout.data_path(str(account.root), data.data_id))
    victim = place / "a/train.bin"
    if harm == "overwritten":
        victim.write_bytes(b"z" * 3000)
    elif harm == "longer":
        with victim.open("ab") as file:
            file.write(b"more")
    elif harm == "another file":
        (place / "a/labels.cache").write_bytes(b"!")
    else:
        victim.unlink()
    package = account.ship(session, {"train.py": "import os; print(sorted(os.listdir('data/a')))"})
    asked = account.message(package, "train.py", data={"data": data.reference})
    answer = session.request("start", **asked)
    if harm in ("overwritten", "longer"):  # the blob is the same file
        assert answer == {"need": "data", "data": [data.data_id]}
        assert session.request("data", data=data.data_id) == {"need": "contents"}
        send_contents(session, make_contents(data), lambda _done, _total: None)
        answer = session.request("start", **asked)
    assert answer["state"] in ("starting", "running", "ended")
    assert read_files(place) == FILES


@pytest.mark.parametrize(
    "reference", ["../..", "0" * 64 + "/..", "0" * 64 + "/a/b", "0" * 64 + "/", "0" * 63, 7]
)
def test_a_start_whose_data_is_named_otherwise_is_refused(account: Account, reference: object) -> None:
    session = account.connect()
    package = account.ship(session, {"train.py": "pass"})
    with pytest.raises(ProtocolError, match="no data folder"):
        session.request("start", **account.message(package, "train.py", data={"data": reference}))


@pytest.mark.parametrize("data_id", ["../x", "0" * 63, None, 7])
def test_a_question_for_no_data_is_refused(account: Account, data_id: object) -> None:
    with pytest.raises((ProtocolError, HostUnfit)):
        account.connect().request("data", data=data_id)


SLEEPS = "import time; print('up', flush=True); time.sleep(600)"


def test_data_goes_after_a_month_without_a_run_or_when_it_is_asked_for(account: Account, root: str) -> None:
    used, _ = make_here(root, {"used": b"1"})
    old, _ = make_here(root, {"old": b"2", "both": b"3"})
    young, _ = make_here(root, {"young": b"4", "both": b"3"})
    started = account.start(SLEEPS, data={"data/x": used})
    started.says(b"up")
    for data_id in (used, old):
        age(Path(layout.package_path(root, data_id)), 31 * DAY)
    dry = tidy_now(root, dry=True, data=True)
    assert {row["id"]: row["removed"] for row in dry.data} == {used: False, old: True, young: True}
    assert data_there(root) == sorted([used, old, young])
    for data_id in (used, old):
        age(Path(layout.package_path(root, data_id)), 31 * DAY)
    done = tidy_now(root)
    assert {row["id"]: row["removed"] for row in done.data} == {used: False, old: True, young: False}
    (row,) = [row for row in done.data if row["id"] == used]
    assert (row["used"], row["places"]) == (True, ["project/data/x"])
    assert data_there(root) == sorted([used, young])
    assert {name for name in (b"1", b"2", b"3", b"4") if blob_is_there(root, name)} == {b"1", b"3", b"4"}
    assert done.freed["data"] > 0
    assert tidy_now(root, data=True).freed["data"] > 0
    assert data_there(root) == [used]
    account.connect().request("stop", run=started.run, attempt=1, grace=0)
    started.end()
    tidy_now(root)
    assert data_there(root) == [used]  # it was in use a moment ago
    tidy_now(root, data=True)
    assert data_there(root) == []
    assert not Path(layout.package_path(root, used)).exists()


def blob_is_there(root: str, data: bytes) -> bool:
    return Path(layout.blob_path(root, sha256(data))).exists()


def test_a_launch_that_wants_data_which_goes_meanwhile_has_it_or_says_so(account: Account, root: str) -> None:
    session = account.connect()
    package = account.ship(session, {"train.py": "print(open('data/x/file').read())"})
    stop = threading.Event()

    def keep_tidying() -> None:
        while not stop.is_set():
            tidy_now(root, data=True)

    tidying = threading.Thread(target=keep_tidying)
    tidying.start()
    outcomes = []
    try:
        for number in range(6):
            data_id = until(lambda: try_here(root, {"file": b"the data"}), "the data")
            message = account.message(package, "train.py", run=f"run{number}", data={"data/x": data_id})
            outcomes.append(session.request("start", **message))
    finally:
        stop.set()
        tidying.join()
    for number, state in enumerate(outcomes):
        if "need" in state:
            continue
        folder = Path(layout.attempt_dir(root, f"run{number}", 1))
        assert end_of(folder)["code"] == 0, (folder / "ranks/0.log").read_bytes()


def end_of(folder: Path) -> dict[str, Any]:
    return until(lambda: read_record(str(folder / layout.EXIT)), "its end") or {}


def test_what_persists_goes_only_when_it_is_asked_for_and_no_run_has_it(account: Account, root: str) -> None:
    started = account.start(SLEEPS, persist=(".cache",))
    started.says(b"up")
    for project in ("project", "other"):
        path = Path(root, layout.PERSIST, project, ".cache", "file")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10_000)
    rows = tidy_now(root, persist="project").persist
    assert [(row["project"], row["used"], row["removed"]) for row in rows] == [
        ("other", False, False),
        ("project", True, False),
    ]
    account.connect().request("stop", run=started.run, attempt=1, grace=0)
    started.end()
    assert tidy_now(root).persist[1]["removed"] is False
    dry = tidy_now(root, dry=True, persist="project")
    assert dry.freed["persist"] >= 10_000
    assert tidy_now(root, persist="project").freed["persist"] == dry.freed["persist"]
    assert [path.name for path in Path(root, layout.PERSIST).iterdir()] == ["other"]


def test_an_upload_that_was_broken_off_goes_after_a_day_unless_somebody_goes_on(root: str) -> None:
    kept = []
    for number, days in enumerate((2, 2, 0.5)):
        path = Path(layout.incoming_path(root, f"{number}" * 64))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 10_000)
        age(path, days * DAY)
        kept.append(path)
    fd = arrivals.open_incoming(root, "1" * 64)
    assert fd is not None
    assert tidy_now(root, dry=True).freed["incoming"] >= 20_000
    assert tidy_now(root).freed["incoming"] < 20_000
    assert [path.exists() for path in kept] == [False, True, True]
    os.close(fd)


def test_shared_contents_are_counted_once(root: str) -> None:
    before = tidy_now(root, dry=True).count()["total"]
    make_here(root, {"one": b"x" * 400_000})
    make_here(root, {"one": b"x" * 400_000, "two": b"y" * 4096})
    counted = tidy_now(root, dry=True).count()
    assert 400_000 <= counted["total"] - before < 460_000
    assert counted["kinds"]["data"] >= 400_000


@pytest.mark.parametrize("persist", ["../..", "", ".", 7])
def test_a_request_to_remove_something_else_is_refused(account: Account, persist: object) -> None:
    with pytest.raises(ProtocolError):
        account.connect().request("prune", runs=[], thorough=True, persist=persist)
