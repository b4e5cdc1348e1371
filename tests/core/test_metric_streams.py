"""What the meter and the script say of a training comes home like its output: every byte once, across cuts."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

import remote_train.reconnect as reconnecting
from remote_train.follow import OUTPUTS_ALWAYS, Following, Wish, read_end
from remote_train.host import layout
from tests.core.cutting_link import CuttingLink, Ears
from tests.host.account_kit import account, until

if TYPE_CHECKING:
    from tests.host.account_kit import Account, Started

__all__ = ["account"]

WRITER = """
import os, random, sys
chance = random.Random(sys.argv[1])
files = [open(os.environ[name], "ab", buffering=0) for name in ("REMOTE_TRAIN_METER", "REMOTE_TRAIN_REPORT")]
for number in range(400):
    chance.choice(files).write(chance.randbytes(chance.choice((1, 7, 90, 3000))) + b"\\n")
"""

CUTTER = """
import json, os
name = os.environ["REMOTE_TRAIN_REPORT"]
with open(name, "w") as report:
    for step in range(100):
        report.write(json.dumps({"step": step}) + "\\n")
print("written", flush=True)
while not os.path.exists("cut"):
    pass
with open(name, "w") as report:
    report.write('{"step": 7}\\n')
"""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(reconnecting, "LONGEST_PAUSE", 0.02)


def make_following(account: Account, started: Started, link: CuttingLink) -> Following:
    wish = Wish(account.client_run(started), 1, ["0", *OUTPUTS_ALWAYS], {0})
    return Following(wish, link, Ears(), writing=True)


def test_twenty_cuts_lose_and_repeat_nothing(account: Account) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    cuts = [(chance.choice((chance.randrange(1, 300), chance.randrange(1, 40_000))), None) for _ in range(20)]
    link = CuttingLink(cuts)
    started = account.start(WRITER, str(seed))
    following = make_following(account, started, link)
    following.attach()
    assert following.run().state == "ended"
    mirror = following.wish.run.attempt(1)
    for name in OUTPUTS_ALWAYS:
        there = started.folder / layout.OTHERS[name]
        assert mirror.output(name).read_bytes() == there.read_bytes() if there.exists() else True
        assert mirror.offset(name) == started.end()["others"][name]
    assert mirror.offset("meter") > 10_000
    assert mirror.offset("report") > 10_000
    assert not link.cuts
    assert read_end(mirror) is not None


def test_a_script_that_rewrites_its_report_harms_nothing_else(account: Account) -> None:
    started = account.start(CUTTER)
    started.says(b"written")
    first = make_following(account, started, CuttingLink())
    first.on_data = lambda name, _data: first.close() if name == "report" else None
    link = CuttingLink()
    first.link = link
    first.attach()
    mirror = first.wish.run.attempt(1)

    def take() -> bool:
        assert first.session is not None
        item = first.session.next_item(0.1)
        if item is not None:
            first._take(item)
        return mirror.offset("report") > 1000

    until(take, "the report")
    (started.folder / "code" / "cut").touch()
    assert started.end()["code"] == 0
    assert first.run().state == "ended"
    assert link.connections >= 2
    assert mirror.output("report").read_bytes().count(b"\n") == 100
    assert read_end(mirror) is not None
