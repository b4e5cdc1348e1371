"""Start an attempt exactly once: check, claim, snapshot, and fork the supervisor off the connection.

`start` may be repeated with the same token any number of times (its answer can be lost at any byte): the claim
names the token, and the lock is held from the claim on, first by the agent, then by the supervisor it forks.
"""

from __future__ import annotations

import os
import time

from remote_train.host import cores, disk, layout, locks, snapshot, store, system
from remote_train.host.attempt import list_attempts, read_state
from remote_train.host.durable import read_record, write_record
from remote_train.host.launcher import inject, make_environment, show_gpus
from remote_train.host.peaks_cache import recall_peak
from remote_train.host.spawn import Held, fork_supervisor

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Tuple

    from remote_train.host.store import Rows
    from remote_train.host.waiting import Turn

OTHER_STARTER_SECONDS = 300.0
"""How long to wait for an agent that holds the lock and writes the snapshot; it may be a large one."""


class Refusal(Exception):
    """A request that cannot be carried out; `kind` names the error on the laptop's side."""

    def __init__(self, kind: str, message: str, **facts: Any) -> None:  # noqa: ANN401  (JSON values)
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.facts = facts


def start(root: str, request: Dict[str, Any], progress: Callable[[], None]) -> Dict[str, Any]:
    """Start the attempt that the request describes, or return the state it is in already.

    Returns `{"need": …}` when the manifest or blobs are missing: nothing has been claimed then. `progress` is called
    now and then, and may raise: before the supervisor is forked that abandons the start, which can be asked for again.
    """
    run, attempt = request["run"], request["attempt"]
    if not layout.is_run_id(run) or not isinstance(attempt, int) or attempt < 1:
        raise Refusal("usage", "not a run id: %r" % (run,))
    folder = layout.attempt_dir(root, run, attempt)
    _check_token(folder, run, request["token"])
    if os.path.exists(os.path.join(folder, layout.ATTEMPT)):
        return read_state(folder)
    # From here on nothing is tidied away: what is found to be here stays until the snapshot has it.
    cleaning = locks.hold_off_cleaning(root, OTHER_STARTER_SECONDS, progress)
    if cleaning is None:
        raise Refusal("start-failed", "its state folder has been tidied for too long")
    try:
        return _start_new(root, folder, request, progress)
    finally:
        os.close(cleaning)


def _start_new(
    root: str, folder: str, request: Dict[str, Any], progress: Callable[[], None]
) -> Dict[str, Any]:
    plan = request["plan"]
    _check_secrets(request.get("secrets", {}))
    rows = store.read_package(root, plan["package"])
    if rows is None:
        return {"need": "manifest"}
    store.note_use(root, plan["package"])
    missing = store.missing_blobs(root, rows)
    restored = plan.get("restore") or []
    if restored:
        missing += _check_restored(root, request["attempt"], restored)
    if missing:
        return {"need": "blobs", "blobs": missing}
    lost = store.note_data(root, plan.get("data", {}).values())
    if lost and not _remake_data(root, lost):
        return {"need": "data", "data": lost}
    lock = _claim(folder, request["run"], request["token"], progress)
    if lock is None:
        return read_state(folder)
    held = Held(lock)
    try:
        _begin(root, folder, request, (rows, held), progress)
    except (OSError, Refusal):
        if _take_back(folder):
            held.give_back()
        raise
    finally:
        held.let_go()
    state = read_state(folder)
    if state.get("peak") is None:
        # The first metric may come before the supervisor has copied it.
        state["peak"] = recall_peak(root, plan.get("measure"))
    return state


def _begin(
    root: str,
    folder: str,
    request: Dict[str, Any],
    kept: Tuple[Rows, Held],
    progress: Callable[[], None],
) -> None:
    """Start an attempt that is claimed: its place in the queue for GPUs, its snapshot, its supervisor."""
    rows, held = kept
    if list_attempts(root, request["run"])[-1:] != [1] or request.get("supersede"):
        _refuse_obstacle(root, request, progress)
    held.turn = _take_ticket(root, request)
    disk.keep_reserve(folder)
    _write_code(root, folder, request["plan"], rows, progress)
    record = _make_record(root, request, held.turn)
    if request["plan"].get("restore"):
        record["restored"] = _restore(root, request, folder, progress)
    secrets: Dict[str, str] = request.get("secrets", {})
    record["secrets"] = sorted(secrets)
    environment = _make_run_environment(record, secrets)
    if secrets:  # for as long as we live: what was in our memory once stays readable in a copy of it
        cores.forbid_core()
    progress()  # the last look: whoever asked and went, and asks no more, gets no training
    _check_born(fork_supervisor(folder, record, environment, held, progress))


def _check_restored(root: str, attempt: int, rows: List[Dict[str, Any]]) -> List[str]:
    """Return the hashes of files to put back that are not here; raise ValueError for rows that name no such files."""
    from remote_train.host import restore  # noqa: PLC0415  (a first attempt has none)

    restore.check_rows(rows, attempt)
    return restore.missing_blobs(root, rows, store.has_blob)


def _restore(
    root: str, request: Dict[str, Any], folder: str, progress: Callable[[], None]
) -> List[Dict[str, Any]]:
    from remote_train.host import restore  # noqa: PLC0415  (as above)

    code = os.path.join(folder, layout.CODE)
    try:
        return restore.put_files(root, request["run"], code, request["plan"]["restore"], progress)
    except restore.RestoreError as error:
        raise Refusal("start-failed", str(error)) from None


def _refuse_obstacle(root: str, request: Dict[str, Any], progress: Callable[[], None]) -> None:
    from remote_train.host import order  # noqa: PLC0415  (as above)

    obstacle = order.find_obstacle(root, request, progress)
    if obstacle is not None:
        raise Refusal("name-taken", obstacle)


def _remake_data(root: str, lost: List[str]) -> bool:
    """Make data folders anew whose contents are here all the same: a training as root wrote into them."""
    from remote_train.host import datasets  # noqa: PLC0415  (rare)

    return all(datasets.make_missing(root, data_id).get("here") for data_id in lost)


def _check_born(last_word: Optional[str]) -> None:
    if last_word is not None:
        raise Refusal("start-failed", "the supervisor did not start: %s" % last_word)


def _take_back(folder: str) -> bool:
    """Free what a start that failed has written, and its claim: the same name may be started once there is space.

    False where it has a supervisor all the same.
    """
    if os.path.exists(os.path.join(folder, layout.ATTEMPT)):
        return False
    import shutil  # noqa: PLC0415  (rare, and 6 ms to import)

    shutil.rmtree(folder, ignore_errors=True)  # who waits for its lock sees that it is another one then
    for above in (os.path.dirname(folder), os.path.dirname(os.path.dirname(folder))):
        disk.drop_folder(above)
    return True


def _take_ticket(root: str, request: Dict[str, Any]) -> Optional[Turn]:
    """Return the ticket of an attempt that uses GPUs, with these if they are free."""
    if not request["plan"].get("gpus"):
        return None
    from remote_train.host import waiting  # noqa: PLC0415  (ctypes: only a CUDA start pays for it)

    try:
        return waiting.take_ticket(root, request)
    except waiting.GpusUnfit as error:
        raise Refusal("host-unfit", str(error)) from None
    except waiting.GpusBusy as error:
        raise Refusal("host-busy", str(error)) from None


def _claim(folder: str, run: str, token: str, progress: Callable[[], None]) -> Optional[int]:
    """Return the lock's descriptor when this attempt is ours to start, None when it was started meanwhile."""
    fd = _take_lock(folder, progress)
    try:
        _check_token(folder, run, token)
        ours = not os.path.exists(os.path.join(folder, layout.ATTEMPT))
        claim = os.path.join(folder, layout.CLAIM)
        if ours and not os.path.exists(claim):
            write_record(claim, {"token": token}, sync=False)
    except (OSError, Refusal):
        os.close(fd)
        raise
    if not ours:
        os.close(fd)
        return None
    return fd


def _take_lock(folder: str, progress: Callable[[], None]) -> int:
    """Return the open lock of the attempt's folder, made where there is none; see `_wait_lock`."""
    deadline = time.monotonic() + OTHER_STARTER_SECONDS
    path = os.path.join(folder, layout.LOCK)
    while True:
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
            fd = locks.open_lock(path)
        except FileNotFoundError:  # a dead start of this name is being tidied away
            if time.monotonic() > deadline:
                raise
            continue
        try:
            _wait_lock(fd, folder, deadline, progress)
        except (OSError, Refusal):
            os.close(fd)
            raise
        if locks.is_at(fd, path):
            return fd
        os.close(fd)


def _wait_lock(fd: int, folder: str, deadline: float, progress: Callable[[], None]) -> None:
    """Return with the lock, or without it once there is a supervisor, who then holds it."""
    while not locks.try_lock(fd) and not os.path.exists(os.path.join(folder, layout.ATTEMPT)):
        if time.monotonic() > deadline:
            raise Refusal("start-failed", "another connection has been starting it for too long")
        progress()
        time.sleep(0.02)


def _check_token(folder: str, run: str, token: str) -> None:
    # The claim is not synced: after a power cut the attempt's own record may be all there is.
    records = [read_record(os.path.join(folder, name)) for name in (layout.CLAIM, layout.ATTEMPT)]
    if any(record is not None and record.get("token") != token for record in records):
        words = "there is a run named %s on this host" % run
        raise Refusal("name-taken", words, state=read_state(folder)["state"])


def _write_code(
    root: str, folder: str, plan: Dict[str, Any], rows: Rows, progress: Callable[[], None]
) -> None:
    code = os.path.join(folder, layout.CODE)
    if os.path.exists(code):
        _remove_folder(code, progress)  # left by an agent that died while it wrote it
    snapshot.write_snapshot(root, rows, code, progress)
    links = {place: os.path.expanduser(source) for place, source in plan.get("links", {}).items()}
    links.update({place: store.find_data(root, name) for place, name in plan.get("data", {}).items()})
    for place in plan.get("persist", []):
        source = os.path.join(root, layout.PERSIST, plan["project"], place)
        os.makedirs(source, 0o700, exist_ok=True)
        links[place] = source
    snapshot.link_folders(code, links)
    os.makedirs(os.path.join(folder, layout.RANKS), 0o700, exist_ok=True)


def _remove_folder(path: str, progress: Callable[[], None]) -> None:
    """Remove a folder that may be large; what cannot be removed is found by who writes there next."""
    import shutil  # noqa: PLC0415  (rare, and 6 ms to import)
    import threading  # noqa: PLC0415  (as above)

    removing = threading.Thread(target=shutil.rmtree, args=(path, True), daemon=True)
    removing.start()
    while removing.is_alive():
        removing.join(1.0)
        progress()


def _make_record(root: str, request: Dict[str, Any], turn: Optional[Turn]) -> Dict[str, Any]:
    return {
        "run": request["run"],
        "attempt": request["attempt"],
        "token": request["token"],
        "cookie": os.urandom(16).hex(),
        "root": root,
        "umask": request.get("umask", 0o022),
        "boot_id": system.boot_id(),
        "started": time.time(),
        "plan": request["plan"],
        "gpus": turn.gpus if turn is not None else [],
        "phase": "starting",
    }


def _check_secrets(secrets: Any) -> None:  # noqa: ANN401  (as it came)
    """Raise ValueError, without a value in it, for secrets that no environment can hold."""
    if not isinstance(secrets, dict):
        raise ValueError("secrets are variables and their texts")  # noqa: TRY004  (a malformed request, like below)
    for name, value in secrets.items():
        if not name or "=" in name or "\0" in name or not isinstance(value, str) or "\0" in value:
            raise ValueError("a secret is a variable and its text")


def _make_run_environment(record: Dict[str, Any], secrets: Dict[str, str]) -> Dict[str, str]:
    environment = make_environment(dict(os.environ), record["plan"], secrets)
    environment[layout.COOKIE] = record["cookie"]
    environment[layout.RUN_VARIABLE] = "%s/%d" % (record["run"], record["attempt"])
    folder = layout.attempt_dir(record["root"], record["run"], record["attempt"])
    environment[layout.STOP_VARIABLE] = os.path.join(folder, layout.STOP)
    environment[layout.REPORT_VARIABLE] = os.path.join(folder, layout.REPORT)
    environment.pop(layout.METER_VARIABLE, None)
    if record["plan"].get("meter", True):
        environment[layout.METER_VARIABLE] = os.path.join(folder, layout.METRICS)
    inject(environment)
    if record["plan"]["launcher"] == "python":  # torchrun gives each of its ranks one
        environment[layout.ERROR_VARIABLE] = os.path.join(folder, layout.RANKS, layout.RANK_ERROR % 0)
    show_gpus(environment, record["gpus"])
    return environment
