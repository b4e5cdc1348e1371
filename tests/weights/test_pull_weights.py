"""`pull --weights`: the model alone comes home, verified like any file, and counts as no copy of the checkpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from remote_train.contents import read_contents
from remote_train.errors import HostSpace, PullIncomplete
from remote_train.pull import PullWish
from remote_train.records import read_json
from remote_train.restorable import list_here
from remote_train.retention import list_home
from tests.core.cutting_link import CuttingLink
from tests.core.test_pull_files import Puller, _no_pauses
from tests.faults.tiny_disk import tiny_tmpfs
from tests.weights.checkpoints import make_model, read_safetensors, same, save, save_trained
from tests.weights.test_contents import write_safetensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.account_kit import Account

__all__ = ["_no_pauses"]

pytestmark = pytest.mark.torch

WEIGHTS = PullWish(weights=True)


@pytest.fixture
def puller(account: Account) -> Iterator[Puller]:
    made = Puller(account, "pass")
    yield made
    for pull in made.pulls:
        pull.session.close()


def notes(puller: Puller) -> list[str]:
    return [facts["text"] for kind, facts in puller.ears().told if kind == "note"]


def test_the_newest_checkpoints_model_comes_home_across_cuts(puller: Puller) -> None:
    state = save_trained(puller.code / "out" / "ckpt.pt", 256)
    os.utime(save(puller.code / "out" / "old.pt", {"w": state["0.weight"]}), (1, 1))
    whole = (puller.code / "out" / "ckpt.pt").stat()
    pulled = puller.pull(CuttingLink([(None, 5000), (600, None), (200_000, None), (250_000, None)])).bring(
        WEIGHTS
    )
    (path,) = pulled.files
    assert path == puller.run.files / "out" / "ckpt.pt.weights.safetensors"
    assert same(read_safetensors(path)[1], state)
    assert pulled.bytes == path.stat().st_size < whole.st_size / 2.8
    assert notes(puller)[-1] == (
        f"out/ckpt.pt: {path.stat().st_size:,} bytes of weights in place of {whole.st_size:,}"
    )
    entry = read_json(puller.run.folder / "pulled.json")[str(path)]
    assert (entry["weights_of"], entry["saved_ns"]) == ("out/ckpt.pt", whole.st_mtime_ns)

    again = puller.pull().bring(WEIGHTS)
    assert (again.files, again.unchanged) == ([], [path])
    assert list(list_here(puller.run)) == [], "no run may go on from them"
    assert list_home(puller.run) == [], "no copy of the checkpoint is at home"
    path.write_bytes(b"mine")
    with pytest.raises(PullIncomplete, match="left as they are"):
        puller.pull().bring(WEIGHTS)
    assert path.read_bytes() == b"mine"


@pytest.mark.slow
def test_every_checkpoint_that_matches_in_another_dtype(puller: Puller) -> None:
    save_trained(puller.code / "out" / "a.pt", 256)
    save_trained(puller.code / "out" / "b.pt", 32)
    files = puller.pull().bring(PullWish(weights=True, dtype="bf16", match=("out/*.pt",))).files
    assert {path.name for path in files} == {"a.pt.bf16.safetensors", "b.pt.bf16.safetensors"}
    assert {read_contents(path).dtypes[0] for path in files} == {"bfloat16"}
    alone = (puller.run.files / "out" / "a.pt.bf16.safetensors").stat().st_size
    assert alone < (puller.code / "out" / "a.pt").stat().st_size / 5.5


def test_safetensors_of_a_folder_come_as_they_are(puller: Puller) -> None:
    folder = puller.code / "checkpoint-7"
    folder.mkdir()
    entry = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    write_safetensors(folder / "model.safetensors", entry, bytes(8))
    (folder / "trainer_state.json").write_text("{}")
    save(folder / "optimizer.pt", {"state": {}})
    puller.pull().bring(WEIGHTS)
    assert set(puller.here()) == {"checkpoint-7/model.safetensors"}
    assert list(list_here(puller.run)) == [], "a part of a checkpoint is none"
    assert puller.pull().bring(PullWish(weights=True, match=("*.xyz",))).files == []
    puller.pull().bring(PullWish(weights=True, dtype="fp16"))
    assert read_contents(puller.run.files / "checkpoint-7.fp16.safetensors").dtypes == ("float16",)
    puller.pull().bring(PullWish())
    assert puller.pull().bring(WEIGHTS).files == []
    (whole,) = list_here(puller.run)
    assert {file.path for file in whole.files} == {f"checkpoint-7/{path.name}" for path in folder.iterdir()}
    assert len(list_home(puller.run)) == 3


def test_a_host_without_room_is_14(puller: Puller) -> None:
    save(puller.code / "ckpt.pt", make_model(512).state_dict())
    with tiny_tmpfs(puller.started.folder / "weights", 1 << 20), pytest.raises(HostSpace) as raised:
        puller.pull().bring(WEIGHTS)
    assert raised.value.exit_code == 14
    assert "bytes were to be written" in str(raised.value)
