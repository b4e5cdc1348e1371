"""Keep this host's disk: take away the runs that may go, remove what nobody will ask for, count what is left.

A process of its own, low in priority and holding nothing of the connection that asked for it, so that neither a lost
laptop nor a killed agent leaves more behind than trash, which the next one empties. One at a time (`tidy.lock`).
It writes two lines of JSON to whoever listens: what became of the runs, and, when all is done, what was freed.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time

from remote_train.host import env_garbage, garbage, layout, locks, prune, shared, store, system
from remote_train.host.detach import leave_connection
from remote_train.host.durable import write_record
from remote_train.host.trees import (
    all_blocks,
    erase,
    list_trash,
    measure,
    own_blocks,
    shared_blocks,
    throw_away,
)

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Set

EVERY_SECONDS = 3600.0
OTHER_SECONDS = 60.0
"""How long to wait for another one that tidies, when runs are to go."""
LONGEST_SECONDS = 3600
MOST_RUNS = 1000
MOST_LEFT = 1000
NICE = 19
KINDS = (
    layout.RUNS,
    layout.BLOBS,
    layout.DATA,
    layout.ENVS,
    layout.UV,
    layout.PACKAGES,
    layout.PEAKS,
    layout.PERSIST,
    layout.TRASH,
)
COUNTED = {layout.BLOBS: own_blocks, layout.DATA: shared_blocks}


def is_due(root: str) -> bool:
    """Tell whether it is time to tidy, though no run has to go."""
    if not garbage.is_recent(os.path.join(root, layout.USAGE), EVERY_SECONDS):
        return True
    trash = list_trash(root)
    return bool(trash) and not set(map(os.path.basename, trash)) <= read_left(root)


def read_left(root: str) -> Set[str]:
    """Return the trash that could not be emptied the last time: to try again at every launch would not help."""
    left = (store.read_usage(root) or {}).get("left")
    return {str(name) for name in left} if isinstance(left, list) else set()


def agents_folder() -> str:
    """Return where agents lie: at the same place for every state root of an account."""
    return os.path.join(layout.default_root(), layout.AGENTS)


def note_agent() -> None:
    """Note that our own program is in use."""
    folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if os.path.dirname(folder) == agents_folder():
        store.touch(folder)


def listen(fd: int, *, whole: bool) -> Dict[str, Any]:
    """Return what a tidying process says: of the runs, with `whole` of everything. Raises OSError when it says nothing."""
    with os.fdopen(fd, "rb") as lines:
        said = lines.readline()
        more = lines.readline() if whole else b""
    if not said:
        raise OSError("the process that tidies ended early")
    answer: Dict[str, Any] = json.loads(said)
    answer.update(json.loads(more) if more else {})
    return answer


def spawn(root: str, request: Dict[str, Any]) -> int:
    """Start tidying in a process of its own and return the descriptor that its two lines come from.

    Keys of the request: `runs` (see prune.parse_wish), `dry` (only say), `thorough` (as if an hour had passed, and
    count before and after), `data` (remove data folders that no run under way uses, whenever it was that one did) and
    `persist` (the project whose persistent folders are to go).
    """
    if len(request["runs"]) > MOST_RUNS:
        raise ValueError("more than %d runs at once" % MOST_RUNS)
    wishes = [prune.parse_wish(item) for item in request["runs"]]
    project = request.get("persist")
    if project is not None and not layout.is_run_id(project):
        raise ValueError("not a project: %r" % (project,))
    tidy = Tidy(root, wishes, dry=bool(request.get("dry")), thorough=bool(request.get("thorough")))
    tidy.all_data, tidy.project = bool(request.get("data")), project
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            _become(tidy, write_fd)
        os._exit(0)
    os.close(write_fd)
    os.waitpid(child, 0)
    return read_fd


def _become(tidy: Tidy, write_fd: int) -> None:
    try:
        leave_connection(os.open(os.devnull, os.O_WRONLY), [write_fd])
        for number in (signal.SIGPIPE, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LONGEST_SECONDS)
        system.set_process_name("remote-train")
        os.nice(NICE)
        tidy.run(write_fd)
    finally:
        os._exit(0)


class Tidy:
    """One tidying of one state root."""

    def __init__(self, root: str, wishes: List[Dict[str, Any]], *, dry: bool, thorough: bool) -> None:
        self.root = root
        self.wishes = wishes
        self.dry = dry
        self.thorough = thorough
        self.all_data = False
        self.project: Optional[str] = None
        self.data: List[Dict[str, Any]] = []
        self.persist: List[Dict[str, Any]] = []
        self.now = time.time()
        self.freed: Dict[str, int] = {}
        self.failures: List[str] = []

    def run(self, out: int) -> None:
        """Do it, and write what was done to `out`."""
        patience = OTHER_SECONDS if self.wishes or self.thorough else 0.0
        lock = locks.take(os.path.join(self.root, layout.TIDY_LOCK), fcntl.LOCK_EX, patience)
        if lock is None:
            why = {"removed": False, "kind": "busy", "why": "this host is being tidied already"}
            _say(out, {"runs": [dict(why, run=wish["run"]) for wish in self.wishes]})
            return
        try:
            self._run(out)
        finally:
            os.close(lock)

    def _run(self, out: int) -> None:
        before = self.count() if self.thorough else None
        self._note("trash", sum(map(measure, list_trash(self.root))))
        runs = [self._remove(wish) for wish in self.wishes]
        _say(out, {"runs": runs})
        if self.thorough or self.dry or is_due(self.root):
            self._clean()
            after = self.count()
            if not self.dry:
                self._write_usage(after)
            counted = {"before": before, "after": after, "data": self.data, "persist": self.persist}
            _say(out, dict(counted, freed=self.freed, failures=self.failures[:20]))

    def _remove(self, wish: Dict[str, Any]) -> Dict[str, Any]:
        try:
            return prune.remove_run(self.root, wish, dry=self.dry)
        except (OSError, ValueError) as error:  # ValueError: a plan of old whose glob means nothing
            return {"run": wish["run"], "removed": False, "kind": "failed", "why": str(error)}

    def _clean(self) -> None:
        """Each kind by itself: what goes wrong with one keeps no other."""
        for work in (
            self._clean_starts,
            self._clean_leftovers,
            self._clean_data,
            self._clean_persist,
            self._clean_environments,
            self._clean_incoming,
            self._clean_contents,
            self._clean_agents,
            self._empty_trash,
        ):
            self._guard(work)

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            self.failures.append(str(error))

    def _note(self, kind: str, size: int) -> None:
        if size:
            self.freed[kind] = self.freed.get(kind, 0) + size

    def _clean_starts(self) -> None:
        for folder in garbage.find_dead_starts(self.root, self.now):
            size = measure(folder)
            if self.dry or garbage.remove_dead_start(self.root, folder):
                self._note("starts", size)
        if not self.dry:
            self._guard(lambda: garbage.remove_empty_runs(self.root))

    def _clean_leftovers(self) -> None:
        for path in garbage.find_leftovers(self.root, self.now):
            self._note("leftovers", measure(path))
            if not self.dry:
                os.unlink(path)

    def _clean_data(self) -> None:
        """Before contents: those that were nowhere else go with it."""
        for path in shared.find_unfinished(self.root, self.now):
            self._note("leftovers", measure(path, shared_blocks))
            if not self.dry:
                throw_away(self.root, path)
        self.data = shared.describe_data(self.root, self.now, asked=self.all_data)
        for row in self.data:
            if row["removed"] and not self.dry:
                row["removed"] = shared.remove_data(self.root, row["id"], self.now, asked=self.all_data)
            self._note("data", row["bytes"] if row["removed"] else 0)

    def _clean_persist(self) -> None:
        self.persist = shared.describe_persist(self.root, self.project)
        for row in self.persist:
            if row["removed"] and not self.dry:
                row["removed"] = shared.remove_persist(self.root, row["project"])
            self._note("persist", row["bytes"] if row["removed"] else 0)

    def _clean_environments(self) -> None:
        self._note("leftovers", env_garbage.clear_parts(self.root, dry=self.dry))
        for key in env_garbage.find_unused(self.root, self.now):
            size = measure(layout.env_path(self.root, key))
            if self.dry or env_garbage.remove_unused(self.root, key, self.now):
                self._note(layout.ENVS, size)
        for path in env_garbage.find_programs(self.root, self.now):
            self._note(layout.ENVS, measure(path))
            if not self.dry:
                throw_away(self.root, path)

    def _clean_incoming(self) -> None:
        for sha256 in shared.find_incoming(self.root, self.now):
            size = measure(layout.incoming_path(self.root, sha256))
            if self.dry or shared.remove_incoming(self.root, sha256, self.now):
                self._note("incoming", size)

    def _clean_contents(self) -> None:
        """Manifests first: what they alone referred to goes with them."""
        manifests = garbage.find_manifests(self.root, self.now)
        if self.dry:
            gone = {layout.package_path(self.root, row["id"]) for row in self.data if row["removed"]}
            blobs = garbage.find_blobs(self.root, self.now, gone.union(manifests))
            self._note("packages", sum(map(measure, manifests)))
            self._note("blobs", sum(measure(path, own_blocks) for path in blobs))
            return
        removed = garbage.remove_unwanted(self.root, lambda: garbage.find_manifests(self.root, self.now))
        self._note("packages", removed)
        removed = garbage.remove_unwanted(self.root, lambda: garbage.find_blobs(self.root, self.now, set()))
        self._note("blobs", removed)

    def _clean_agents(self) -> None:
        for path in garbage.find_agents(agents_folder(), self.now):
            self._note("agents", measure(path))
            if not self.dry:
                throw_away(layout.default_root(), path)

    def _empty_trash(self) -> None:
        for path in dict.fromkeys(list_trash(self.root) + list_trash(layout.default_root())):
            if not self.dry:
                self._guard(lambda path=path: erase(path))  # type: ignore[misc]  # bound to this one

    def count(self) -> Dict[str, Any]:
        """Return the bytes of each kind, and of all that a run or a launch has left."""
        kinds = {
            kind: measure(os.path.join(self.root, kind), COUNTED.get(kind, all_blocks)) for kind in KINDS
        }
        kinds[layout.AGENTS] = measure(agents_folder())
        return {"kinds": kinds, "total": sum(kinds.values()) - kinds[layout.PERSIST], "when": time.time()}

    def _write_usage(self, usage: Dict[str, Any]) -> None:
        left = list(map(os.path.basename, list_trash(self.root)))[:MOST_LEFT]
        path = os.path.join(self.root, layout.USAGE)
        self._guard(lambda: write_record(path, dict(usage, left=left), sync=False))


def _say(out: int, words: Dict[str, Any]) -> None:
    data = json.dumps(words).encode("ascii") + b"\n"
    try:
        while data:
            data = data[os.write(out, data) :]
    except OSError:  # nobody listens any more: the work is what counts
        return
