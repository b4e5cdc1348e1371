"""`compare RUN RUN`: both runs' records on this laptop, to two sides and a verdict. Works while their hosts are away."""

from __future__ import annotations

import posixpath
import time
from typing import TYPE_CHECKING, Any

from remote_train.attempts import OVER, newest_of, place_of
from remote_train.explaining import explain_run
from remote_train.kept_package import recall
from remote_train.metrics.comparison import Side, Tally, compare
from remote_train.metrics.configuration import Configuration, contrast
from remote_train.outcome import render_end
from remote_train.watch import read_curve, read_last_metric

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from remote_train.metrics.record import MetricRecord
    from remote_train.records import Run
    from remote_train.watch import Watch

Record = dict[str, Any]


def compare_runs(a: Run, b: Run) -> Record:
    """Return what `compare` says, see metrics/comparison.py."""
    found = contrast(read_configuration(a), read_configuration(b))
    return compare(read_side(a), read_side(b), found)


def read_side(run: Run) -> Side:
    """Return a run's figures from its records here; the pace and the device are those of its newest attempt."""
    record = run.read()
    number = newest_of(record)
    _, watch = read_last_metric(number, run.attempt(number))
    tally = Tally(_list_paces(watch) if watch else ())
    for metric in read_curve(run, windows=0):
        tally.add(metric)
    ended = (record.get("exit") or {}).get("ended") if record["state"] in OVER else time.time()
    began = record.get("created")
    return Side(
        run=run.id,
        host=place_of(record, number)[0],
        device=watch.device.name if watch else None,
        duration=ended - began if ended and began else None,
        bottleneck=_name_bottleneck(explain_run(run).diagnosis.bottleneck),
        attempts=len(record["attempts"]),
        tally=tally,
        state=record["state"],
        exit=_render_exit(record.get("exit")),
    )


def _list_paces(watch: Watch) -> list[MetricRecord]:
    """Return the typical pace by each source; that of a first window alone, the warm-up, only where there is no other."""
    paces = watch.list_sources()
    warm = [record for record in paces if record.source != "meter" or not watch.metered.warming]
    return warm or paces


def _render_exit(ended: Record | None) -> str | None:
    if ended is None:
        return None
    words = render_end(ended.get("code"), ended.get("signal"))
    return f"{words}; stopped" if ended.get("stopped") else words


def _name_bottleneck(word: str) -> str | None:
    return None if word == "unknown" else word


def read_configuration(run: Run) -> Configuration:
    """Return what a run was asked to train: as its newest attempt was, whose pace it is, begun from where the first one did."""
    record = run.read()
    plan = choose_plan(record)
    _, watch = read_last_metric(newest_of(record), run.attempt(newest_of(record)))
    settings = watch.deriver.settings if watch else {}
    return make_configuration(record, _read_files(record, run.folder), settings or {}, plan)


def choose_plan(record: Mapping[str, Any]) -> Record:
    """Return the newest attempt's plan without what only told it to go on, and with what the first one went on from. Pure.

    On another device it may have other arguments and processes, and its pace is that of those.
    """
    first, newest = record["attempts"][0]["plan"], record["attempts"][-1]["plan"]
    argv = list(newest["argv"])
    if newest.get("restore") and not first.get("restore"):
        job = record.get("job") or {}
        given = (job.get("spec") or {}).get("resume_args") or (job.get("family") or {}).get("resume_args")
        for word in given or ():
            if word in argv:
                argv.remove(word)
    return {**newest, "argv": argv, "restore": first.get("restore")}


def _read_files(record: Record, folder: Path) -> dict[str, str] | None:
    kept = recall(str(record.get("package")), folder)
    # A file's row ends in its hash, a link's in its target.
    return {str(row[0]): str(row[-1]) for row in kept.rows} if kept is not None else None


def make_configuration(
    record: Mapping[str, Any], files: dict[str, str] | None, settings: Mapping[str, object], plan: Record
) -> Configuration:
    """Make a configuration from run.json, the files of its package (None: not kept) and what the script printed. Pure."""
    job = record.get("job") or {}
    head = 2 if plan["argv"][:1] == ["-m"] else 1
    target = " ".join(plan["argv"][:head])
    folder = plan.get("cwd") or ""
    return Configuration(
        target=posixpath.join(folder, target) if head == 1 else target,
        arguments=tuple(plan["argv"][head:]),
        processes=plan.get("processes"),
        package=record.get("package"),
        files=files,
        data={**dict.fromkeys(plan.get("links") or {}), **(plan.get("data") or {})},
        lying={key: f"{plan.get('host')}:{path}" for key, path in (plan.get("links") or {}).items()},
        env=dict((job if "env" in job else plan).get("env") or {}),
        secrets=frozenset(job.get("secrets") or ()),
        checkpoint=_name_checkpoint(plan),
        settings=settings,
    )


def _name_checkpoint(plan: Mapping[str, Any]) -> str:
    """Return what the first attempt found in its snapshot to go on from: by contents, whichever run it is of."""
    rows = [f"{row['path']} {str(row['sha256'])[:12]}" for row in plan.get("restore") or ()]
    return ", ".join(sorted(rows)[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
