"""Everything that a hostile agent does wrong in these tests, by name; each case is one thing that is twisted."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from typing import TYPE_CHECKING, Any

from remote_train.host import wire
from tests.faults.hostile_agent import FILES, Agent, Case, Frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.faults.hostile_agent import Twist

    Piece = Frame | bytes

FORGED = "FORGED"
EVIL = f"\x1b]0;{FORGED}\x07\x1b[2J\x9b2J\x90q\x9c\u202e\x7f\nremote-train: error: {FORGED}\rremote-train: {FORGED}"
"""A text that sets the title, clears the screen, turns the line around, and passes itself off as ours."""
HUGE = 10**19
ENDLESS = 400 << 20
"""Bytes after which what should have been cut off stops by itself."""

CASES: dict[str, Case] = {}


def case(name: str, where: str, twist: Twist, *codes: int, failing: bool = False) -> None:
    """Add a case; without codes it is a breach of the protocol."""
    assert name not in CASES, name
    CASES[name] = Case(name, where, twist, frozenset(codes or {60}), failing)


# ---- ways to twist ----


def put(*path: str | int, value: Any) -> Twist:
    """Set one field of a message."""

    def twist(_agent: Agent, frame: Frame) -> Iterable[Piece]:
        place = frame.payload
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        yield frame

    return twist


def change(*path: str | int, value: Any) -> Twist:
    """Set one field of an answer."""
    return put("ok", *path, value=value)


def drop(*path: str | int) -> Twist:
    """Leave one field of an answer out."""

    def twist(_agent: Agent, frame: Frame) -> Iterable[Piece]:
        place = frame.payload["ok"]
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]
        yield frame

    return twist


def raw(data: bytes) -> Twist:
    """Send something else."""
    return lambda _agent, _frame: [data]


def text(json_text: str) -> Twist:
    """Send this text as the answer, `ID` in it being the request's."""

    def twist(_agent: Agent, frame: Frame) -> Iterable[Piece]:
        yield Frame(wire.CONTROL, 0, json_text.replace("ID", str(frame.payload["id"])).encode())

    return twist


def refuse(kind: Any, message: Any) -> Twist:
    """Answer with an error."""

    def twist(agent: Agent, frame: Frame) -> Iterable[Piece]:
        error = {"kind": kind, "message": message}
        agent.refused = frame.payload["id"]
        yield Frame(wire.CONTROL, 0, {"id": frame.payload["id"], "error": error})

    return twist


def before(*pieces: Piece) -> Twist:
    """Say something first."""
    return lambda _agent, frame: [*pieces, frame]


def after(*pieces: Piece) -> Twist:
    """Say something more."""
    return lambda _agent, frame: [frame, *pieces]


def nothing(_agent: Agent, _frame: Frame) -> Iterable[Piece]:
    """Say nothing, and go on with heartbeats."""
    return []


def payload(data: bytes) -> Twist:
    """Send other bytes on the same stream."""
    return lambda _agent, frame: [Frame(frame.kind, frame.stream, data)]


def twice(_agent: Agent, frame: Frame) -> Iterable[Piece]:
    """Say it twice."""
    return [frame, frame]


def hang_up(_agent: Agent, frame: Frame) -> Iterable[Piece]:
    """Break off in the middle of a frame."""
    data = frame.encode()
    yield data[: len(data) // 2]
    raise BrokenPipeError


def fall_silent(agent: Agent, frame: Frame) -> Iterable[Piece]:
    """Say half a frame and then not even heartbeats, until the laptop leaves."""
    data = frame.encode()
    yield data[: len(data) // 2]
    while agent.line.receive(0.1) != b"":
        pass
    raise BrokenPipeError


def drip(agent: Agent, _frame: Frame) -> Iterable[Piece]:
    """Send one byte a quarter second for ever: of a frame that is a megabyte long."""
    yield b"\x00\x10\x00\x00\x01\x00\x00\x00\x00"
    while agent.line.receive(0.25) != b"":
        yield b" "
    raise BrokenPipeError


def take_nothing(_agent: Agent, _frame: Frame) -> Iterable[Piece]:
    """Read nothing any more, and say that we live."""
    while True:
        time.sleep(0.1)
        yield Frame(wire.HEARTBEAT, 0, b"")


def flood(piece: Frame) -> Twist:
    """Say the same thing for ever."""

    def twist(agent: Agent, frame: Frame) -> Iterator[Piece]:
        yield frame
        data = piece.encode()
        count = ENDLESS // len(data)
        block = data * max(1, (1 << 18) // len(data))
        for _ in range(max(1, count * len(data) // len(block))):
            agent.await_room()
            yield block

    return twist


def flood_stream(payload: bytes) -> Twist:
    """Send DATA for ever, whatever is acknowledged."""
    return lambda agent, frame: flood(Frame(wire.DATA, frame.stream, payload))(agent, frame)


def rows(*listed: Any) -> Twist:
    """List these files."""
    return change("files", value=[make_row(item) if isinstance(item, str) else item for item in listed])


def make_row(path: Any, size: Any = ..., mtime: Any = 10**18, **more: Any) -> dict[str, Any]:
    """Return a row; of the size that `get` will say where no other is given."""
    size = len(FILES.get(str(path), b"")) if size is ... else size
    return {"path": path, "size": size, "mtime_ns": mtime, "unit": path, "state": "committed", **more}


def for_ever(_agent: Agent, frame: Frame) -> Iterable[Piece]:
    """List a page that is never the last."""
    frame.payload["ok"]["next"] = "ckpt.pt"
    yield frame


def new_pages(agent: Agent, frame: Frame) -> Iterable[Piece]:
    """List ever new files."""
    number = sum(where == "reply files" for where, _ in agent.said)
    listed = [make_row(f"{number:06d}/{place:05d}.pt") for place in range(6000)]
    frame.payload["ok"] = {"files": listed, "next": listed[-1]["path"]}
    yield frame


# ---- the bootstrap ----

case("noise over the limit", "ready", lambda _a, f: [b"n" * 100_000, f], 0, 13)
case("noise for ever", "ready", lambda _a, _f: itertools.repeat(b"motd\n", 40_000), 13)
case("no marker at all", "ready", lambda _a, _f: [b"bash: python3: not found\n"], 13)
case("the marker of another nonce", "ready", raw(b"\0RT1 0123456789abcdef READY\n"), 13)
case("READY twice", "ready", lambda _a, f: [f, f])
case("NEED for ever", "ready", lambda a, _f: [b"\0RT1 %s NEED\n" % a.nonce.encode()] * 3)
case("FAIL of a megabyte of escapes", "ready", lambda a, _f: [
    b"\0RT1 %s FAIL " % a.nonce.encode() + EVIL.replace("\n", "").encode() * 15_000 + b"\n"], 13)  # fmt: skip
case("a marker without its end", "ready", lambda a, _f: [b"\0RT1 %s FAIL " % a.nonce.encode() * 3000], 13)
case(
    "last words with escapes",
    "ready",
    lambda _a, _f: [EVIL.encode(), b"n" * 70_000, b"\n", EVIL.encode()],
    13,
)
case("READY and then the end", "reply open", lambda _a, _f: (_ for _ in ()).throw(BrokenPipeError()), 30)

# ---- frames ----

case("a frame of 2^32-1 bytes", "reply facts", raw(b"\xff\xff\xff\xff\x01\0\0\0\0"))
case("a frame of no known type", "reply facts", raw(b"\0\0\0\0\x09\0\0\0\0"))
case("a frame of type 0", "reply facts", raw(b"\0\0\0\0\0\0\0\0\0"))
case("noise between frames", "reply state", before(b"Broadcast message from root\r\n"))
case("half a frame, then the end", "reply start", hang_up, 30)
case("half a frame, then silence", "reply state", fall_silent, 30, 60)
case("a frame one byte at a time", "reply state", drip)
case("JSON that is none", "reply facts", text("{"))
case("JSON nested 100,000 deep", "reply facts", text('{"id":ID,"ok":' + "[" * 100_000 + "]" * 100_000 + "}"))
case("JSON nested 17 deep", "reply facts", text('{"id":ID,"ok":' + "[" * 17 + "]" * 17 + "}"))
case("a list instead of an object", "reply facts", text("[]"))
case("a text instead of an object", "reply facts", text('"ok"'))
case("NaN", "reply start", text('{"id":ID,"ok":{"state":"running","x":NaN}}'))
case("Infinity", "reply start", text('{"id":ID,"ok":{"state":"running","x":-Infinity}}'))
case("1e400", "reply start", text('{"id":ID,"ok":{"state":"running","x":1e400}}'))
case(
    "an integer of 4,000 digits",
    "reply start",
    text('{"id":ID,"ok":{"state":"running","x":' + "9" * 4000 + "}}"),
)
case("bytes that are not UTF-8", "reply facts", raw(Frame(wire.CONTROL, 0, b'{"a":"\xff"}').encode()))
case("a key twice", "reply start", text('{"id":ID,"ok":{"state":"running","state":7}}'))
case("a lone surrogate as a state", "reply state", change("state", value="\ud800"))
case("an empty control frame", "reply facts", raw(Frame(wire.CONTROL, 0, b"").encode()))
case(
    "a fatal event with escapes",
    "reply state",
    raw(Frame(wire.CONTROL, 0, {"event": "fatal", "message": EVIL}).encode()),
)
case(
    "a fatal event of a megabyte",
    "reply state",
    raw(Frame(wire.CONTROL, 0, {"event": "fatal", "message": "x" * 10**6}).encode()),
)
case("an ACK of what was never sent", "reply state", before(Frame(wire.ACK, 0, b"\xff" * 24)), 0)
case("an ACK of another size", "reply state", before(Frame(wire.ACK, 0, b"\xff" * 8)))
case("heartbeats with words in them", "reply state", before(Frame(wire.HEARTBEAT, 7, b"hello" * 1000)), 0)

# ---- answers to whom? ----

case("an answer to nobody", "reply state", put("id", value=4711))
case("an answer to -1", "reply state", put("id", value=-1))
case("an answer to true", "reply open", put("id", value=True))
case("an answer to 1.0", "reply open", put("id", value=1.0))
case("an answer to null", "reply state", put("id", value=None))
case("an answer to a list", "reply state", put("id", value=[1]))
case("an answer to 10^19", "reply state", put("id", value=HUGE))
case("an answer twice", "reply state", twice)
case("answers for ever", "reply facts", flood(Frame(wire.CONTROL, 0, {"id": 999, "ok": {}})))
case("no answer to facts", "reply facts", nothing)
case("no answer to start", "reply start", nothing)
case("no answer to state", "reply state", nothing)
case("no answer to files", "reply files", nothing)
case("no answer to get", "reply get", nothing)
case("no answer to stop", "reply stop", nothing)
case("an answer without ok", "reply state", lambda _a, f: [Frame(wire.CONTROL, 0, {"id": f.payload["id"]})])
case("null for an answer", "reply follow", put("ok", value=None))

# ---- refusals ----

for kind in (
    "host-key",
    "login",
    "usage",
    "stopped",
    "connection-given-up",
    "bug",
    "changed",
    "no-such-file",
    "name-taken",
):
    case(f"state refused as {kind}", "reply state", refuse(kind, "so it is"))
case("start refused as stopped", "reply start", refuse("stopped", "so it is"))
case("start refused as name-taken", "reply start", refuse("name-taken", EVIL), 21)
case("start refused as unfit", "reply start", refuse("host-unfit", EVIL), 13)
case("start refused for space", "reply start", refuse("host-space", EVIL), 14)
case("facts refused as protocol", "reply facts", refuse("protocol", EVIL))
case("a refusal of 900 kB", "reply state", refuse("protocol", EVIL * 10_000))
case("a refusal with a kind of a megabyte", "reply state", refuse("k" * 10**6, "words"))
case(
    "a refusal of another type",
    "reply state",
    lambda _a, f: [Frame(wire.CONTROL, 0, {"id": f.payload["id"], "error": 7})],
)
case("a refusal that is a list", "reply state", refuse(["a"], {"b": []}))
case("follow refused as lost", "reply follow", refuse("run-lost", EVIL), 31)
case("get refused for ever", "reply get", refuse("changed", "again"), 40)
case("a file after its refusal", "reply get", text('{"id":ID,"error":{"kind":"changed","message":"again"}}'))
case("get refused as gone", "reply get", refuse("no-such-file", EVIL), 40)

# ---- facts ----


def no_torch(_agent: Agent, frame: Frame) -> Iterable[Piece]:
    frame.payload["ok"]["python"] |= {"path": EVIL, "torch": None}
    yield frame


case("facts without a Python", "reply facts", drop("python"))
case("facts with a list for a Python", "reply facts", change("python", value=[]))
case("a Python with a number for a path", "reply facts", change("python", "path", value=7))
case("a Python that works and has escapes", "reply facts", change("python", "path", value=f"/bin/{EVIL}"), 0)
case("no torch, with escapes", "reply facts", no_torch, 13)
case("gpus that are a number", "reply facts", change("gpus", value=3))
case("100,000 gpus", "reply facts", change("gpus", value=[{}] * 100_000))
case("no usable CPU", "reply facts", change("cpu", "usable", value=0))
case("minus one CPU", "reply facts", change("cpu", "usable", value=-1))
case("cores that are texts", "reply facts", change("cpu", "performance_cpus", value=["0-3"]))
case("a CPU that is a text", "reply facts", change("cpu", value="fast"))
case("a CPU whose name is escapes", "reply facts", change("cpu", "model", value=EVIL), 0)
case("threads in other digits", "reply facts", change("thread_env", value={"OMP_NUM_THREADS": "\u00b2"}), 0)
case("threads of 300 digits", "reply facts", change("thread_env", value={"OMP_NUM_THREADS": "9" * 256}), 0)
case("thread_env that is a list", "reply facts", change("thread_env", value=["OMP_NUM_THREADS"]))
case("facts about something else", "reply facts", put("ok", value={}))

# ---- the start ----

case("changed for ever", "reply start", put("ok", value={"changed": True}))
case("the manifest for ever", "reply start", put("ok", value={"need": "manifest"}))
case("need of something unknown", "reply start", put("ok", value={"need": "passwords"}))
case("need of no blobs", "reply start", put("ok", value={"need": "blobs"}))
case("need of foreign blobs", "reply start", put("ok", value={"need": "blobs", "blobs": ["0" * 64]}))
case(
    "need of blobs with other names",
    "reply start",
    put("ok", value={"need": "blobs", "blobs": ["../../.ssh/id_ed25519"]}),
)
case("need of no data", "reply start", put("ok", value={"need": "data", "data": []}))
case("need of foreign data", "reply start", put("ok", value={"need": "data", "data": ["0" * 64]}))
case("need of data elsewhere", "reply start", put("ok", value={"need": "data", "data": ["../../.ssh"]}))


def ask_again(_agent: Agent, frame: Frame) -> Iterable[Piece]:
    """Ask for the same files of the package again and again."""
    blob = hashlib.sha256(b"print('hello')\n").hexdigest()
    frame.payload["ok"] = {"need": "blobs", "blobs": [blob]}
    yield frame


case("the same blob for ever", "reply start", ask_again)
case("nothing is taken", "reply facts", lambda a, f: itertools.chain([f], take_nothing(a, f)))
case("started, and then the end", "reply follow", lambda _a, _f: (_ for _ in ()).throw(BrokenPipeError()), 30)

# ---- the state of a run ----

for place, junk in {
    "a number": 7, "a list": [], "a text of a megabyte": "x" * 900_000, "escapes": EVIL, "null": None, "true": True,
}.items():  # fmt: skip
    case(f"a state that is {place}", "reply state", change("state", value=junk))
case("a state of another run", "reply state", change("run", value="another"))
case("an attempt that was not asked for", "reply follow", put("ok", "number", value="../../../../neighbour"))
case("an attempt number that is a path", "reply state", change("number", value="../../../../neighbour"))
case("an attempt number that is true", "reply state", change("number", value=True))
case("an attempt number of 10^19", "reply state", change("number", value=HUGE))
case("minus one attempts", "reply state", change("attempts", value=[-1]))
case("attempts that are texts", "reply state", change("attempts", value=["../../x"]))
case("100,000 attempts", "reply state", change("attempts", value=list(range(1, 100_000))))
case("a record without a plan", "reply state", drop("attempt", "plan"))
case("a record that is a text", "reply state", change("attempt", value="running"))
for place, junk in {
    "device": "tpu", "cpu": [], "processes": "many", "argv": "train.py", "launcher": None, "peak_tflops": {"fp32": 0},
    "checkpoints": [7],
}.items():  # fmt: skip
    case(f"a plan whose {place} is {junk!r}", "reply state", change("attempt", "plan", place, value=junk))
case("a plan of 10^9 processes", "reply state", change("attempt", "plan", "processes", value=10**9))
case("a plan of -1 processes", "reply state", change("attempt", "plan", "processes", value=-1))
case("a start time in the year 300,000", "reply state", change("attempt", "started", value=1e13))
case("a start time that is a text", "reply state", change("attempt", "started", value="now"))
case("GPUs of a record that are texts", "reply state", change("attempt", "gpus", value=["a100"]))
case("a capability of three", "reply follow", change("attempt", "gpus", value=[{"capability": [8, 9, "x"]}]))
case("ended without an exit", "reply state", change("state", value="ended"))
case("a peak of nothing", "reply state", change("peak", "float32", value=0))
case("a peak that is a list", "reply state", change("peak", value=[1e12]))
case("a peak with threads of words", "reply follow", change("peak", "threads", value="all"))
case(
    "a peak of 100,000 dtypes", "reply state", change("peak", value={f"float{n}": 1.0 for n in range(20_000)})
)

# ---- events and the end ----


def exits(*path: str, value: Any) -> Twist:
    return put("exit", *path, value=value)


case("an end with a text for a code", "event ended", exits("code", value="0"))
case("an end with code 10^19", "event ended", exits("code", value=HUGE))
case("an end with code true", "event ended", exits("code", value=True))
case("an end by signal 9999", "event ended", exits("signal", value=9999))
case("an end whose first rank is x", "event ended", exits("first_failure", value={"rank": "x"}))
case("an end whose first rank is -1", "event ended", exits("first_failure", value={"rank": -1}))
case("an end whose outputs are a list", "event ended", exits("outputs", value=[]))
case("an end with outputs of no rank", "event ended", exits("outputs", value={"../../x": 7}))
case("an end with an output of -1 bytes", "event ended", exits("outputs", value={"0": -1}))
case("an end with a meter of -1 bytes", "event ended", exits("others", value={"meter": -1}))
case("an end with another file of 7 bytes", "event ended", exits("others", value={"../../x": 7}), 0)
case("an end whose survivors are a number", "event ended", exits("survivors", value=7))
case("an end whose start error is a number", "event ended", exits("start_error", value=7))
case("an end whose start error is escapes", "event ended", exits("start_error", value=EVIL), 22)
case("an end that is a text", "event ended", put("exit", value="done"))
case("an end without an exit", "event ended", put("exit", value=None))
case("lost, with escapes for a state", "event ended", put("state", value=EVIL))
case("an end of another run", "event ended", put("run", value="another"))
case("an end of another attempt", "event ended", put("attempt", value=2))
case("an end of attempt true", "event ended", put("attempt", value=True))
case("ended twice", "event ended", twice, 0)
case("ended before its output", "data 0", lambda a, f: [
    Frame(wire.CONTROL, 0, {"event": "ended", "run": a.case.name, "attempt": 1, "state": "ended"}), f])  # fmt: skip
case("an unknown event", "event state", put("event", value="reboot"))
case("an event that is a list", "event state", put("event", value=[]))
case("an event without a name", "event state", lambda _a, _f: [Frame(wire.CONTROL, 0, {"run": "r"})])
case("a state event with a number", "event state", put("state", value=7))
case("a peak event of words", "event peak", put("peak", "float32", value="fast"))
case("a peak event of nothing", "event peak", put("peak", value=None))
case("events for ever", "event state", lambda a, f: flood(f)(a, f), 0, 60)
case("never an end", "event ended", nothing, 0)
CASES.pop("never an end")  # a training that goes on, as far as anyone can tell


# ---- streams ----

case("data of a stream nobody opened", "data 0", before(Frame(wire.DATA, 4711, b"x")))
case("data before anything was asked", "reply open", before(Frame(wire.DATA, 1, b"x")))
case("data after its end", "end 0", lambda _a, f: [f, Frame(wire.DATA, f.stream, b"more")])
case("an end twice", "end 0", twice)
case("an end of a stream nobody opened", "end 0", before(Frame(wire.END, 4711, {})))
case("an end without data", "data 0", nothing)
case("an end with another length", "end 0", put("length", value=7))
case("an end with a length of -1", "end 0", put("length", value=-1))
case("an end with a length of true", "end 0", put("length", value=True))
case("an end with a list for a length", "end 0", put("length", value=["x" * 10**5]))
case("an end with another hash", "end 0", put("sha256", value="0" * 64), 41)
case("an end with no hash", "end 0", put("sha256", value="x"))
case("an end that is no object", "end 0", lambda _a, f: [Frame(wire.END, f.stream, b"[]")])
case("output of escapes", "data 0", lambda _a, f: [Frame(f.kind, f.stream, EVIL.encode() * 20)])
case("launcher's words of escapes", "data launcher", lambda _a, f: [Frame(f.kind, f.stream, EVIL.encode())])
case(
    "output that ends in the middle of a character",
    "data 0",
    lambda _a, f: [Frame(f.kind, f.stream, b"\xf0\x9f")],
)
for name, line in {
    "NaN": b'{"mono": NaN, "sizes": {"0": 5}}',
    "Infinity": b'{"mono": 1, "sizes": {"0": Infinity}}',
    "10^400": b'{"mono": 1' + b"0" * 400 + b', "sizes": {"0": 5}}',
    "nesting": b"[" * 20_000,
    "no newline": b"x" * 300_000,
    "a list": b'[{"mono": 1}]',
    "negative": b'{"mono": -1e300, "sizes": {"0": 99}}',
}.items():
    case(f"a clock of {name}", "data clock", payload(line + b"\n"))
for name, line in {
    "NaN": b'{"kind": "steps", "step": NaN, "steps": NaN, "seconds": NaN, "loss": NaN, "tokens": Infinity}',
    "10^400": b'{"kind": "steps", "steps": 1'
    + b"0" * 400
    + b', "seconds": 1e-320, "flops": 1e308, "step": 1e308}',
    "escapes": json.dumps(
        {"kind": "count", "why": EVIL, "dtype": EVIL, "dtype_source": EVIL, "step": EVIL}
    ).encode(),
    "nesting": b"[" * 60_000,
    "no newline": b"x" * 3_000_000,
}.items():
    case(f"a meter of {name}", "data meter", payload(line + b"\n"))
    case(f"a report of {name}", "data report", payload(line.replace(b'"steps",', b'"step",') + b"\n"))
case("data beyond the credit", "data 0", flood_stream(b"x" * 65536), 60)
case("data of nothing for ever", "data 0", flood_stream(b""), 60)
case("data of the file for ever", "data file", flood_stream(b"x" * 65536), 60)

# ---- tail, after a failure ----

case("a tail from -1", "reply tail", change("offset", value=-1), failing=True)
case("a tail from 10^19", "reply tail", change("offset", value=HUGE), failing=True)
case("a tail from true", "reply tail", change("offset", value=True), failing=True)
case("a tail from a text", "reply tail", change("offset", value="0"), failing=True)
for name in ("a tail from -1", "a tail from 10^19", "a tail from true", "a tail from a text"):
    CASES[name] = Case(name, "reply tail", CASES[name].twist, frozenset({1}), failing=True)

# ---- listings ----

for path in (
    "../x.pt", "/etc/x.pt", "", ".", "..", "a/../../x.pt", "a//x.pt", "a/", "x\0.pt", "x" * 5000 + ".pt", "\ud800.pt",
    ".x.remote-train-partial", "./ckpt.pt", "a/./b.pt", "x" * 256 + ".pt",
):  # fmt: skip
    case(f"a file named {path[:24]!r} of {len(path)}", "reply files", rows(path))
case("a file named by a number", "reply files", rows(make_row(7)))
case("a file named with a newline", "reply files", rows("a\nremote-train: FORGED.pt"))
case("a file named by escapes", "reply files", rows("\x1b[2J\x9b2J.pt"))
case("a file named by one-byte escapes", "reply files", rows("\x9b2J.pt"))
case("a file named with a DEL", "reply files", rows("a\x7f.pt"))
case("a file named as a byte", "reply files", rows("\udc80.pt"), 0)
case("the same file twice", "reply files", rows("ckpt.pt", "ckpt.pt"))
case("files out of order", "reply files", rows("b.pt", "a.pt"))
case("files that differ by case", "reply files", rows("CKPT.pt", "ckpt.pt"), 0, 41)
case("a file where a folder is", "reply files", rows("ckpt.pt", "ckpt.pt/x.pt"), 40, 41)
case("a file of the user's own", "reply files", rows("mine.pt"), 40, 41)
case("files that nobody asked for", "reply files", rows("train.py"))
case("a hook of git's", "reply files", rows(".git/hooks/x.pt"), 0)
case("a hook of Git's", "reply files", rows(".GIT/hooks/x.pt"), 0)
case("a page without an end", "reply files", for_ever)
case("an empty page without an end", "reply files", change("next", value="zzz"))
CASES["an empty page without an end"] = Case(
    "an empty page without an end",
    "reply files",
    lambda _a, f: [Frame(f.kind, f.stream, {"id": f.payload["id"], "ok": {"files": [], "next": "zzz"}})],
)
case("ever new pages", "reply files", new_pages, 40)
case("a next that is a number", "reply files", change("next", value=7))
case("no next", "reply files", drop("next"))
case("files that are an object", "reply files", change("files", value={}))
case("rows that are texts", "reply files", change("files", value=["ckpt.pt"]))
for name, size in {"-1": -1, "2^63": 2**63, "true": True, "a text": "7", "1.5": 1.5, "null": None}.items():
    case(f"a size of {name}", "reply files", rows(make_row("ckpt.pt", size)))
case("a size of 2^62", "reply files", rows(make_row("ckpt.pt", 2**62)), 42)
case("a time of 2^63", "reply files", rows(make_row("ckpt.pt", 7, 2**63)))
case("a time of true", "reply files", rows(make_row("ckpt.pt", 7, True)))

# ---- checkpoints ----

for unit in (
    "..", "../..", "/", "/etc", "", ".", "ckpt.p", "ckpt.pt/", "ckpt.pt/x", "other", "./ckpt.pt", "x" * 5000, "\ud800", "a\0",
    "ckpt.pt\n", EVIL, ".x.remote-train-partial", None, 7, ["ckpt.pt"],
):  # fmt: skip
    shown = f"{str(unit)[:20]!r} of {len(str(unit))}"
    case(f"a file of the checkpoint {shown}", "reply files", rows(make_row("ckpt.pt", unit=unit)))
for state in ("done", "", None, 7, ["committed"], EVIL):
    case(f"a checkpoint that is {str(state)[:20]!r}", "reply files", rows(make_row("ckpt.pt", state=state)))
case("a companion that is a program", "reply files", rows("a/m.pt", make_row("a/train.py", unit="a")))
case("a companion of the project's root", "reply files", rows(make_row("config.json", unit="")))
for unit in (
    "..", "../x.pt", "/etc/x.pt", "", "a//b", "a/../../x", "x" * 5000, "\ud800", "a\0", "a\nremote-train: FORGED", EVIL,
    "\x9b2J", ".x.remote-train-partial", "x" * 256, None, 7, ["ckpt.pt"],
):  # fmt: skip
    shown = f"{str(unit)[:20]!r} of {len(str(unit))}"
    case(f"told of the checkpoint {shown}", "event checkpoint", put("unit", value=unit))
for name, junk in {
    "a size of -1": ("size", -1), "a size of words": ("size", "all"), "a size of 10^19": ("size", HUGE),
    "no files": ("count", 0), "a time of 10^19": ("mtime_ns", HUGE), "a time of true": ("mtime_ns", True),
}.items():  # fmt: skip
    case(f"a checkpoint with {name}", "event checkpoint", put(junk[0], value=junk[1]))
case("checkpoints for ever", "event checkpoint", lambda a, f: flood(f)(a, f), 0, 60)
case("a checkpoint of another run", "event checkpoint", put("run", value="another"))
case("a checkpoint of attempt 2", "event checkpoint", put("attempt", value=2))

# ---- files ----

case("a file that is another size", "reply get", change("size", value=3), 40, 41)
case("a file of -1 bytes", "reply get", change("size", value=-1))
case("a file of true bytes", "reply get", change("size", value=True))
case("a file without a time", "reply get", drop("mtime_ns"))
case("a file with more bytes than it has", "data file", twice)
case(
    "a file with fewer bytes than it has",
    "data file",
    lambda _a, f: [Frame(f.kind, f.stream, f.payload[:-1])],
    41,
)
case(
    "a file with other bytes than it has",
    "data file",
    lambda _a, f: [Frame(f.kind, f.stream, b"X" * len(f.payload))],
    41,
)
case("a file with no bytes", "data file", nothing, 41)
case("a file with another hash", "end file", put("sha256", value="0" * 64), 41)
case("a file with no hash", "end file", lambda _a, f: [Frame(f.kind, f.stream, {})], 41)
case("a file that changes for ever", "end file", put("changed", value=True), 40)
case("a file that changes into a text", "end file", put("changed", value="yes"))
case("a file that never ends", "end file", nothing)
case("a file that breaks off for ever", "data file", hang_up, 30, 60)

# ---- gc ----


def pruned(key: str, value: Any) -> Twist:
    """Say something else of every run that was asked about."""

    def twist(_agent: Agent, frame: Frame) -> Iterable[Piece]:
        for row in frame.payload["ok"]["runs"]:
            row[key] = value
        yield frame

    return twist


case("a total that is a list", "reply prune", change("before", value=[1]))
case("a total of words", "reply prune", change("after", value={"total": "all"}))
case("freed by -1 bytes", "reply prune", change("freed", value={"trash": -1}))
case("freed by escapes", "reply prune", change("freed", value={EVIL: 1}))
case("runs removed that are texts", "reply prune", change("runs", value=["run"]))
case(
    "a run removed that nobody named",
    "reply prune",
    change("runs", value=[{"run": "other", "removed": True}]),
)
case("a run that stays because of escapes", "reply prune", pruned("why", EVIL), 0)
case("a run of true bytes", "reply prune", pruned("bytes", True))
case("a run removed by a text", "reply prune", pruned("removed", "yes"))

# ---- stop ----

case("survivors that are a number", "reply stop", change("survivors", value=7))
case("survivors that are texts", "reply sweep", change("survivors", value=[EVIL]))
case("survivors for ever", "reply sweep", change("survivors", value=[4711]), 50)
case("a run that never stops", "reply state", change("state", value="stopping"), 50)
case("a stop in a state of escapes", "reply stop", change("state", value=EVIL))
