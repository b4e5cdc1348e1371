"""A host's agent that speaks our bootstrap and our frames as ours does, up to the one thing that its case twists.

Every run there is running when it was just started, says a few lines, and ends; it made two files. In a test it
plays the host of a FakeTransport; behind a real sshd it is a program that stands where the host's Python should be:

    python -m tests.faults.hostile_agent CASE … HASH NONCE STAGE0
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
import select
import struct
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from remote_train.host import wire
from remote_train.host.globs import make_pattern

OUTPUTS = {
    "0": b"hello\n"
    + b"".join(b"iter %d: loss %.4f, time 10.00ms, mfu 1.00%%\n" % (i, 3 - i / 10) for i in range(9)),
    "launcher": b"words of torchrun\n",
    "clock": b'{"mono": 0.5, "wall": 1700000000.0, "sizes": {"0": 400}}\n',
    "meter": b'{"kind": "count", "flops": 1e9}\n{"kind": "steps", "time": 1, "steps": 9, "seconds": 1, "flops": 1e9}\n',
    "report": b'{"step": 3, "loss": 2.5}\n',
}
FILES = {"ckpt.pt": b"weights" * 1000, "out/notes.txt": b"notes"}
STARTED = 1_700_000_000.0
PLAN = {
    "host": "box",
    "device": "cpu",
    "python": "/usr/bin/python3",
    "launcher": "python",
    "processes": 1,
    "argv": ["train.py"],
    "cwd": "",
    "project": "project",
    "package": "0" * 64,
    "checkpoints": [],
    "cpu": {"model": "a CPU", "threads": 4},
    "peak_tflops": {"fp32": 0.1},
}
FACTS = {
    "os": "Linux",
    "python": {
        "path": "/usr/bin/python3",
        "version": "3.11.2",
        "torch": "2.4.0",
        "torch_cuda": None,
        "torch_file": "/usr/lib/torch/version.py",
        "error": None,
    },
    "gpus": [],
    "gpu_error": "no driver",
    "cpu": {"model": "a CPU", "physical": 4, "performance": 4, "logical": 8, "usable": 4},
    "fingerprint": "f" * 32,
    "thread_env": {},
    "disk_free_bytes": 10**12,
}
PEAK = {"float32": 1e11, "bfloat16": 1e11, "threads": 4}


@dataclass(frozen=True)
class Frame:
    """A frame to be sent; a dict payload travels as JSON, whatever is in it."""

    kind: int
    stream: int
    payload: Any

    def encode(self) -> bytes:
        payload = self.payload
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode("ascii")
        return struct.pack(">IBI", len(data), self.kind, self.stream) + data


Twist = Callable[["Agent", Frame], Iterable[Frame | bytes]]


@dataclass(frozen=True)
class Case:
    """One thing that a host does wrong: at which of its words, and how."""

    name: str
    where: str
    """`ready`, `reply OP`, `event KIND`, `data NAME`, `end NAME`; NAME is an output's, or `file`."""
    twist: Twist
    codes: frozenset[int] = frozenset({60})
    """Exit codes one of which a command must end with; 0 among them where the harm is nothing to end for."""
    failing: bool = False
    """The training ends with code 3."""


class Line(Protocol):
    """What an agent hears and says by."""

    def receive(self, timeout: float | None = None) -> bytes | None: ...

    def send(self, data: bytes) -> None: ...


def honest(_agent: Agent, frame: Frame) -> Iterable[Frame | bytes]:
    yield frame


HONEST = Case("honest", "", honest, frozenset({0}))


@dataclass
class Agent:
    """One connection of the hostile host."""

    line: Line
    nonce: str
    case: Case = HONEST
    said: list[tuple[str, Frame]] = field(default_factory=list)
    """Everything before it was twisted."""
    stopped: bool = False
    refused: object = None
    """The request that was refused last: its stream brings nothing, as with an honest host."""

    def serve(self) -> None:
        """Speak until the laptop leaves."""
        decoder = wire.Decoder()
        self.say("ready", Frame(0, 0, b"\0RT1 %s READY\n" % self.nonce.encode()))
        spoke = time.monotonic()
        while (data := self.line.receive(0.1)) != b"":
            for kind, _stream, payload in decoder.feed(data or b""):
                if kind == wire.CONTROL:
                    self.answer(wire.parse_object(payload))
            if time.monotonic() - spoke > wire.HEARTBEAT_SECONDS:
                spoke = time.monotonic()
                self.line.send(Frame(wire.HEARTBEAT, 0, b"").encode())

    def await_room(self) -> None:
        """Wait until the laptop has taken most of what was sent: a line in memory holds any amount."""
        wired = getattr(self.line, "_wire", None)
        while wired is not None and not wired.lost and sum(map(len, wired.down._chunks)) > 4 << 20:
            time.sleep(0.001)

    def say(self, where: str, frame: Frame) -> None:
        self.said.append((where, frame))
        twist = self.case.twist if where == self.case.where else honest
        for piece in twist(self, copy.deepcopy(frame)):
            self.line.send(
                piece if isinstance(piece, bytes) else piece.payload if not piece.kind else piece.encode()
            )

    def answer(self, request: dict[str, Any]) -> None:
        op = request["op"]
        answer: dict[str, Any] = getattr(self, f"on_{op}", lambda _request: {})(request)
        self.say(f"reply {op}", Frame(wire.CONTROL, 0, {"id": request["id"], "ok": answer}))
        if self.refused == request["id"]:
            return
        if op == "follow":
            self.stream(request)
        elif op == "get":
            self.send_file(request)

    # ---- what our agent would say ----

    def on_open(self, _request: dict[str, Any]) -> dict[str, Any]:
        return {"protocol": 1, "boot_id": "b"}

    def on_facts(self, _request: dict[str, Any]) -> dict[str, Any]:
        return FACTS

    def on_search(self, _request: dict[str, Any]) -> dict[str, Any]:
        return {"pythons": []}

    def on_start(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.standing("running", request["plan"])

    def on_follow(self, _request: dict[str, Any]) -> dict[str, Any]:
        return self.standing("running", PLAN)

    def on_state(self, request: dict[str, Any]) -> dict[str, Any]:
        known = {"run": request["run"], "number": 1, "attempts": [1]}
        return {**self.standing("ended" if self.stopped else "running", PLAN), **known}

    def on_tail(self, _request: dict[str, Any]) -> dict[str, Any]:
        return {"offset": 6}

    def on_files(self, request: dict[str, Any]) -> dict[str, Any]:
        patterns = [make_pattern(glob) for glob in request["globs"]]
        rows = [
            {"path": path, "size": len(data), "mtime_ns": 10**18, "unit": path, "state": "committed"}
            for path, data in FILES.items()
            if not patterns or any(pattern.match(path) for pattern in patterns)
        ]
        return {"files": rows, "next": None}

    def on_get(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"size": len(FILES.get(request["path"], b"")), "mtime_ns": 10**18, "inode": "7"}

    def on_stop(self, _request: dict[str, Any]) -> dict[str, Any]:
        self.stopped = True
        return {"state": "stopping", "survivors": []}

    def on_sweep(self, _request: dict[str, Any]) -> dict[str, Any]:
        return {"survivors": []}

    def on_prune(self, request: dict[str, Any]) -> dict[str, Any]:
        kept = {"total": 10**9}
        stay = {"removed": False, "bytes": 5, "kind": "busy", "why": "somebody starts or supervises it"}
        runs = [{"run": wish["run"], **stay} for wish in request["runs"]]
        return {"runs": runs, "freed": {"trash": 7}, "before": kept, "after": kept, "failures": []}

    def standing(self, state: str, plan: dict[str, Any]) -> dict[str, Any]:
        record = {"run": "run", "attempt": 1, "pid": 4711, "started": STARTED, "plan": plan, "gpus": []}
        ended = self.exit() if state == "ended" else None
        return {"state": state, "attempt": record, "exit": ended, "peak": PEAK, "supervised": True}

    def exit(self) -> dict[str, Any]:
        code = 3 if self.case.failing else 0
        first = {"rank": 0, "code": code, "signal": None} if code else None
        return {
            "code": code,
            "signal": None,
            "first_failure": first,
            "stopped": False,
            "start_error": None,
            "outputs": {"0": len(OUTPUTS["0"])},
            "survivors": [],
            "seconds": 2.0,
            "ended": STARTED + 2,
        }

    def stream(self, request: dict[str, Any]) -> None:
        about = {"run": request["run"], "attempt": request["attempt"]}
        for output in request["outputs"]:
            self.send_bytes(
                output["stream"], output["name"], OUTPUTS.get(output["name"], b""), output["offset"]
            )
        for kind, facts in (
            ("state", {"state": "running"}),
            ("peak", {"peak": PEAK}),
            ("checkpoint", {"unit": "ckpt.pt", "size": 7000, "count": 1, "mtime_ns": 10**18}),
            ("ended", {"state": "ended", "exit": self.exit()}),
        ):
            self.say(f"event {kind}", Frame(wire.CONTROL, 0, {"event": kind, **about, **facts}))

    def send_file(self, request: dict[str, Any]) -> None:
        """Send a file that is one block, and its hash."""
        data, stream = FILES.get(request["path"], b""), request["stream"]
        if data[request["offset"] :]:
            rest = data[request["offset"] :]
            self.say("data file", Frame(wire.DATA, stream, rest + hashlib.sha256(rest).digest()))
        self.say_end(stream, "file", data, changed=False)

    def send_bytes(self, stream: int, name: str, data: bytes, offset: int) -> None:
        if data[offset:]:
            self.say(f"data {name}", Frame(wire.DATA, stream, data[offset:]))
        self.say_end(stream, name, data)

    def say_end(self, stream: int, name: str, data: bytes, **more: Any) -> None:
        summary = {"length": len(data), "sha256": hashlib.sha256(data).hexdigest(), **more}
        self.say(f"end {name}", Frame(wire.END, stream, summary))


class Descriptors:
    """stdin and stdout as a line."""

    def receive(self, timeout: float | None = None) -> bytes | None:
        ready, _, _ = select.select([0], [], [], timeout)
        return os.read(0, 1 << 16) if ready else None

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]


def find_nonce(command: str) -> str:
    """Return the nonce of a bootstrap command."""
    found = re.search(r" [0-9a-f]{64} ([0-9a-f]{16}) ", command)
    assert found, command[-300:]
    return found[1]


def play(case: Case, said: list[tuple[str, Frame]] | None = None) -> Callable[[str, Any], None]:
    """Return what a FakeTransport's host does in a case."""

    def host(command: str, pipe: Any) -> None:
        with contextlib.suppress(wire.FrameError):  # what the laptop sent was meant for another program
            Agent(pipe, find_nonce(command), case, said if said is not None else []).serve()

    return host


def main() -> None:
    """Play the agent of the named case on stdin and stdout."""
    from tests.faults.hostile_cases import CASES

    with contextlib.suppress(OSError, wire.FrameError):
        Agent(Descriptors(), sys.argv[-2], CASES.get(sys.argv[1], HONEST)).serve()


if __name__ == "__main__":
    main()
