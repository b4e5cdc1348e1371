"""What the laptop may ask for: one small function per operation, found by its name in OPERATIONS or LATER.

Every request has an id and gets exactly one reply, `{"id", "ok": …}` or `{"id", "error": {kind, message, …}}`.
Requests that change something may be repeated. Paths and sizes from the laptop are checked here.
"""

from __future__ import annotations

import os

from remote_train.host import attempt, layout, store, system, wire
from remote_train.host.disk import describe_error
from remote_train.host.follow import Follower
from remote_train.host.start import Refusal, start
from remote_train.host.uploads import BlobUpload, ManifestUpload

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional

    from remote_train.host.agent import Connection
    from remote_train.host.blocks import Pace
    from remote_train.host.files import Listing

    Operation = Callable[["Operations", Dict[str, Any]], Optional[Dict[str, Any]]]


class Operations:
    """The requests of one connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.root = layout.default_root()
        self.unopened: Optional[Refusal] = Refusal("host-unfit", "the connection was not opened")
        self.umask = os.umask(0o077) & 0o077  # the training's own: what it makes is at least its user's
        self.uploads: Dict[int, Any] = {}
        self.followers: List[Follower] = []
        self.listing: Optional[Listing] = None
        self.pace: Optional[Pace] = None

    def handle(self, kind: int, stream: int, payload: bytes) -> None:
        """Answer one frame."""
        if kind == wire.CONTROL:
            self._answer(wire.parse_object(payload))
        elif stream in self.uploads:
            upload = self.uploads[stream]
            self.guard(upload.id, lambda: upload.data(payload) if kind == wire.DATA else upload.end())

    def _answer(self, request: Dict[str, Any]) -> None:
        number = request.get("id")
        operation = _find_operation(str(request.get("op")))
        self.guard(number, lambda: self._perform(operation, request))

    def _perform(self, operation: Operation, request: Dict[str, Any]) -> None:
        # Requests travel behind `open` without waiting for its answer: none may act on another root.
        if self.unopened is not None and request["op"] != "open":
            raise self.unopened
        self._reply(request["id"], operation(self, request))

    def _reply(self, number: Any, answer: Optional[Dict[str, Any]]) -> None:  # noqa: ANN401  (echoed as it came)
        if answer is not None:
            self.connection.send({"id": number, "ok": answer})

    def guard(self, number: Any, work: Callable[[], object]) -> None:  # noqa: ANN401  (echoed as it came)
        """Turn every expected failure into an error reply."""
        try:
            work()
        except Refusal as refusal:
            error = {"kind": refusal.kind, "message": refusal.message, "facts": refusal.facts}
        except store.StoreError as failure:
            error = {"kind": "verification-failed", "message": str(failure)}
        except OSError as failure:
            error = describe_error(failure, self.root)
        except (KeyError, TypeError, ValueError) as failure:
            error = {"kind": "protocol", "message": "a malformed request: %r" % (failure,)}
        else:
            return
        self.connection.send({"id": number, "error": error})

    def open(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Choose the state root; comes first on every connection."""
        self.root = layout.state_root(request.get("state_dir"))
        try:
            store.open_root(self.root)
        except OSError as error:
            told = describe_error(error, self.root)
            self.unopened = Refusal(told["kind"], told["message"])
            raise self.unopened from None
        self.unopened = None
        return {"protocol": wire.PROTOCOL, "boot_id": system.boot_id()}

    def aside(self, number: Any, work: Callable[[], Dict[str, Any]]) -> None:  # noqa: ANN401  (echoed)
        """Answer a slow request from a thread, an error of it as one made here."""

        def attempt_work() -> Callable[[], None]:
            try:
                answer = work()
            except Refusal as refusal:
                told = {"kind": refusal.kind, "message": refusal.message, "facts": refusal.facts}
                return lambda: self.connection.send({"id": number, "error": told})
            except (OSError, ValueError) as failure:
                error = (
                    describe_error(failure, self.root)
                    if isinstance(failure, OSError)
                    else {"kind": "host-unfit", "message": str(failure)}
                )
                return lambda: self.connection.send({"id": number, "error": error})
            return lambda: self._reply(number, answer)

        self.connection.run_aside(attempt_work, lambda reply: reply())

    def facts(self, request: Dict[str, Any]) -> None:
        """Look at the machine; slow (it runs the candidate Pythons)."""
        from remote_train.host import facts  # noqa: PLC0415  (subprocess: only this operation pays)

        pythons = [str(item) for item in request["pythons"]]
        self.aside(request["id"], lambda: facts.collect_facts(pythons, self.root))

    def search(self, request: Dict[str, Any]) -> None:
        """Look for other interpreters with torch, to name in a hint."""
        from remote_train.host import facts  # noqa: PLC0415  (as above)

        self.aside(request["id"], lambda: {"pythons": facts.search_pythons()})

    def manifest(self, request: Dict[str, Any]) -> None:
        """Take a manifest as a delta to one that may be here; the reply comes after its END."""
        self.uploads[request["stream"]] = ManifestUpload(self, request)

    def blobs(self, request: Dict[str, Any]) -> None:
        """Take a batch of blobs; the reply comes after its END."""
        self.uploads[request["stream"]] = BlobUpload(self, request)

    def start(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Start an attempt, if the machine is still as the plan expects."""
        expect = request.get("expect")
        if expect:
            from remote_train.host import fingerprint  # noqa: PLC0415  (as above)

            if (
                fingerprint.fingerprint_now(expect["python"], expect.get("torch_file"))
                != expect["fingerprint"]
            ):
                return {"changed": True}
        request["umask"] = self.umask
        answer = start(self.root, request, self.connection.breathe)
        return answer if "need" in answer else dict(answer, usage=store.read_usage(self.root))

    def follow(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Send outputs from byte offsets on, events as they come, and `ended` after the last byte."""
        follower = Follower(self.connection, self.attempt_dir(request), request)
        self.followers.append(follower)
        return follower.begin()

    def state(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Return the state of one attempt (default: the newest)."""
        return self.read(request)

    def list(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Return a page of runs with their states."""
        after = str(request.get("after", ""))
        names = [name for name in attempt.list_runs(self.root) if name > after][:50]
        runs = [self.read({"run": name}) for name in names]
        return {"runs": runs, "next": names[-1] if len(names) == 50 else None}

    def stop(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Ask a supervisor to stop its run; where it was killed, a process of ours takes its place."""
        from remote_train.host import stop_orders  # noqa: PLC0415  (not on the launch path)

        return stop_orders.order_stop(self.attempt_dir(request), self.read(request), request)

    def sweep(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Return processes that still carry an attempt's cookie (none, after a stop)."""
        record = self.read(request).get("attempt")
        return {"survivors": system.marked_processes(record["cookie"]) if record else []}

    def prune(self, request: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        """Take away runs that are at home, and tidy; a process of its own does it, whatever becomes of us.

        The answer comes once the runs are out of the way, with `thorough` once everything is done.
        """
        from remote_train.host import tidy  # noqa: PLC0415  (not on the launch path)

        tidy.note_agent()
        if not request["runs"] and not request.get("thorough") and not tidy.is_due(self.root):
            return {"runs": []}
        listening = tidy.spawn(self.root, request)
        self.aside(request["id"], lambda: tidy.listen(listening, whole=bool(request.get("thorough"))))
        return None

    def read(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Return what is known of the attempt that a request names, the newest by default."""
        run = request["run"]
        numbers = attempt.list_attempts(self.root, run) if layout.is_run_id(run) else []
        number = request.get("attempt") or (numbers[-1] if numbers else 0)
        state = attempt.read_state(layout.attempt_dir(self.root, str(run), int(number)))
        state.update(run=run, number=number, attempts=numbers)
        return state

    def attempt_dir(self, request: Dict[str, Any]) -> str:
        """Return the folder of the attempt that a request names."""
        run, number = request["run"], request["attempt"]
        if not layout.is_run_id(run) or not isinstance(number, int):
            raise ValueError("not a run: %r" % (run,))
        return layout.attempt_dir(self.root, run, number)

    def close(self) -> None:
        """Drop what was arriving; runs are not touched."""
        for upload in self.uploads.values():
            upload.abandon()


OPERATIONS: Dict[str, Operation] = {
    "open": Operations.open,
    "facts": Operations.facts,
    "search": Operations.search,
    "manifest": Operations.manifest,
    "blobs": Operations.blobs,
    "start": Operations.start,
    "follow": Operations.follow,
    "state": Operations.state,
    "list": Operations.list,
    "stop": Operations.stop,
    "sweep": Operations.sweep,
    "prune": Operations.prune,
}

LATER = {
    "tail": ("fetching", "find_tail"),
    "files": ("fetching", "list_files"),
    "get": ("fetching", "send_file"),
    "data": ("datasets", "data"),
    "lack": ("arrivals", "lack"),
    "put": ("arrivals", "put"),
    "stored": ("arrivals", "stored"),
    "cancel": ("fetching", "cancel"),
    "weights": ("weights", "convert_weights"),
    "bench": ("benching", "bench"),
    "examine": ("examining", "examine"),
    "clock": ("examining", "tell_time"),
    "burst": ("examining", "burst"),
    "sink": ("examining", "sink"),
    "queue": ("waiting", "queue"),
    "environment": ("environments", "environment"),
}
"""Operations off the launch path, in modules that are loaded when one of them is asked for."""


def _find_operation(name: str) -> Operation:
    if name in LATER and name not in OPERATIONS:
        import importlib  # noqa: PLC0415  (not on the launch path)

        module, function = LATER[name]
        OPERATIONS[name] = getattr(importlib.import_module("remote_train.host." + module), function)
    if name not in OPERATIONS:
        raise wire.FrameError("unknown operation %r" % (name,))
    return OPERATIONS[name]
