"""The store: blobs in any cutting, nothing kept that is not what was announced, and private snapshots."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import zlib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remote_train.host import layout, snapshot, store, wire
from remote_train.host.manifest_format import make_delta, make_package_id
from remote_train.host.store import BatchWriter, StoreError
from tests.host.account_kit import agents_of, make_rows, sha256, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.account_kit import Account


@pytest.fixture
def root(tmp_path: Path) -> str:
    path = str(tmp_path / "state")
    store.open_root(path)
    return path


def items_of(blobs: list[bytes]) -> list[tuple[str, int]]:
    return [(sha256(blob), len(blob)) for blob in blobs]


def stored(root: str) -> dict[str, bytes]:
    blobs = Path(root) / "blobs"
    return {
        str(path.relative_to(blobs)).replace("/", ""): path.read_bytes()
        for path in blobs.rglob("*")
        if path.is_file()
    }


def leftovers(root: str) -> list[str]:
    return [name for name in os.listdir(os.path.join(root, "blobs")) if name.startswith("incoming")]  # noqa: PTH118, PTH208


def write_all(writer: BatchWriter, data: bytes, size: int) -> None:
    for begin in range(0, len(data), size):
        writer.write(data[begin : begin + size])
    writer.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    blobs=st.lists(st.binary(max_size=60), max_size=8),
    compressed=st.booleans(),
    places=st.lists(st.integers(0, 10**6), max_size=20),
)
def test_any_cutting_stores_the_same_blobs(
    root: str, blobs: list[bytes], compressed: bool, places: list[int]
) -> None:
    whole = b"".join(blobs)
    data = zlib.compress(whole) if compressed else whole
    writer = BatchWriter(root, items_of(blobs), compressed=compressed)
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    for begin, end in pairwise(edges):
        writer.write(data[begin:end])
    assert writer.close() == len(blobs)
    found = stored(root)
    assert all(found[sha256(blob)] == blob for blob in blobs)
    assert leftovers(root) == []


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(
    ("announced", "sent", "kept"),
    [
        ([b"aaa", b"bbb"], b"aaaXXX", [b"aaa"]),
        ([b"aaa", b"bbb"], b"aaabbbc", [b"aaa", b"bbb"]),
        ([b"aaa", b"bbb"], b"aaabb", [b"aaa"]),
        ([b"aaa", b"bbb"], b"", []),
        ([b""], b"x", [b""]),
        ([], b"x", []),
    ],
)
def test_only_what_was_announced_is_kept(
    root: str, compressed: bool, announced: list[bytes], sent: bytes, kept: list[bytes]
) -> None:
    data = zlib.compress(sent) if compressed else sent
    writer = BatchWriter(root, items_of(announced), compressed=compressed)
    with pytest.raises(StoreError):
        write_all(writer, data, 1)
    writer.abandon()
    assert stored(root) == {sha256(blob): blob for blob in kept}


@pytest.mark.parametrize(
    "data",
    [zlib.compress(b"a" * 1000)[:-20], zlib.compress(b"a" * 1000)[:5], b"", b"junk", b"\x78\x9c\xff\xff\xff"],
)
def test_truncated_and_broken_zlib_is_refused(root: str, data: bytes) -> None:
    writer = BatchWriter(root, items_of([b"b" * 1000]), compressed=True)
    with pytest.raises(StoreError):
        write_all(writer, data, 1000)
    writer.abandon()
    assert (stored(root), leftovers(root)) == ({}, [])


def test_bytes_after_the_end_of_the_zlib_stream_are_refused(root: str) -> None:
    writer = BatchWriter(root, items_of([b"aaa"]), compressed=True)
    with pytest.raises(StoreError):
        writer.write(zlib.compress(b"aaa") + b"more")


BOMB = """
import resource, sys, zlib
sys.path.insert(0, sys.argv[2])
from remote_train.host import store
store.open_root(sys.argv[1])
deflate = zlib.compressobj(9)
bomb = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(512)) + deflate.flush()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
writer = store.BatchWriter(sys.argv[1], [("0" * 64, 100)], compressed=True)
try:
    writer.write(bomb)
except store.StoreError:
    pass
else:
    sys.exit("it was taken")
writer.abandon()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_zlib_bomb_is_refused_in_little_memory(tmp_path: Path) -> None:
    """Half a gigabyte of zeros in half a megabyte; measured in its own process, in KiB."""
    command = [sys.executable, "-c", BOMB, str(tmp_path / "state"), str(Path(store.__file__).parents[2])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 64 * 1024


@pytest.mark.parametrize(
    "items",
    [
        [("x", 1)],
        [("0" * 64, -1)],
        [("0" * 64, "1")],
        [("0" * 64, None)],
        [(7, 1)],
        [("../" + "0" * 61, 1)],
        [("A" * 64, 1)],
    ],
)
def test_a_blob_needs_a_hash_and_a_size(root: str, items: list[Any]) -> None:
    with pytest.raises(StoreError):
        BatchWriter(root, items, compressed=False)
    assert leftovers(root) == []


def test_an_abandoned_blob_leaves_nothing_and_can_come_again(root: str) -> None:
    blobs = [b"a" * 1000, b"b" * 1000]
    writer = BatchWriter(root, items_of(blobs), compressed=False)
    writer.write(b"a" * 1000 + b"b" * 10)
    writer.abandon()
    writer.abandon()
    assert (list(stored(root)), leftovers(root)) == ([sha256(blobs[0])], [])
    again = BatchWriter(root, items_of(blobs), compressed=False)
    again.write(b"".join(blobs))
    assert again.close() == 2


def test_a_connection_lost_in_the_middle_of_a_batch_leaves_nothing(account: Account) -> None:
    session = account.connect()
    session.request("list")
    session.submit("blobs", stream=5, items=items_of([b"a" * 3000]), zlib=False)
    session._send(wire.make_frame(wire.DATA, 5, b"a" * 1000))
    session.request("list")  # what was sent before has been taken
    assert leftovers(str(account.root)) != []
    session.close()
    until(lambda: not agents_of(account.home), "the agent's end")
    assert leftovers(str(account.root)) == []


@pytest.fixture
def small_root(tmp_path: Path) -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], check=False).returncode:
        pytest.skip("no tmpfs may be mounted here")
    store.open_root(str(folder))
    yield str(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_an_error_and_leaves_nothing(small_root: str) -> None:
    blob = random.Random(1).randbytes(2 << 20)
    writer = BatchWriter(small_root, items_of([blob]), compressed=False)
    with pytest.raises(OSError, match="space") as caught:
        write_all(writer, blob, 7001)
    assert caught.value.errno == errno.ENOSPC
    writer.abandon()
    assert (stored(small_root), leftovers(small_root)) == ({}, [])
    free = os.statvfs(small_root)
    assert free.f_bavail * free.f_frsize > 900_000


FILES = {
    "a/b/c/deep.txt": b"deep",
    "empty": b"",
    "large.bin": random.Random(2).randbytes(3_000_001),
    "page.bin": bytes(4096),
    "run.sh": b"#!/bin/sh\n",
    "same-1": b"same",
    "same-2": b"same",
}


def fill(root: str, files: dict[str, bytes]) -> None:
    blobs = list({sha256(data): data for data in files.values()}.values())
    writer = BatchWriter(root, items_of(blobs), compressed=False)
    writer.write(b"".join(blobs))
    writer.close()


def test_a_snapshot_is_the_package_and_shares_nothing_with_the_store(root: str, tmp_path: Path) -> None:
    fill(root, FILES)
    rows = make_rows(FILES, programs=("run.sh",))
    rows.append(["zlink", "l", "a/b"])
    target = tmp_path / "code"
    snapshot.write_snapshot(root, rows, str(target), lambda: None)
    found = {
        str(path.relative_to(target)): path
        for path in target.rglob("*")
        if path.is_file() and "zlink" not in path.parts
    }
    assert {path: place.read_bytes() for path, place in found.items()} == FILES
    modes = {path: place.stat().st_mode & 0o777 for path, place in found.items()}
    assert modes.pop("run.sh") == 0o700
    assert set(modes.values()) == {0o600}
    assert (target / "zlink").readlink() == Path("a/b")
    inodes = {path.stat().st_ino for path in (Path(root) / "blobs").rglob("*") if path.is_file()}
    assert inodes.isdisjoint(place.stat().st_ino for place in found.values())
    assert all(place.stat().st_nlink == 1 for place in found.values())
    (target / "same-1").write_bytes(b"changed by the run")
    assert (target / "same-2").read_bytes() == b"same"
    assert stored(root)[sha256(b"same")] == b"same"


def test_progress_is_told_while_a_large_snapshot_is_written(root: str, tmp_path: Path) -> None:
    files = {f"{number}.txt": b"x" for number in range(1200)}
    fill(root, files)
    told: list[int] = []
    snapshot.write_snapshot(root, make_rows(files), str(tmp_path / "code"), lambda: told.append(1))
    assert len(told) >= 2


def test_progress_is_told_within_one_large_file(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten gigabytes take longer than the laptop waits for a word."""
    monkeypatch.setattr(snapshot, "clone", lambda _source, _target: False)
    files = {"large.bin": bytes(40 << 20)}
    fill(root, files)
    told: list[int] = []
    snapshot.write_snapshot(root, make_rows(files), str(tmp_path / "code"), lambda: told.append(1))
    assert len(told) >= 2


@pytest.mark.parametrize("length", [0, 1, 999])
def test_a_blob_that_a_power_cut_truncated_is_asked_for_again(root: str, length: int) -> None:
    files = {"a": b"a" * 1000}
    fill(root, files)
    rows = make_rows(files)
    assert store.missing_blobs(root, rows) == []
    os.truncate(layout.blob_path(root, sha256(files["a"])), length)
    assert store.missing_blobs(root, rows) == [sha256(files["a"])]
    fill(root, files)
    assert store.missing_blobs(root, rows) == []


def test_a_damaged_manifest_is_as_good_as_none(root: str) -> None:
    rows = make_rows({"a": b"a"})
    package = make_package_id(rows)
    assert store.read_package(root, package) is None
    assert store.store_package(root, package, None, make_delta([], rows))
    assert store.read_package(root, package) == rows
    for junk in (b"", b"[[", b"{}", b"\xff"):
        Path(layout.package_path(root, package)).write_bytes(junk)
        assert store.read_package(root, package) is None
    assert store.store_package(root, package, None, make_delta([], rows))


def test_a_delta_to_a_base_that_is_gone_is_not_stored(root: str) -> None:
    base, rows = make_rows({"a": b"a"}), make_rows({"a": b"a", "b": b"b"})
    package = make_package_id(rows)
    assert not store.store_package(root, package, make_package_id(base), make_delta(base, rows))
    store.store_package(root, make_package_id(base), None, make_delta([], base))
    assert store.store_package(root, package, make_package_id(base), make_delta(base, rows))
    assert store.read_package(root, package) == rows


@pytest.mark.parametrize(
    "rows",
    [
        [["../x", "f", 0o644, 1, "0" * 64]],
        [["/x", "f", 0o644, 1, "0" * 64]],
        [["x", "l", "/etc/passwd"]],
        [["x", "l", "../y"]],
        [["x", "f", 0o4755, 1, "0" * 64]],
        [["x", "l", "y"], ["x/y", "f", 0o644, 1, "0" * 64]],
    ],
)
def test_a_manifest_that_would_leave_the_snapshot_is_refused(root: str, rows: Any) -> None:
    with pytest.raises(StoreError):
        store.store_package(root, make_package_id(rows), None, {"set": rows, "drop": []})


def test_a_manifest_under_another_id_is_refused(root: str) -> None:
    rows = make_rows({"a": b"a"})
    with pytest.raises(StoreError, match="id"):
        store.store_package(root, "0" * 64, None, make_delta([], rows))


def test_links_to_data_stand_beside_the_code_and_replace_nothing(tmp_path: Path) -> None:
    target = tmp_path / "code"
    (target / "data").mkdir(parents=True)
    (target / "data" / "mine").write_text("shipped")
    snapshot.link_folders(
        str(target), {"data/mine": "/elsewhere", "data/big": str(tmp_path), "new/place": "/else"}
    )
    assert (target / "data" / "mine").read_text() == "shipped"
    assert (target / "data" / "big").readlink() == tmp_path
    assert (target / "new" / "place").is_symlink()
