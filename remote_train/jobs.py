"""What was asked for, as run.json keeps it: enough to plan the same job for another device or host, later.

Of secrets only the names are kept. Records of older versions, and of runs that another laptop started, have none.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from remote_train.config.families import Family
from remote_train.config.project_spec import ProjectSpec
from remote_train.errors import UsageError
from remote_train.plan import Job

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remote_train.preparing import Prepared

SPEC = ("project", "script", "module", "args", "checkpoints", "resume_args", "device_args", "data", "persist")
PLAIN = (
    "cwd",
    "script",
    "module",
    "args",
    "gpus",
    "on_busy",
    "processes",
    "launcher",
    "max_restarts",
    "meter",
    "env",
    "data",
)
LATER = ("meter", "on_busy")
"""What jobs of older versions do not say."""

Row = dict[str, Any]

ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
"""Letters of a run id that cannot be taken for one another."""


def make_run_id(project: str, now: float) -> str:
    """Return PROJECT-MMDD-4 characters."""
    tail = "".join(secrets.choice(ALPHABET) for _ in range(4))
    return f"{project[:48]}-{time.strftime('%m%d', time.localtime(now))}-{tail}"


def keep_unrecorded(job: Job, secrets: Iterable[str]) -> dict[str, str]:
    """Return the plain variables of a job that are none of these: what an older run had by `--env` may be a secret now."""
    return {name: value for name, value in job.env.items() if name not in secrets}


def make_job_record(job: Job, secrets: Iterable[str]) -> Row:
    """Return a job as JSON; what else was typed (the hosts) is added by who knows it."""
    spec = {key: getattr(job.project, key) for key in SPEC}
    plain = {key: getattr(job, key) for key in PLAIN}
    family = asdict(job.family) if job.family else None
    return {
        **plain,
        "env": dict(job.env),
        "checkpoints": job.checkpoints,
        "family": family,
        "spec": spec,
        "secrets": sorted(secrets),
    }


def make_record(prepared: Prepared, now: float) -> dict[str, Any]:
    """Return run.json of a new run."""
    package, plan = prepared.package, prepared.plan
    git = package.git
    return {
        "project": prepared.job.project.project,
        "root": str(prepared.root),
        "host": plan.host,
        "state_dir": prepared.reached.link.host.state_dir,
        "created": now,
        "package": package.package_id,
        "package_bytes": package.total_bytes,
        "commit": git.commit if git else None,
        "dirty": git.dirty if git else None,
        "reasons": prepared.reached.reasons,
        "notes": list(plan.notes),
        "state": "starting",
        "exit": None,
        "attempts": [make_entry(prepared, now)],
        "job": {
            **make_job_record(prepared.job, prepared.secret_env),
            "hosts": prepared.hosts,
            "fallback": prepared.request.fallback and not prepared.request.local,
            "hosts_file": str(prepared.request.hosts_file.resolve()) if prepared.request.hosts_file else None,
        },
        "from": prepared.origin,
    }


def make_entry(prepared: Prepared, now: float) -> dict[str, Any]:
    """Return what run.json lists of an attempt that is about to be started."""
    return {
        "attempt": prepared.attempt,
        "host": prepared.plan.host,
        "state_dir": prepared.reached.link.host.state_dir,
        "plan": prepared.plan.as_message(),
        "created": now,
    }


def parse_job(run: str, record: Row) -> Job:
    """Return the job that a run.json holds; raise UsageError for a record without one."""
    kept = record.get("job")
    if not isinstance(kept, dict):
        raise UsageError(
            f"{run} was started by an older version, or from another laptop: how it was started is not known here",
            hint="start it anew with `remote-train run`, the checkpoint among its files (`--include`) and the "
            "script's own arguments to resume",
        )
    family = kept["family"]
    return Job(
        **{key: _freeze(kept[key]) for key in (*PLAIN, "checkpoints") if key in kept or key not in LATER},
        root=record["root"],
        project=ProjectSpec(**_freeze_all(kept["spec"])),
        family=Family(**_freeze_all(family)) if family else None,
    )


def _freeze_all(values: Row) -> Row:
    return {key: _freeze(value) for key, value in values.items()}


def _freeze(value: Any) -> Any:  # noqa: ANN401  (JSON in, the same with tuples out)
    if isinstance(value, dict):
        return {key: _freeze(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value
