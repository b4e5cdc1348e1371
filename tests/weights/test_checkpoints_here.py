"""`show` lists the checkpoints that are here: what each holds, its step, and whether it is still what was pulled."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.checkpoints import join_contents, list_checkpoints
from remote_train.contents import Contents
from remote_train.records import Run
from remote_train.show.checkpoints import MOST, list_lines, render_checkpoint
from tests.weights.checkpoints import save, save_trained
from tests.weights.test_saving import make_mirror

if TYPE_CHECKING:
    from pathlib import Path

SAVED = 1035.0
"""Seconds of a clock by which step 3 was printed and step 4 was not."""


class Here:
    """A run's folder with what pulls brought."""

    def __init__(self, folder: Path) -> None:
        self.run = Run("run", folder)
        make_mirror(folder / "attempts" / "1", 10)
        record = {"format": 1, "attempts": [{"attempt": 1}]}
        (folder / "run.json").write_text(json.dumps(record))
        self.ledger: dict[str, Any] = {}

    def note(self, path: Path, below: str, **more: Any) -> Path:
        status = path.stat()
        facts = {"size": status.st_size, "here_mtime_ns": status.st_mtime_ns, "mtime_ns": int(SAVED * 1e9)}
        self.ledger[str(path)] = {**facts, "sha256": "0" * 64, "path": below, "attempt": 1, **more}
        (self.run.folder / "pulled.json").write_text(json.dumps(self.ledger))
        return path

    def list(self) -> dict[str, dict[str, Any]]:
        return {row["path"]: row for row in list_checkpoints(self.run)}


@pytest.fixture
def here(tmp_path: Path) -> Here:
    folder = tmp_path / "run"
    (folder / "files").mkdir(parents=True)
    return Here(folder)


@pytest.mark.torch
def test_a_checkpoint_says_its_step_itself_or_the_output_does(here: Here) -> None:
    save_trained(here.run.files / "own.pt")
    here.note(here.run.files / "own.pt", "own.pt")
    here.note(
        save(here.run.files / "out" / "bare.pt", save_trained(here.run.files / "own.pt")), "out/bare.pt"
    )
    rows = here.list()
    assert rows["files/own.pt"]["intact"] is False, "it was written again"
    own, bare = rows["files/own.pt"], rows["files/out/bare.pt"]
    assert (own["step"], own["step_source"]) == (250, "file")
    assert (bare["step"], bare["step_source"], bare["intact"]) == (3, "metrics", True)
    assert own["contents"] == "model 8.5 k parameters, float32, int64; optimizer: Adam-like state"
    assert bare["saved"] == SAVED
    json.dumps(rows)


def test_a_folder_is_one_and_what_is_no_checkpoint_is_listed_too(here: Here, tmp_path: Path) -> None:
    folder = here.run.files / "checkpoint-5"
    folder.mkdir()
    for name in ("trainer_state.json", "optimizer.pt"):
        (folder / name).write_text("{}")
        here.note(folder / name, f"checkpoint-5/{name}")
    (here.run.files / "notes.txt").write_text("notes")
    (here.run.files / ".x.12.remote-train-partial").write_text("part")
    other = tmp_path / "elsewhere.txt"
    other.write_text("x")
    here.note(other, "elsewhere.txt")
    rows = here.list()
    assert rows.keys() == {"files/checkpoint-5", "files/notes.txt", str(other)}
    assert (rows["files/checkpoint-5"]["files"], rows["files/checkpoint-5"]["size"]) == (2, 4)
    assert (rows["files/notes.txt"]["intact"], rows["files/notes.txt"]["saved"]) == (None, None)
    os.utime(folder / "optimizer.pt", (1, 1))
    assert here.list()["files/checkpoint-5"]["intact"] is False


def test_a_run_without_any(here: Here) -> None:
    assert here.list() == {}
    (here.run.folder / "pulled.json").write_text('{"x": 7, "y": []}')
    assert here.list() == {}


def test_several_files_hold_one_model() -> None:
    one = Contents("safetensors", 10, tensors={"a": ("float32", (2,))}, parameters=2, dtypes=("float32",))
    two = Contents(
        "safetensors", 10, tensors={"b": ("bfloat16", (3,))}, parameters=3, dtypes=("bfloat16",), step=5
    )
    joined = join_contents([one, two])
    assert joined is not None
    assert (joined.parameters, joined.dtypes, joined.step, joined.size) == (5, ("float32", "bfloat16"), 5, 20)
    bad = Contents("unreadable", 0, why="it is empty")
    assert join_contents([one, bad]) is bad
    assert join_contents([]) is None


def test_lines() -> None:
    rows = [{"path": f"files/{number}.pt"} for number in range(MOST + 2)]
    assert list_lines(rows)[-2:] == [f"files/{MOST - 1}.pt", "and 2 more"]
    assert list_lines(None) == []
    assert render_checkpoint({"path": "a\x1b[31mb", "contents": "x\r\ny"}).isprintable()
