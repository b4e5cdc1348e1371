"""Links that somebody else put into a run's folder, as a `git pull` does: nothing that a host sends goes through one."""

from __future__ import annotations

import os
import resource
import shutil
from functools import reduce
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.errors import LocalSpace, PullIncomplete
from remote_train.flocks import open_lock
from remote_train.host.durable import write_whole
from remote_train.host.manifest_format import MAX_PARTS, ManifestError, check_path
from remote_train.ledger import PULLED, Ledger, drop_old
from remote_train.mirror import Mirror, hash_file
from remote_train.naming import Held, publish
from remote_train.partial import Partial, name_partial
from remote_train.pull import PullWish
from remote_train.records import client_root, create_run, is_ours, list_runs
from tests.core.test_pull_files import Puller

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from remote_train.records import Run
    from tests.host.account_kit import Account

MAKING = """
import os
for folder in ("out", "checkpoint-9", "d/" * 250):
    os.makedirs(folder)
    open(folder + "/ckpt.pt", "w").write("from a host")
"""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Somebody's home."""
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "laptop"))
    client_root.cache_clear()
    return create_run(tmp_path / "runs", "run-1", {"state": "running"})


def test_a_pull_goes_through_no_link_and_no_depth_ends_it(account: Account, outside: Path) -> None:
    puller = Puller(account, MAKING)
    files = puller.run.files
    for link, wish in (
        (files, PullWish()),
        (files / "out", PullWish()),
        (files / "checkpoint-9", PullWish(match=("checkpoint-9/*",))),
        (account.home / "to" / "out", PullWish(to=account.home / "to", everything=True)),
    ):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(outside)
        with pytest.raises(
            PullIncomplete, match="is a link, and what a host sends goes through none"
        ) as caught:
            puller.pull().bring(wish)
        assert str(link) in caught.value.message
        assert list(outside.iterdir()) == []
        link.unlink()
        shutil.rmtree(files, ignore_errors=True)
    # The folder that was asked for may be one: that is the user's own word.
    (account.home / "real").mkdir()
    (account.home / "asked").symlink_to(account.home / "real")
    puller.pull().bring(PullWish(to=account.home / "asked"))
    # What lies deeper than any program of ours goes is not brought, and nothing else is lost by it.
    found = {"out/ckpt.pt": b"from a host", "checkpoint-9/ckpt.pt": b"from a host"}
    assert puller.here(account.home / "real") == found
    puller.pull().bring(PullWish(to=account.home / "asked", keep_last=1))
    assert len(puller.here(account.home / "real")) == 1
    for pull in puller.pulls:
        pull.session.close()


MOMENTS = [
    ("the way was looked at", "bringing.refuse_links", "to/out"),
    ("the way was looked at", "bringing.refuse_links", "to"),
    ("it is made", "partial.name_partial", "to/out"),
    ("it is made", "partial.name_partial", "to"),
    ("a folder is made for it", "staging.name_partial", "to"),
    ("it comes", "partial.Partial.identify", "to/out"),
    ("it has its name", "bringing.Held.look_again", "to/out"),
    ("it has its name", "bringing.Held.look_again", "to"),
]


@pytest.mark.parametrize(("moment", "after", "which"), MOMENTS)
def test_a_folder_that_somebody_puts_a_link_for_while_a_file_comes_leads_nowhere(
    account: Account, outside: Path, monkeypatch: pytest.MonkeyPatch, moment: str, after: str, which: str
) -> None:
    puller = Puller(account, MAKING)
    wish = PullWish(to=account.home / "to")
    (account.home / "to" / "out").mkdir(parents=True)
    (outside / "out").mkdir()
    folder = account.home / which
    with monkeypatch.context() as patch:
        do_after(patch, after, lambda: put_a_link_for(folder, outside))
        with pytest.raises(PullIncomplete):
            puller.pull().bring(wish)
    assert folder.is_symlink(), f"nobody came before {moment}"
    assert [path.name for path in outside.rglob("*")] == ["out"]
    folder.unlink()
    folder.with_name("moved").rename(folder)
    puller.pull().bring(wish)
    found = {"out/ckpt.pt": b"from a host", "checkpoint-9/ckpt.pt": b"from a host"}
    assert puller.here(account.home / "to") == found, "and the next one brings all of it"
    for pull in puller.pulls:
        pull.session.close()


def put_a_link_for(folder: Path, outside: Path) -> None:
    """Do what everybody may who can write where a folder lies."""
    if not folder.is_symlink():
        folder.rename(folder.with_name("moved"))
        folder.symlink_to(outside if folder.name == "to" else outside / "out")


def do_after(patch: pytest.MonkeyPatch, name: str, act: Callable[[], object]) -> None:
    """Act at the end of each call of a function of ours."""
    module, *names, last = name.split(".")
    owner: Any = reduce(getattr, names, import_module(f"remote_train.{module}"))
    real = getattr(owner, last)

    def call(*args: Any, **more: Any) -> Any:
        result = real(*args, **more)
        act()
        return result

    patch.setattr(owner, last, call)


def drop_all(ledger: Ledger, folder: Path) -> list[Path]:
    top = os.open(folder, os.O_RDONLY)
    try:
        return drop_old(ledger, folder, 0, (folder, top))
    finally:
        os.close(top)


@pytest.mark.parametrize("which", ["out/ckpt-9", "out"])
def test_no_old_checkpoint_and_no_folder_is_removed_through_a_link_that_comes_meanwhile(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    place = tmp_path / "files" / "out" / "ckpt-9" / "model.pt"
    place.parent.mkdir(parents=True)
    (outside / "out" / "ckpt-9").mkdir(parents=True)
    for path in (place, outside / "out" / "model.pt"):
        path.write_text("old")
    ledger = Ledger(tmp_path / "pulled.json")
    entry = {"sha256": hash_file(place), "unit": "out", "checkpoint": {}, "attempt": 1, "mtime_ns": 1}
    ledger.note({place: entry})
    do_after(monkeypatch, "ledger.hash_file", lambda: put_a_link_for(tmp_path / "files" / which, outside))
    assert drop_all(ledger, tmp_path / "files") == [place]
    assert sorted(path.name for path in outside.rglob("*")) == ["ckpt-9", "model.pt", "out"]


def test_a_file_has_come_whatever_becomes_of_it_and_not_where_its_folder_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "to" / "ckpt.pt"
    place.parent.mkdir()
    folder = os.open(place.parent, os.O_RDONLY)

    def bring(act: Callable[[], object]) -> None:
        partial = Partial(
            {"partial": str(name_partial(place)), "identity": None}, tmp_path / "journal", folder
        )
        partial.identify({"size": 0})
        partial.close()
        with monkeypatch.context() as patch:
            do_after(patch, "naming._name", act)
            publish(partial, Held(place), Ledger(tmp_path / PULLED), {"sha256": ""})

    bring(lambda: write_whole(str(place), b"as a sync program has it"))
    with pytest.raises(OSError, match="another folder"):
        bring(lambda: place.parent.rename(tmp_path / "moved"))
    os.close(folder)


def test_an_output_is_written_to_no_link(run: Run, outside: Path) -> None:
    precious = outside / "rc"
    precious.write_text("mine\n")
    attempt = run.attempt(1)
    attempt.output("0").symlink_to(precious)
    attempt.output("1").symlink_to(outside / "new")
    mirror = Mirror(attempt, ["0", "1"], writing=True)
    mirror.verify("1", {"length": 0})
    mirror.write("0", b"a line of a host\n")
    assert mirror.failure is not None
    mirror.close()
    (run.folder / "attempts" / "2").symlink_to(outside)
    with pytest.raises(LocalSpace, match="is a link"):
        run.attempt(2).prepare()
    assert [path.name for path in outside.iterdir()] == ["rc"]
    assert precious.read_text() == "mine\n"


@pytest.mark.parametrize("write", [open_lock, lambda path: write_whole(str(path), b"ours")])
def test_locks_and_records_make_nothing_behind_a_link(
    tmp_path: Path, outside: Path, write: Callable[[Path], object]
) -> None:
    place = tmp_path / "record"
    for name in ("record", f"record.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(outside / "made")
    try:
        assert write(place) is None
    except OSError:
        assert place.is_symlink()
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", ["run.json", "pulled.json", "pulled.jsonl"])
@pytest.mark.parametrize("device", ["/dev/zero", "a FIFO"])
def test_a_record_that_never_ends_is_none(run: Run, outside: Path, name: str, device: str) -> None:
    os.mkfifo(outside / "fifo")
    (run.folder / name).unlink(missing_ok=True)
    (run.folder / name).symlink_to(outside / "fifo" if device == "a FIFO" else device)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, before[1]))
    try:
        assert [found.id for found in list_runs(run.folder.parent.parent)] == ["run-1"]
        assert run.known_state() == (None if name == "run.json" else "running")
        assert Ledger(run.folder / PULLED).entries == {}
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(os.getuid() != 0, reason="to give a folder away takes root")
def test_a_record_in_another_users_folder_is_not_ours(run: Run) -> None:
    assert is_ours(run)
    os.chown(run.folder, 61234, 61234)
    assert not is_ours(run)


def test_an_old_checkpoint_behind_a_link_is_not_removed(tmp_path: Path, outside: Path) -> None:
    (outside / "rc").write_text("as everybody has it")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "out").symlink_to(outside)
    place = tmp_path / "files" / "out" / "rc"
    ledger = Ledger(tmp_path / "pulled.json")
    entry = {"sha256": hash_file(place), "unit": "out", "checkpoint": {}, "attempt": 1, "mtime_ns": 1}
    ledger.note({place: entry})
    assert drop_all(ledger, tmp_path / "files") == []
    assert place.exists()


def test_a_package_has_no_deeper_folders_than_we_make() -> None:
    check_path("d/" * (MAX_PARTS - 1) + "x")
    with pytest.raises(ManifestError, match="too deep"):
        check_path("d/" * MAX_PARTS + "x")
