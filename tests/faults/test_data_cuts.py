"""A run whose data has to travel first, cut and killed anywhere: it starts once, with all of its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from remote_train.host import layout
from remote_train.host.trees import erase
from tests.faults.agent_farm import Break, running_farm
from tests.faults.counts import PATIENT, Goal
from tests.faults.lives import Life, no_pauses

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from tests.faults.agent_farm import Farm
    from tests.host.account_kit import Account

pytestmark = PATIENT

SIZE = 17 << 20


@pytest.fixture
def farm(account: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    no_pauses(monkeypatch)
    with running_farm(account.home) as running:
        yield running


def choose_breaks(chance: random.Random) -> list[Break]:
    """Return where connections break: most of them on the way up, some by the death of the agent."""
    ways = [
        lambda: Break(up=chance.randrange(SIZE // 2)),
        lambda: Break(up=chance.randrange(20_000)),
        lambda: Break(down=chance.randrange(3000)),
        lambda: Break(kill=chance.uniform(0.0, 0.3)),
    ]
    return [chance.choice(ways)() for _ in range(chance.randrange(1, 5))]


def test_a_run_with_data_is_cut_anywhere(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    with Goal("a run with 17 MB of data, cut and killed anywhere", reduced=4, nightly=300) as goal:
        for trial in goal:
            with trial:
                life = Life(farm, f"life{trial.number}", choose_breaks(trial.chance))
                files = {
                    "large.bin": trial.chance.randbytes(SIZE - (2 << 20)),
                    "deep/middle.bin": trial.chance.randbytes(2 << 20),
                    "small": b"small",
                    "empty": b"",
                }
                for name, content in files.items():
                    (life.project / "data" / name).parent.mkdir(parents=True, exist_ok=True)
                    (life.project / "data" / name).write_bytes(content)
                config = life.project / "remote-train.toml"
                config.write_text(config.read_text() + '[package]\ndata = ["data"]\n')
                life.live(monkeypatch)
                life.verify(settled=False)
                [place] = [path for path in (life.root / layout.DATA).iterdir() if layout.is_hash(path.name)]
                there = {
                    str(path.relative_to(place)): path.read_bytes()
                    for path in place.rglob("*")
                    if path.is_file()
                }
                assert there == files
                assert list((life.root / layout.BLOBS / layout.INCOMING).iterdir()) == []
                erase(str(place.parent))  # which is closed to whoever is not root
                life.clean()
