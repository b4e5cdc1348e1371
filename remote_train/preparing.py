"""What is decided before anything is done: knock at the hosts, package meanwhile, reach one, plan."""

from __future__ import annotations

import posixpath
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from remote_train.bootstrap import read_agent
from remote_train.config.families import read_family
from remote_train.config.host_spec import LOCAL
from remote_train.config.hostnames import choose_host, choose_hosts
from remote_train.config.hosts_file import read_hosts
from remote_train.config.project import find_project, read_project
from remote_train.config.ssh_aliases import read_aliases
from remote_train.consent import choose_environment
from remote_train.datasets import choose_places, hash_places, parse_place, walk_places
from remote_train.errors import UsageError
from remote_train.fitness import check_room, describe_reached
from remote_train.host import layout
from remote_train.memory import stat_cache_path, told_path
from remote_train.package.manifest import render_size
from remote_train.package.packing import Package, Rules, make_package
from remote_train.plan import Job, Plan, make_plan, name_script
from remote_train.reach import (
    HostLink,
    Reached,
    candidate_pythons,
    make_links,
    reach_first,
)
from remote_train.records import check_name_free, read_json, remember_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remote_train.config.families import Family
    from remote_train.config.project import ProjectPlace
    from remote_train.config.project_spec import ProjectSpec
    from remote_train.listener import Listener
    from remote_train.package.data_folder import DataSet
    from remote_train.ship import Files
    from remote_train.transport import Ask


@dataclass(frozen=True)
class Request:
    """What `remote-train run` was asked for, as typed."""

    script: str | None = None
    module: str | None = None
    args: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    local: bool = False
    fallback: bool = True
    name: str | None = None
    gpus: str | None = None
    """None: one, or those of the run that it is made from."""
    on_busy: str | None = None
    """None: wait in the queue, or as the run that it is made from."""
    processes: int | None = None
    launcher: str | None = None
    max_restarts: int = 0
    meter: bool = True
    """Time the steps and count their FLOPs inside the training."""
    env: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    hosts_file: Path | None = None
    give_up: float | None = None
    pull: bool = True
    """Bring checkpoints home as they appear, while the run is followed."""
    origin: str | None = None
    """The run whose package and settings it takes: an id or a prefix."""
    cwd: Path = field(default_factory=Path.cwd)


@dataclass(frozen=True)
class Prepared:
    """Everything known before anything is done."""

    root: Path
    request: Request
    job: Job
    package: Package
    reached: Reached
    plan: Plan
    secret_env: dict[str, str] = field(repr=False)
    hosts: tuple[str, ...] = ()
    """Those that were asked for, or the default ones, in order."""
    files: Files | None = None
    """Where the package's contents come from; None: the project as it is."""
    attempt: int = 1
    supersede: bool = False
    """An older attempt that lives on the same host is stopped first."""
    origin: str | None = None
    """The run whose package and settings it has."""
    data: tuple[DataSet, ...] = ()
    """What of it the host has to be sent, unless it has it."""


def prepare(
    request: Request, listener: Listener, ask: Ask | None, before: Prepared | None = None
) -> Prepared:
    """Look at the project and the hosts at once, and decide; nothing has been changed anywhere yet, but that uv may have built an environment.

    `before` is what was decided of the same run for a host that was taken meanwhile: nobody is asked twice for what it is given.
    """
    check_name(request.name)
    place = find_project(request.cwd, Path.home())
    if request.name is not None:
        check_name_free(place.root / "runs", request.name)
    spec = read_project(place.root)
    if before is not None:
        plain_env, secret_env = dict(before.job.env), before.secret_env
    else:
        plain_env, secret_env = choose_environment(place.root, spec, request.env, request.secrets, ask)
    cwd = "" if str(place.relative) == "." else str(place.relative)
    script = name_script(request.script, request.module, spec.script, cwd)
    links, local = make_route(request, place.root, ask, script)
    hear(links, listener)
    job = _make_job(request, spec, place, plain_env)
    if links and not links[0].is_local:
        listener.tell("reaching", hosts=[link.host.name for link in links])
    pool = ThreadPoolExecutor(1, thread_name_prefix="reach")
    reaching = pool.submit(reach_first, links, local, job)
    pool.shutdown(wait=False)  # a Ctrl-C does not wait for a host that is silent
    try:
        package = make_package(place.root, make_rules(request, job), stat_cache_path(place.root))
        tell_package(place.root, package, (*spec.persist, *spec.data, *job.data), listener)
        folders = (*spec.data, *job.data)
        listings = walk_places(place.root, choose_places(folders, [link.host for link in links]))
        reached = reaching.result()
    except BaseException:
        reaching.add_done_callback(_let_go)
        raise
    tell_reached(reached, listener)
    try:
        check_room(reached, package.total_bytes)
        data = hash_places(place.root, listings, folders, reached.link.host)
        tell_data(place.root, data, listener)
        job = replace(job, shipped={item.place: item.reference for item in data})
        plan = _plan(job, reached, package)
    except BaseException:
        reached.session.close()
        raise
    hosts = tuple(link.host.name for link in links)
    return Prepared(place.root, request, job, package, reached, plan, secret_env, hosts, data=data)


def _make_job(request: Request, spec: ProjectSpec, place: ProjectPlace, env: dict[str, str]) -> Job:
    return Job(
        project=spec,
        root=str(place.root),
        cwd="" if str(place.relative) == "." else str(place.relative),
        script=request.script,
        module=request.module,
        args=request.args,
        family=_find_family(request, spec, place),
        gpus=request.gpus or "1",
        on_busy=request.on_busy or "queue",
        processes=request.processes,
        launcher=request.launcher,
        max_restarts=request.max_restarts,
        meter=request.meter,
        env=env,
        data=tuple(parse_place(path, str(place.relative), str(place.root)) for path in request.data),
        checkpoints=request.checkpoints,
    )


def check_name(name: str | None) -> None:
    """Refuse a name that could not be a run's; it becomes a folder, here and on the host."""
    if name is not None and not layout.is_run_id(name):
        raise UsageError(
            f"--name {name!r}: a run's name begins with a lower-case letter or a digit and has only those and . _ -",
            hint="at most 63 characters, for example baseline-2",
        )


def _find_family(request: Request, spec: ProjectSpec, place: ProjectPlace) -> Family | None:
    """Return the family of the script that will run, if it is of one."""
    script = request.script or (None if request.module else spec.script)
    if script is None:
        return None
    args = (*spec.args, *request.args) if script == spec.script else request.args
    return read_family(place.root / place.relative, script, args)


def _let_go(reaching: Future[Reached]) -> None:
    """Close a session that nobody will use; the error being raised is the one to show."""
    if reaching.exception() is None:
        reaching.result().session.close()


def tell_reached(reached: Reached, listener: Listener) -> None:
    """Tell who trains, and why not the first that was asked for."""
    listener.tell("reached", **describe_reached(reached.link, reached.facts))
    if reached.fell_back:
        listener.tell("fallback", reasons=reached.reasons)
        return
    for reason in reached.reasons:
        listener.tell("passed_over", reason=reason)


def tell_package(root: Path, package: Package, apart: Sequence[str], listener: Listener) -> None:
    """Tell what travels, and what stays behind unless that was told before: it is news only once.

    What git ignores around the folders `apart` is not told of: they are known to be wanted, and come another way.
    """
    notices = [
        f"{notice.path}: {notice.message}" if notice.path else notice.message for notice in package.notices
    ]
    for data in package.ignored:
        if any(is_within(data.folder, place) or is_within(place, data.folder) for place in apart):
            continue
        least = "at least " if data.at_least else ""
        notices.append(
            f"{data.folder} stays here, git ignores it ({data.files} files, {least}{render_size(data.size)}); "
            f"to take it along: {data.line} under [package]"
        )
    facts = {"files": len(package.rows), "bytes": package.total_bytes, "package": package.package_id}
    listener.tell("package", notices=choose_news(told_path(root), notices), **facts)


def is_within(path: str, folder: str) -> bool:
    """Tell whether a path of the project is a folder or lies in it."""
    return f"{path.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")


def tell_data(root: Path, data: Sequence[DataSet], listener: Listener) -> None:
    """Tell what of the data stays behind, unless that was told before."""
    notices = [text for item in data for text in item.notices]
    for text in choose_news(told_path(root / layout.DATA), notices) if data else ():
        listener.tell("note", text=text)


def choose_news(path: Path, notices: list[str]) -> list[str]:
    """Return the notices that were not among the last ones, which `path` remembers."""
    told = read_json(path).get("notices", [])
    if notices != told:
        remember_json(path, {"notices": notices})
    return [text for text in notices if text not in told]


def _plan(job: Job, reached: Reached, package: Package) -> Plan:
    return make_plan(job, reached.link.host, reached.facts, package.package_id, paths_of(package))


def paths_of(package: Package) -> list[str] | None:
    """Return the paths that travel, None where only the host knows them."""
    return [str(row[0]) for row in package.rows] or None


def make_route(
    request: Request, root: Path, ask: Ask | None, script: str | None = None
) -> tuple[list[HostLink], HostLink | None]:
    """Return the hosts to try in order, already being dialled, and the local CPU if it may be fallen back to."""
    agent = read_agent()
    hosts = read_hosts(request.hosts_file)
    here = choose_host(LOCAL, hosts, ())
    local = HostLink(here, agent, ask, candidate_pythons(here, root))
    if request.local:
        if request.hosts:
            raise UsageError("--local and --host contradict each other", hint="leave one of them out")
        return [local], None
    chosen = choose_hosts(request.hosts, hosts, read_aliases(Path.home()))
    links = make_links(chosen, agent, ask, root, script)
    for link in links:
        link.dial()
    return links, local if request.fallback else None


def hear(links: Sequence[HostLink], listener: Listener) -> None:
    """Have what a person should know of the way to a host told."""
    for link in links:
        link.notify = lambda text: listener.tell("note", text=text)


def make_rules(request: Request, job: Job) -> Rules:
    """Return what travels: the project file's rules and the flags over them."""
    spec = job.project
    inside = [posixpath.join(job.cwd, glob) for glob in (job.family.include if job.family else ())]
    kept_away = (*spec.data, *spec.persist, *job.data)
    return Rules(
        include=(*spec.include, *inside, *request.include),
        exclude=(*spec.exclude, *request.exclude, *kept_away),
        max_mb=spec.max_mb,
        project_name=spec.project,
    )
