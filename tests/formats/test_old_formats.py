"""Runs of every format that was ever written still load, on the host and on the laptop, and can be brought home."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.host import attempt, durable, layout, system
from remote_train.records import RUN_FORMAT, client_root
from tests.e2e.machines import Laptop, make_laptop
from tests.formats.kept import BOOT, DATA, restore
from tests.host.account_kit import Account

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = sorted(path.stem for path in DATA.glob("*.json"))
OUTPUT = b"rank 0 of a run whose records are kept for later versions\n"
STEPS = b"".join(
    b"step %d/5 | loss %.4f | %.1f ms | %d tok/s\n" % (step, 5 - step / 2, 20 + step, 100 * step)
    for step in range(1, 6)
)


class Kept:
    """A laptop that has what a version left, and is its own host."""

    def __init__(self, laptop: Laptop, project: Path) -> None:
        self.laptop = laptop
        self.project = project

    def ok(self, *args: str) -> Any:
        return self.laptop.ok(self.project, *args)

    def mirror(self, run: str) -> Path:
        return self.project / "runs" / run / "attempts" / "1"


@pytest.fixture(params=FORMATS)
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    laptop = make_laptop(tmp_path / "laptop")
    project = tmp_path / "proj"
    document = json.loads((DATA / f"{request.param}.json").read_text())
    restore(document, laptop.home, project, Path(sys.prefix))
    monkeypatch.setenv("HOME", str(laptop.home))
    monkeypatch.setenv("XDG_STATE_HOME", str(laptop.home / "state"))
    client_root.cache_clear()
    yield Kept(laptop, project)
    client_root.cache_clear()


def test_the_formats_of_today_are_kept() -> None:
    assert str(layout.FORMAT) in FORMATS
    assert str(RUN_FORMAT) in FORMATS


def test_the_host_knows_how_each_run_ended(kept: Kept) -> None:
    states = {
        run: attempt.read_state(str(kept.laptop.attempt(run))) for run in ("done-1", "failed-1", "lost-1")
    }
    assert {run: state["state"] for run, state in states.items()} == {
        "done-1": "ended",
        "failed-1": "ended",
        "lost-1": "lost",
    }
    assert states["done-1"]["exit"]["code"] == 0
    assert states["failed-1"]["exit"]["first_failure"] == {"rank": 1, "code": 3, "signal": None}
    assert all(state["peak"] for state in states.values())
    assert attempt.list_runs(str(kept.laptop.root)) == ["done-1", "failed-1", "lost-1"]


@pytest.mark.parametrize("boot", [BOOT, None])
def test_a_run_without_an_end_is_lost_after_a_reboot_and_before(kept: Kept, boot: str | None) -> None:
    """Another boot, or this one with the pid given to somebody else."""
    path = kept.laptop.attempt("lost-1") / layout.ATTEMPT
    record = json.loads(path.read_text())
    assert record["boot_id"] == BOOT
    path.write_text(json.dumps({**record, "boot_id": boot or system.boot_id()}))
    assert attempt.read_state(str(path.parent))["state"] == "lost"


def test_an_agent_of_today_lists_them(kept: Kept) -> None:
    session = Account(kept.laptop.home).connect()
    listed = {run["run"]: run["state"] for run in session.request("list")["runs"]}
    assert listed == {"done-1": "ended", "failed-1": "ended", "lost-1": "lost"}
    made = session.request("files", run="done-1", attempt=1, globs=[])["files"]
    assert [item["path"] for item in made] == ["out/ckpt.pt"]
    session.close()


def test_ps_and_show(kept: Kept) -> None:
    rows = {row["run"]: row for row in kept.ok("ps", "--json").events}
    assert {run: (row["state"], row["exit"]) for run, row in rows.items()} == {
        "done-1": ("ended", "0"),
        "failed-1": ("ended", "3"),
        "lost-1": ("lost", None),
    }
    assert rows["done-1"]["loss"] == 2.5
    assert "lost-1" in kept.ok("ps", "-a").out.decode()
    for run in rows:
        shown = kept.ok("show", "--json", run).event("run")
        assert (shown["run"], shown["state"]) == (run, rows[run]["state"])
    (row,) = kept.ok("show", "--json", "done-1").event("run")["checkpoints"]
    assert (row["path"], row["intact"]) == ("files/out/ckpt.pt", True)


def test_logs_and_metrics(kept: Kept) -> None:
    assert kept.ok("logs", "done-1").out == OUTPUT + STEPS
    assert kept.ok("logs", "--rank", "1", "failed-1").out == OUTPUT.replace(b"rank 0", b"rank 1")
    assert kept.ok("logs", "lost-1").out == b"up\n"
    metrics = kept.ok("metrics", "--json", "done-1").events
    assert [(row["step"], row["loss"]) for row in metrics] == [(step, 5 - step / 2) for step in range(1, 6)]
    assert all(row["tokens_per_second"] == 100 * row["step"] for row in metrics)


def test_an_agent_of_today_follows_them_to_their_end(kept: Kept) -> None:
    """The mirrors are gone: everything comes anew, with the same bytes and the same end."""
    for run in ("done-1", "failed-1"):
        for name in ("ranks", layout.EXIT):
            path = kept.mirror(run) / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (kept.mirror(run) / "ranks").mkdir()
    assert kept.ok("logs", "-f", "--no-pull", "done-1").out == OUTPUT + STEPS
    failed = kept.laptop.type(kept.project, "logs", "-f", "--no-pull", "failed-1").expect(1)
    assert failed.out.startswith(OUTPUT)
    assert "rank 1 failed first" in failed.err
    assert (kept.mirror("failed-1") / "ranks" / "1.log").read_bytes() == OUTPUT.replace(b"rank 0", b"rank 1")
    ended = durable.read_record(str(kept.mirror("failed-1") / layout.EXIT))
    assert ended == durable.read_record(str(kept.laptop.attempt("failed-1") / layout.EXIT))
    kept.laptop.type(kept.project, "logs", "-f", "lost-1").expect(31)


def test_what_was_pulled_is_known_and_what_is_missing_comes(kept: Kept) -> None:
    assert "nothing new: 1 file here already" in kept.ok("pull", "done-1").err
    place = kept.project / "runs" / "done-1" / "files" / "out" / "ckpt.pt"
    data = place.read_bytes()
    place.unlink()
    kept.ok("pull", "done-1")
    assert place.read_bytes() == data
    shutil.rmtree(kept.project / "runs" / "done-1" / "files")
    (kept.project / "runs" / "done-1" / "pulled.json").unlink()
    kept.ok("pull", "--all", "done-1")
    assert place.read_bytes() == data


def test_they_leave_the_host_by_the_ledger_of_their_time(kept: Kept) -> None:
    dry = kept.ok("gc", "--keep", "0", "--dry-run", "--json").event("gc")
    removed = {run["run"]: run["removed"] for run in dry["runs"]}
    assert (removed["done-1"], removed["lost-1"]) == (True, False)
    kept.ok("gc", "--keep", "0")
    assert attempt.list_runs(str(kept.laptop.root)) == [run for run in sorted(removed) if not removed[run]]
    kept.ok("logs", "lost-1")
    kept.ok("gc", "--keep", "0")
    assert attempt.list_runs(str(kept.laptop.root)) == []
    assert kept.ok("show", "--json", "lost-1").event("run")["state"] == "lost"
    assert kept.ok("logs", "lost-1").out == b"up\n"
    assert kept.ok("logs", "done-1").out == OUTPUT + STEPS


def test_a_run_that_does_not_say_how_it_was_started_is_not_resumed(kept: Kept) -> None:
    """Of format 1 no record did at first; what to do instead is said, and nothing is changed."""
    path = kept.project / "runs" / "done-1" / "run.json"
    before = path.read_bytes()
    if "job" in json.loads(before):
        pytest.skip("it does")
    for command in (["resume", "done-1"], ["run", "--from", "done-1"]):
        refused = kept.laptop.type(kept.project, *command).expect(2)
        assert "how it was started is not known here" in refused.err
        assert "hint: start it anew with `remote-train run`" in refused.err
    assert path.read_bytes() == before


def test_a_new_run_works_beside_them(kept: Kept) -> None:
    (kept.project / "new.py").write_text("print('new')")
    (kept.laptop.hosts_file.parent).mkdir(parents=True)
    kept.ok("run", "--local", "--launcher", "python", "--name", "new-1", "new.py")
    assert [row["run"] for row in kept.ok("ps", "--json").events] == ["done-1", "failed-1", "lost-1", "new-1"]
