"""Data folders as they are found here: everything of them, nothing else, one name for one content."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from remote_train.config.host_spec import HostSpec, make_local
from remote_train.config.project_spec import ProjectSpec
from remote_train.datasets import choose_places, hash_places, parse_place, recall_data, walk_places
from remote_train.errors import PackageError, UsageError
from remote_train.host.manifest_format import check_rows
from remote_train.package import stat_cache
from remote_train.package.data_folder import DataSet, hash_data, walk_data
from remote_train.package.stat_cache import WORTH_FILES
from remote_train.plan import Job
from remote_train.preparing_from import recall_data_of
from tests.core.cutting_link import Ears

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def read(root: Path, place: str = "data") -> DataSet:
    return hash_data(walk_data(root, place), root / "cache.json")


def paths(data: DataSet) -> list[str]:
    return [str(row[0]) for row in data.rows]


def test_everything_is_in_it_but_secrets_repositories_and_what_leads_out(tmp_path: Path) -> None:
    write(tmp_path, data__a=b"1", data__sub__b=b"2", outside=b"3")
    write(
        tmp_path / "data",
        **{".env": b"TOKEN", "id_rsa": b"KEY", ".git__config": b"", ".aws__x": b"", ".hidden": b"4"},
    )
    (tmp_path / "data" / "inside").symlink_to("sub/b")
    (tmp_path / "data" / "sub" / "up").symlink_to("../a")
    (tmp_path / "data" / "out").symlink_to("../outside")
    (tmp_path / "data" / "absolute").symlink_to(tmp_path / "data" / "a")
    os.mkfifo(tmp_path / "data" / "pipe")
    (tmp_path / ".gitignore").write_text("*")
    data = read(tmp_path)
    assert paths(data) == [".hidden", "a", "absolute", "inside", "sub/b", "sub/up"]
    check_rows(data.rows)
    assert sorted(text.split(":")[0] for text in data.notices) == [
        "data/.aws",
        "data/.env",
        "data/.git",
        "data/id_rsa",
        "data/out",
        "data/pipe",
    ]
    assert data.total_bytes == 3


def test_one_content_has_one_name_wherever_and_however_it_lies(tmp_path: Path) -> None:
    one = read(write(tmp_path / "one", data__a=b"1", data__sub__b=b"2"))
    write(tmp_path / "two", deep__er__a=b"1", deep__er__sub__b=b"2")
    (tmp_path / "two/deep/er/a").chmod(0o755)
    assert read(tmp_path / "two", "deep/er").reference == one.reference
    (tmp_path / "two/deep/er/a").write_bytes(b"x")
    assert read(tmp_path / "two", "deep/er").reference != one.reference


def test_one_file_is_data_too(tmp_path: Path) -> None:
    write(tmp_path, data__train_bin=b"1", data__other=b"2")
    data = read(tmp_path, "data/train_bin")
    assert (paths(data), data.file, data.base) == (["train_bin"], "train_bin", tmp_path / "data")
    assert data.reference == f"{data.data_id}/train_bin"


@pytest.mark.parametrize(
    ("place", "words"), [("nowhere", "No such file"), ("link", "leads out"), ("empty", "no file in it")]
)
def test_what_is_no_data_is_named(tmp_path: Path, place: str, words: str) -> None:
    root = write(tmp_path / "project", file=b"")
    (root / "empty").mkdir()
    write(tmp_path / "elsewhere", secret=b"1")
    (root / "link").symlink_to("../elsewhere")
    with pytest.raises(PackageError, match=words) as told:
        walk_data(root, place)
    assert place in told.value.message
    assert "hosts.toml" in str(told.value.hint)


def test_unchanged_data_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"data__{number}": random.Random(number).randbytes(100) for number in range(WORTH_FILES)}
    write(tmp_path, **files)
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 10 * 10**9)
    first = read(tmp_path)
    hashed: list[str] = []
    once = stat_cache.hash_file

    def count(full_path: str, path: str) -> stat_cache.Hashed | None:
        hashed.append(path)
        return once(full_path, path)

    monkeypatch.setattr(stat_cache, "hash_file", count)
    assert read(tmp_path).reference == first.reference
    assert hashed == []
    (tmp_path / "data" / "7").write_bytes(b"new")
    assert read(tmp_path).reference != first.reference
    assert hashed == ["7"]


def test_only_what_a_host_does_not_have_is_sent_there(tmp_path: Path) -> None:
    write(tmp_path, one__a=b"1", two__a=b"2")
    mapped = HostSpec(name="mapped", data={"one": "/mnt/one"})
    bare = HostSpec(name="bare")
    assert choose_places(["one", "two"], [mapped]) == ["two"]
    assert choose_places(["one", "two"], [mapped, bare]) == ["one", "two"]
    assert choose_places(["one", "two"], [make_local()]) == []
    listings = walk_places(tmp_path, ["one", "nowhere"])
    assert list(listings) == ["one"]
    assert [data.place for data in hash_places(tmp_path, listings, ["one", "two"], bare)] == ["one", "two"]
    with pytest.raises(UsageError, match="nowhere"):
        hash_places(tmp_path, listings, ["nowhere"], bare)
    with pytest.raises(UsageError, match="overlap"):
        choose_places(["data", "data/a"], [bare])


@pytest.mark.parametrize(
    ("path", "cwd", "place"),
    [
        ("data", "", "data"),
        ("./data/", "sub", "sub/data"),
        ("../data", "sub", "data"),
        ("/p/data", "sub", "data"),
    ],
)
def test_data_is_named_from_where_one_stands(path: str, cwd: str, place: str) -> None:
    assert parse_place(path, cwd, "/p") == place


@pytest.mark.parametrize("path", [".", "..", "../elsewhere", "/etc", "a*b", "a\nb"])
def test_data_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="--data"):
        parse_place(path, "", "/p")


def test_a_run_that_goes_on_keeps_its_data(tmp_path: Path) -> None:
    write(tmp_path, same__a=b"1", changed__a=b"2", fresh__a=b"3")
    before = {place: read(tmp_path, place).reference for place in ("same", "changed")}
    (tmp_path / "changed/a").write_bytes(b"x")
    recalled = recall_data(tmp_path, ["same", "changed", "gone", "fresh"], {**before, "gone": "0" * 64})
    assert recalled.shipped == {**before, "gone": "0" * 64, "fresh": read(tmp_path, "fresh").reference}
    assert [data.place for data in recalled.data] == ["same", "fresh"]
    assert recalled.changed == ("changed", "gone")
    with pytest.raises(PackageError, match="never"):
        recall_data(tmp_path, ["never"], {})


def test_data_that_nobody_has_named_before_is_told_of(tmp_path: Path) -> None:
    """Attempt 1 ran on this machine, or where hosts.toml says where the data lies."""
    write(tmp_path, known__a=b"1", unknown__a=b"2", typed__a=b"3")
    spec = ProjectSpec(project="p", data=("known", "unknown"))
    job = Job(spec, str(tmp_path), "", "train.py", None, (), None, data=("typed",))
    plan = {"data": {"known": read(tmp_path, "known").reference}}
    record = {"run": "one", "attempts": [{"plan": plan}], "job": {"data": []}}
    ears = Ears()
    recalled = recall_data_of(record, job, HostSpec(name="box", address=("box",)), ears)
    assert list(recalled.shipped) == ["known", "unknown", "typed"]
    [(kind, facts)] = ears.told
    assert kind == "note"
    assert facts["text"].startswith("what unknown was when one began is not known")
