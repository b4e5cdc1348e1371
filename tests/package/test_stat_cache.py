"""The cache of hashes: it may save time and must never lie."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remote_train.errors import PackageError
from remote_train.package.stat_cache import (
    EMPTY,
    RACY_NS,
    WORTH_BYTES,
    WORTH_FILES,
    HashedTree,
    Signature,
    StatCache,
    choose_remembered,
    hash_file,
    hash_tree,
    is_worth_writing,
    make_signature,
    make_stat_cache,
    read_stat_cache,
    write_stat_cache,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Entries = dict[str, tuple[Signature, str]]
ONE: Entries = {"a": ((1, 2, 3, 4, 5), hashlib.sha256(b"").hexdigest())}
OLD = time.time_ns() - 3600 * 10**9


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_cache(entries: Entries) -> StatCache:
    signatures = {path: signature for path, (signature, _) in entries.items()}
    return make_stat_cache(signatures, {path: digest for path, (_, digest) in entries.items()})


def look(root: Path, *paths: str) -> dict[str, os.stat_result]:
    return {path: (root / path).lstat() for path in paths}


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock stand ten seconds ahead, so that files written just now count as old (ctime cannot be set)."""
    now = time.time_ns
    monkeypatch.setattr("remote_train.package.stat_cache.time.time_ns", lambda: now() + 10 * 10**9)


@given(
    st.dictionaries(
        st.binary(min_size=1, max_size=9).filter(lambda name: b"\0" not in name).map(os.fsdecode),
        st.tuples(
            st.tuples(*[st.integers(0, 1 << 62)] * 5), st.binary(min_size=32, max_size=32).map(bytes.hex)
        ),
        max_size=8,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_what_is_written_is_read(tmp_path: Path, entries: Entries) -> None:
    path = tmp_path / "caches" / "project.json"
    path.unlink(missing_ok=True)
    cache = make_cache(entries)
    write_stat_cache(path, cache)
    assert read_stat_cache(path) == cache
    assert [found.name for found in tmp_path.glob("caches/*")] in ([], ["project.json"])


def test_a_file_of_the_cache_is_json_of_known_columns(tmp_path: Path) -> None:
    """Caches of this format must load for ever, or the format number changes."""
    written = {
        "format": 1,
        "byteorder": "little",
        "paths": "a\0b/c",
        "sha256": sha(b"a") + sha(b"c"),
        "size": "AQAAAAAAAAACAAAAAAAAAA==",
        "mtime_ns": "AwAAAAAAAAAEAAAAAAAAAA==",
        "ctime_ns": "BQAAAAAAAAAGAAAAAAAAAA==",
        "inode": "BwAAAAAAAAAIAAAAAAAAAA==",
        "mode": "CQAAAAAAAAAKAAAAAAAAAA==",
    }
    (tmp_path / "cache").write_text(json.dumps(written))
    expected: Entries = {"a": ((1, 3, 5, 7, 9), sha(b"a")), "b/c": ((2, 4, 6, 8, 10), sha(b"c"))}
    assert read_stat_cache(tmp_path / "cache") == make_cache(expected)


def test_damage_costs_time_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    assert read_stat_cache(path) == EMPTY
    write_stat_cache(path, make_cache(ONE))
    good = path.read_bytes()
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at])
        assert read_stat_cache(path) == EMPTY
    for content in (
        b"",
        b"\0" * len(good),
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        good.replace(b'"format": 1', b'"format": 9'),
    ):
        path.write_bytes(content)
        assert read_stat_cache(path) == EMPTY
    columns = json.loads(good)
    wrongs: tuple[object, ...] = (None, "x", 7, [], {}, "A" * 64)
    for name in columns:
        for wrong in wrongs:
            path.write_text(json.dumps({**columns, name: wrong}))
            # Another string of names is the one thing that cannot be told from a good cache.
            assert read_stat_cache(path) == (
                make_cache({wrong: ONE["a"]}) if name == "paths" and isinstance(wrong, str) else EMPTY
            )
    path.unlink()
    path.mkdir()
    assert read_stat_cache(path) == EMPTY


def test_a_cache_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "caches"
    (folder / "cache" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="cache"):
        write_stat_cache(folder / "cache", make_cache(ONE))
    assert [found.name for found in folder.iterdir()] == ["cache"]


def test_a_known_file_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    stats = look(tmp_path, "a")
    lie = sha(b"what the cache believes")
    tree = hash_tree(str(tmp_path), stats, make_cache({"a": (make_signature(stats["a"]), lie)}))
    assert tree.digests["a"] == lie
    assert tree.fresh_files == 0


@pytest.mark.parametrize("field", range(5))
def test_any_difference_makes_it_read_again(tmp_path: Path, field: int) -> None:
    (tmp_path / "a").write_bytes(b"content")
    stats = look(tmp_path, "a")
    signature = list(make_signature(stats["a"]))
    signature[field] += 1
    size, mtime, ctime, inode, mode = signature
    tree = hash_tree(str(tmp_path), stats, make_cache({"a": ((size, mtime, ctime, inode, mode), "0" * 64)}))
    assert tree.digests == {"a": sha(b"content")}
    assert (tree.fresh_files, tree.fresh_bytes) == (1, 7)


def test_a_file_written_just_now_is_hashed_and_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    tree = hash_tree(str(tmp_path), look(tmp_path, "a"), EMPTY)
    assert tree.digests["a"] == sha(b"1")
    assert tree.unsettled == {"a"}
    write_stat_cache(tmp_path / "cache", choose_remembered(tree))
    assert read_stat_cache(tmp_path / "cache") == EMPTY


def test_a_change_within_one_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    """Git's racy case: same size, same mtime, written again right after it was hashed."""
    path = tmp_path / "a"
    path.write_bytes(b"1")
    first = hash_tree(str(tmp_path), look(tmp_path, "a"), EMPTY)
    write_stat_cache(tmp_path / "cache", choose_remembered(first))
    before = path.lstat()
    path.write_bytes(b"2")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = hash_tree(str(tmp_path), look(tmp_path, "a"), read_stat_cache(tmp_path / "cache"))
    assert second.digests["a"] == sha(b"2")


def test_an_old_mtime_does_not_hide_a_fresh_change(tmp_path: Path) -> None:
    """`cp -p` and `tar x` set old times: then ctime is the fresh one."""
    path = tmp_path / "a"
    path.write_bytes(b"1")
    os.utime(path, ns=(OLD, OLD))
    assert hash_tree(str(tmp_path), look(tmp_path, "a"), EMPTY).unsettled == {"a"}


def test_a_time_in_the_future_is_never_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)
    path = tmp_path / "a"
    path.write_bytes(b"1")
    ahead = time.time_ns() + 3600 * 10**9
    os.utime(path, ns=(ahead, ahead))
    assert hash_tree(str(tmp_path), look(tmp_path, "a"), EMPTY).unsettled == {"a"}


def test_a_file_at_rest_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)
    (tmp_path / "a").write_bytes(b"1")
    tree = hash_tree(str(tmp_path), look(tmp_path, "a"), EMPTY)
    assert not tree.unsettled
    write_stat_cache(tmp_path / "cache", choose_remembered(tree))
    again = hash_tree(str(tmp_path), look(tmp_path, "a"), read_stat_cache(tmp_path / "cache"))
    assert again.fresh_files == 0
    assert again.digests == tree.digests


def test_the_window_is_that_of_the_coarsest_time_stamp() -> None:
    assert RACY_NS == 2 * 10**9


def test_writing_is_worth_it_after_much_reading_only() -> None:
    assert not is_worth_writing(HashedTree({}, {}, frozenset(), 1, 5000))
    assert is_worth_writing(HashedTree({}, {}, frozenset(), WORTH_FILES, 0))
    assert is_worth_writing(HashedTree({}, {}, frozenset(), 1, WORTH_BYTES))


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_sizes_around_the_two_ways_of_reading(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    hashed = hash_file(str(tmp_path / "a"), "a")
    assert hashed is not None
    assert (hashed.sha256, hashed.stat.st_size) == (sha(content), size)


def test_a_file_that_is_gone_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/c").write_bytes(b"1")
    stats = look(tmp_path, "a", "b/c")
    (tmp_path / "a").unlink()
    (tmp_path / "b/c").unlink()
    (tmp_path / "b").rmdir()
    (tmp_path / "b").write_bytes(b"")
    gone = hash_tree(str(tmp_path), stats, EMPTY)
    assert (gone.stats, gone.digests) == ({}, {})


def change_to_link(path: Path) -> None:
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("change", [os.mkfifo, Path.mkdir, change_to_link])
def test_a_file_that_became_something_else_is_an_error_by_name(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    change(tmp_path / "a")
    with pytest.raises(PackageError, match="dir/a") as caught:
        hash_file(str(tmp_path / "a"), "dir/a")
    assert 'exclude = ["dir/a"]' in str(caught.value.hint)


def test_a_file_that_cannot_be_read_is_an_error_by_name() -> None:
    unreadable = Path("/proc/self/mem")  # EIO even for root, whom modes do not stop
    if not unreadable.exists():
        pytest.skip("no /proc here")
    with pytest.raises(PackageError, match=r"cannot read weights\.bin: .+"):
        hash_file(str(unreadable), "weights.bin")


def test_a_file_that_never_holds_still_is_an_error_by_name(tmp_path: Path) -> None:
    """A real writer: it changes the file for as long as it is being hashed."""
    path = tmp_path / "log"
    path.write_bytes(b"x" * (8 << 20))
    done = threading.Event()

    def write() -> None:
        with path.open("r+b", buffering=0) as file:
            while not done.is_set():
                file.seek(0, os.SEEK_END)
                file.write(b"y")
                os.utime(path, ns=(time.time_ns(), time.time_ns()))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(PackageError, match="out/log changed each time") as caught:
            hash_file(str(path), "out/log")
    finally:
        done.set()
        writer.join()
    assert 'exclude = ["out/log"]' in str(caught.value.hint)


def test_a_file_that_changes_once_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change happens between the first reading and its second fstat: the narrowest case there is."""
    path = tmp_path / "a"
    path.write_bytes(b"before")
    real_fstat, calls = os.fstat, 0

    def fstat(handle: int) -> os.stat_result:
        nonlocal calls
        calls += stat.S_ISREG(real_fstat(handle).st_mode)
        if calls == 2:
            path.write_bytes(b"after, and longer")
        return real_fstat(handle)

    monkeypatch.setattr("remote_train.package.stat_cache.os.fstat", fstat)
    hashed = hash_file(str(path), "a")
    monkeypatch.undo()
    assert hashed is not None
    assert hashed.sha256 == sha(b"after, and longer")
    assert make_signature(hashed.stat) == make_signature(path.lstat())


def test_a_half_that_holds_still_for_a_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer was suspended in mid-write and goes on while we wait; a file at rest is not waited for."""
    path = tmp_path / "a"
    path.write_bytes(b"half of")
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            path.write_bytes(b"half of it no more")

    monkeypatch.setattr("remote_train.package.stat_cache.HELD_NS", 60 * 10**9)
    monkeypatch.setattr("remote_train.package.stat_cache.time.sleep", sleep)
    hashed = hash_file(str(path), "a")
    assert hashed is not None
    assert hashed.sha256 == sha(b"half of it no more")
    assert 0 < waits[0] <= 60

    waits.clear()
    monkeypatch.setattr("remote_train.package.stat_cache.HELD_NS", 0)
    assert hash_file(str(path), "a") == hashed
    assert waits == []
