"""A checkpoint that is here is all of one version, and what is no checkpoint is not taken for one."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.blocks import Fetcher
from remote_train.errors import PullIncomplete
from remote_train.finish import read_standing
from remote_train.ledger import Ledger, drop_old, read_ledger
from remote_train.outcome import render_standing
from remote_train.partial import PullInterrupted
from remote_train.pull import PullWish
from remote_train.restorable import choose_newest, list_here, name_here
from tests.core.test_pull_files import Puller

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from remote_train.listed import Row
    from remote_train.partial import Partial
    from tests.host.account_kit import Account

SAVING = "import os; os.mkdir('checkpoint-last'); open('notes.txt', 'w').write('notes')"
UNIT = "checkpoint-last"
FILES = ("a_model.pth", "b_optim.json")
HOUR_NS = 3600 * 10**9


@pytest.fixture
def puller(account: Account) -> Iterator[Puller]:
    made = Puller(account, SAVING)
    save(made, 1)
    yield made
    for pull in made.pulls:
        pull.session.close()


def save(puller: Puller, version: int, unit: str = UNIT) -> None:
    """Write a checkpoint an hour after the one before."""
    (puller.code / unit).mkdir(exist_ok=True)
    for name in FILES:
        path = puller.code / unit / name
        path.write_text(json.dumps({"version": version}))
        os.utime(path, ns=(path.stat().st_atime_ns, 10**18 + version * HOUR_NS + 1))


def read_whole(puller: Puller) -> dict[str, str] | None:
    """Return what a run would go on from."""
    found = choose_newest(list_here(puller.run))
    if found is None:
        return None
    return {file.path: file.place.read_text() for file in found.files if file.place is not None}


def version(number: int) -> dict[str, str]:
    return {f"{UNIT}/{name}": json.dumps({"version": number}) for name in FILES}


def test_of_one_that_came_half_as_another_version_nothing_is_taken(
    puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    puller.pull().bring(PullWish())
    assert read_whole(puller) == version(1)
    save(puller, 2)
    real = Fetcher.fetch

    def stop(self: Fetcher, path: str, partial: Partial, listed: Row | None) -> dict[str, Any]:
        if path.endswith(FILES[1]):
            raise PullInterrupted
        return real(self, path, partial, listed)

    pull = puller.pull()
    with monkeypatch.context() as patch:
        patch.setattr(Fetcher, "fetch", stop)
        with pytest.raises(PullInterrupted):
            pull.bring(PullWish())
    assert puller.here()[f"{UNIT}/{FILES[0]}"] == b'{"version": 2}'
    assert read_whole(puller) is None
    assert name_here(puller.run) == []
    puller.pull().bring(PullWish())
    assert read_whole(puller) == version(2)


def test_a_failed_resume_says_that_the_run_has_a_checkpoint(puller: Puller) -> None:
    """The attempt itself has made none."""
    puller.pull().bring(PullWish())
    attached = SimpleNamespace(wish=SimpleNamespace(run=puller.run, attempt=2), last=None, watch=None)
    said = render_standing("run", read_standing(attached, [], home=True))  # type: ignore[arg-type]
    assert said.startswith("newest checkpoint /")
    assert f"{UNIT}/{FILES[0]} (here)" in said


@pytest.mark.parametrize("how", ["match", "latest"])
def test_a_part_is_none_until_the_rest_is_here(puller: Puller, how: str) -> None:
    puller.pull().bring(PullWish(match=(f"{UNIT}/{FILES[0]}",), latest=how == "latest"))
    if set(puller.here()) == {f"{UNIT}/{FILES[0]}"}:
        assert read_whole(puller) is None
    puller.pull().bring(PullWish(match=(f"{UNIT}/{FILES[1]}",)))
    assert read_whole(puller) == version(1)


def test_with_everything_come_whole_checkpoints_and_what_is_none_stays(puller: Puller) -> None:
    puller.pull().bring(PullWish(everything=True))
    assert read_whole(puller) == version(1)
    save(puller, 2, "checkpoint-2")
    puller.pull().bring(PullWish(keep_last=1))
    assert set(puller.here()) == {"notes.txt", *(f"checkpoint-2/{name}" for name in FILES)}


def test_the_newest_are_those_of_the_last_attempt_whatever_its_clock(tmp_path: Path) -> None:
    """The second attempt's host is a day behind."""
    ledger = Ledger(tmp_path / "pulled.json")
    for attempt, name in enumerate(("one.pt", "two.pt"), 1):
        place = tmp_path / name
        place.write_bytes(b"")
        row = {"path": name, "size": 0, "mtime_ns": 10**18 - attempt * 24 * HOUR_NS}
        empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        ledger.note({place: {**row, "sha256": empty, "attempt": attempt}})
        ledger.mark([row], tmp_path, name)
    top = os.open(tmp_path, os.O_RDONLY)
    assert drop_old(ledger, tmp_path, 1, (tmp_path, top)) == [tmp_path / "one.pt"]
    os.close(top)


def test_a_folder_of_yours_that_comes_there_meanwhile_stays_and_nothing_hidden_does(
    puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Fetcher.fetch
    mine = puller.run.files / UNIT

    def come(self: Fetcher, path: str, partial: Partial, listed: Row | None) -> dict[str, Any]:
        mine.mkdir(exist_ok=True)
        (mine / FILES[0]).write_text("mine")
        return real(self, path, partial, listed)

    pull = puller.pull()
    with monkeypatch.context() as patch:
        patch.setattr(Fetcher, "fetch", come)
        with pytest.raises(PullIncomplete):
            pull.bring(PullWish())
    with pytest.raises(PullIncomplete, match=FILES[0]):
        puller.pull().bring(PullWish())
    assert puller.here() == {f"{UNIT}/{FILES[0]}": b"mine", f"{UNIT}/{FILES[1]}": b'{"version": 1}'}


def test_what_a_killed_pull_changed_is_known_up_to_half_a_line(tmp_path: Path) -> None:
    path, journal = tmp_path / "pulled.json", tmp_path / "pulled.jsonl"
    first = Ledger(path)
    for name in ("a", "b", "c"):
        first.note({tmp_path / name: {"path": name}})
    first.drop([tmp_path / "b"])
    assert not path.exists(), "one line for each, and not all of it"
    whole = {str(tmp_path / name): {"path": name} for name in ("a", "c")}
    with journal.open("ab") as file:
        file.write(b'{"/d": {"pa')
    assert read_ledger(path) == whole
    second = Ledger(path)
    second.note({tmp_path / "e": {"path": "e"}})
    assert not journal.exists()
    second.note({tmp_path / "f": {"path": "f"}})
    assert read_ledger(path).keys() == {*whole, str(tmp_path / "e"), str(tmp_path / "f")}
    second.fold()
    assert not journal.exists()
    assert json.loads(path.read_bytes()) == second.entries == read_ledger(path)
