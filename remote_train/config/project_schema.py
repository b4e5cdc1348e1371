"""The schema of the project file: which keys there are, which are refused and why, every fault at once.

Imported only when there is a file to check: pydantic costs 50 ms. Values leave as a `project_spec` dataclass.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from remote_train.config.project_spec import ProjectSpec
from remote_train.config.schema_problems import (
    Problem,
    make_config_error,
    make_problems,
    read_model,
    render_shown,
)
from remote_train.config.value_rules import (
    check_env_name,
    check_no_nul,
    check_relative,
    check_relative_folder,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remote_train.config.toml_file import TomlFile
    from remote_train.config.toml_lines import KeyPath

PROJECT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_REDIRECTS = "belongs in hosts.toml: a cloned repository must not be able to redirect a run"
_RUNS = "not allowed: a project file never runs commands on this machine"
REFUSED = {
    **dict.fromkeys(
        (
            "host",
            "hosts",
            "default",
            "user",
            "users",
            "key",
            "keys",
            "address",
            "port",
            "identity_file",
            "host_key",
            "transport",
            "proxy_jump",
            "proxy_command",
            "python",
            "venv",
            "conda",
            "uv",
            "state_dir",
            "peak_tflops",
        ),
        _REDIRECTS,
    ),
    **dict.fromkeys(
        ("hook", "hooks", "pre", "post", "before", "after", "command", "commands", "setup"), _RUNS
    ),
}


def _check_project(name: str) -> str:
    if not PROJECT_NAME.fullmatch(name):
        raise ValueError(
            f"must begin with a-z or 0-9 and have at most 63 of a-z 0-9 . _ -, not {render_shown(name)}"
        )
    return name


def _check_module(name: str) -> str:
    if not _MODULE.fullmatch(name):
        raise ValueError(f"must be a module's dotted name, not {render_shown(name)}")
    return name


def _check_script(path: str) -> str:
    check_relative(path)
    if path.startswith("-"):
        raise ValueError(f"must not begin with '-': {path!r}")
    return path


def _check_megabytes(size: int) -> int:
    if size < 1:
        raise ValueError(f"must be at least 1, not {size}")
    return size


_Arguments = list[Annotated[str, AfterValidator(check_no_nul)]]
_Patterns = list[Annotated[str, AfterValidator(check_relative)]]
_Folders = list[Annotated[str, AfterValidator(check_relative_folder)]]
_EnvNames = list[Annotated[str, AfterValidator(check_env_name)]]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ArgumentsModel(_Model):
    """[device.cpu] and [device.cuda]."""

    args: _Arguments = []


class DeviceModel(_Model):
    """[device]."""

    cpu: ArgumentsModel | None = None
    cuda: ArgumentsModel | None = None


class PackageModel(_Model):
    """[package]."""

    include: _Patterns = []
    exclude: _Patterns = []
    data: _Folders = []
    persist: _Folders = []
    max_mb: Annotated[int, AfterValidator(_check_megabytes)] = 200


class EnvModel(_Model):
    """[env]: names only, never values."""

    forward: _EnvNames = []
    secret: _EnvNames = []


class ProjectModel(_Model):
    """All of remote-train.toml, or [tool.remote-train]."""

    project: Annotated[str, AfterValidator(_check_project)] | None = None
    script: Annotated[str, AfterValidator(_check_script)] | None = None
    module: Annotated[str, AfterValidator(_check_module)] | None = None
    args: _Arguments = []
    checkpoints: _Patterns = []
    resume_args: _Arguments = []
    device: DeviceModel = Field(default_factory=DeviceModel)
    package: PackageModel = Field(default_factory=PackageModel)
    env: EnvModel = Field(default_factory=EnvModel)


def make_project(file: TomlFile, prefix: KeyPath, name: str) -> ProjectSpec:
    """Check the table at `prefix` and make a ProjectSpec; `name` is the project's unless the file says otherwise.

    Raises ConfigError with every fault.
    """
    data: Any = file.data
    for part in prefix:
        data = data[part]
    model, details = read_model(ProjectModel, data)
    problems = make_problems(ProjectModel, details, REFUSED)
    if isinstance(data, dict):
        problems += _find_conflicts(data)
    if problems or model is None:
        raise make_config_error(file, problems, prefix=prefix)
    return _make_spec(model, file, name)


def _make_spec(model: ProjectModel, file: TomlFile, name: str) -> ProjectSpec:
    package, device = model.package, {"cpu": model.device.cpu, "cuda": model.device.cuda}
    return ProjectSpec(
        project=model.project or name,
        script=model.script,
        module=model.module,
        args=tuple(model.args),
        checkpoints=tuple(model.checkpoints),
        resume_args=tuple(model.resume_args),
        device_args={kind: tuple(given.args) for kind, given in device.items() if given is not None},
        include=tuple(package.include),
        exclude=tuple(package.exclude),
        data=tuple(dict.fromkeys(package.data)),
        persist=tuple(dict.fromkeys(package.persist)),
        max_mb=package.max_mb,
        env_forward=tuple(dict.fromkeys(model.env.forward)),
        env_secret=tuple(dict.fromkeys(model.env.secret)),
        source=file.path,
    )


def _find_conflicts(data: dict[str, Any]) -> Iterator[Problem]:
    """Find what is wrong between keys, whatever else is wrong inside them."""
    if "script" in data and "module" in data:
        yield ("module",), "script and module both say what to run; keep one"
    forwarded = _texts(data, "env", "forward")
    for index, name in enumerate(_texts(data, "env", "secret")):
        if name in forwarded:
            yield ("env", "secret", index), f"{render_shown(name)} is in forward too; keep one"
    for index, folder in enumerate(_texts(data, "package", "persist")):
        for other in _texts(data, "package", "data"):
            if _overlap(folder, other):
                yield (
                    ("package", "persist", index),
                    f"{render_shown(folder)} and {render_shown(other)} in data overlap; keep one",
                )

    yield from _find_unseen(data)


def _find_unseen(data: dict[str, Any]) -> Iterator[Problem]:
    """Find checkpoints that would lie in what persists: that outlives runs, and is never looked at for what one made."""
    for index, glob in enumerate(_texts(data, "", "checkpoints")):
        for folder in _texts(data, "package", "persist"):
            place, fixed = _split(folder), list(itertools.takewhile(_is_plain, _split(glob)))
            if place and fixed[: len(place)] == place:
                where = f"{render_shown(glob)} lies in {render_shown(folder)}, which persists"
                yield (
                    ("checkpoints", index),
                    f"{where}: what is there is of no run; save checkpoints elsewhere",
                )


def _is_plain(part: str) -> bool:
    return not any(letter in part for letter in "*?[")


def _texts(data: dict[str, Any], table: str, key: str) -> list[str]:
    """List the texts of one list, "" in place of anything else, so that indices stay true."""
    inner = data.get(table) if table else data
    values = inner.get(key) if isinstance(inner, dict) else None
    return [value if isinstance(value, str) else "" for value in (values if isinstance(values, list) else ())]


def _overlap(one: str, other: str) -> bool:
    if not one or not other:
        return False
    short, long = sorted((_split(one), _split(other)), key=len)
    return long[: len(short)] == short


def _split(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in {"", "."}]
