"""Checkpoints come home while the run is followed: whole, the newest first, and the output does not wait for them."""

from __future__ import annotations

import os
import random
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from remote_train import reconnect as reconnecting
from remote_train.api import Training
from remote_train.errors import LocalSpace, PullIncomplete, RemoteTrainError, TrainingFailed
from remote_train.landing import PARTIAL
from remote_train.pull import PullWish
from tests.core.cutting_link import CuttingLink, Ears
from tests.faults.tiny_disk import tiny_tmpfs
from tests.host.account_kit import sha256, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.host.account_kit import Account, Started

SCRIPT = """
import json, os, random, sys, time
from remote_train import report

def save(name, size, seed):
    header = json.dumps({"t": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name + ".tmp", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(size))
    os.replace(name + ".tmp", name)
    report.checkpoint(name)

def wait(word):
    while not os.path.exists(os.path.expanduser("~/" + word)):
        time.sleep(0.01)

print("up", flush=True)
"""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(reconnecting, "LONGEST_PAUSE", 0.02)


@contextmanager
def mounted_on(path: Path) -> Iterator[None]:
    """Mount a file on itself: it is busy then."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if subprocess.run(["mount", "--bind", str(path), str(path)], check=False).returncode != 0:
        pytest.skip("nothing may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


class Watched:
    """A training that is followed in a thread; words let it go on."""

    def __init__(self, account: Account, script: str, link: CuttingLink | None = None) -> None:
        self.account = account
        self.started: Started = account.start(SCRIPT + script)
        self.run = account.client_run(self.started)
        self.code = self.started.folder / "code"
        self.ears = Ears()
        self.training = Training(self.run, link or CuttingLink())
        self.error: RemoteTrainError | None = None
        self._thread: threading.Thread | None = None

    def say(self, word: str) -> None:
        (self.account.home / word).touch()

    def follow(self, act: Callable[[], object] | None = None, **more: Any) -> None:
        act = act or (lambda: self.training.follow(self.ears, shown={0}, **more))

        def work() -> None:
            try:
                act()
            except RemoteTrainError as error:
                self.error = error

        self._thread = threading.Thread(target=work)
        self._thread.start()

    def end(self) -> None:
        self.say("end")
        self.ends()

    def ends(self) -> None:
        assert self._thread is not None
        self._thread.join(60)
        assert not self._thread.is_alive()

    def here(self, name: str) -> Path:
        return self.run.files / name

    def comes(self, name: str) -> bytes:
        until(self.here(name).exists, f"{name} here; {self.ears.told[-5:]}")
        return self.here(name).read_bytes()

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [facts for told, facts in self.ears.told if told == kind]

    def left(self) -> list[Path]:
        return [path for path in self.run.folder.rglob("*") if path.name.endswith(PARTIAL)]


@pytest.fixture
def watch(account: Account) -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def begin(*args: Any) -> Watched:
        made.append(Watched(account, *args))
        return made[-1]

    yield begin
    for watched in made:
        watched.say("end")
        for word in range(20):
            watched.say(str(word))
        if watched._thread is not None:
            watched._thread.join(30)


THREE = """
for number in range(3):
    wait(str(number))
    save("out/%d.safetensors" % number, 300_000, number)
wait("end")
"""


def test_each_comes_as_it_is_committed_and_is_told_of(watch: Callable[..., Watched]) -> None:
    watched = watch(THREE)
    watched.follow()
    for number in range(3):
        name = f"out/{number}.safetensors"
        assert not watched.here(name).exists()
        watched.say(str(number))
        assert watched.comes(name) == (watched.code / name).read_bytes()
        until(lambda: len(watched.told("pulled")) == number + 1, "the word of it")  # noqa: B023  (at once)
    watched.end()
    assert watched.error is None
    assert [facts["path"] for facts in watched.told("pulled")] == [
        str(watched.here(f"out/{number}.safetensors")) for number in range(3)
    ]
    assert watched.left() == []


def test_none_comes_when_none_is_wanted(watch: Callable[..., Watched]) -> None:
    watched = watch("save('0.safetensors', 1000, 0); wait('end')")
    watched.follow(pull=False)
    until(lambda: watched.ears.heard, "output")
    watched.end()
    assert not watched.run.files.exists()
    assert watched.told("remaining") == []


def test_lost_connections_do_not_lose_it_nor_the_output(watch: Callable[..., Watched]) -> None:
    size = 9_000_000
    link = CuttingLink([(1_500_000 + number, None) for number in range(5)])
    watched = watch(
        f"save('big.safetensors', {size}, 1)\nfor n in range(20000): print('line', n)\nwait('end')", link
    )
    watched.follow()
    assert watched.comes("big.safetensors") == (watched.code / "big.safetensors").read_bytes()
    watched.end()
    assert watched.error is None
    assert bytes(watched.ears.heard) == watched.started.output()
    assert link.connections == 6


ROTATING = """
for number in range(12):
    save("out/%d.safetensors" % number, 2_000_000, number)
    if number >= 2:
        os.remove("out/%d.safetensors" % (number - 2))
    time.sleep(0.05)
wait("end")
"""


def test_rotation_is_no_error_and_the_newest_come(watch: Callable[..., Watched]) -> None:
    watched = watch(ROTATING)
    watched.follow()
    watched.comes("out/11.safetensors")
    watched.comes("out/10.safetensors")
    watched.end()
    assert watched.error is None
    for path in watched.run.files.rglob("*.safetensors"):
        number = int(path.stem)
        assert sha256(path.read_bytes()[-2_000_000:]) == sha256(random.Random(number).randbytes(2_000_000))


IN_PLACE = """
for number in range(30):
    with open("ckpt.safetensors", "wb") as file:
        size = 1_000_000
        header = json.dumps({"t": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(10):
            file.write(bytes([number]) * (size // 10))
            time.sleep(0.002)
    time.sleep(random.Random(number).choice((0.001, 0.01, 0.1)))
    if number % 10 == 9:
        wait(str(number))
wait("end")
"""


def test_what_is_rewritten_in_place_is_never_a_mix(watch: Callable[..., Watched]) -> None:
    watched = watch(IN_PLACE)
    watched.follow()
    for number in (9, 19, 29):

        def look(wanted: int = number) -> bool:
            data = (
                watched.here("ckpt.safetensors").read_bytes()
                if watched.here("ckpt.safetensors").exists()
                else b""
            )
            assert len(set(data[-1_000_000:])) <= 1
            return data[-1:] == bytes([wanted])

        until(look, f"version {number}")
        watched.say(str(number))
    watched.end()
    assert watched.error is None


FOLDER = """
for step in (1, 2):
    wait(str(step))
    os.makedirs("tmp-%d" % step)
    for name in ("model", "optimizer"):
        save("tmp-%d/%s.safetensors" % (step, name), 400_000, step)
    open("tmp-%d/trainer_state.json" % step, "w").write('{"step": %d}' % step)
    os.rename("tmp-%d" % step, "checkpoint-%d" % step)
wait("end")
"""


def test_a_folder_takes_its_name_when_all_of_it_is_here(watch: Callable[..., Watched]) -> None:
    watched = watch(FOLDER)
    watched.follow()
    for step in (1, 2):
        watched.say(str(step))
        until(watched.here(f"checkpoint-{step}").exists, "the folder")
        names = sorted(path.name for path in watched.here(f"checkpoint-{step}").iterdir())
        assert names == ["model.safetensors", "optimizer.safetensors", "trainer_state.json"]
        until(lambda: len(watched.told("arrived")) == step, "the word of it")  # noqa: B023  (at once)
    watched.end()
    assert watched.error is None


def test_of_a_run_that_fails_they_come_too(watch: Callable[..., Watched]) -> None:
    watched = watch("save('0.safetensors', 1000, 0); wait('end'); sys.exit(3)")
    watched.follow()
    watched.comes("0.safetensors")
    watched.end()
    assert isinstance(watched.error, TrainingFailed)


def test_one_that_was_saved_at_the_very_end_of_a_failing_run_comes(watch: Callable[..., Watched]) -> None:
    watched = watch("wait('end'); save('0.safetensors', 1000, 0); sys.exit(3)")
    watched.follow()
    watched.end()
    assert isinstance(watched.error, TrainingFailed)
    assert watched.here("0.safetensors").exists()


def test_what_remains_on_the_host_is_offered_with_its_size(watch: Callable[..., Watched]) -> None:
    watched = watch("save('0.safetensors', 1000, 0); open('notes.txt', 'w').write('x' * 77); wait('end')")
    watched.follow()
    watched.end()
    [offer] = watched.told("remaining")
    assert (offer["files"], offer["bytes"], offer["host"]) == (1, 77, "local")


def test_a_full_disk_stops_them_and_not_the_stream(watch: Callable[..., Watched]) -> None:
    watched = watch(
        "wait('1')\nsave('0.safetensors', 3_000_000, 0)\nwait('2')\nprint('more', flush=True)\nwait('end')"
    )
    with tiny_tmpfs(watched.run.files, 1 << 20):
        watched.follow()
        watched.say("1")
        [warning] = until(lambda: watched.told("warn"), "the warning")
        assert "come home no more" in warning["text"]
        watched.say("2")
        until(lambda: b"more" in watched.ears.heard, "the output")
        watched.end()
        assert isinstance(watched.error, LocalSpace)
        assert "need" in watched.error.facts
        assert bytes(watched.ears.heard) == watched.started.output()
        assert list(watched.run.files.iterdir()) == []


def test_they_come_without_the_output_and_only_the_newest_stay(watch: Callable[..., Watched]) -> None:
    link = CuttingLink()
    watched = watch(THREE, link)
    wish = PullWish(keep_last=2)
    watched.follow(lambda: watched.training.pull_along(wish, watched.ears))
    for number in range(2):
        watched.say(str(number))
        watched.comes(f"out/{number}.safetensors")
    mine = watched.here("out/mine.safetensors")
    mine.write_bytes(b"mine")
    watched.say("2")
    watched.comes("out/2.safetensors")
    until(lambda: not watched.here("out/0.safetensors").exists(), "the oldest to go")
    watched.end()
    assert watched.error is None
    assert sorted(path.name for path in mine.parent.iterdir()) == [
        "1.safetensors",
        "2.safetensors",
        "mine.safetensors",
    ]
    assert not watched.ears.heard
    assert link.connections == 1, "for another one a person might have to be asked again"
    assert watched.training.pull_along(wish).files == []  # of a run that has ended too


def test_one_that_was_changed_here_stays_though_it_is_old(watch: Callable[..., Watched]) -> None:
    watched = watch(THREE)
    for number in range(3):
        watched.say(str(number))
    watched.say("end")
    watched.started.end()
    watched.training.pull()
    watched.here("out/0.safetensors").write_bytes(b"mine now")
    watched.training.pull(PullWish(keep_last=1))
    assert sorted(path.name for path in watched.here("out").iterdir()) == ["0.safetensors", "2.safetensors"]
    assert watched.here("out/0.safetensors").read_bytes() == b"mine now"


def test_a_flood_of_output_comes_beside_them(watch: Callable[..., Watched]) -> None:
    """While eight checkpoints of 5 MB come, every byte of the output comes, and it is not held up for any of them."""
    script = """
for number in range(8):
    save("%d.safetensors" % number, 5_000_000, number)
    for line in range(3000):
        os.write(1, b"%d %d " % (number, line) + b"x" * 90 + b"\\n")
wait("end")
"""
    watched = watch(script)
    watched.follow()
    for number in range(8):
        watched.comes(f"{number}.safetensors")
    watched.end()
    assert watched.error is None
    assert bytes(watched.ears.heard) == watched.started.output()


def test_an_old_one_that_cannot_be_removed_is_said(
    watch: Callable[..., Watched],
) -> None:
    watched = watch(THREE)
    watched.follow(lambda: watched.training.pull_along(PullWish(keep_last=1), watched.ears))
    watched.say("0")
    watched.comes("out/0.safetensors")
    until(lambda: watched.told("pulled"), "the word of it")
    with mounted_on(watched.here("out/0.safetensors")):  # the kernel does not remove it
        watched.say("1")
        watched.ends()
    assert isinstance(watched.error, PullIncomplete)
    assert "0.safetensors" in str(watched.error)


def test_one_that_has_no_place_here_does_not_stop_the_others(watch: Callable[..., Watched]) -> None:
    watched = watch(
        "wait('0'); save('out/0.safetensors', 1000, 0); wait('1'); save('1.safetensors', 1000, 1); wait('end')"
    )
    watched.run.files.mkdir(parents=True)
    watched.here("out").write_text("a file of mine where a folder must be")
    watched.follow()
    watched.say("0")
    [warning] = until(lambda: watched.told("warn"), "the warning")
    assert "the next ones will" in warning["text"]
    watched.say("1")
    assert watched.comes("1.safetensors")
    watched.end()
    assert watched.error is None
