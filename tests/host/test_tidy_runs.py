"""What of a run may leave a host: only what is at home, and never what anybody still needs."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from remote_train.api import Training
from remote_train.errors import ProtocolError
from remote_train.host import attempt, layout, prune
from remote_train.host.files import CHECKPOINTS, Listing
from remote_train.host.globs import make_pattern
from remote_train.listener import Silent
from remote_train.pull import PullWish
from remote_train.retention import make_wish
from tests.faults.counts import is_nightly
from tests.host.account_kit import until
from tests.host.tidy_kit import Ended, write_package

if TYPE_CHECKING:
    from remote_train.records import Run
    from tests.host.account_kit import Account, Started

CHECKPOINT, FOLDER, NOTES = "out/ckpt.pt", "checkpoint-7/state.json", "notes.txt"
COARSE = 1_700_000_100 * 10**9
"""What every file has for a time, on a file system that knows only seconds, when all happens within one."""

# What happens to one file: the training writes (one of two contents of one length, or a longer one), somebody pulls, …
WRITES = ("write one", "write two", "write longer", "write one coarsely", "write two coarsely")
STEP = st.sampled_from([*WRITES, "pull", "pull", "edit two", "remove here", "remove there"])
HISTORIES = st.fixed_dictionaries({path: st.lists(STEP, max_size=4) for path in (CHECKPOINT, FOLDER, NOTES)})
Histories = dict[str, list[str]]
EXAMPLES = 1000 if is_nightly() else 40


def perform(ended: Ended, histories: Histories) -> None:
    """Let the training, `pull` and the user do things one after another, a moment apart."""
    moment = COARSE + 10**9
    for path, steps in histories.items():
        for step in steps:
            moment += 7_000_001
            word, *more = step.split()
            if word == "write":
                ended.write(path, more[0].encode(), COARSE if "coarsely" in more else moment)
            elif word == "edit":
                ended.edit(path, more[0].encode(), moment)
            elif step == "remove here":
                (ended.run.files / path).unlink(missing_ok=True)
            elif step == "remove there":
                (ended.code / path).unlink(missing_ok=True)
            elif (ended.code / path).exists():
                ended.pull(path, moment)


@settings(max_examples=EXAMPLES)
@given(HISTORIES, st.sampled_from([(), ("*.txt",), ("out/*",)]))
@example({CHECKPOINT: ["write one coarsely", "pull", "write two coarsely"]}, ())
@example({CHECKPOINT: ["write one", "pull", "write two"]}, ())
@example({CHECKPOINT: ["write one", "pull", "edit two"]}, ())
@example({CHECKPOINT: ["write one", "pull", "remove here"]}, ())
@example({FOLDER: ["write one", "pull", "write longer"]}, ())
@example({CHECKPOINT: ["write one", "pull"], NOTES: ["write one"]}, ("*.txt",))
@example({CHECKPOINT: ["write one"], NOTES: ["write one", "pull"]}, ("*.txt",))
def test_a_run_goes_only_when_every_checkpoint_is_at_home(
    histories: Histories, globs: tuple[str, ...]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ended = Ended(Path(folder), checkpoints=globs)
        perform(ended, histories)
        there, here = ended.there(), ended.here()
        patterns = [make_pattern(glob) for glob in globs or CHECKPOINTS]
        wanted = {path for path in there if any(pattern.match(path) for pattern in patterns)}
        result = prune.remove_run(str(ended.root), prune.parse_wish(make_wish(ended.run)), dry=False)
        if result["removed"]:
            assert {path: there[path] for path in wanted} == {path: here.get(path) for path in wanted}
            assert not ended.folder.exists()
        else:
            assert ended.there() == there
            assert result["why"]
        assert ended.here() == here


@settings(max_examples=EXAMPLES)
@given(HISTORIES)
def test_a_run_whose_checkpoints_were_all_just_pulled_goes(histories: Histories) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ended = Ended(Path(folder))
        perform(ended, histories)
        for path in ended.there():
            ended.pull(path, COARSE + 10**12)
        wish = prune.parse_wish(make_wish(ended.run))
        would = prune.remove_run(str(ended.root), wish, dry=True)
        assert ended.folder.exists()
        assert prune.remove_run(str(ended.root), wish, dry=False) == would
        assert would["removed"]
        assert prune.remove_run(str(ended.root), wish, dry=False)["gone"]


@pytest.mark.parametrize("edited", [False, True])
def test_a_file_that_a_later_attempt_replaced_here_keeps_no_run_on_its_host(
    tmp_path: Path, *, edited: bool
) -> None:
    ended = Ended(tmp_path)
    ended.write(CHECKPOINT, b"of attempt 1", COARSE + 1)
    ended.pull_later(CHECKPOINT, b"of attempt 2, elsewhere", COARSE + 2)
    if edited:
        ended.edit(CHECKPOINT, b"mine", COARSE + 3)
    result = prune.remove_run(str(ended.root), prune.parse_wish(make_wish(ended.run)), dry=False)
    assert result["removed"] is not edited
    assert ended.folder.exists() is edited


SAVING = """
open("ckpt.pt", "wb").write(b"model" * 1000)
print("saved", flush=True)
"""


def follow(account: Account, started: Started) -> tuple[Run, Training]:
    """Have a laptop that stayed with a run to its end, and pulled."""
    run = account.client_run(started)
    training = Training(run, account.link())
    training.follow(Silent(), shown=set())
    return run, training


def ask(account: Account, *wishes: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    session = account.connect()
    answer = session.request("prune", runs=list(wishes), **more)
    session.close()
    return list(answer["runs"])


def test_a_run_that_is_at_home_goes_and_everything_of_it_stays_here(account: Account) -> None:
    started = account.start(SAVING)
    run, training = follow(account, started)
    [result] = ask(account, make_wish(run))
    assert result["removed"]
    assert result["bytes"] > 5000
    assert not (account.root / "runs" / "run").exists()
    until(lambda: list((account.root / layout.TRASH).iterdir()) == [], "the trash to be emptied")
    assert b"".join(training.logs()) == b"saved\n"
    assert (run.files / "ckpt.pt").read_bytes() == b"model" * 1000
    [again] = ask(account, make_wish(run))
    assert again["gone"]


def test_a_checkpoint_that_changed_after_its_pull_keeps_the_run(account: Account) -> None:
    started = account.start(SAVING)
    run, training = follow(account, started)
    (started.folder / "code" / "ckpt.pt").write_bytes(b"later" * 1000)
    [result] = ask(account, make_wish(run))
    assert (result["removed"], result["kind"], result["why"]) == (False, "checkpoint", "ckpt.pt")
    training.pull(PullWish())
    assert ask(account, make_wish(run))[0]["removed"]


def test_a_checkpoint_that_was_never_pulled_keeps_the_run(account: Account) -> None:
    started = account.start(SAVING + 'open("other.pt", "wb").write(b"x")')
    run, _ = follow(account, started)  # brings the newest one
    [result] = ask(account, make_wish(run))
    assert (result["removed"], result["why"]) == (False, "ckpt.pt")


def test_output_that_is_not_at_home_keeps_the_run(account: Account) -> None:
    started = account.start("print('words')")
    run, _ = follow(account, started)
    path = run.attempt(1).output("0")
    path.write_bytes(path.read_bytes()[:-1])
    [result] = ask(account, make_wish(run))
    assert (result["removed"], result["kind"]) == (False, "output")


def test_a_run_without_checkpoints_goes(account: Account) -> None:
    run, _ = follow(account, account.start("print('words')"))
    assert ask(account, make_wish(run))[0]["removed"]


def test_a_lost_run_goes_when_its_output_is_here(account: Account) -> None:
    started = account.start(SAVING + "import time; time.sleep(600)")
    started.says(b"saved")
    run = account.client_run(started)
    started.kill_supervisor()
    started.clean()
    assert ask(account, make_wish(run))[0]["kind"] in ("output", "foreign")
    training = Training(run, account.link())
    training.catch_up()
    assert run.read()["state"] == "lost"
    assert ask(account, make_wish(run))[0]["kind"] == "checkpoint"
    training.pull()
    assert ask(account, make_wish(run))[0]["removed"]


@pytest.mark.parametrize("supervised", [True, False])
def test_what_runs_is_never_touched(account: Account, supervised: bool) -> None:
    started = account.start("print('up', flush=True); import time; time.sleep(600)")
    started.says(b"up")
    run = account.client_run(started)
    Training(run, account.link()).catch_up()
    if not supervised:
        started.kill_supervisor()
    [result] = ask(account, make_wish(run), thorough=True)
    assert not result["removed"]
    assert result["kind"] in ("running", "busy")
    assert started.members() or not supervised
    assert started.state()["state"] == "running"
    assert (started.folder / layout.ATTEMPT).exists()


def test_the_end_of_a_run_whose_processes_are_left_keeps_it(account: Account) -> None:
    """An exit record is there, and something of the run got away from its supervisor: it is not over."""
    started = account.start("print('up', flush=True); import time; time.sleep(600)")
    started.says(b"up")
    run = account.client_run(started)
    started.kill_supervisor()
    (started.folder / layout.EXIT).write_text('{"format": 1, "code": 0, "outputs": {}}')
    Training(run, account.link()).catch_up()
    assert ask(account, make_wish(run))[0]["kind"] == "running"


def test_a_run_of_another_laptop_is_never_touched(account: Account) -> None:
    """The same name, the same files at home, and a token that is not the one the host has."""
    run, _ = follow(account, account.start(SAVING))
    wish = make_wish(run)
    wish["attempts"]["1"]["token"] = "another"
    assert ask(account, wish)[0]["kind"] == "foreign"
    wish["attempts"]["1"]["token"] = None
    assert ask(account, wish)[0]["kind"] == "foreign"
    wish["attempts"] = {}
    assert ask(account, wish)[0]["kind"] == "foreign"
    assert (account.root / "runs" / "run").exists()


def test_an_attempt_that_this_laptop_does_not_know_keeps_the_run(account: Account) -> None:
    started = account.start(SAVING)
    run, _ = follow(account, started)
    wish = make_wish(run)
    second = Path(layout.attempt_dir(str(account.root), "run", 2))
    second.mkdir()
    assert ask(account, wish)[0]["kind"] == "foreign"
    assert attempt.list_attempts(str(account.root), "run") == [1, 2]


@pytest.mark.parametrize(
    "runs",
    [
        [{"run": "../../evil", "attempts": {}, "files": []}],
        [{"run": "run", "attempts": {"1": 3}, "files": []}],
        [{"run": "run", "attempts": {}, "files": [["a.pt", "size", 1, "x"]]}],
        [{"run": "run"}],
        ["run"],
        None,
        [{"run": "run", "attempts": {}, "files": []}] * 1001,
    ],
)
def test_nonsense_is_answered_and_nothing_happens(account: Account, runs: Any) -> None:
    started = account.start("pass")
    started.end()
    with pytest.raises(ProtocolError):
        account.connect().request("prune", runs=runs)
    assert started.state()["state"] == "ended"


def test_the_laptop_may_go_as_soon_as_it_has_asked(account: Account) -> None:
    run, _ = follow(account, account.start(SAVING))
    session = account.connect()
    session.submit("prune", runs=[make_wish(run)])
    session.close()
    until(lambda: not (account.root / "runs" / "run").exists(), "the run to go")
    until((account.root / layout.USAGE).exists, "all of it to be counted")


def test_a_folder_that_a_training_closed_is_removed_all_the_same(account: Account) -> None:
    script = (
        "import os; os.makedirs('a/b'); open('a/b/c', 'w').close(); os.chmod('a/b', 0o500); os.chmod('a', 0)"
    )
    run, _ = follow(account, account.start(script))
    target = account.home / "precious"
    target.mkdir()
    (target / "file").write_text("mine")
    (account.root / "runs" / "run" / "attempts" / "1" / "code" / "link").symlink_to(target)
    assert ask(account, make_wish(run), thorough=True)[0]["removed"]
    assert list((account.root / layout.TRASH).iterdir()) == []
    assert (target / "file").read_text() == "mine"


def test_sigkill_of_an_agent_that_waits_for_it_changes_nothing(account: Account) -> None:
    from tests.host.account_kit import agents_of

    run, _ = follow(account, account.start(SAVING))
    session = account.connect()
    session.submit("prune", runs=[make_wish(run)])
    until(lambda: agents_of(account.home) or not (account.root / "runs" / "run").exists(), "an agent")
    until(lambda: not (account.root / "runs" / "run").exists(), "the run to go")
    for agent in agents_of(account.home):
        os.kill(agent, signal.SIGKILL)
    until((account.root / layout.USAGE).exists, "all of it to be counted")


def test_files_that_go_although_they_were_never_pulled_are_counted(account: Account) -> None:
    script = SAVING + "open('notes.txt', 'w').write('x'); open('plot.png', 'w').write('x')"
    run, _ = follow(account, account.start(script))
    for dry in (True, False):
        [result] = ask(account, make_wish(run), dry=dry, thorough=True)
        assert (result["removed"], result["unpulled"]) == (True, 2)


def test_a_shipped_checkpoint_that_was_written_over_keeps_the_run_whatever_its_time(tmp_path: Path) -> None:
    ended = Ended(tmp_path)
    package = write_package(ended.root, {"out/ckpt.pt": b"one"})
    for place in (ended.folder, ended.run.attempt(1).folder):
        record = json.loads((place / layout.ATTEMPT).read_text())
        record["plan"]["package"] = package
        (place / layout.ATTEMPT).write_text(json.dumps(record))
    ended.write("out/ckpt.pt", b"two", 10**18)
    wish = prune.parse_wish(make_wish(ended.run))
    result = prune.remove_run(str(ended.root), wish, dry=False)
    assert (result["removed"], result.get("why")) == (False, "out/ckpt.pt")
    ended.write("out/ckpt.pt", b"one", 10**18)
    assert prune.remove_run(str(ended.root), wish, dry=False)["removed"]


def test_a_glob_of_old_that_means_nothing_keeps_its_run_and_no_other(account: Account) -> None:
    first, _ = follow(account, account.start(SAVING))
    started = account.start(SAVING, run="old", checkpoints=("[z-a]*",))
    started.end()
    second = account.client_run(started)
    Training(second, account.link()).catch_up()
    old, other = ask(account, make_wish(second), make_wish(first))
    assert (old["removed"], old["kind"], other["removed"]) == (False, "failed", True)


def test_one_walk_serves_all_pages_of_a_list() -> None:
    rows = [{"path": f"{number:06d}", "size": 1, "mtime_ns": 1} for number in range(7000)]
    walks: list[int] = []

    def walk() -> list[dict[str, Any]]:
        walks.append(1)
        return rows

    listing = Listing()
    found: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        page = listing.take_page("a run", after, walk)
        found += page["files"]
        after = page["next"]
    assert (found, len(walks)) == (rows, 1)
    assert listing.take_page("a run", "006998", walk)["files"] == rows[-1:]
    listing.take_page("a run", "", walk)
    listing.take_page("another", "001999", walk)
    assert len(walks) == 4
