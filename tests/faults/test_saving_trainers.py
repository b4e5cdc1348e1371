"""Pulls while a training saves: whatever way it saves, each file that lands here is a version that it finished."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from remote_train.errors import PullIncomplete
from remote_train.host.containers import check_file
from remote_train.pull import Pull, PullWish
from remote_train.records import Run
from tests.core.cutting_link import CuttingLink, Ears
from tests.faults.counts import PATIENT, is_nightly, note, seed, trials
from tests.host.account_kit import sha256, until

if TYPE_CHECKING:
    from tests.host.account_kit import Account, Started

pytestmark = [PATIENT, pytest.mark.torch]

SAVING = Path(__file__).parent / "data" / "saving.py"
WAYS = {
    "inplace": ["inplace/ckpt.pt"],
    "renamed": ["renamed/ckpt.pt"],
    "rotating": ["rotating/*.pt"],
    "hf": ["hf/checkpoint-*/**"],
}
PARTS = {"model.safetensors", "optimizer.pt", "trainer_state.json"}
GIVE_UP = 5
"""Times as many pulls as are wanted: in some nothing is whole just then."""


def open_run(started: Started, way: str) -> Run:
    """Return the run as a laptop of its own knows it, which looks for one kind of checkpoint only."""
    folder = started.account.home / "client" / way / started.run
    shutil.copytree(started.account.home / "client" / "runs" / started.run, folder)
    run = Run(started.run, folder)
    attempt = run.read()["attempts"][0]
    run.update(attempts=[{**attempt, "plan": {**attempt["plan"], "checkpoints": WAYS[way]}}])
    return run


def pull_some(started: Started, way: str, count: int) -> dict[Path, list[Path]]:
    """Pull until so many pulls have brought something, each to a folder of its own; return the files by folder."""
    run, link = open_run(started, way), CuttingLink()
    brought: dict[Path, list[Path]] = {}
    for number in range(GIVE_UP * count):
        target = run.folder.parent / f"{number}"
        session = link.connect()
        try:
            Pull(run, 1, link, session, Ears()).bring(PullWish(to=target))
        except PullIncomplete as error:
            print(f"{way}: {error}")
        finally:
            session.close()
        files = [path for path in target.rglob("*") if path.is_file()]
        brought |= {target: files} if files else {}
        if len(brought) == count:
            break
    return brought


def check_way(way: str, brought: dict[Path, list[Path]], whole: set[tuple[str, str]]) -> None:
    import torch

    for target, files in brought.items():
        for path in files:
            data = path.read_bytes()
            assert (path.relative_to(target).as_posix(), sha256(data)) in whole, path
            if path.suffix == ".pt":
                saved = torch.load(path, weights_only=True)
                assert torch.equal(saved["model"]["w"], saved["step"].float().expand_as(saved["model"]["w"]))
            elif path.suffix == ".safetensors":
                assert check_file(str(path)) is True
        folders = {path.parent for path in files} if way == "hf" else set()
        assert all({path.name for path in folder.iterdir()} == PARTS for folder in folders)


def test_what_is_pulled_while_a_training_saves_is_whole(account: Account) -> None:
    pytest.importorskip("torch")
    goal = "pulls while a training saves in place, renames, rotates, writes folders"
    count = trials(goal, 5, 200)
    counts = dict.fromkeys(WAYS, count) | ({} if is_nightly() else {"hf": 2})
    started = account.start(SAVING.read_text(), str(seed()))
    until(lambda: all(b"whole %s/" % way.encode() in started.output() for way in WAYS), "the first versions")
    account.client_run(started)
    with ThreadPoolExecutor(len(WAYS)) as pool:
        doing = {way: pool.submit(pull_some, started, way, counts[way]) for way in WAYS}
    (started.folder / "code" / "enough").touch()
    assert started.end()["code"] == 0
    said = re.findall(r"^whole (\S+) ([0-9a-f]{64})$", started.output().decode(), re.MULTILINE)
    for way, brought in ((way, future.result()) for way, future in doing.items()):
        assert len(brought) == counts[way], way
        check_way(way, brought, set(said))
        note(f"{goal}: {way}", len(brought), 0, 0.0)
