"""The packages that this laptop keeps: what was packaged and nothing else, once, and only while somebody may want it."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

import pytest

from remote_train import kept_package
from remote_train.errors import PackageError
from remote_train.kept_package import Keeping, drop_packages, keep_package, recall, recall_package
from remote_train.records import Run, client_root, create_run
from tests.core.cutting_link import Ears
from tests.host.account_kit import sha256

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.account_kit import Account

FILES: dict[str, str | bytes] = {
    "train.py": "print(1)",
    "lib/model.py": "x = 1",
    "lib/same.py": "x = 1",
    "empty": "",
}


def blobs() -> list[Path]:
    return sorted((client_root() / "blobs").glob("??/*"))


def record_run(home: Path, run: str, package: str, when: float, state: str = "ended") -> Run:
    attempts: list[Any] = [{"attempt": 1, "host": "box", "plan": {}}]
    return create_run(
        home / "runs", run, {"created": when, "package": package, "state": state, "attempts": attempts}
    )


def test_what_was_packaged_can_be_had_whatever_became_of_the_project(account: Account) -> None:
    root, package = account.package(FILES)
    keep_package(root, package)
    (root / "train.py").write_text("another script")
    (root / "lib" / "model.py").unlink()

    files = recall(package.package_id, root)

    assert files is not None
    assert files.rows == package.rows
    found = {row[0]: files.find(row).read_bytes() for row in files.rows}
    assert found == {path: str(content).encode() for path, content in FILES.items()}
    assert len(blobs()) == 3  # two of the files are alike


def test_nobody_else_may_read_it_and_it_is_no_link_to_the_project(account: Account) -> None:
    root, package = account.package(FILES)
    keep_package(root, package)
    for path in (*blobs(), *(client_root() / "packages").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_nlink == 1
    for folder in (client_root(), client_root() / "blobs", blobs()[0].parent, client_root() / "packages"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_file_that_was_edited_meanwhile_is_left_out(account: Account) -> None:
    root, package = account.package(FILES)
    (root / "train.py").write_text("print(2)")  # as long as before
    (root / "lib" / "same.py").unlink()
    keep_package(root, package)

    files = recall(package.package_id, root)

    assert files is not None
    with pytest.raises(PackageError, match=r"train\.py") as refused:
        files.check(files.rows)
    assert refused.value.facts["lost"] == ["train.py"]
    assert refused.value.exit_code == 20
    assert list((client_root() / "blobs").glob("*.tmp")) == []
    (root / "train.py").write_text("print(1)")  # as it was: the project serves too
    files.check(files.rows)
    keep_package(root, package)  # and the next launch keeps it
    (root / "train.py").unlink()
    files.check(files.rows)


def test_a_second_time_nothing_is_read(account: Account) -> None:
    root, package = account.package(FILES)
    keep_package(root, package)
    before = {path: path.stat().st_mtime_ns for path in blobs()}
    (root / "train.py").unlink()
    keep_package(root, package)
    assert {path: path.stat().st_mtime_ns for path in blobs()} == before


def test_a_full_disk_harms_no_launch(account: Account) -> None:
    root, package = account.package(FILES)
    (client_root()).mkdir(parents=True, exist_ok=True)
    (client_root() / "blobs").write_text("in the way")
    keeping = Keeping(root, package)
    keeping.wait(20)
    assert recall(package.package_id, root) is None
    assert not keeping._thread.is_alive()


def test_packages_of_old_runs_go_and_with_them_what_nobody_else_has(account: Account, tmp_path: Path) -> None:
    packages = []
    for number in range(13):
        root, package = account.package({"train.py": f"print({number})", "lib.py": "shared"})
        keep_package(root, package)
        state = "running" if number == 1 else "ended"
        record_run(tmp_path / "project", f"run-{number}", package.package_id, number, state)
        packages.append(package)
    other_root, other = account.package({"train.py": "another project"})
    keep_package(other_root, other)
    record_run(tmp_path / "other", "old-other", other.package_id, 0)

    drop_packages()

    kept = {package.package_id for package in packages if recall(package.package_id, tmp_path)}
    assert kept == {packages[number].package_id for number in (1, *range(3, 13))}
    assert recall(other.package_id, tmp_path) is not None
    contents = {path.parent.name + path.name for path in blobs()}
    assert sha256(b"print(0)") not in contents
    assert {sha256(b"shared"), sha256(b"print(1)"), sha256(b"print(12)")} <= contents


@pytest.mark.usefixtures("account")
def test_a_run_whose_package_was_not_kept_can_still_ask_its_host(tmp_path: Path) -> None:
    record = {"package": "0" * 64, "commit": None}
    package, files = recall_package(record, tmp_path)
    assert package.rows == []
    assert package.package_id == "0" * 64
    with pytest.raises(PackageError, match=r"x\.py"):
        files.check([["x.py", "f", 0o644, 1, sha256(b"x")]])


@pytest.mark.parametrize("urgent", [False, True])
def test_what_could_not_be_kept_is_told_once(account: Account, *, urgent: bool) -> None:
    root, package = account.package(FILES)
    (root / "train.py").write_text("print(2)")
    keeping, ears = Keeping(root, package), Ears()
    keeping.is_urgent = urgent
    keeping.wait()
    keeping.tell_lost(ears)
    keeping.tell_lost(ears)
    [(kind, facts)] = ears.told
    assert kind == ("warn" if urgent else "note")
    assert "train.py" in facts["text"]


def test_what_is_nowhere_is_refused_before_anything_is_sent(account: Account) -> None:
    root, package = account.package(FILES)
    (root / "train.py").write_text("print(2)")
    keep_package(root, package)
    files = recall(package.package_id, root)
    assert files is not None
    session = account.connect()
    with pytest.raises(PackageError) as refused:
        files.refuse_lost(session)
    assert refused.value.facts["lost"] == ["train.py"]
    (root / "train.py").write_text("print(1)")
    files.refuse_lost(session)
    session.close()


def test_a_damaged_list_is_no_list(account: Account) -> None:
    root, package = account.package(FILES)
    keep_package(root, package)
    path = client_root() / "packages" / f"{package.package_id}.json"
    path.write_text(path.read_text()[:-20])
    assert recall(package.package_id, root) is None
    assert recall("../../../etc/passwd", root) is None
    keep_package(root, package)
    assert recall(package.package_id, root) is not None


def test_a_project_of_links_keeps_its_files(account: Account) -> None:
    root, package = account.package({"a.py": "1"})
    (root / "b.py").symlink_to("a.py")
    package.rows.append(["b.py", "l", "a.py"])
    keep_package(root, package)
    files = recall(package.package_id, root)
    assert files is not None
    assert files.rows == package.rows
    assert len(blobs()) == 1
    assert kept_package.LOCK in {path.name for path in client_root().iterdir()}
