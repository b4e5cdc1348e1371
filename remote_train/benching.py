"""`bench`: the same two models and a matmul peak on every host, hosts that are different machines at the same time."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

from remote_train.config.project_spec import ProjectSpec
from remote_train.errors import (
    EXIT_BUG,
    ConnectionLost,
    HostUnfit,
    ProtocolError,
    RemoteTrainError,
    exit_code_of,
)
from remote_train.host.benching import STARTING_SECONDS
from remote_train.metrics.benchmark import Metered, Model, make_model_row, pick_rates
from remote_train.metrics.denominator import choose_device, choose_device_peak
from remote_train.metrics.diagnosis import diagnose
from remote_train.metrics.floors import DeviceView
from remote_train.metrics.profile import parse_profile
from remote_train.metrics.telemetry import HostUse
from remote_train.plan import Job, make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remote_train.metrics.peaks import DeviceFacts, Peak
    from remote_train.reach import HostLink
    from remote_train.session import Session

Row = dict[str, Any]
MORE_SECONDS = 20.0
"""An answer may come so much later than its host gives up."""


def bench_hosts(links: Sequence[HostLink], models: Sequence[Model], tell: Callable[[str], None]) -> list[Row]:
    """Return a row for each host, in order; `tell` gets what is being done. Logins go one after the other: they may ask."""
    for link in links:
        link.dial()
    told: queue.Queue[str | None] = queue.Queue()
    rows: list[Row] = []
    turns: dict[str, threading.Lock] = {}
    threads = []
    for link in links:
        row: Row = {"host": link.host.name, "ok": False, "exit_code": EXIT_BUG, "reason": None, "models": []}
        rows.append(row)
        session = _reach(link, row)
        if session is not None:
            # Two names of one machine take turns, or each would measure what the other leaves.
            turn = turns.setdefault(str(row["facts"].get("boot_id")), threading.Lock())
            work = (link, session, row, models, turn, told)
            threads.append(threading.Thread(target=_bench_in_turn, args=work, daemon=True))
    for thread in threads:
        thread.start()
    left = len(threads)
    while left:
        text = told.get()
        left -= text is None
        if text is not None:
            tell(text)
    return [{key: value for key, value in row.items() if key != "facts"} for row in rows]


def _reach(link: HostLink, row: Row) -> Session | None:
    """Return a session with a host that can train, None when the row says why there is none."""
    session = None
    try:
        session = link.connect()
        facts, why = link.read_fit_facts(session)
        if why is not None:
            raise HostUnfit(f"{link.host.name}: {why}")
    except (RemoteTrainError, ConnectionLost) as error:
        _note_failure(row, error)
        if session is not None:
            session.close()
        return None
    row["facts"] = facts
    return session


def _note_failure(row: Row, error: RemoteTrainError | ConnectionLost) -> None:
    row.update(reason=str(error), hint=getattr(error, "hint", None), exit_code=exit_code_of(error))


def _bench_in_turn(
    link: HostLink,
    session: Session,
    row: Row,
    models: Sequence[Model],
    turn: threading.Lock,
    told: queue.Queue[str | None],
) -> None:
    try:
        with turn:
            _bench_host(link, session, row, models, told.put)
        row.update(ok=True, exit_code=0)
    except (RemoteTrainError, ConnectionLost) as error:
        _note_failure(row, error)
        row["ok"] = bool(row["models"])
    finally:
        session.close()
        told.put(None)


def _bench_host(
    link: HostLink, session: Session, row: Row, models: Sequence[Model], tell: Callable[[str], None]
) -> None:
    host, facts = link.host, row["facts"]
    job = Job(ProjectSpec("bench"), "/", "", "bench", None, (), None)
    plan = make_plan(job, host, facts, "", None).as_message()
    tell(f"benching {host.name}: matrix products …")
    answer = session.wait(
        session.submit("bench", what="peak", plan=plan, job={}), STARTING_SECONDS + MORE_SECONDS
    )
    check_answer(host.name, answer, "peak")
    gpu = answer.get("gpu")
    if gpu is not None:
        plan["gpus"] = {"ids": [gpu["uuid"]]}
    device = choose_device(plan["device"], plan["cpu"], [gpu] if gpu else [], 1)
    measured = answer["peak"]
    row.update(
        device=device.name,
        threads=plan["cpu"]["threads"] if device.kind == "cpu" else None,
        torch=plan["torch"],
        measured=pick_rates(measured),
        bandwidth=measured.get("bandwidth"),
        dispatch=measured.get("dispatch"),
        busy=bool(measured.get("busy")),
    )
    for model in models:
        tell(f"benching {host.name}: {model.name} …")
        asked = session.submit("bench", what="train", plan=plan, job=model.make_job())
        figures = session.wait(asked, STARTING_SECONDS + 2 * model.seconds + MORE_SECONDS)
        check_answer(host.name, figures, "step_seconds")
        peak = choose_device_peak(device, figures["dtype"], host.peak_tflops, measured)
        metered = judge_meter(figures["meter"], device, peak, measured)
        row["models"].append(make_model_row(model, figures, metered, peak))


def check_answer(host: str, answer: Row, key: str) -> None:
    """Raise ProtocolError for an answer to another question: the gate takes a peak and figures for either."""
    if key not in answer:
        raise ProtocolError(f"{host} answered `bench` without {key}")


def judge_meter(lines: Sequence[str], device: DeviceFacts, peak: Peak | None, measured: Row) -> Metered:
    """Return what the meter of one training saw, and what limits it by that. Pure."""
    profile = parse_profile(line.encode("utf-8", "replace") for line in lines)
    view = DeviceView(
        kind=device.kind,
        name=device.name,
        processes=1,
        peak=peak.flops if peak else None,
        peak_source=peak.source if peak else None,
        bandwidth=measured.get("bandwidth"),
        bandwidth_source="measured copy",
        dispatch=measured.get("dispatch"),
        threads=measured.get("threads"),
        capability=device.capability,
    )
    word = diagnose(profile, view, HostUse()).bottleneck
    return Metered(profile.flops, profile.how, None if word == "unknown" else word)
