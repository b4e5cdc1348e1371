"""The whole story: project in, package out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.errors import PackageError
from remote_train.host.manifest_format import apply_delta, check_rows, make_delta, make_package_id
from remote_train.package.ignored_data import MOST_LOOKED_AT
from remote_train.package.manifest import choose_biggest, render_size
from remote_train.package.packing import Package, Rules, make_package, read_dirty_diff

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.package.conftest import Tree

NANOGPT: dict[str, str | bytes] = {
    ".gitignore": "*.bin\n*.pkl\n*.pt\ninput.txt\n__pycache__/\n.venv\nout*/\n",
    "train.py": "print()",
    "data/shakespeare_char/prepare.py": "",
    "data/shakespeare_char/train.bin": b"x" * 2000,
    "data/shakespeare_char/val.bin": b"x" * 500,
    "data/shakespeare_char/meta.pkl": b"x",
    "data/shakespeare_char/input.txt": b"x" * 200_000,
    "out-old/ckpt.pt": b"x" * 9000,
    "out-old/log.txt": b"x",
    "__pycache__/train.pkl": b"x",
    ".venv/pyvenv.cfg": "",
    ".venv/lib/torch.bin": b"x" * 99999,
}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "stat.json"


def check_against_disk(package: Package, root: Path) -> None:
    """The oracle: read everything again, plainly."""
    check_rows(package.rows)
    for row in package.rows:
        path = root / str(row[0])
        if row[1] == "l":
            assert path.is_symlink()
            continue
        content = path.read_bytes()
        mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
        assert row[2:] == [mode, len(content), hashlib.sha256(content).hexdigest()]
    assert package.package_id == make_package_id(package.rows)
    assert package.total_bytes == sum(int(row[3]) for row in package.rows if row[1] == "f")


def test_a_checkout_and_its_twin_are_the_same_package(checkout: Tree, cache: Path) -> None:
    checkout.write_all({**NANOGPT, "run me.sh": "x", "été/ü.py": "", os.fsdecode(b"l\xe9.py"): ""})
    (checkout.root / "run me.sh").chmod(0o775)
    (checkout.root / "link").symlink_to("train.py")
    checkout.commit()
    package = make_package(checkout.root, Rules(), cache)
    check_against_disk(package, checkout.root)
    assert ["run me.sh", "f", 0o755, 1, hashlib.sha256(b"x").hexdigest()] in package.rows
    assert ["link", "l", "train.py"] in package.rows
    twin = make_package(checkout.twin_without_git().root, Rules(), cache.with_name("twin"))
    assert (twin.rows, twin.package_id, twin.ignored) == (package.rows, package.package_id, package.ignored)
    assert twin.git is None
    assert package.git is not None
    assert package.git.commit == checkout.git("rev-parse", "HEAD").strip()
    assert (package.git.branch, package.git.dirty) == ("main", False)


def test_five_thousand_files_one_changed(
    checkout: Tree, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout.write_all({f"p{n % 50}/f{n}.py": str(n) for n in range(5000)})
    checkout.commit()
    now = time.time_ns
    monkeypatch.setattr(
        "remote_train.package.stat_cache.time.time_ns", lambda: now() + 10 * 10**9
    )  # see test_stat_cache
    first = make_package(checkout.root, Rules(), cache)
    saved = cache.read_bytes()
    assert len(saved) > 5000 * 64
    checkout.write_all({"p1/f1.py": "changed"})
    second = make_package(checkout.root, Rules(), cache)
    assert cache.read_bytes() == saved  # one file is not worth writing 5,000
    delta = make_delta(first.rows, second.rows)
    assert [row[0] for row in delta["set"] if isinstance(row, list)] == ["p1/f1.py"]
    assert apply_delta(first.rows, delta) == second.rows
    check_against_disk(second, checkout.root)
    assert second.git is not None
    assert second.git.dirty


def test_the_id_depends_on_content_and_mode_and_not_on_times(checkout: Tree, cache: Path) -> None:
    checkout.write_all({"a.py": "1"})
    first = make_package(checkout.root, Rules(), cache)
    os.utime(checkout.root / "a.py", ns=(1, 1))
    (checkout.root / "a.py").chmod(0o600)
    assert make_package(checkout.root, Rules(), cache).package_id == first.package_id
    (checkout.root / "a.py").chmod(0o700)
    assert make_package(checkout.root, Rules(), cache).package_id != first.package_id


def test_states_of_git(checkout: Tree, cache: Path) -> None:
    checkout.write(a="1")
    fresh = make_package(checkout.root, Rules(), cache).git
    assert fresh is not None
    assert (fresh.commit, fresh.branch, fresh.dirty) == (None, "main", True)
    checkout.commit()
    checkout.git("checkout", "-q", "--detach")
    detached = make_package(checkout.root, Rules(), cache).git
    assert detached is not None
    assert (detached.branch, detached.dirty) == (None, False)


def test_git_is_left_as_it_was(checkout: Tree, cache: Path) -> None:
    checkout.write_all(NANOGPT)
    checkout.commit()
    checkout.write(**{"train.py": "changed"})
    index = checkout.root / ".git/index"
    before = (index.read_bytes(), index.stat().st_mtime_ns, sorted(checkout.root.rglob("*")))
    make_package(checkout.root, Rules(), cache)
    read_dirty_diff(checkout.root, 1000)
    assert (index.read_bytes(), index.stat().st_mtime_ns, sorted(checkout.root.rglob("*"))) == before


def test_a_repository_cannot_make_us_run_its_programs(checkout: Tree, cache: Path, tmp_path: Path) -> None:
    checkout.write_all({"a.py": "1", ".gitattributes": "*.py diff=evil\n"})
    checkout.commit()
    checkout.write(**{"a.py": "2"})
    evil = f"touch {tmp_path}/ran"
    for name in ("core.fsmonitor", "diff.external", "diff.evil.command", "diff.evil.textconv", "core.pager"):
        checkout.git("config", name, evil)
    make_package(checkout.root, Rules(), cache)
    diff = read_dirty_diff(checkout.root, 10_000)
    assert not (tmp_path / "ran").exists()
    assert diff is not None
    assert b"+2" in diff.text


def test_ignored_data_is_named_with_the_line_that_brings_it(checkout: Tree, cache: Path) -> None:
    checkout.write_all(NANOGPT)
    package = make_package(checkout.root, Rules(), cache)
    assert [(found.folder, found.files, found.size) for found in package.ignored] == [
        ("data/shakespeare_char", 4, 202_501),
        ("out-old", 1, 9000),
    ]
    line = package.ignored[0].line
    assert (
        line
        == 'include = ["data/shakespeare_char/*.bin", "data/shakespeare_char/*.pkl", "data/shakespeare_char/*.txt"]'
    )
    included = make_package(
        checkout.root, Rules(include=tuple(json.loads(line.removeprefix("include = ")))), cache
    )
    assert {str(row[0]) for row in included.rows} - {str(row[0]) for row in package.rows} == {
        path for path in NANOGPT if path.startswith("data/") and not path.endswith(".py")
    }
    assert [found.folder for found in included.ignored] == ["out-old"]


def test_every_line_named_brings_its_files(checkout: Tree, cache: Path) -> None:
    files = {
        "my [data]*/x.bin": "1",
        "data/deep/er/any.thing": "2",
        "weights/v1/model.safetensors": "3",
        "top.npy": "4",
        "é/ü.npz": "5",
        os.fsdecode(b"\xff/x.pt"): "6",
    }
    checkout.write_all({**files, ".gitignore": "*.*\n!.gitignore\ndata/\nweights\n"})
    found = make_package(checkout.root, Rules(), cache).ignored
    assert len(found) == 5
    globs = [glob for data in found for glob in json.loads(data.line.removeprefix("include = "))]
    package = make_package(checkout.root, Rules(include=tuple(globs)), cache)
    assert len(package.rows) == 6
    assert not [notice for notice in package.notices if notice.kind == "include"]


def test_an_ignored_folder_over_the_limit_is_for_data(checkout: Tree, cache: Path) -> None:
    checkout.write_all({"data/owt/train.bin": b"x" * 5000, ".gitignore": "data/\n", "train.py": ""})
    (found,) = make_package(checkout.root, Rules(max_mb=0.001), cache).ignored
    assert (found.folder, found.line) == ("data", 'data = ["data"]')


def test_a_huge_ignored_folder_is_not_walked(checkout: Tree, cache: Path) -> None:
    checkout.write_all(
        {".gitignore": "data/\n", **{f"data/{n % 3}/{n}.png": "x" for n in range(MOST_LOOKED_AT + 500)}}
    )
    (found,) = make_package(checkout.root, Rules(), cache).ignored
    assert found.at_least
    assert 0 < found.files <= MOST_LOOKED_AT


def test_over_the_limit_names_the_biggest_and_the_lines(checkout: Tree, cache: Path) -> None:
    checkout.write_all({f"data/images/{n}.png": b"x" * 90_000 for n in range(20)})
    checkout.write_all({f"f{n}.py": b"x" * n * 100 for n in range(1, 15)})
    checkout.write_all({"dump.sqlite": b"x" * 700_000})
    with pytest.raises(PackageError, match="over max_mb = 1") as caught:
        make_package(checkout.root, Rules(max_mb=1), cache)
    message, hint = str(caught.value), str(caught.value.hint)
    assert "1.8 MB  data/" in message
    assert "700 kB  dump.sqlite" in message
    assert message.count("\n") == 10
    assert 'exclude = ["data/images/"]' in hint
    assert 'data = ["data/images"]' in hint
    assert "max_mb = 3" in hint
    rules = Rules(max_mb=1, exclude=("data/images/",))
    assert len(make_package(checkout.root, rules, cache).rows) == 15
    assert (
        len(make_package(checkout.root, dataclasses.replace(rules, exclude=(), max_mb=3), cache).rows) == 35
    )


def test_the_limit_is_checked_before_anything_is_read(checkout: Tree, cache: Path) -> None:
    with (checkout.root / "sparse.img").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte would take a while to hash
    with pytest.raises(PackageError, match=r"1\.1 TB"):
        make_package(checkout.root, Rules(), cache)


def test_a_large_package_is_told(checkout: Tree, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remote_train.package.packing.MANY_FILES", 3)
    checkout.write_all(dict.fromkeys("abcd", ""))
    (notice,) = make_package(checkout.root, Rules(), cache).notices
    assert (notice.kind, notice.message) == ("size", "a large package: 4 files, 0 B")


def test_an_unwritable_cache_is_told_and_the_package_is_good(checkout: Tree, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    checkout.write_all({f"f{n}": "" for n in range(300)})
    package = make_package(checkout.root, Rules(), tmp_path / "file" / "cache")
    check_against_disk(package, checkout.root)
    # Files written just now are not remembered, so there may be nothing to write: then nothing is told.
    assert {notice.kind for notice in package.notices} <= {"cache"}


def test_a_writer_at_work_gives_a_whole_file_or_an_error(checkout: Tree, cache: Path) -> None:
    """Each content is one letter 300,000 times: a mixture would be a hash of neither."""
    contents = [letter * 300_000 for letter in (b"a", b"b")]
    good = {hashlib.sha256(content).hexdigest() for content in contents}
    checkout.write_all({"busy.txt": contents[0], "still.py": ""})
    done = threading.Event()

    def write() -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            (checkout.root / "busy.txt").write_bytes(contents[turn % 2])
            if turn % 20 == 0:
                done.wait(0.1)

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    try:
        for _ in range(15):
            try:
                package = make_package(checkout.root, Rules(), cache)
            except PackageError as error:
                assert "busy.txt" in str(error)  # noqa: PT017 - either end is right, the writer decides
                continue
            seen += [row[4] for row in package.rows if row[0] == "busy.txt" and row[3]]
    finally:
        done.set()
        writer.join()
    assert set(seen) <= good
    assert seen


def test_the_diff_is_capped_relative_and_without_secrets(
    checkout: Tree, make_tree: Callable[[str], Tree]
) -> None:
    checkout.write_all(
        {"sub/a.py": "1\n", "top.py": "1\n", "sub/.env": "TOKEN=1\n", "sub/.aws/config": "key=1\n"}
    )
    checkout.commit()
    checkout.write_all(
        {
            "sub/a.py": "changed\n" * 100,
            "top.py": "2\n",
            "sub/.env": "TOKEN=2\n",
            "sub/.aws/config": "key=2\n",
        }
    )
    root = make_tree("project/sub").root
    diff = read_dirty_diff(root, 100_000)
    assert diff is not None
    assert b"+changed" in diff.text
    assert b"a/a.py" in diff.text
    for hidden in (b"top.py", b"TOKEN", b"key="):
        assert hidden not in diff.text
    capped = read_dirty_diff(root, 50)
    assert capped is not None
    assert (capped.text, capped.truncated, diff.truncated) == (diff.text[:50], True, False)


def test_the_diff_without_a_commit_and_without_a_repository(tree: Tree) -> None:
    tree.write(a="new\n")
    assert read_dirty_diff(tree.root, 1000) is None
    tree.init()
    tree.git("add", "-A")
    diff = read_dirty_diff(tree.root, 1000)
    assert diff is not None
    assert b"+new" in diff.text


def test_a_file_another_user_closed_is_an_error_by_name(checkout: Tree, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        (checkout.root / "closed.bin").touch(mode=0)
        with pytest.raises(PackageError, match=r"closed\.bin"):
            make_package(checkout.root, Rules(), tmp_path / "cache")
        return
    pytest.skip("root reads everything; test_stat_cache has the same case by EIO")


@given(
    st.dictionaries(
        st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join), st.integers(0, 99), max_size=8
    )
)
def test_the_biggest_add_up(sizes: dict[str, int]) -> None:
    inner = {path.rsplit("/", depth)[0] for path in sizes for depth in (1, 2) if path.count("/") >= depth}
    files = {path: size for path, size in sizes.items() if path not in inner}
    parts = choose_biggest(files.items(), 99)
    assert [part.size for part in parts] == sorted((part.size for part in parts), reverse=True)
    for part in parts:
        held = [
            size
            for path, size in files.items()
            if path == part.path or path.startswith(part.path.rstrip("/") + "/")
        ]
        assert part.size == sum(held)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1234, "1.2 kB"),
        (999_999, "1.0 MB"),
        (150_000_000, "150 MB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert render_size(size) == text


def test_packaging_imports_neither_torch_nor_what_a_connection_needs() -> None:
    code = "import sys, remote_train.package; print(*{'torch', 'paramiko', 'pydantic', 'pathspec', 'asyncio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
