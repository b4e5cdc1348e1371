"""What holds after every fault, whatever it was: one checker for all fault tests.

    check(box.root)                                                    # the host alone
    check(account.root, [Seat(account.home / "client" / "runs")])      # and mirrors of it
    check(box.root, [Seat(project / "runs", laptop, project)], secret=b"canary", starts=count_starts)

    I1   a run was started once: one token, one supervisor; `starts(run)` counts how often its script began
    I2   every mirror is a byte-exact prefix of the host's file; with `complete`, all of it
    I3   an end is known here only if the host has it, whole, with outputs as long as it says; the identity is recorded
    I4   what bears a final name is whole: blobs and agents have the hash they are named by, records parse, pulled
         files have the hash they were verified with; with `settled`, no temporary file is left
    I5   files that were remembered (`remember`) are unchanged
    I6   an ended run has no process left
    I7   deadlines stand in the tests themselves
    I8   `expect_no_agents`: no agent outlives its laptop by more than three heartbeats
    I9   the secret stands in no file and no command line, but where it was put
    I10  `ps` and `show` agree with the host
    I11  `ps`, `show` and `logs` work

I10 and I11 type commands at a laptop (a second each), where a Seat has one. Everything else costs milliseconds. A run that
still lives may be checked: what changes meanwhile is looked at in an order in which truth only grows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.bootstrap import read_agent
from remote_train.host import layout, wire
from remote_train.host.manifest_format import make_package_id
from remote_train.ledger import read_ledger
from tests.e2e.machines import find_marked
from tests.host.account_kit import agents_of, until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from tests.e2e.machines import Laptop

ENDING_SECONDS = 20.0
AGENT_SECONDS = wire.SILENCE_SECONDS + 6.0
"""Three heartbeats and the round trip of the last one, and what a busy machine takes to end a process."""
READ = 1 << 20


@dataclass(frozen=True)
class Seat:
    """One laptop's view: where its runs lie, and where to type when commands are to be checked too."""

    runs: Path
    laptop: Laptop | None = None
    project: Path | None = None
    arguments: tuple[str, ...] = ()
    """Further arguments of the commands, such as `--hosts-file`."""


@dataclass(frozen=True)
class Checked:
    """What is checked, and how strictly."""

    root: Path
    complete: bool = False
    """Everything of ended runs has come home."""
    settled: bool = True
    """Nothing was killed while it wrote, so no temporary file is left."""
    runs: Collection[str] | None = None
    """Only these; blobs, packages and agents are left out then."""

    def attempts(self) -> Iterator[tuple[str, Path]]:
        """Yield the run and the folder of every attempt on the host."""
        for folder in sorted((self.root / layout.RUNS).glob(f"*/{layout.ATTEMPTS}/*")):
            run = folder.parent.parent.name
            if self.runs is None or run in self.runs:
                yield run, folder

    def mirrors(self, seat: Seat) -> Iterator[tuple[Path, Path]]:
        """Yield (mirror, attempt on the host) for what a laptop has of runs that are there."""
        for mirror in sorted(seat.runs.glob(f"*/{layout.ATTEMPTS}/*")):
            run = mirror.parent.parent.name
            there = Path(layout.attempt_dir(str(self.root), run, int(mirror.name)))
            if there.is_dir() and (self.runs is None or run in self.runs):
                yield mirror, there


def check(
    root: Path,
    seats: Sequence[Seat] = (),
    *,
    complete: bool = False,
    settled: bool = True,
    runs: Collection[str] | None = None,
    starts: Callable[[str], int] | None = None,
    secret: bytes | None = None,
    kept: Mapping[Path, str] | None = None,
) -> None:
    """Assert the invariants for a host's state root and the laptops that used it."""
    what = Checked(root, complete, settled, runs)
    for run, folder in what.attempts():
        check_started_once(run, folder, starts)
        check_end(folder)
        check_no_orphan(folder)
    for seat in seats:
        for mirror, there in what.mirrors(seat):
            check_mirror(mirror, there, complete=complete)
        check_pulled(seat)
    check_whole(what, seats)
    check_unchanged(kept or {})
    if secret is not None:
        homes = [seat.laptop.home for seat in seats if seat.laptop is not None]
        check_secret(secret, [root, *homes, *(seat.runs for seat in seats)])
    for seat in seats:
        if seat.laptop is not None:
            check_commands(what, seat)


def read_whole(path: Path) -> dict[str, Any] | None:
    """Return a JSON record, None when there is none; what is there must be whole."""
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        raise AssertionError(f"I4: {path} is torn: {text[:200]!r}") from None
    assert isinstance(value, dict), f"I4: {path} is no record: {text[:200]!r}"
    return value


def hash_file(path: Path, length: int | None = None) -> str:
    """Return the SHA-256 of a file, or of its first `length` bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(READ if length is None else min(READ, length)):
            digest.update(piece)
            length = None if length is None else length - len(piece)
    return digest.hexdigest()


def check_started_once(run: str, folder: Path, starts: Callable[[str], int] | None) -> None:
    """I1: one token, one supervisor, one beginning of the script."""
    record, claim = read_whole(folder / layout.ATTEMPT), read_whole(folder / layout.CLAIM)
    if record is None:
        return
    assert claim is not None, f"I1: {folder} was started without a claim"
    assert claim["token"] == record["token"], f"I1: {folder} was claimed by one and started by another"
    supervisors = [pid for pid in find_supervisors(folder) if parent_of(pid) != record["pid"]]
    assert supervisors in ([], [record["pid"]]), f"I1: {folder} has the supervisors {supervisors}"
    if starts is not None:
        assert starts(run) <= 1, f"I1: {run} was started {starts(run)} times"


def list_processes() -> list[Path]:
    """Return the folders of /proc that are processes."""
    return [path for path in Path("/proc").iterdir() if path.name.isdigit()]


def parent_of(pid: int) -> int | None:
    """Return a process's parent: a supervisor that starts its launcher is two processes for a moment."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def find_supervisors(folder: Path) -> list[int]:
    """Return the processes that hold an attempt's lock file open and bear a supervisor's name."""
    lock = folder / layout.LOCK
    found = []
    for process in list_processes():
        with contextlib.suppress(OSError):
            ours = (process / "comm").read_bytes() == b"remote-train\n"
            if ours and lock in [fd.readlink() for fd in (process / "fd").iterdir()]:
                found.append(int(process.name))
    return found


def check_end(folder: Path) -> None:
    """I3: an exit record is whole, of this attempt, and true of the outputs."""
    ended, record = read_whole(folder / layout.EXIT), read_whole(folder / layout.ATTEMPT)
    if record is not None:
        missing = [key for key in ("boot_id", "pid", "start_time", "cookie") if not record.get(key)]
        assert not missing, f"I3: {folder} has no {missing}"
    if ended is None:
        return
    assert record is not None, f"I3: {folder} has ended and never begun"
    names = (record["run"], record["attempt"])
    assert (ended["run"], ended["attempt"]) == names, f"I3: {folder} has the end of another"
    sizes = {path.stem: path.stat().st_size for path in (folder / layout.RANKS).glob("*.log")}
    assert ended.get("survivors") or ended["outputs"] == sizes, (
        f"I3: {folder} ended with {ended['outputs']}, and has {sizes}"
    )


def check_no_orphan(folder: Path) -> None:
    """I6: nothing of an attempt that has ended is left; its supervisor goes right after it has written the end."""
    ended, record = read_whole(folder / layout.EXIT), read_whole(folder / layout.ATTEMPT)
    if ended is None or record is None:
        return
    known = set(ended.get("survivors") or [])
    until(lambda: set(find_marked(record["cookie"])) <= known, f"I6: the end of {folder}", ENDING_SECONDS)
    until(lambda: not find_supervisors(folder), f"I6: the supervisor's end of {folder}", ENDING_SECONDS)


def check_mirror(mirror: Path, there: Path, *, complete: bool) -> None:
    """I2 and I3: the outputs here are the beginning of those there, or all of them; an end here is the end there."""
    here_ended = read_whole(mirror / layout.EXIT)
    there_ended = read_whole(there / layout.EXIT)
    if here_ended is not None:
        assert here_ended == there_ended, f"I3: {mirror} knows an end that is not the host's"
    whole = complete and there_ended is not None
    if whole:
        assert here_ended is not None, f"I3: {mirror} does not know that the run has ended"
    names = [f"{layout.RANKS}/{path.name}" for path in (mirror / layout.RANKS).glob("*.log")]
    if whole:
        names += [f"{layout.RANKS}/{path.name}" for path in (there / layout.RANKS).glob("*.log")]
    for name in {*names, *layout.OTHERS.values()}:
        check_prefix(mirror / name, there / name, whole=whole)
    assert not list(mirror.rglob("*.damaged")), f"I2: {mirror} was found damaged once"


def check_prefix(here: Path, there: Path, *, whole: bool) -> None:
    """Assert that a mirror is the first part of the host's file, or all of it."""
    length = here.stat().st_size if here.exists() else 0
    size = there.stat().st_size if there.exists() else 0
    assert length <= size, f"I2: {here} has {length} bytes, and the host {size}"
    assert length == size or not whole, f"I2: {here} has {length} of {size} bytes and the run is over"
    if length:
        assert hash_file(here, length) == hash_file(there, length), f"I2: {here} is not what the host has"


def check_pulled(seat: Seat) -> None:
    """I4: what a pull has published is what it verified, unless its owner has changed it since."""
    for run in seat.runs.glob("*/"):
        for name, entry in read_ledger(run / "pulled.json").items():
            place = Path(name)
            if place.is_file() and place.stat().st_mtime_ns == entry["here_mtime_ns"]:
                assert hash_file(place) == entry["sha256"], f"I4: {place} is not what was verified"


def wait_gone(path: Path) -> None:
    """Wait for the end of a temporary file: tidying may be at work."""
    until(lambda: not path.exists(), f"I4: the end of {path}")


def check_whole(what: Checked, seats: Sequence[Seat]) -> None:
    """I4: what bears a final name is whole, and nothing temporary is left unless something was killed."""
    if what.runs is None:
        check_store(what.root)
    places = [what.root, *(seat.runs for seat in seats)] if what.runs is None else []
    places += [folder for _, folder in what.attempts()]
    for place in places:
        for path in walk(place):
            if path.suffix == ".json" and layout.CODE not in path.parts and layout.PACKAGES not in path.parts:
                read_whole(path)
            temporary = path.name.endswith((".tmp", ".remote-train-partial")) or "incoming." in path.name
            if what.settled and temporary and layout.CODE not in path.parts:
                wait_gone(path)


def walk(place: Path) -> Iterator[Path]:
    """Yield the files below a folder, which may go while we look; links are not followed."""
    for folder, _, names in os.walk(place):
        for name in names:
            yield Path(folder) / name


def check_store(root: Path) -> None:
    """I4: blobs, packages and agents are what their names say."""
    for path in (root / layout.BLOBS).glob("??/*"):
        assert hash_file(path) == path.parent.name + path.name, f"I4: the blob {path} is another"
    for path in (root / layout.PACKAGES).glob("*.json"):
        assert make_package_id(json.loads(path.read_bytes())) == path.stem, f"I4: {path} is another package"
    ours = read_agent()
    for folder in (root / layout.AGENTS).glob("*"):
        if folder.name == ours.hash:
            held = {str(path.relative_to(folder)): path.read_text("utf-8") for path in folder.rglob("*.py")}
            assert held == json.loads(ours.source), f"I4: the agent {folder} is not whole"


def remember(*places: Path) -> dict[Path, str]:
    """Return the hashes of all files below some folders, for `check(kept=…)`."""
    return {
        path: hash_file(path) for place in places for path in walk(place) if path.is_file()
    }  # a link that leads nowhere is no file


def check_unchanged(kept: Mapping[Path, str]) -> None:
    """I5: remembered files are as they were."""
    for path, digest in kept.items():
        assert path.is_file(), f"I5: {path} is gone"
        assert hash_file(path) == digest, f"I5: {path} was changed"


def check_secret(secret: bytes, places: Iterable[Path]) -> None:
    """I9: the secret is in no file of ours and on no command line; rank logs are the script's own words."""
    for place in places:
        for path in walk(place):
            with contextlib.suppress(FileNotFoundError):
                ours = path.is_file() and path.parent.name != layout.RANKS
                assert not ours or secret not in path.read_bytes(), f"I9: the secret stands in {path}"
    for process in list_processes():
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            assert secret not in words, f"I9: the secret is an argument: {words!r}"


def check_commands(what: Checked, seat: Seat) -> None:
    """I10 and I11: the commands work, and what they say of runs is what the host has."""
    laptop, project = seat.laptop, seat.project
    assert laptop is not None
    assert project is not None, "a Seat with a laptop has a project to type in"
    rows = {row["run"]: row for row in laptop.ok(project, "ps", "--json", *seat.arguments).events}
    for run, folder in what.attempts():
        if run not in rows or not (seat.runs / run).is_dir():
            continue
        before = read_truth(folder)
        shown = laptop.ok(project, "show", run, "--json", *seat.arguments).event("run")
        after = read_truth(folder)
        for state in (shown["state"], rows[run]["state"]):
            assert state in {before, after} or before is None, (
                f"I10: {run} is said to be {state}: {before}, {after}"
            )
        if after == "ended":
            ended = read_whole(folder / layout.EXIT) or {}
            check_words(run, shown["exit"], ended)
            told = laptop.ok(project, "logs", run, *seat.arguments).out
            assert told == read_output(folder), f"I11: `logs {run}` is not the host's output"


def check_words(run: str, words: str | None, ended: Mapping[str, Any]) -> None:
    """I10: how a run is said to have ended."""
    if ended.get("start_error"):
        assert words == "did not start", f"I10: {run}: {words}"
    elif ended.get("stopped"):
        assert words == "stopped", f"I10: {run}: {words}"
    elif ended.get("signal") is not None:
        name = signal.Signals(ended["signal"]).name
        assert name in str(words), f"I10: {run} ended by {name}, and is said to have ended with {words}"
    else:
        assert words == str(ended.get("code")), f"I10: {run} ended with {ended.get('code')}: {words}"


def read_truth(folder: Path) -> str | None:
    """Return `ended`, `lost`, or None for one that lives in whatever phase: from the files and the process table."""
    record = read_whole(folder / layout.ATTEMPT)
    alive = record is not None and (find_supervisors(folder) or find_marked(record["cookie"]))
    if read_whole(folder / layout.EXIT) is not None:
        return "ended"
    return None if alive or record is None else "lost"


def read_output(folder: Path) -> bytes:
    """Return rank 0's output as it lies on the host."""
    path = Path(layout.rank_log(str(folder), 0))
    return path.read_bytes() if path.exists() else b""


def expect_no_agents(home: Path, seconds: float = AGENT_SECONDS) -> None:
    """I8: assert that the agents of this HOME are gone within three heartbeats of their laptops."""
    until(lambda: not agents_of(home), f"I8: the end of agents of {home}", seconds)
