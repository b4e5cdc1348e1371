"""What is known of runs and hosts: `ps`, `show`, `hosts check`. Asks hosts in parallel, tells what it cannot know."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from remote_train.attempts import (
    OVER,
    Place,
    newest_of,
    place_of,
    update_newest,
)
from remote_train.checkpoints import list_checkpoints
from remote_train.errors import (
    ConnectionLost,
    HostKeyRefused,
    HostUnfit,
    RemoteTrainError,
    Unreachable,
    exit_code_of,
)
from remote_train.explaining import explain_run
from remote_train.fencing import is_pending, list_pending
from remote_train.fitness import unfit_hint
from remote_train.host import layout
from remote_train.host.follow import QUIET_SECONDS
from remote_train.outcome import render_end
from remote_train.preflight import find_unfit, find_warnings, render_verdict
from remote_train.turn_words import render_place, render_wait
from remote_train.watch import read_last_metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remote_train.reach import HostLink
    from remote_train.session import Session

    Further = Callable[[Session, dict[str, Any]], dict[str, Any]]
    from remote_train.records import Run
    from remote_train.watch import Watch


def refresh(run: Run, link: HostLink) -> dict[str, Any]:
    """Ask the host for a run's state and keep what it says; return the new run.json."""
    session = link.connect()
    try:
        state = session.request("state", **name_newest(run))
    finally:
        session.close()
    return keep_state(run, state)


def name_newest(run: Run) -> dict[str, Any]:
    """Return how a request names the attempt that counts; its host may have had others."""
    return {"run": run.id, "attempt": newest_of(run.read())}


def keep_state(run: Run, state: dict[str, Any]) -> dict[str, Any]:
    """Write the host's word on an attempt into the records; an end that is known here outlives the host's memory of it.

    Of an attempt that counts no more the run's state says nothing.
    """
    if state["state"] == "unknown" and run.read()["state"] in (*OVER, "starting"):
        return run.read()  # it may be on its way there
    number = state.get("number") or newest_of(run.read())
    mirror = run.attempt(number)
    mirror.prepare()
    for name, key in ((layout.ATTEMPT, "attempt"), (layout.PEAK, "peak"), (layout.EXIT, "exit")):
        if isinstance(state.get(key), dict):
            mirror.write(name, state[key])
    known = {key: state.get(key) for key in ("exit", "why", "quiet", "supervised", "queue")}
    return update_newest(run, number, state=state["state"], **known)


def refresh_all(runs: Sequence[Run], link_of: Callable[[Run], HostLink]) -> dict[str, str]:
    """Refresh every run that may have changed, one connection a host; return id -> why it could not be."""
    waiting: dict[Place, list[Run]] = {}
    troubles: dict[str, str] = {}
    for run in runs:
        record = run.read()
        if record["state"] not in OVER:
            waiting.setdefault(place_of(record, newest_of(record)), []).append(run)
    pool = ThreadPoolExecutor(max(1, min(8, len(waiting))))
    try:
        for found in pool.map(lambda group: _refresh_group(group, link_of), waiting.values()):
            troubles.update(found)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a Ctrl-C does not wait for a host that is silent
    return troubles


def _refresh_group(runs: list[Run], link_of: Callable[[Run], HostLink]) -> dict[str, str]:
    try:
        session = link_of(runs[0]).connect()
    except HostKeyRefused as error:  # nobody sees an exit code of it here, so the command to type is told too
        return {run.id: f"{error}; {error.hint}" for run in runs}
    except (RemoteTrainError, ConnectionLost) as error:
        return {run.id: str(error) for run in runs}
    try:
        for run in runs:
            keep_state(run, session.request("state", **name_newest(run)))
    except (RemoteTrainError, ConnectionLost) as error:
        return {run.id: str(error) for run in runs}
    finally:
        session.close()
    return {}


def reach_fenced(runs: Sequence[Run], link_of: Callable[[Run, int], HostLink]) -> None:
    """Have what counts no more of these runs stopped where its host can be reached now; the others are left to later."""
    waiting: dict[Place, HostLink] = {}
    for run in runs:
        record = run.read()
        for number, _ in list_pending(run):
            with contextlib.suppress(RemoteTrainError):  # the host's name may mean nothing any more
                waiting.setdefault(place_of(record, number), link_of(run, number))
    pool = ThreadPoolExecutor(max(1, min(8, len(waiting))))
    try:
        list(pool.map(_knock, waiting.values()))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _knock(link: HostLink) -> None:
    with contextlib.suppress(RemoteTrainError, ConnectionLost):
        link.connect().close()


def make_row(run: Run, trouble: str | None) -> dict[str, Any]:
    """Return a run as `ps` lists it."""
    record = run.read()
    number = newest_of(record)
    metric, watch = read_last_metric(number, run.attempt(number))
    ended = record.get("exit") or {}
    end = ended.get("ended") if record["state"] in OVER else time.time()
    progress = watch.deriver.progress if watch else None
    return {
        "run": run.id,
        "host": record["host"],
        "state": describe_state(record) + ("" if trouble is None else "?"),
        "queue": record.get("queue") if record["state"] not in OVER else None,
        "trouble": trouble,
        "step": metric.step if metric else None,
        "steps": progress[1] if progress else None,
        "loss": metric.loss if metric else None,
        "mfu": metric.mfu if metric else None,
        "started": record.get("created"),
        "duration": None
        if is_queued(record) or not end
        else end - record["created"] - _sum_waits(run, record),
        "exit": render_exit(ended) if ended else None,
    }


def describe_state(record: dict[str, Any]) -> str:
    """Return a run's state in a word or two; of one that waits for GPUs its place."""
    return render_place(record["queue"]) if is_queued(record) else str(record["state"])


def is_queued(record: dict[str, Any]) -> bool:
    """Tell whether a run waits for GPUs; that is none of its time."""
    return record["state"] == "starting" and bool(record.get("queue"))


def _sum_waits(run: Run, record: dict[str, Any]) -> float:
    """Return the seconds that its attempts have waited for GPUs, by their hosts' clocks."""
    waited = 0.0
    for item in record["attempts"]:
        mirror = run.attempt(item["attempt"])
        about = mirror.read(layout.ATTEMPT) or {}
        queued, until = about.get("queued"), about.get("started")
        if about.get("phase") == "queued":  # it never was its turn: all of its time was a wait
            queued, until = until, (mirror.read(layout.EXIT) or {}).get("ended")
        if isinstance(queued, (int, float)) and isinstance(until, (int, float)):
            waited += max(until - queued, 0.0)
    return waited


def render_exit(ended: dict[str, Any]) -> str:
    """Return how a run ended, in a word or two."""
    if ended.get("start_error"):
        return "did not start"
    if ended.get("stopped"):
        return "stopped"
    if ended.get("code") == 0:
        return "0"
    return (
        render_end(ended.get("code"), ended.get("signal")).removeprefix("ended ").removeprefix("with code ")
    )


def describe(run: Run) -> dict[str, Any]:
    """Return everything `show` says of a run, from the records here."""
    record = run.read()
    attempts = record["attempts"]
    number, plan = newest_of(record), attempts[-1]["plan"]
    metric, watch = read_last_metric(number, run.attempt(number))
    explained = explain_run(run).as_json()
    ended = record.get("exit")
    return {
        "run": run.id,
        "project": record["project"],
        "host": record["host"],
        "state": describe_state(record),
        "queue": record.get("queue") if record["state"] not in OVER else None,
        "exit": render_exit(ended) if ended else None,
        "notes": render_notes(record),
        "pruned": record.get("pruned"),
        "attempts": make_attempt_rows(run, record),
        "from": record.get("from"),
        "script": " ".join(plan["argv"]),
        "launcher": plan["launcher"],
        "processes": plan["processes"],
        "package": record["package"],
        "commit": record.get("commit"),
        "dirty": record.get("dirty"),
        "device": watch.device.name if watch else None,
        "last": metric.as_json() if metric else None,
        "steps": watch.deriver.progress[1] if watch and watch.deriver.progress else None,
        "eta": watch.deriver.eta_seconds if watch and record["state"] not in OVER else None,
        "mfu": _describe_mfu(watch) if watch else None,
        "explanation": watch.deriver.explanation if watch else None,
        "bottleneck": explained["sentence"] if explained["step_seconds"] else None,
        "telemetry": explained["telemetry"],
        "checkpoints": list_checkpoints(run),
        "paths": {"records": str(run.folder), "output": str(run.attempt(number).output("0"))},
        "next": next_commands(run.id, record["state"], pruned=bool(record.get("pruned"))),
    }


def _describe_mfu(watch: Watch) -> dict[str, Any]:
    """Return the newest record of each source, the best first, and why the meter's has no MFU."""
    return {"sources": [record.as_json() for record in watch.list_sources()], "why": watch.explain_unknown()}


def make_attempt_rows(run: Run, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what `show` says of each attempt; `pending`: it counts no more, and may still run where it was."""
    newest = newest_of(record)
    rows = []
    for item in record["attempts"]:
        number = item["attempt"]
        about = record if number == newest else item
        checkpoint, ended = item.get("checkpoint") or {}, about.get("exit")
        row = {
            "attempt": number,
            "host": place_of(record, number)[0],
            "began": item.get("created", record.get("created") if number == 1 else None),
            "state": about.get("state"),
            "exit": render_exit(ended) if ended else None,
            "reason": item.get("reason"),
            "checkpoint": checkpoint.get("unit"),
            "step": checkpoint.get("step"),
            "superseded": bool(item.get("superseded")),
            "pending": is_pending(record, run.id, number),
        }
        rows.append(row)
    return rows


def render_notes(record: dict[str, Any]) -> list[str]:
    """Return what else is known of how a run is, or how it ended: one line each."""
    ended = record.get("exit") or {}
    first = ended.get("first_failure") or {}
    notes = []
    if record["state"] == "lost":
        notes.append(f"{record.get('why') or 'it is gone'}; how it ended is not known")
    elif record["state"] not in OVER and record.get("supervised") is False and record.get("why"):
        notes.append(f"{record['why']}: it runs on, and how it ends will not be known")
    if is_queued(record):
        notes.append(render_wait(record["queue"], record["host"]))
    if record["state"] not in OVER and (record.get("quiet") or 0) >= QUIET_SECONDS:
        notes.append(f"no output for {record['quiet'] / 60:.0f} minutes: it may hang")
    if first.get("rank") is not None and len(ended.get("outputs", {})) > 1:
        notes.append(f"rank {first['rank']} failed first")
    if first.get("error"):
        notes.append(f"{first['error_file']}: {first['error']}")
    if ended.get("restarts"):
        notes.append(f"torchrun restarted it {ended['restarts']} times")
    return notes


def next_commands(run: str, state: str, *, pruned: bool = False) -> list[str]:
    """Return what can be done with a run in this state; `pruned`: its host has removed it."""
    if pruned:
        return [f"remote-train logs {run}", f"remote-train metrics {run}"]
    if state in OVER:
        return [f"remote-train logs {run}", f"remote-train pull {run}"]
    return [f"remote-train logs -f {run}", f"remote-train stop {run}"]


def check_host(link: HostLink, further: Further | None = None) -> dict[str, Any]:
    """Return what `hosts check` found at one host, step by step, and a verdict with the next step.

    `further` may look for more over the same connection, and returns the facts to judge.
    """
    row = {"host": link.host.name, "address": list(link.host.address), "ok": False}
    began = time.monotonic()
    try:
        session = link.connect()
    except (RemoteTrainError, ConnectionLost) as error:
        return {**row, **_describe_refusal(error)}
    row["reachable"] = True
    try:
        row["login"] = f"in {time.monotonic() - began:.2f} s"
        facts = link.read_facts(session, fresh=True)
        facts = further(session, facts) if further else facts
    except (RemoteTrainError, ConnectionLost) as error:
        hint = getattr(error, "hint", None)
        return {**row, "exit_code": exit_code_of(error), "verdict": str(error), "next": hint}
    finally:
        session.close()
    why = find_unfit(link.host, facts)
    summary = render_verdict(link.host.name, link.host.device, facts, fresh=True)
    if link.host.device == "cpu":
        facts = {**facts, "gpu_error": None}  # nobody asked for one
    return {
        **row,
        "facts": facts,
        "verdict": why or f"ready: {summary.partition(': ')[2]}",
        "warnings": find_warnings(link.host, facts, link.looked),
        "next": unfit_hint([f"{link.host.name}: {why}"], here=link.is_local) if why else None,
        "ok": why is None,
        "exit_code": HostUnfit.exit_code if why else 0,
    }


def _describe_refusal(error: RemoteTrainError | ConnectionLost) -> dict[str, Any]:
    """Return how far a connection came that did not come about."""
    row: dict[str, Any] = {"exit_code": exit_code_of(error), "reachable": True, "login": False}
    if isinstance(error, ConnectionLost):
        return {**row, "verdict": str(error), "next": "try again"}
    if isinstance(error, Unreachable):
        verdict, next_step = f"unreachable: {error.message}", "is it on, and is the address right?"
        return {"exit_code": row["exit_code"], "reachable": False, "verdict": verdict, "next": next_step}
    row |= {"verdict": error.message, "next": error.hint}
    if isinstance(error, HostKeyRefused):
        row |= {
            "host_key": error.facts.get("verdict"),
            "host_key_of": error.facts.get("key_of"),
            "fingerprint": str(error.facts.get("offered")).split()[-1],
        }
    return row
