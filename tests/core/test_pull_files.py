"""Pull: whole and verified or not at all, and nothing of the user's is ever lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from remote_train import reconnect as reconnecting
from remote_train.blocks import Blocks, Fetcher
from remote_train.errors import (
    ConnectionGivenUp,
    ConnectionLost,
    LocalSpace,
    PullIncomplete,
    UsageError,
    VerificationFailed,
)
from remote_train.host.credit import CEILING, HELD
from remote_train.pull import Pull, PullWish
from tests.core.cutting_link import CuttingLink, Ears
from tests.host.account_kit import Started, sha256
from tests.host.container_kit import make_zip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from remote_train.listed import Row, Unit
    from remote_train.partial import Partial
    from remote_train.records import Run
    from remote_train.session import Inbox
    from tests.host.account_kit import Account

MAKING = """
import os
os.makedirs("out/deep/er", exist_ok=True)
os.makedirs("checkpoint-10"); os.makedirs("checkpoint-9")
open("out/ckpt.pt", "wb").write(b"model" * 100000)
open("out/deep/er/a b \\u00e9.pt", "wb").write(b"deep")
open("out/empty.pt", "wb").close()
open("notes.txt", "w").write("notes")
for n in (9, 10):
    header = b'{"__metadata__":{"number":"%d"}}' % n
    open("checkpoint-%d/model.safetensors" % n, "wb").write(len(header).to_bytes(8, "little") + header)
    open("checkpoint-%d/trainer_state.json" % n, "w").write('{"number": %d}' % n)
os.symlink("/etc/passwd", "evil.pt")
os.mkfifo("pipe.pt")
"""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(reconnecting, "LONGEST_PAUSE", 0.02)


class Puller:
    """A finished run and what pulls it."""

    def __init__(self, account: Account, script: str = MAKING) -> None:
        self.started: Started = account.start(script)
        self.ended = self.started.end()
        assert self.ended["code"] == 0, self.started.output()
        self.run: Run = account.client_run(self.started)
        self.code = self.started.folder / "code"
        self.pulls: list[Pull] = []

    def pull(self, link: CuttingLink | None = None, kind: type[Pull] = Pull) -> Pull:
        link = link or CuttingLink()
        self.pulls.append(kind(self.run, 1, link, link.connect(), Ears()))
        return self.pulls[-1]

    def ears(self) -> Ears:
        ears = self.pulls[-1].listener
        assert isinstance(ears, Ears)
        return ears

    def here(self, folder: Path | None = None) -> dict[str, bytes]:
        root = folder or self.run.files
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def there(self, *paths: str) -> dict[str, bytes]:
        return {path: (self.code / path).read_bytes() for path in paths}


@pytest.fixture
def puller(account: Account) -> Iterator[Puller]:
    made = Puller(account)
    yield made
    for pull in made.pulls:
        pull.session.close()


CHECKPOINTS = ("out/ckpt.pt", "out/deep/er/a b \u00e9.pt")
EMPTY = "out/empty.pt"
FOLDERS = tuple(
    f"checkpoint-{n}/{name}" for n in (9, 10) for name in ("model.safetensors", "trainer_state.json")
)


def test_checkpoints_by_their_usual_names(puller: Puller) -> None:
    pulled = puller.pull().bring(PullWish())
    assert puller.here() == puller.there(*CHECKPOINTS, *FOLDERS)
    assert pulled.bytes == sum(map(len, puller.here().values()))
    assert {facts["sha256"] for kind, facts in puller.ears().told if kind == "pulled"} == {
        sha256(data) for data in puller.here().values()
    }


def test_what_is_not_whole_is_named_and_comes_when_it_is_asked_for(puller: Puller) -> None:
    puller.pull().bring(PullWish())
    [note] = [facts["text"] for kind, facts in puller.ears().told if kind == "note"]
    assert EMPTY in note
    assert f"--match '{EMPTY}'" in note
    puller.pull().bring(PullWish(match=(EMPTY,)))
    assert puller.here()[EMPTY] == b""


def test_a_folder_is_here_whole_or_not_at_all(puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    real = Fetcher.fetch

    def look(self: Fetcher, path: str, partial: Partial, listed: Row | None) -> dict[str, Any]:
        seen.append({item.name for item in puller.run.files.iterdir()})
        return real(self, path, partial, listed)

    monkeypatch.setattr(Fetcher, "fetch", look)
    puller.pull().bring(PullWish())
    assert len(seen) == 6
    for names in seen:
        for folder in (puller.run.files / name for name in names if name.startswith("checkpoint-")):
            assert len(list(folder.iterdir())) == 2
    arrived = [facts["unit"] for kind, facts in puller.ears().told if kind == "arrived"]
    assert sorted(arrived) == ["checkpoint-10", "checkpoint-9"]
    again = puller.pull().bring(PullWish())
    assert again.files == []


def test_one_that_is_longer_than_this_disk_once_it_was_listed_is_left(puller: Puller) -> None:
    class Growing(Pull):
        def list_files(self, wish: PullWish) -> list[Row]:
            rows = super().list_files(wish)
            os.truncate(puller.code / EMPTY, 2**43)
            return rows

    with pytest.raises(LocalSpace, match=r"empty\.pt has 8,796,093,022,208 bytes to come"):
        puller.pull(kind=Growing).bring(PullWish(match=(EMPTY,)))
    assert puller.here() == {}


def test_everything_is_everything_the_run_made_and_not_its_package(puller: Puller) -> None:
    puller.pull().bring(PullWish(everything=True))
    assert puller.here() == puller.there(*CHECKPOINTS, EMPTY, *FOLDERS, "notes.txt")


@pytest.mark.parametrize("finished", [False, True])
def test_a_checkpoint_that_is_half_written_again_once_it_was_listed_is_not_brought(
    account: Account, finished: bool
) -> None:
    """The half holds still while it is read: only that it is not what was listed tells."""
    puller = Puller(account, "open('ckpt.pt', 'wb').write(b'x')")
    place = puller.code / "ckpt.pt"
    versions = [make_zip({"data": bytes([number]) * 100_000}) for number in range(2)]
    place.write_bytes(versions[0])

    class Rewriting(Pull):
        def list_files(self, wish: PullWish) -> list[Row]:
            rows = super().list_files(wish)
            place.write_bytes(versions[1][:50_000])
            return rows

        def _look_again(self, wish: PullWish) -> list[Unit]:
            place.write_bytes(versions[1] if finished else versions[1][:70_000])
            return super()._look_again(wish)

    pull = puller.pull(kind=Rewriting)
    if finished:
        pull.bring(PullWish())
        assert puller.here() == {"ckpt.pt": versions[1]}
    else:
        with pytest.raises(PullIncomplete, match=r"ckpt\.pt changed"):
            pull.bring(PullWish())
        assert puller.here() == {}
    pull.session.close()


WRITING = """
import os, time, zipfile
with open("ckpt.pt", "wb") as file:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", b"weights")
    file.flush()
    open("old.pt", "wb").write(open("ckpt.pt", "rb").read())
    print("writing", flush=True)
    while not os.path.exists("go"):
        time.sleep(0.01)
print("written", flush=True)
time.sleep(600)
"""


def test_a_checkpoint_that_is_being_written_is_told_of_and_brought_once_it_is_not(account: Account) -> None:
    started = account.start(WRITING)
    started.says(b"writing")
    puller = Puller.__new__(Puller)
    puller.run, puller.code, puller.pulls = account.client_run(started), started.folder / "code", []
    with pytest.raises(PullIncomplete, match=r"ckpt\.pt"):
        puller.pull().bring(PullWish(match=("ckpt.pt",)))
    assert puller.here() == {}
    puller.pull().bring(PullWish())  # of what there is, that which is whole
    assert set(puller.here()) == {"old.pt"}
    assert any(
        "ckpt.pt is being written" in str(facts["text"])
        for kind, facts in puller.ears().told
        if kind == "note"
    )
    (puller.code / "go").touch()
    started.says(b"written")
    puller.pull().bring(PullWish(match=("ckpt.pt",)))
    assert puller.here() == puller.there("ckpt.pt", "old.pt")
    for pull in puller.pulls:
        pull.session.close()


def test_globs_and_another_folder(puller: Puller, tmp_path: Path) -> None:
    puller.pull().bring(PullWish(match=("*.txt", "out/*.pt"), to=tmp_path / "there" / "yet"))
    expected = puller.there("notes.txt", "out/ckpt.pt", "out/empty.pt")
    assert puller.here(tmp_path / "there" / "yet") == expected
    assert not puller.run.files.exists()


def test_the_latest_folder_comes_whole(puller: Puller) -> None:
    for path in (puller.code / "checkpoint-10").iterdir():
        os.utime(path, ns=(2**61, 2**61))
    puller.pull().bring(PullWish(latest=True))
    assert puller.here() == puller.there(
        "checkpoint-10/model.safetensors", "checkpoint-10/trainer_state.json"
    )


def test_a_second_pull_fetches_nothing_and_a_new_version_replaces_the_old(puller: Puller) -> None:
    puller.pull().bring(PullWish(match=("ckpt.pt",)))
    again = puller.pull().bring(PullWish(match=("ckpt.pt",)))
    assert (again.files, [path.name for path in again.unchanged]) == ([], ["ckpt.pt"])
    (puller.code / "out" / "ckpt.pt").write_bytes(b"newer")
    newer = puller.pull().bring(PullWish(match=("ckpt.pt",)))
    assert [path.read_bytes() for path in newer.files] == [b"newer"]


def test_what_the_user_has_there_is_kept(puller: Puller) -> None:
    mine = puller.run.files / "out" / "ckpt.pt"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(PullIncomplete, match=r"ckpt\.pt"):
        puller.pull().bring(PullWish())
    assert mine.read_bytes() == b"mine"
    others = set(CHECKPOINTS + FOLDERS) - {"out/ckpt.pt"}
    assert {path: data for path, data in puller.here().items() if data != b"mine"} == puller.there(*others)


def test_what_the_user_changed_after_a_pull_is_kept(puller: Puller) -> None:
    puller.pull().bring(PullWish(match=("ckpt.pt",)))
    mine = puller.run.files / "out" / "ckpt.pt"
    mine.write_bytes(b"edited")
    (puller.code / "out" / "ckpt.pt").write_bytes(b"newer")
    with pytest.raises(PullIncomplete):
        puller.pull().bring(PullWish(match=("ckpt.pt",)))
    assert mine.read_bytes() == b"edited"


def test_a_file_where_a_folder_must_be_is_an_error_of_ours(puller: Puller) -> None:
    puller.run.files.mkdir()
    (puller.run.files / "out").write_text("a file")
    with pytest.raises(PullIncomplete):
        puller.pull().bring(PullWish(match=("ckpt.pt",)))
    assert (puller.run.files / "out").read_text() == "a file"


class Disturbed(Fetcher):
    """Something happens on the host when the first bytes have been asked for."""

    times = 1
    disturb: Callable[[], object] = int

    def _take(self, inbox: Inbox, path: str, blocks: Blocks) -> dict[str, Any]:
        if self.times > 0:
            self.times -= 1
            self.disturb()
        return super()._take(inbox, path, blocks)


def disturbed(puller: Puller, disturb: Callable[[], object], times: int = 1) -> Pull:
    """Return a pull that is disturbed so often."""
    pull = puller.pull()
    pull.fetcher = fetcher = Disturbed(puller.run.id, 1, pull.fetcher.line, "local")
    fetcher.disturb, fetcher.times = disturb, times
    return pull


@pytest.fixture
def big(account: Account) -> Iterator[Puller]:
    """More than one window of credit: the agent cannot have sent it before the disturbance."""
    made = Puller(account, "open('big.pt', 'wb').write(b'old' * 3_000_000)")
    yield made
    for pull in made.pulls:
        pull.session.close()


def test_a_file_that_changes_while_it_is_read_is_read_again(big: Puller) -> None:
    disturbed(big, lambda: (big.code / "big.pt").write_bytes(b"new" * 2_000_000)).bring(PullWish())
    assert big.here() == {"big.pt": b"new" * 2_000_000}


@pytest.mark.parametrize("pulled_before", [False, True])
def test_what_the_user_puts_there_while_it_comes_is_kept(big: Puller, pulled_before: bool) -> None:
    mine = big.run.files / "big.pt"
    if pulled_before:
        big.pull().bring(PullWish())
        (big.code / "big.pt").write_bytes(b"new" * 3_000_000)
    with pytest.raises(PullIncomplete, match=r"big\.pt"):
        disturbed(big, lambda: mine.write_bytes(b"mine")).bring(PullWish())
    assert big.here() == {"big.pt": b"mine"}
    mine.unlink()
    big.pull().bring(PullWish())
    assert big.here() == big.there("big.pt")


def test_a_file_that_never_holds_still_is_left_and_named(big: Puller) -> None:
    # More than the agent sends of what nobody has looked at, however fast the line became meanwhile.
    sizes = iter(range(CEILING + 2 * HELD, CEILING + 3 * HELD))
    pull = disturbed(big, lambda: os.truncate(big.code / "big.pt", next(sizes)), times=99)
    with pytest.raises(PullIncomplete, match=r"big\.pt changed"):
        pull.bring(PullWish())
    assert big.here() == {}


def test_a_file_that_is_replaced_while_it_is_read_arrives_whole(big: Puller) -> None:
    def replace() -> None:
        (big.code / "tmp").write_bytes(b"new" * 10)
        (big.code / "tmp").replace(big.code / "big.pt")

    disturbed(big, replace).bring(PullWish())
    assert big.here()["big.pt"] in (b"old" * 3_000_000, b"new" * 10)


def test_a_file_that_is_removed_before_it_is_read_is_noted(big: Puller) -> None:
    class Removing(Pull):
        def list_files(self, wish: PullWish) -> list[Row]:
            rows = super().list_files(wish)
            (big.code / "big.pt").unlink()
            return rows

    with pytest.raises(PullIncomplete, match=r"big\.pt: removed on the host"):
        big.pull(kind=Removing).bring(PullWish())
    assert "note" in big.ears().kinds()
    assert big.here() == {}


def test_when_the_newest_is_rotated_away_the_next_newest_comes(big: Puller) -> None:
    class Rotating(Pull):
        def list_files(self, wish: PullWish) -> list[Row]:
            rows = super().list_files(wish)
            (big.code / "big.pt").unlink(missing_ok=True)
            return rows

    (big.code / "big.pt").write_bytes(make_zip({"data": b"new"}))
    (big.code / "old.pt").write_bytes(make_zip({"data": b"old"}))
    os.utime(big.code / "old.pt", ns=(10**18 + 1, 10**18 + 1))
    assert big.pull(kind=Rotating).bring(PullWish(latest=True)).files == [big.run.files / "old.pt"]


def test_cuts_do_not_lose_what_has_come(big: Puller) -> None:
    """Eight connections that break after another megabyte each; the ninth brings the rest."""
    link = CuttingLink([(1_000_000 + number, None) for number in range(8)])
    big.pull(link).bring(PullWish())
    assert big.here() == {"big.pt": b"old" * 3_000_000}
    assert link.connections == 9


def test_a_file_replaced_between_two_connections_is_never_mixed(big: Puller) -> None:
    class Replacing(CuttingLink):
        def connect(self) -> Any:
            if self.connections == 1:
                (big.code / "big.pt").write_bytes(b"NEW" * 3_000_000)
            return super().connect()

    big.pull(Replacing([(2_000_000, None)])).bring(PullWish())
    assert big.here() == {"big.pt": b"NEW" * 3_000_000}


def test_giving_up_leaves_nothing_half_written(big: Puller) -> None:
    class Gone(CuttingLink):
        def connect(self) -> Any:
            if self.connections == 1:
                raise ConnectionLost("gone")
            return super().connect()

    pull = big.pull(Gone([(1_000_000, None)]))
    with pytest.raises(ConnectionGivenUp):
        pull.bring(PullWish(give_up=0.05))
    assert big.here() == {}  # not one block had come


def test_wrong_bytes_are_never_published(big: Puller) -> None:
    class Damaged(Fetcher):
        def _take(self, inbox: Inbox, path: str, blocks: Blocks) -> dict[str, Any]:
            return {**super()._take(inbox, path, blocks), "sha256": "0" * 64}

    pull = big.pull()
    pull.fetcher = Damaged(big.run.id, 1, pull.fetcher.line, "local")
    with pytest.raises(VerificationFailed):
        pull.bring(PullWish())
    assert big.here() == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], check=False)
    if mounted.returncode != 0:
        pytest.skip("no tmpfs may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("checked", [True, False])
def test_a_full_disk_is_said_and_the_old_file_stays(
    account: Account, small_disk: Path, monkeypatch: pytest.MonkeyPatch, checked: bool
) -> None:
    """Once seen before the first byte, once in the middle (somebody else filled the disk)."""
    puller = Puller(account, "open('a.pt', 'wb').write(b'old' * 300_000)")
    wish = PullWish(to=small_disk)
    puller.pull().bring(wish)
    (puller.code / "a.pt").write_bytes(b"new" * 2_000_000)
    if not checked:
        monkeypatch.setattr(Pull, "_make_room", lambda *_: None)
    with pytest.raises(LocalSpace):
        puller.pull().bring(wish)
    assert puller.here(small_disk) == {"a.pt": b"old" * 300_000}
    for pull in puller.pulls:
        pull.session.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_folder_that_cannot_be_made_is_an_error_of_ours(puller: Puller, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((PullIncomplete, LocalSpace)):
        puller.pull().bring(PullWish(to=tmp_path / "file" / "below"))


def test_names_that_are_no_utf8_come_as_they_are(account: Account) -> None:
    puller = Puller(account, r"open(b'a\xff.pt', 'wb').write(b'x')")
    puller.pull().bring(PullWish())
    assert [os.fsencode(path.name) for path in puller.run.files.iterdir()] == [b"a\xff.pt"]
    puller.pulls[0].session.close()


SHIPPED = "open('out/ckpt.pt', 'w').write('two'); import os; os.utime('out/ckpt.pt', (1000, 1000))"


def ship_checkpoint(account: Account, script: str) -> Puller:
    """Return a finished run whose package held a checkpoint already."""
    session = account.connect()
    package = account.ship(session, {"train.py": script, "out/ckpt.pt": "one", "notes.txt": "notes"})
    session.request("start", **account.message(package))
    session.close()
    made = Puller.__new__(Puller)
    made.started, made.pulls = Started(account, "run"), []
    made.started.end()
    made.run, made.code = account.client_run(made.started), made.started.folder / "code"
    return made


@pytest.mark.parametrize("everything", [True, False])
def test_a_shipped_checkpoint_that_was_written_over_comes_whatever_its_time(
    account: Account, everything: bool
) -> None:
    """Of the same size, and older than the run: a clock was set back, or a copy kept the time of its source."""
    puller = ship_checkpoint(account, SHIPPED)
    puller.pull().bring(PullWish(everything=everything))
    assert puller.here() == {"out/ckpt.pt": b"two"}
    puller.pulls[0].session.close()


def test_a_shipped_checkpoint_that_stayed_does_not_come(account: Account) -> None:
    puller = ship_checkpoint(account, "pass")
    assert puller.pull().bring(PullWish(everything=True)).files == []
    puller.pulls[0].session.close()


def test_a_run_whose_folder_was_removed_has_no_files_any_more(puller: Puller) -> None:
    shutil.rmtree(puller.code)
    with pytest.raises(PullIncomplete, match="gone from this host") as raised:
        puller.pull().bring(PullWish())
    assert raised.value.exit_code == 40


def test_a_glob_that_means_nothing_is_a_mistake_of_whoever_typed_it(puller: Puller) -> None:
    with pytest.raises(UsageError, match="comes after"):
        puller.pull().bring(PullWish(match=("[z-a]*",)))


def test_two_names_of_one_file_here_lose_nothing(account: Account) -> None:
    """What a disk that tells no `a` from `A` shows: the second name leads to the file that came under the first."""
    puller = Puller(account, "open('model.pt', 'w').write('lower')")
    puller.pull().bring(PullWish())
    (puller.run.files / "Model.pt").hardlink_to(puller.run.files / "model.pt")
    (puller.code / "Model.pt").write_text("upper")
    with pytest.raises(PullIncomplete, match=r"the same file as model\.pt"):
        puller.pull().bring(PullWish())
    assert puller.here() == {"model.pt": b"lower", "Model.pt": b"lower"}
    for pull in puller.pulls:
        pull.session.close()
