"""Commits: what a training still writes is never committed, and what it has written is, once, for each version."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.host import commits, layout, writers
from remote_train.host.commits import COMMITTED, INCOMPLETE, SETTLING, Looker, Watching, list_checkpoints
from remote_train.host.durable import write_record
from remote_train.host.files import CHECKPOINTS
from remote_train.host.units import Tree
from tests.host.account_kit import until
from tests.host.container_kit import make_index, make_safetensors, make_zip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WHOLE = make_zip({"ckpt/data.pkl": b"pickled", "ckpt/data/0": b"weights" * 100})
OTHER = make_zip({"ckpt/data.pkl": b"pickled", "ckpt/data/0": b"WEIGHTS" * 100})
LEGACY = b"\x80\x02}q\x00."


class Attempt:
    """A snapshot that is looked at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.code = folder / layout.CODE
        self.code.mkdir(parents=True)
        plan = {"package": "0" * 64}
        self.record: dict[str, Any] = {
            "plan": plan,
            "started": time.time(),
            "root": str(folder),
            "token": "t",
        }
        write_record(str(folder / layout.ATTEMPT), self.record)

    def looker(self, *globs: str) -> Looker:
        return Looker(str(self.folder), str(self.folder), self.record, globs or CHECKPOINTS)

    def watching(self, *globs: str) -> Watching:
        return Watching(str(self.folder), globs or CHECKPOINTS)

    def write(self, path: str, data: bytes) -> Path:
        place = self.code / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return place

    def report(self, path: str) -> None:
        code = f"from remote_train.host import report; report.checkpoint({path!r})"
        environment = {**os.environ, layout.REPORT_VARIABLE: str(self.folder / layout.REPORT)}
        root = str(commits.__file__).partition("/remote_train/")[0]
        subprocess.run(
            [sys.executable, "-c", code], check=True, cwd=self.code, env={**environment, "PYTHONPATH": root}
        )


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    yield Attempt(tmp_path / "attempt")
    commits._LOOKERS.clear()


def states(looker: Looker, *, ended: bool = False) -> dict[str, str]:
    return {unit.path: unit.state for unit in looker.look(ended=ended, sure=True)}


def wait_for(looker: Looker, path: str, state: str = COMMITTED) -> None:
    until(lambda: states(looker).get(path) == state, f"{path} {state}")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settling takes an hour: what is committed nevertheless is so for another reason."""
    monkeypatch.setattr(commits, "SETTLE_SECONDS", 3600.0)
    monkeypatch.setattr(commits, "QUIET_SECONDS", 3600.0)


# ---- which files make a unit ----

TREE = (
    "ckpt.pt", "notes.txt", "out/step-1.pt", "out/step-2.pt", "out/log.csv", "checkpoint-5/optimizer.pt",
    "checkpoint-5/deeper/x", "dcp/__0_0.distcp", "dcp/.metadata", "dcp/train.log", "llm/config.json",
    "llm/model-00001-of-00002.safetensors", "llm/model.safetensors.index.json", "llm/train.py", "best/w", "best/a/b",
    "__pycache__/x.pt", "new\nline.pt", "new\nline/x.pt",
)  # fmt: skip


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (
            CHECKPOINTS,
            {
                "ckpt.pt": {"ckpt.pt"},
                "out/step-1.pt": {"out/step-1.pt"},
                "out/step-2.pt": {"out/step-2.pt"},
                "checkpoint-5": {"checkpoint-5/optimizer.pt", "checkpoint-5/deeper/x"},
                "dcp": {"dcp/__0_0.distcp", "dcp/.metadata"},
                "llm": {
                    "llm/config.json",
                    "llm/model-00001-of-00002.safetensors",
                    "llm/model.safetensors.index.json",
                },
            },
        ),
        (["best", "out"], {"best": {"best/w", "best/a/b"}, "out": {"out/step-1.pt", "out/step-2.pt", "out/log.csv"}}),
        (["checkpoint-*/*.pt"], {"checkpoint-5": {"checkpoint-5/optimizer.pt"}}),
        (["be*/a"], {"best/a": {"best/a/b"}}),
        (["*.nothing"], {}),
    ],
)  # fmt: skip
def test_units(attempt: Attempt, globs: list[str], expected: dict[str, set[str]]) -> None:
    for path in TREE:
        attempt.write(path, b"x")
    tree = Tree(str(attempt.code), globs)
    for near in (False, False, True, True):
        found = tree.find_groups(near=near)
        assert {path: set(group.wanted) for path, group in found.items()} == expected
        assert {path: len(group.wanted) for path, group in found.items()} == {
            path: len(files) for path, files in expected.items()
        }


def test_without_globs_everything_that_a_laptop_takes_is_wanted(attempt: Attempt) -> None:
    for path in TREE:
        attempt.write(path, b"x")
    wanted = {path for group in Tree(str(attempt.code), []).find_groups().values() for path in group.wanted}
    assert wanted == {path for path in TREE if "\n" not in path and "__pycache__" not in path}


def test_a_tree_finds_what_came_and_went(attempt: Attempt) -> None:
    tree = Tree(str(attempt.code), ["*.pt"])
    for number in range(50):  # many of them within one tick of the file system's clock
        place = attempt.write(f"d{number % 3}/{number}.pt", b"x")
        assert str(place.relative_to(attempt.code)) in tree.find_groups()
        if number % 2:
            place.unlink()
            assert str(place.relative_to(attempt.code)) not in tree.find_groups()


def test_near_what_was_found_only_what_is_new_there_is_looked_at(attempt: Attempt) -> None:
    for path in ("out/step-1.pt", "runs/checkpoint-1/w", "dcp/1/a.distcp", "data/x/y.txt"):
        attempt.write(path, b"x")
    tree = Tree(str(attempt.code), CHECKPOINTS)
    tree.find_groups()
    new = ("out/step-2.pt", "runs/checkpoint-2/deep/w", "dcp/2/a.distcp", "runs/checkpoint-1/late")
    for path in (*new, "data/x/z.pt"):
        attempt.write(path, b"x")
    (attempt.code / "out" / "step-1.pt").unlink()
    found = {path for group in tree.find_groups(near=True).values() for path in group.wanted}
    assert found == {*new, "runs/checkpoint-1/w", "dcp/1/a.distcp"}
    assert "data/x/z.pt" in tree.find_groups()
    shutil.rmtree(attempt.code / "out")
    assert "out/step-2.pt" not in tree.find_groups(near=True)
    attempt.write("out/step-3.pt", b"x")
    assert tree.find_groups(near=True)["out/step-3.pt"].files == ["out/step-3.pt"]


# ---- settling ----


def test_what_is_held_open_for_writing_is_not_committed_however_long(attempt: Attempt) -> None:
    looker = attempt.looker()
    place = attempt.write("ckpt.pt", WHOLE)
    writer = subprocess.Popen(
        [sys.executable, "-c", "import sys; f = open(sys.argv[1], 'r+b'); print(flush=True); sys.stdin.read()", place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdout.readline()
    with place.open("rb"):  # reading is nothing
        began = time.monotonic()
        until(
            lambda: (
                time.monotonic() - began > 1.1 * commits.SETTLE_SECONDS
                or states(looker)["ckpt.pt"] != SETTLING
            )
        )
        assert states(looker) == {"ckpt.pt": SETTLING}
        assert writers.find_written({(place.stat().st_dev, place.stat().st_ino)}) != set()
        writer.stdin.close()
        writer.wait()
        writer.stdout.close()
        wait_for(looker, "ckpt.pt")


def test_a_torn_zip_settles_as_incomplete_and_is_committed_when_it_is_whole(attempt: Attempt) -> None:
    looker = attempt.looker()
    place = attempt.write("ckpt.pt", WHOLE[:-1])
    assert states(looker) == {"ckpt.pt": SETTLING}
    wait_for(looker, "ckpt.pt", INCOMPLETE)
    with place.open("ab") as file:
        file.write(WHOLE[-1:])
    wait_for(looker, "ckpt.pt")


@pytest.mark.parametrize(
    ("name", "data"),
    [("ckpt.pt", LEGACY), ("m.safetensors", make_safetensors({"a": b"x"})), ("state.xyz", b"any")],
)
def test_what_does_not_end_with_its_directory_settles_for_longer(
    attempt: Attempt, name: str, data: bytes
) -> None:
    looker = attempt.looker("*.pt", "*.safetensors", "*.xyz")
    began = time.monotonic()
    attempt.write(name, data)
    wait_for(looker, name)
    assert time.monotonic() - began >= commits.SETTLE_SECONDS


def test_where_nobody_tells_who_writes_all_settles_for_longer(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "PROC", "/nowhere")
    looker = attempt.looker()
    began = time.monotonic()
    attempt.write("ckpt.pt", WHOLE)
    assert writers.find_written({(1, 1)}) is None
    wait_for(looker, "ckpt.pt")
    assert time.monotonic() - began >= commits.SETTLE_SECONDS


def test_an_empty_file_is_never_a_checkpoint(attempt: Attempt) -> None:
    attempt.write("ckpt.pt", b"")
    attempt.write("state.xyz", b"")
    looker = attempt.looker("*.pt", "*.xyz")
    assert states(looker, ended=True) == {"ckpt.pt": INCOMPLETE, "state.xyz": INCOMPLETE}


@pytest.mark.usefixtures("slow")
def test_a_change_begins_the_settling_anew(attempt: Attempt) -> None:
    looker = attempt.looker()
    place = attempt.write("ckpt.pt", WHOLE)
    assert states(looker, ended=True) == {"ckpt.pt": COMMITTED}
    os.utime(place)
    assert states(looker) == {"ckpt.pt": SETTLING}


@pytest.mark.usefixtures("slow")
def test_one_that_is_old_when_it_is_first_seen_need_not_settle(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_train.host.units.OLD", 0.2)
    place = attempt.write("ckpt.pt", WHOLE)
    os.utime(place, (1000, 1000))  # a program may set this time; the other one none can
    assert states(attempt.looker()) == {"ckpt.pt": SETTLING}
    until(lambda: states(attempt.looker()) == {"ckpt.pt": COMMITTED})


@pytest.mark.usefixtures("slow")
def test_an_attempt_that_has_ended_has_nothing_to_settle(attempt: Attempt) -> None:
    attempt.write("ckpt.pt", WHOLE)
    attempt.write("torn.pt", WHOLE[:100])
    attempt.write("legacy.pt", LEGACY)
    assert states(attempt.looker(), ended=True) == {
        "ckpt.pt": COMMITTED,
        "torn.pt": INCOMPLETE,
        "legacy.pt": COMMITTED,
    }


# ---- renamed, reported ----


@pytest.mark.usefixtures("slow")
def test_a_file_renamed_over_another_is_committed_at_once(attempt: Attempt) -> None:
    looker = attempt.looker()
    attempt.write("ckpt.pt", WHOLE)
    assert states(looker) == {"ckpt.pt": SETTLING}
    attempt.write("tmp", OTHER).replace(attempt.code / "ckpt.pt")
    wait_for(looker, "ckpt.pt")
    attempt.write("tmp", WHOLE[:-1]).replace(attempt.code / "ckpt.pt")
    assert states(looker) == {"ckpt.pt": SETTLING}
    attempt.write("ckpt.pt", WHOLE)  # written over in place, as it stands there now
    assert states(looker) == {"ckpt.pt": SETTLING}


@pytest.mark.usefixtures("slow")
def test_a_reported_file_is_committed_as_it_was_reported_and_no_other_version(attempt: Attempt) -> None:
    looker = attempt.looker()
    attempt.write("out/legacy.pt", LEGACY)
    assert states(looker) == {"out/legacy.pt": SETTLING}
    attempt.report("out/legacy.pt")
    wait_for(looker, "out/legacy.pt")
    attempt.write("out/legacy.pt", LEGACY + b"more")
    assert states(looker) == {"out/legacy.pt": SETTLING}


@pytest.mark.usefixtures("slow")
def test_a_reported_folder_is_committed_with_exactly_its_files(attempt: Attempt) -> None:
    looker = attempt.looker()
    attempt.write("checkpoint-5/model.safetensors", make_safetensors({"a": b"x"}))
    attempt.report(
        "checkpoint-5/model.safetensors"
    )  # of the file; that the folder has all it needs nobody has said
    assert states(looker) == {"checkpoint-5": SETTLING}
    attempt.write("checkpoint-5/deeper/optimizer.pt", WHOLE)
    attempt.report("checkpoint-5")
    wait_for(looker, "checkpoint-5")
    attempt.write("checkpoint-5/late.txt", b"x")
    assert states(looker) == {"checkpoint-5": SETTLING}


@pytest.mark.usefixtures("slow")
def test_reports_that_are_none_are_passed_over(attempt: Attempt) -> None:
    attempt.write("a.pt", WHOLE)
    attempt.write("b.pt", WHOLE)
    lines = [
        b"{",
        b"[]",
        b"7",
        b'{"kind": "step"}',
        b'{"kind": "checkpoint", "path": "a.pt", "files": 7}',
        b"\xff",
    ]
    lines += [b'{"kind": "checkpoint", "path": "a.pt", "files": [{"path": "a.pt"}]}', b"[" * 100_000, b""]
    lines += [b'{"kind": "checkpoint", "path": "a.pt", "files": []}']
    (attempt.folder / layout.REPORT).write_bytes(b"\n".join(lines) + b"\n")
    looker = attempt.looker()
    assert states(looker) == {"a.pt": SETTLING, "b.pt": SETTLING}
    with (attempt.folder / layout.REPORT).open("ab") as file:
        file.write(b'{"kind": "checkpoint", "pa')  # half a line, and more of it later
        file.flush()
        assert states(looker)["b.pt"] == SETTLING
    (attempt.folder / layout.REPORT).unlink()  # and anew, shorter
    attempt.report("b.pt")
    wait_for(looker, "b.pt")
    assert states(looker)["a.pt"] == SETTLING


def test_a_report_never_fails_and_outside_of_us_does_nothing(tmp_path: Path) -> None:
    code = "from remote_train import report\nfor path in ('x.pt', 7, None, 'a\\0b', '/'): report.checkpoint(path)"
    base = {key: value for key, value in os.environ.items() if not key.startswith("REMOTE_TRAIN_")}
    (tmp_path / "x.pt").write_bytes(b"x")
    for report in (
        {},
        {layout.REPORT_VARIABLE: "/nowhere/report"},
        {layout.REPORT_VARIABLE: str(tmp_path / "r")},
    ):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={**base, **report})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pt"]


# ---- folders ----


def test_a_folder_is_committed_when_all_of_it_holds_still(attempt: Attempt) -> None:
    looker = attempt.looker()
    attempt.write("llm/model-00001-of-00002.safetensors", make_safetensors({"a": b"x"}))
    make_index(
        attempt.code / "llm",
        {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    )
    wait_for(looker, "llm", INCOMPLETE)
    attempt.write("llm/model-00002-of-00002.safetensors", make_safetensors({"b": b"y"}))
    assert states(looker) == {"llm": SETTLING}
    wait_for(looker, "llm")


def test_a_trainers_folder_waits_for_its_last_file(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model and its arguments come first, the optimizer much later; other folders have no such file."""
    monkeypatch.setattr(commits, "SETTLE_SECONDS", 0.1)
    looker = attempt.looker()
    for name in ("model.safetensors", "training_args.bin"):
        attempt.write(f"out/checkpoint-7/{name}", make_safetensors({}) if "model" in name else WHOLE)
    attempt.write("checkpoint-8/optimizer.pt", WHOLE)
    wait_for(looker, "checkpoint-8")
    assert states(looker)["out/checkpoint-7"] == SETTLING
    attempt.write("out/checkpoint-7/trainer_state.json", b"{}")
    wait_for(looker, "out/checkpoint-7")
    monkeypatch.setattr(commits, "UNFINISHED_SECONDS", 0.1)
    attempt.write("checkpoint-9/training_args.bin", WHOLE)
    wait_for(looker, "checkpoint-9")


# ---- lists and events ----


def test_a_list_waits_for_what_was_saved_just_now(attempt: Attempt) -> None:
    attempt.write("ckpt.pt", WHOLE)
    attempt.write("checkpoint-5/state.json", b"{}")
    rows = list_checkpoints(attempt.looker(), ended=False)
    said = [(row["path"], row["unit"], row["state"]) for row in rows]
    assert said == [("checkpoint-5/state.json", "checkpoint-5", COMMITTED), ("ckpt.pt", "ckpt.pt", COMMITTED)]


@pytest.mark.usefixtures("slow")
def test_a_list_does_not_wait_for_ever(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "PATIENCE_SECONDS", 0.2)
    attempt.write("ckpt.pt", WHOLE)
    assert [row["state"] for row in list_checkpoints(attempt.looker(), ended=False)] == [SETTLING]


def test_each_version_is_told_once(attempt: Attempt) -> None:
    attempt.write("before.pt", WHOLE)
    watching = attempt.watching()
    told: list[dict[str, Any]] = []

    def heard(count: int) -> bool:
        told.extend(watching.look())
        return len(told) >= count

    until(lambda: heard(1))
    attempt.write("ckpt.pt", WHOLE)
    until(lambda: heard(2))
    attempt.write("tmp", OTHER).replace(attempt.code / "ckpt.pt")
    until(lambda: heard(3))
    (attempt.code / "ckpt.pt").chmod(0o600)  # settles anew, and is no other version
    looker = commits.find_looker(str(attempt.folder), str(attempt.folder), attempt.record, CHECKPOINTS)
    wait_for(looker, "ckpt.pt")
    assert watching.look() == []
    assert [event["unit"] for event in told] == ["before.pt", "ckpt.pt", "ckpt.pt"]
    sizes = {"unit": "ckpt.pt", "size": len(OTHER), "count": 1}
    assert told[2] == {**sizes, "mtime_ns": (attempt.code / "ckpt.pt").stat().st_mtime_ns}
    again = Watching(str(attempt.folder), CHECKPOINTS)  # another laptop attaches
    assert [event["unit"] for event in again.look()] == ["before.pt", "ckpt.pt"]


def test_looking_takes_a_hundredth_of_a_core(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look is at the whole tree; such a one is not due again before 200 times what it took."""
    attempt.write("ckpt.pt", WHOLE)
    watching = attempt.watching()
    for spent, wide in ((0.5, 100.0), (0.01, 0.0)):
        clock = iter([10.0, 10.0 + spent])
        with monkeypatch.context() as patch:
            patch.setattr(time, "thread_time", lambda clock=clock: next(clock))
            watching.look()
        now = time.monotonic()
        assert watching._wide - now > wide - 1.0
        assert watching.due - now > (1.9 if spent == 0.01 else 0.0)
