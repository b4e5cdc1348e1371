"""`run --from RUN`: a new run with the package and the settings of another; what is typed stands over them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.config.project import find_project
from remote_train.consent import choose_environment, recall_environment
from remote_train.datasets import choose_places, parse_place, recall_data
from remote_train.errors import PackageError, UsageError
from remote_train.find import refuse_strange_hosts
from remote_train.jobs import keep_unrecorded, parse_job
from remote_train.kept_package import recall_package
from remote_train.plan import make_plan, name_script
from remote_train.preparing import Prepared, check_name, hear, make_route, paths_of, tell_reached
from remote_train.preparing import prepare as prepare_project
from remote_train.reach import reach_first
from remote_train.records import check_name_free, find_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remote_train.config.host_spec import HostSpec
    from remote_train.datasets import Recalled
    from remote_train.listener import Listener
    from remote_train.plan import Job
    from remote_train.preparing import Request
    from remote_train.records import Run
    from remote_train.transport import Ask


def prepare(
    request: Request, listener: Listener, ask: Ask | None, before: Prepared | None = None
) -> Prepared:
    """Decide everything of a new run: of the project around the current folder, or of the run it is to be made from.

    `before`: see preparing.prepare.
    """
    if request.origin is None:
        return prepare_project(request, listener, ask, before)
    _refuse_conflicts(request)
    check_name(request.name)
    run = find_run(request.origin, _find_project(request.cwd))
    return _prepare_from(run, request, listener, ask, before)


def _refuse_conflicts(request: Request) -> None:
    if request.script is not None or request.module is not None:
        what = request.script if request.script is not None else f"-m {request.module}"
        raise UsageError(
            f"--from {request.origin} and {what}: a run has one script",
            hint=f"more arguments for the same script stand behind `--`: `run --from {request.origin} -- ARGS`",
        )
    if request.include or request.exclude:
        raise UsageError(
            "--include and --exclude choose files of a project, and --from takes the files of another run",
            hint="leave --from out to package the project as it is now",
        )


def _find_project(cwd: Path) -> Path | None:
    try:
        return find_project(cwd, Path.home()).root
    except PackageError:
        return None


def _prepare_from(
    run: Run, request: Request, listener: Listener, ask: Ask | None, before: Prepared | None
) -> Prepared:
    record = run.read()
    refuse_strange_hosts(run, record["job"]["hosts"] if "job" in record else ())
    job = parse_job(run.id, record)
    root = Path(job.root)
    if not root.is_dir():
        raise PackageError(
            f"{root}, the project of {run.id}, is not there any more", hint="its runs go there"
        )
    if request.name is not None:
        check_name_free(root / "runs", request.name)
    plain_env, secret_env = (
        (before.job.env, before.secret_env) if before is not None else _recall_both(run, job, request, ask)
    )
    job = _change(job, request, plain_env)
    job = replace(job, env=keep_unrecorded(job, secret_env))
    if not request.hosts and not request.local:
        fallback = request.fallback and record["job"]["fallback"]
        request = replace(request, hosts=tuple(record["job"]["hosts"]), fallback=fallback)
    script = name_script(job.script, job.module, job.project.script, job.cwd)
    links, local = make_route(request, root, ask, script)
    hear(links, listener)
    package, files = recall_package(record, root)
    reached = reach_first(links, local, job)
    try:
        tell_reached(reached, listener)
        files.refuse_lost(reached.session)
        recalled = recall_data_of(record, job, reached.link.host, listener)
        job = replace(job, shipped=recalled.shipped)
        plan = make_plan(job, reached.link.host, reached.facts, package.package_id, paths_of(package))
    except BaseException:
        reached.session.close()
        raise
    hosts = tuple(link.host.name for link in links)
    return Prepared(
        root,
        request,
        job,
        package,
        reached,
        plan,
        secret_env,
        hosts,
        files=files,
        origin=run.id,
        data=recalled.data,
    )


def _recall_both(
    run: Run, job: Job, request: Request, ask: Ask | None
) -> tuple[Mapping[str, str], dict[str, str]]:
    """Return the plain variables that were typed or are the project's, and the secrets."""
    spec = replace(job.project, env_secret=())
    plain, _ = choose_environment(Path(job.root), spec, request.env, (), ask)
    return plain, recall_environment(run, job.project, request.secrets, {}, ask)


def _change(job: Job, request: Request, env: Mapping[str, str]) -> Job:
    """Put what was typed over the settings of the other run; of what can be given often, both count."""
    return replace(
        job,
        args=(*job.args, *request.args),
        gpus=request.gpus or job.gpus,
        on_busy=request.on_busy or job.on_busy,
        processes=request.processes or job.processes,
        launcher=request.launcher or job.launcher,
        max_restarts=request.max_restarts or job.max_restarts,
        meter=job.meter and request.meter,
        env={**job.env, **env},
        data=(*job.data, *(parse_place(path, job.cwd, job.root) for path in request.data)),
        checkpoints=request.checkpoints or job.checkpoints,
    )


def recall_data_of(record: dict[str, Any], job: Job, host: HostSpec, listener: Listener) -> Recalled:
    """Return the data that a run had, of what this host has to be sent; tell what is not here any more as it was."""
    known: dict[str, str] = {}
    for item in record["attempts"]:
        known.update(item["plan"].get("data") or {})
    places = choose_places((*job.project.data, *job.data), [host])
    recalled = recall_data(Path(job.root), places, known)
    for place in recalled.changed:
        text = f"{place} is not here any more as {record['run']} began with it: the data that its host has is used"
        listener.tell("note", text=text)
    own = {*job.project.data, *record["job"]["data"]}  # the rest was typed for this run
    for place in recalled.shipped:
        if place in own and place not in known:
            text = f"what {place} was when {record['run']} began is not known: it goes as it is here now"
            listener.tell("note", text=text)
    return recalled
