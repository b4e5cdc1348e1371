"""Everything decided before anything is done: values in, one frozen Plan out. `--dry-run` prints it.

Pure: no clock, no environment, no disk. What the host is like comes in as facts, what travels as a package.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remote_train.affinity import choose_affinity, render_affinity
from remote_train.config.families import merge_device_args
from remote_train.config.nearest import render_nearest
from remote_train.errors import ConfigError, PackageError, UsageError
from remote_train.host.globs import make_pattern
from remote_train.metrics.denominator import choose_device, choose_device_peak
from remote_train.wanted import VISIBLE, parse_gpus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from remote_train.config.families import Family
    from remote_train.config.host_spec import HostSpec
    from remote_train.config.project_spec import ProjectSpec

Facts = dict[str, Any]

GPU_KEYS = ("index", "uuid", "name", "sm_count", "clock_mhz", "capability", "memory_bytes", "bandwidth")

_COUNT = re.compile(r"0*[1-9][0-9]{0,5}\Z")

DEFAULT_DTYPES = {"cpu": "float32", "cuda": "bfloat16"}


@dataclass(frozen=True)
class Job:
    """What the user asked for, from flags and project file, before any host was looked at."""

    project: ProjectSpec
    root: str
    """The project's folder on this machine, absolute."""
    cwd: str
    """Folder of the run inside the project, relative, "" for its root."""
    script: str | None
    module: str | None
    args: tuple[str, ...]
    family: Family | None
    gpus: str = "1"
    on_busy: str = "queue"
    """Where the GPUs are in use: wait in the `queue`, take the `next` host, `fail`, or `share` them with whoever is there."""
    processes: int | None = None
    launcher: str | None = None
    max_restarts: int = 0
    meter: bool = True
    env: Mapping[str, str] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    restore: tuple[Mapping[str, Any], ...] = ()
    """Files of the checkpoint that it goes on from; with any, it also gets the arguments to resume."""
    shipped: Mapping[str, str] = field(default_factory=dict)
    """Data folders that the host has to be sent, and what they are called there: `ID`, of one file `ID/NAME`."""


@dataclass(frozen=True)
class Plan:
    """One attempt, decided: what the host gets to know of it is `as_message`."""

    host: str
    device: str
    python: str
    launcher: str
    processes: int
    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    default_env: Mapping[str, str]
    gpus: Mapping[str, Any] | None
    links: Mapping[str, str]
    persist: tuple[str, ...]
    project: str
    package: str
    checkpoints: tuple[str, ...]
    measure: Mapping[str, Any] | None
    cpu: Mapping[str, Any]
    torch: str | None
    peak_tflops: Mapping[str, float]
    gpu_facts: tuple[Mapping[str, Any], ...] = ()
    """What is known of the host's GPUs, for the record: MFU is derived from it later."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Data that is shared by runs, by its place in the project: `ID`, of one file `ID/NAME`."""
    max_restarts: int = 0
    """How often torchrun may start all ranks anew after one has failed."""
    meter: bool = True
    """The training's steps are timed and their FLOPs counted, inside its own Python."""
    affinity: tuple[tuple[int, ...], ...] = ()
    """The CPUs that each process is bound to, by its local rank; () leaves them alone."""
    restore: tuple[Mapping[str, Any], ...] = ()
    """Put into the snapshot: path, mode, size, sha256, and the attempt on the same host to copy from (None: a blob)."""
    conda: str | None = None
    """The folder of the conda environment that its Python is of: the training gets what activation sets."""
    setup: tuple[str, ...] = ()
    """Lines of shell that the host runs before the training, in whose environment it then runs."""
    notes: tuple[str, ...] = ()

    def as_message(self) -> dict[str, Any]:
        """Return the plan as JSON for the host and the records."""
        return {key: _plain(value) for key, value in vars(self).items() if key != "notes"}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def name_script(given: str | None, module: str | None, default: str | None, cwd: str) -> str | None:
    """Return the script that will run, as a path of the project; None for a module."""
    script = given or (None if module else default)
    return posixpath.normpath(posixpath.join(cwd, script)) if script else None


def make_plan(job: Job, host: HostSpec, facts: Facts, package: str, paths: Sequence[str] | None) -> Plan:
    """Decide one attempt on a host that was found fit; raise UsageError, PackageError, ConfigError, HostUnfit.

    `paths` are those of the package; None where only its host knows them.
    """
    device = host.device
    gpus, said = _choose_gpus(job, host, facts) if device == "cuda" else (None, [])
    processes = job.processes or _count_gpus(gpus, facts)
    launcher = choose_launcher(job, device, processes)
    argv, notes = make_argv(job, device, paths)
    if gpus is None and job.gpus != "1":
        notes.append(f"--gpus {job.gpus} is for CUDA: {host.name} trains on its CPU, processes: {processes}")
    threads, default_env = make_threads(job, host, facts, processes)
    affinity = (
        choose_affinity(facts["cpu"], find_words(job, host, facts), processes) if device == "cpu" else ()
    )
    if affinity:
        notes.append(render_affinity(facts["cpu"], affinity))
    links = make_links(job, host)
    plan = Plan(
        host=host.name,
        device=device,
        python=facts["python"]["path"],
        launcher=launcher,
        processes=processes,
        argv=argv,
        cwd=job.cwd,
        env={**host.env, **job.env},
        default_env=default_env,
        gpus=gpus,
        links=links,
        persist=() if host.is_local else job.project.persist,
        project=job.project.project,
        package=package,
        checkpoints=choose_checkpoints(job),
        measure=None,
        cpu={"model": facts["cpu"]["model"], "threads": threads, "cores": facts["cpu"]["usable"]},
        torch=facts["python"]["torch"],
        peak_tflops=dict(host.peak_tflops),
        gpu_facts=tuple({key: gpu.get(key) for key in GPU_KEYS} for gpu in facts["gpus"]) if gpus else (),
        data={} if host.is_local else {key: job.shipped[key] for key in job.shipped if key not in links},
        max_restarts=job.max_restarts,
        meter=job.meter,
        affinity=affinity,
        restore=job.restore,
        conda=facts["python"].get("conda"),
        setup=host.setup,
        notes=(*notes, *said),
    )
    return _with_measure(plan, facts)


def _with_measure(plan: Plan, facts: Facts) -> Plan:
    """Ask for a matmul peak where no table has this device: a CPU, or a GPU nobody knows."""
    device = choose_device(plan.device, plan.cpu, facts["gpus"][:1], plan.processes)
    if choose_device_peak(device, DEFAULT_DTYPES[plan.device], plan.peak_tflops, None) is not None:
        return plan
    measure = {
        "device": plan.device,
        "name": device.name,
        "threads": plan.cpu["threads"] * (plan.processes if plan.device == "cpu" else 1),
        "torch": plan.torch,
    }
    if plan.affinity:
        measure["cpus"] = sorted(cpu for part in plan.affinity for cpu in part)
    return Plan(**{**vars(plan), "measure": measure})


def _choose_gpus(job: Job, host: HostSpec, facts: Facts) -> tuple[dict[str, Any], list[str]]:
    """Return what of the GPUs is asked for, and a note where a variable has a word in it."""
    visible = find_words(job, host, facts).get(VISIBLE)
    gpus = parse_gpus(job.gpus, facts, visible)
    if visible is None:
        return gpus, []
    names = gpus.get("among") or gpus["ids"]
    part = f"{gpus['count']} of " if gpus.get("count", len(names)) < len(names) else ""
    return gpus, [f"{VISIBLE}={visible} on {host.name}: the run gets {part}{', '.join(names)}"]


def _count_gpus(gpus: Mapping[str, Any] | None, facts: Facts) -> int:
    if gpus is None:
        return 1
    return int(gpus["count"]) if "count" in gpus else min(len(gpus["ids"]), len(facts["gpus"]))


def choose_launcher(job: Job, device: str, processes: int) -> str:
    """Return torchrun for CUDA, several processes or restarts, else plain python (nanoGPT breaks under torchrun on a CPU)."""
    if job.launcher == "python" and processes > 1:
        raise UsageError(
            f"--launcher python starts one process, and {processes} are asked for",
            hint="leave --launcher out, or pass --nproc-per-node 1",
        )
    if job.launcher == "python" and job.max_restarts:
        raise UsageError(
            "--max-restarts is torchrun's, and --launcher python was asked for", hint="leave one of them out"
        )
    several = device == "cuda" or processes > 1 or job.max_restarts > 0
    return job.launcher or ("torchrun" if several else "python")


def make_argv(job: Job, device: str, paths: Sequence[str] | None) -> tuple[tuple[str, ...], list[str]]:
    """Return the arguments of the user's Python, and a note for each that the user did not write."""
    script, module, args = job.script, job.module, job.args
    spec = job.project
    if script is None and module is None:
        script, module, args = spec.script, spec.module, (*spec.args, *args)
    elif script is not None and script == spec.script:
        args = (*spec.args, *args)
    if script is None and module is None:
        raise UsageError(
            "no script to run", hint="`remote-train run train.py …`, or set `script` in remote-train.toml"
        )
    if script is not None and paths is not None:
        check_script(script, job.cwd, paths)
    resume_args, notes = choose_resume_args(job)
    device_args = spec.device_args.get(device)
    if device_args is None and job.family is not None:
        device_args = job.family.device_args.get(device, ())
        if device_args:
            added = " ".join(device_args)
            notes.append(
                f"{script} is of the {job.family.name} family: on a {device.upper()} it gets {added}"
            )
    merged = merge_device_args((*args, *resume_args), device_args or ())
    head = (script,) if script is not None else ("-m", str(module))
    return (*head, *merged), notes


def choose_resume_args(job: Job) -> tuple[tuple[str, ...], list[str]]:
    """Return what a script is told to go on from a checkpoint that lies at its place, and a note when that is nothing."""
    if not job.restore:
        return (), []
    given = job.project.resume_args or (job.family.resume_args if job.family else ())
    note = (
        "no resume_args in the project file: whether the script goes on from the checkpoint is its own affair"
    )
    return given, [] if given else [note]


def check_script(script: str, cwd: str, paths: Sequence[str]) -> None:
    """Refuse a script that will not be in the snapshot."""
    place = posixpath.normpath(posixpath.join(cwd, script))
    if posixpath.isabs(script) or place.startswith(".."):
        raise UsageError(f"{script} lies outside the project", hint="run from the project's folder")
    if place not in set(paths):
        near = [path for path in paths if posixpath.dirname(path) == posixpath.dirname(place)]
        raise PackageError(
            f"{script} is not among the files that travel{render_nearest(place, near)}",
            hint=f"does it exist here, and does git ignore it? `git check-ignore -v {script}` tells",
        )


def make_threads(job: Job, host: HostSpec, facts: Facts, processes: int) -> tuple[int, dict[str, str]]:
    """Return threads per process, and the variables that say so where the user set none.

    One thread per physical performance core this account may use, shared by the processes.
    """
    share = max(1, int(facts["cpu"]["usable"]) // processes)
    default = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    if choose_launcher(job, host.device, processes) == "torchrun":
        # torchrun dies of SIGHUP even under nohup, and gives its ranks 30 s of its own to end.
        default.update(PET_SIGNALS_TO_HANDLE="SIGTERM,SIGINT", PET_SHUTDOWN_TIMEOUT="3600")
    if host.device == "cpu":
        default["CUDA_VISIBLE_DEVICES"] = ""
    if host.device == "cpu" or processes > 1:
        default["OMP_NUM_THREADS"] = str(share)
    chosen = find_words(job, host, facts).get("OMP_NUM_THREADS", "")
    return (int(chosen) if _COUNT.match(chosen) else share), default


def find_words(job: Job, host: HostSpec, facts: Facts) -> dict[str, str]:
    """Return the variables in which the user may have a word on threads and GPUs: of the login there, of hosts.toml, of flags."""
    return {**facts.get("thread_env", {}), **host.env, **job.env}


def make_links(job: Job, host: HostSpec) -> dict[str, str]:
    """Return where each data folder lies on the host; raise ConfigError for one that lies nowhere."""
    links = dict(host.data)
    folders = (*job.project.data, *job.data)
    if host.is_local:
        return {folder: posixpath.join(job.root, folder) for folder in (*folders, *job.project.persist)}
    lost = [folder for folder in folders if folder not in links and folder not in job.shipped]
    if lost:
        raise ConfigError(
            [
                f"data {folder} is not here, and [hosts.{host.name}.data] does not say where it lies there"
                for folder in lost
            ],
            hint="put it into the project, or map it in hosts.toml",
        )
    return links


def choose_checkpoints(job: Job) -> tuple[str, ...]:
    """Return the globs of this run's checkpoints, () for the usual names; raise UsageError for one that means nothing."""
    globs = job.checkpoints or job.project.checkpoints or (job.family.checkpoints if job.family else ())
    for glob in globs:
        try:
            make_pattern(glob)
        except ValueError as error:
            raise UsageError(f"checkpoints {glob}: {error}") from error
    return globs
