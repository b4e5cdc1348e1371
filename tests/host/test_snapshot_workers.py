"""A large snapshot is written by several processes: the same files, the same errors, nobody left behind."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from remote_train.host import layout, snapshot, store

CONTENTS = [b"", b"a\n", b"print(1)\n" * 50]


@pytest.fixture
def root(tmp_path: Path) -> str:
    place = str(tmp_path / "state")
    store.open_root(place)
    items = [(hashlib.sha256(data).hexdigest(), len(data)) for data in CONTENTS]
    writer = store.BatchWriter(place, items, compressed=False)
    writer.write(b"".join(CONTENTS))
    writer.close()
    return place


def make_rows(count: int) -> list[list[object]]:
    rows: list[list[object]] = []
    for number in range(count):
        data = CONTENTS[number % len(CONTENTS)]
        path = f"d{number // 100:04}/f{number:06}"
        rows.append([path, "f", 0o644, len(data), hashlib.sha256(data).hexdigest()])
    return rows


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@pytest.mark.parametrize("count", [3999, 4000, 9001])
def test_every_file_is_written_once(
    root: str, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_train.host.snapshot.os.sched_getaffinity", lambda _pid: set(range(4)))
    rows = make_rows(count)
    before = children()
    snapshot.write_snapshot(root, rows, str(tmp_path / "code"), lambda: None)
    found = {
        str(path.relative_to(tmp_path / "code")): path.read_bytes()
        for path in (tmp_path / "code").rglob("*")
        if path.is_file()
    }
    assert found == {str(row[0]): CONTENTS[number % len(CONTENTS)] for number, row in enumerate(rows)}
    assert children() == before


def test_what_stops_a_worker_is_told_with_its_place(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_train.host.snapshot.os.sched_getaffinity", lambda _pid: set(range(4)))
    rows = make_rows(8000)
    lost = "f" * 64
    rows[-1] = ["zz/last", "f", 0o644, 1, lost]
    before = children()
    with pytest.raises(FileNotFoundError) as caught:
        snapshot.write_snapshot(root, rows, str(tmp_path / "code"), lambda: None)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == layout.blob_path(root, lost)
    assert children() == before
