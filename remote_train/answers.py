"""What a host may say, checked at the gate: no answer, event or END gets past it with a field of another type or size.

A host is a stranger's program as far as this laptop is concerned. Everything behind the gate may rely on the types
and limits here; nothing in here believes more than it needs. Fields that are not named pass unread.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from remote_train.errors import ProtocolError
from remote_train.host import layout, life
from remote_train.host.arrivals import MOST_ASKED
from remote_train.host.fingerprint import GPUS_BYTES
from remote_train.landing import is_place
from remote_train.measured import ADAPTER, GPU, LATEST, MOMENT, benched, examined, peak, queued
from remote_train.shapes import (
    LARGEST,
    SHOWN,
    Malformed,
    flag,
    items,
    maybe,
    named,
    number,
    table,
    text,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remote_train.shapes import Check

TEXT = 64 * 1024
RANKS = 4096
ATTEMPTS = 1000
FILES = 10_000
_RANK = re.compile(r"(0|[1-9][0-9]{0,3})\Z")


STATE = text(32, re.compile(rf"({'|'.join(life.STATES)})\Z"), "a state")
RANK = whole(0, RANKS - 1)
HASH = text(64, re.compile(r"[0-9a-f]{64}\Z"), "a SHA-256")
WEIGHTS_NAME = text(64, re.compile(r"[0-9a-f]{20}-[0-9a-f]{20}\.safetensors\Z"), "a name of weights")
TFLOPS = number(1e-9, 1e9)

PYTHON = table(
    {"path": text()},
    dict.fromkeys(("version", "torch", "torch_cuda"), maybe(text(256)))
    | {"torch_file": maybe(text()), "error": maybe(text(TEXT)), "conda": maybe(text())},
)
CPU = table(
    {"model": text(256), "usable": whole(1, 1 << 20)},
    {
        **dict.fromkeys(("physical", "performance", "logical"), whole(0, 1 << 20)),
        "performance_cpus": items(items(whole(0, 1 << 16), 64), 4096),
        "narrowed": flag,
        "quota": maybe(number(0, 1e6)),
    },
)
FACTS = table(
    {
        "python": PYTHON,
        "gpus": items(table({"index": whole(0, 1 << 16), "uuid": text(256)}), 1024),
        "cpu": CPU,
        "fingerprint": text(256),
    },
    {
        "gpus": items(GPU, 1024),
        "adapters": items(ADAPTER, 64),
        "gpu_error": maybe(text(TEXT)),
        "thread_env": named(text(GPUS_BYTES), 16, text(64)),
        "disk_free_bytes": maybe(whole()),
        "driver": maybe(text(64)),
        "driver_cuda": maybe(text(16)),
        "now": maybe(MOMENT),
    },
)
PLAN = table(
    {
        "device": text(8, re.compile(r"(cpu|cuda)\Z"), "cpu or cuda"),
        "launcher": text(32),
        "processes": whole(1, RANKS),
        "argv": items(text(TEXT), FILES),
        "cpu": table({}, {"model": maybe(text(256)), "threads": whole(1, 1 << 20)}),
    },
    {
        "project": text(256),
        "package": text(256),
        "checkpoints": items(text(), 1000),
        "max_restarts": whole(0, 1 << 31),
        "meter": flag,
        "peak_tflops": named(TFLOPS, 64, text(64)),
    },
)
RECORD = table({"plan": PLAN}, {"started": MOMENT, "gpus": maybe(items(GPU, 1024)), "pid": whole(1)})


_KNOWN: dict[str, Check] = {
    "queue": maybe(queued),
    "phase": maybe(text(32)),
    "supervised": maybe(flag),
    "why": maybe(text()),
    "quiet": maybe(MOMENT),
}
_MOMENT = table({"wall": MOMENT, "mono": MOMENT, "sizes": named(whole(), RANKS, text(4, _RANK, "a rank"))})
_GAP = table({"begin": _MOMENT, "end": maybe(_MOMENT), "reason": text(32)})
_HELD = table({"index": whole(0, 1 << 16), "pid": whole()}, {"memory_bytes": maybe(whole())})
_FIRST = table(
    {"rank": RANK},
    {
        "code": maybe(whole(0, 255)),
        "signal": maybe(whole(1, 128)),
        "error": maybe(text(TEXT)),
        "error_file": maybe(text()),
    },
)


def first_failure(value: object) -> None:
    """Accept which rank failed first; one whose error is known has it from a file."""
    _FIRST(value)
    if isinstance(value, dict) and value.get("error") and not value.get("error_file"):
        raise Malformed("missing", ".error_file")


EXIT = table(
    {},
    {
        "code": maybe(whole(0, 255)),
        "signal": maybe(whole(1, 128)),
        "stopped": maybe(flag),
        "start_error": maybe(text(TEXT)),
        "start_kind": maybe(text(32)),
        "first_failure": maybe(first_failure),
        "outputs": named(whole(), RANKS, text(4, _RANK, "a rank")),
        "others": table({}, dict.fromkeys(layout.OTHERS, whole())),
        "survivors": items(whole(), 1 << 17),
        "ended": maybe(MOMENT),
        "seconds": maybe(MOMENT),
        "restarts": maybe(whole(0, 1 << 31)),
        "launcher": maybe(text(32)),
        "oom_kills": maybe(whole(-LARGEST)),
        "gpu_held": maybe(items(_HELD, 1 << 16)),
        "gaps": items(_GAP, 1000),
        "unsupervised": flag,
        "superseded_by": maybe(whole(1, 1 << 20)),
    },
)
_STANDING = table(
    {"state": STATE},
    {
        "attempt": maybe(RECORD),
        "exit": maybe(EXIT),
        "peak": maybe(peak),
        **_KNOWN,
        "short": named(whole(), RANKS, text(32)),
        "run": text(64),
        "number": whole(0, 1 << 20),
        "attempts": items(whole(1, 1 << 20), ATTEMPTS),
    },
)


_ENDED = table({"state": STATE}, {"exit": maybe(EXIT), **_KNOWN})


def standing(value: object) -> None:
    """Accept the state of an attempt: one that has ended says how."""
    _STANDING(value)
    ended(value)


def ended(value: object) -> None:
    """Accept a state, of an end too."""
    _ENDED(value)
    if isinstance(value, dict) and value["state"] == "ended" and value.get("exit") is None:
        raise Malformed("missing", ".exit")


def begun(value: object) -> None:
    """Accept the answer to a start: the attempt's state, or what is lacking."""
    if isinstance(value, dict) and ("changed" in value or "need" in value):
        need = text(16, re.compile(r"(manifest|blobs|data)\Z"), "manifest, blobs or data")
        lists = {"blobs": items(HASH, 1 << 17), "data": items(HASH, 1000)}
        table({}, {"changed": flag, "need": need, **lists})(value)
        if value.get("need") in lists:
            table({value["need"]: lists[value["need"]]})(value)
    else:
        standing(value)


PRUNED = table(
    {"run": text(64)},
    {
        "removed": flag,
        "gone": flag,
        "bytes": whole(),
        "unpulled": whole(),
        "kind": maybe(text(40)),
        "why": maybe(text(TEXT)),
    },
)
DATA = table(
    {
        "id": HASH,
        "bytes": whole(),
        "places": items(text(), 100),
        "unused": number(0, LATEST),
        "used": flag,
        "removed": flag,
    }
)
PERSIST = table({"project": text(64), "bytes": whole(), "used": flag, "removed": flag})
KEPT = maybe(table({}, {"total": maybe(whole())}))
SURVIVORS = items(whole(), 1 << 17)
ANYTHING = table({})
ANSWERS: dict[str, Check] = {
    "open": ANYTHING,
    "facts": FACTS,
    "search": table({"pythons": items(table({"path": text()}), 1000)}),
    "manifest": ANYTHING,
    "blobs": ANYTHING,
    "lack": table(
        {
            "missing": items(HASH, MOST_ASKED),
            "held": named(whole(), MOST_ASKED, HASH),
            "free": whole(),
            "path": text(),
        }
    ),
    "data": table(
        {}, {"here": flag, "need": text(16, re.compile(r"(manifest|contents)\Z"), "manifest or contents")}
    ),
    "put": table({"offset": whole()}, {"stored": flag, "busy": flag}),
    "stored": table({"offset": whole(), "stored": flag}),
    "start": begun,
    "follow": standing,
    "state": table(
        {"state": STATE, "number": whole(0, 1 << 20), "attempts": items(whole(1, 1 << 20), ATTEMPTS)}
    ),
    "tail": table({"offset": whole(), "size": whole()}),
    "files": table({"files": items(ANYTHING, FILES), "next": maybe(text())}),
    "get": table({"size": whole(), "mtime_ns": whole(-LARGEST), "inode": text(40)}),
    "cancel": ANYTHING,
    "weights": table({"name": WEIGHTS_NAME, "size": whole(), "mtime_ns": whole(-LARGEST), "source": whole()}),
    "bench": benched,
    "examine": examined,
    "clock": table({"time": number(0, LATEST)}),
    "sink": table({"bytes": whole(), "rate": maybe(number(0, 1e18))}),
    "queue": table({"free": flag, "queue": queued, "said": text()}),
    "environment": table(
        {},
        {
            "python": text(),
            "built": flag,
            "building": flag,
            "need": text(16, re.compile(r"(files|uv)\Z"), "files or uv"),
            "lines": items(text(600), 1000),
        },
    ),
    "stop": table({"state": STATE, "survivors": SURVIVORS}),
    "sweep": table({"survivors": SURVIVORS}),
    "prune": table(
        {"runs": items(PRUNED, 10_000)},
        {
            "freed": maybe(named(whole(), 64, text(64))),
            "before": KEPT,
            "after": KEPT,
            "data": maybe(items(DATA, 10_000)),
            "persist": maybe(items(PERSIST, 10_000)),
        },
    ),
}
"""By operation. One that is not here only has to be an object."""


def place(value: object) -> None:
    """Accept a relative path that may land below a folder of ours."""
    if not is_place(value):
        raise Malformed(f"the path {str(value)[:SHOWN]!r}")


EVENTS: dict[str, Check] = {
    "state": table({"state": STATE}, {**_KNOWN, "record": maybe(RECORD)}),
    "quiet": table({"seconds": MOMENT}),
    "restarted": table({"restarts": whole(0, 1 << 31)}),
    "peak": table({"peak": peak}),
    "checkpoint": table(
        {"unit": place, "size": whole(), "count": whole(1, LARGEST), "mtime_ns": whole(-LARGEST)}
    ),
    "ended": ended,
}
END = table({}, {"length": whole(), "sha256": maybe(HASH), "changed": flag, "error": text(TEXT)})


def check_answer(host: str, op: str, fields: Mapping[str, Any], answer: object) -> dict[str, Any]:
    """Return an answer that is one to this request; raise ProtocolError naming the host and the field."""
    check = ANSWERS.get(op, ANYTHING)
    try:
        check(answer)
        if op == "state":
            standing(answer)
        _check_same(fields, answer)
    except Malformed as error:
        raise ProtocolError(f"{host} answered `{op}` with {_name(error)}", field=error.place) from None
    return dict(answer)  # type: ignore[call-overload, no-any-return]  # every check accepts objects only


def _check_same(fields: Mapping[str, Any], answer: object) -> None:
    """Refuse what is said of another run or attempt than was asked for."""
    for asked, said in (("run", "run"), ("attempt", "number")):
        wanted = fields.get(asked)
        if isinstance(answer, dict) and said in answer and wanted is not None and answer[said] != wanted:
            raise Malformed(f"{str(answer[said])[:SHOWN]!r} instead of {wanted!r}", f".{said}")


def check_event(host: str, message: dict[str, Any]) -> None:
    """Raise ProtocolError for an event that is not known, or has a field that it may not have."""
    kind = message.get("event")
    check = EVENTS.get(kind) if isinstance(kind, str) else None
    if check is None:
        raise ProtocolError(f"{host} told of something unknown: {str(kind)[:SHOWN]!r}")
    try:
        check(message)
    except Malformed as error:
        raise ProtocolError(f"{host} told of `{kind}` with {_name(error)}", field=error.place) from None


def check_end(host: str, summary: dict[str, Any]) -> None:
    """Raise ProtocolError for an END that does not say what it should."""
    try:
        END(summary)
    except Malformed as error:
        raise ProtocolError(f"{host} ended a stream with {_name(error)}", field=error.place) from None


def _name(error: Malformed) -> str:
    return f"{error.place.lstrip('.') or 'an answer'}: {error.what}"
