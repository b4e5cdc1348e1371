"""The schema of hosts.toml: which keys there are, what each may hold, and every fault at once.

Imported only when there is a file to check: pydantic costs 50 ms. Values leave as `host_spec` dataclasses.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from remote_train.config.addresses import (
    find_name_fault,
    find_user_fault,
    looks_like_address,
    parse_address,
)
from remote_train.config.host_spec import LOCAL, Hosts, HostSpec, make_local
from remote_train.config.nearest import render_nearest
from remote_train.config.schema_problems import (
    Problem,
    make_config_error,
    make_problems,
    read_model,
    render_shown,
)
from remote_train.config.toml_file import read_toml
from remote_train.config.value_rules import (
    check_env_name,
    check_no_nul,
    check_relative_folder,
    check_text,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from remote_train.config.toml_file import TomlFile

NOT_YET = dict.fromkeys(("scheduler",), "not supported yet")
_DTYPES = ("bf16", "fp16", "tf32", "fp32", "fp8")
_HOST_KEY = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?")
MOST_SETUP_LINES = 50
MOST_SETUP_LENGTH = 4096
_PYTHON_KEYS = ("python", "venv", "conda", "uv")
_HOST_PROGRAM = re.compile(r"[A-Za-z0-9_./~+][A-Za-z0-9_./~+-]*")


def _check_name(name: str) -> str:
    fault = find_name_fault(name)
    if fault is not None:
        raise ValueError(fault)
    return name


def _check_address(text: str) -> str:
    if parse_address(text).user is not None:
        raise ValueError(f"{text!r}: write the login name as user = …")
    return text


def _check_user(user: str) -> str:
    fault = find_user_fault(user)
    if fault is not None:
        raise ValueError(fault)
    return user


def _check_port(port: int) -> int:
    if not 1 <= port <= 65535:
        raise ValueError(f"must be from 1 to 65535, not {port}")
    return port


def _check_host_key(pin: str) -> str:
    if not _HOST_KEY.fullmatch(pin):
        raise ValueError(
            f"must be SHA256: and 43 characters, as `ssh-keygen -l` prints it, not {render_shown(pin)}"
        )
    return pin.rstrip("=")


def is_program(path: str) -> bool:
    """Tell whether a program of a host can be named in hosts.toml: its path may stand in a shell's command line."""
    return bool(_HOST_PROGRAM.fullmatch(path))


def _check_program(path: str) -> str:
    if not is_program(path):
        raise ValueError(f"{render_shown(path)}: only letters, digits and _ . / ~ + - may stand in it")
    return path


def _check_place(path: str) -> str:
    check_text(path)
    if not path.startswith(("/", "~/")):
        raise ValueError(f"must be absolute or begin with ~/, not {render_shown(path)}")
    if ".." in path.split("/"):
        raise ValueError(f"must not go upwards with '..': {render_shown(path)}")
    return path


def _check_conda(name: str) -> str:
    _check_program(name)
    if "/" in name and not name.startswith(("/", "~/")):
        raise ValueError(
            f"must be a name, or a path that is absolute or begins with ~/, not {render_shown(name)}"
        )
    return name.rstrip("/") or name


def _check_uv(value: object) -> object:
    if not isinstance(value, bool) and value != "ship":
        raise ValueError(f'must be true, false or "ship", not {render_shown(value)}')
    return value


def _check_setup_line(line: str) -> str:
    check_no_nul(line)
    if not line.strip():
        raise ValueError("must not be empty")
    if len(line) > MOST_SETUP_LENGTH:
        raise ValueError(
            f"has {len(line)} characters, {MOST_SETUP_LENGTH} at most: put them into a file on the host"
        )
    return line


def _check_setup(lines: list[str]) -> list[str]:
    if len(lines) > MOST_SETUP_LINES:
        raise ValueError(
            f"has {len(lines)} lines, {MOST_SETUP_LINES} at most: put them into a file on the host"
        )
    return lines


def _check_addresses(addresses: list[str]) -> list[str]:
    if not addresses:
        raise ValueError("must name at least one address; leave it out to use the host's own name")
    return addresses


def _split_jumps(value: object) -> object:
    """Take one string of ssh's kind ("a,b", "none") or a list."""
    if isinstance(value, str):
        value = [] if value == "none" else [part.strip() for part in value.split(",")]
    return value


def _check_jump(text: str) -> str:
    parse_address(text)
    return text


def _check_dtype(name: str) -> str:
    if name not in _DTYPES:
        raise ValueError(
            f"unknown dtype{render_nearest(name, _DTYPES) or '; valid dtypes: ' + ', '.join(_DTYPES)}"
        )
    return name


def _check_peak(tflops: float) -> float:
    if not (math.isfinite(tflops) and tflops > 0):
        raise ValueError(f"must be a positive number of TFLOP/s, not {tflops}")
    return tflops


_Place = Annotated[str, AfterValidator(_check_place)]
_Program = Annotated[str, AfterValidator(_check_program)]


class HostModel(BaseModel):
    """One table [hosts.NAME]."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    address: Annotated[
        list[Annotated[str, AfterValidator(_check_address)]], AfterValidator(_check_addresses)
    ] = []
    user: Annotated[str, AfterValidator(_check_user)] | None = None
    port: Annotated[int, AfterValidator(_check_port)] | None = None
    identity_file: _Place | None = None
    host_key: Annotated[str, AfterValidator(_check_host_key)] | None = None
    transport: Literal["paramiko", "openssh"] | None = None
    password: bool = False
    proxy_jump: (
        Annotated[list[Annotated[str, AfterValidator(_check_jump)]], BeforeValidator(_split_jumps)] | None
    ) = None
    python: _Program | None = None
    venv: _Program | None = None
    conda: Annotated[str, AfterValidator(_check_conda)] | None = None
    uv: Annotated[bool | Literal["ship"], BeforeValidator(_check_uv)] = False
    setup: Annotated[
        list[Annotated[str, AfterValidator(_check_setup_line)]], AfterValidator(_check_setup)
    ] = []
    state_dir: _Place | None = None
    device: Literal["cuda", "cpu"] = "cuda"
    env: dict[
        Annotated[str, AfterValidator(check_env_name)], Annotated[str, AfterValidator(check_no_nul)]
    ] = {}
    data: dict[Annotated[str, AfterValidator(check_relative_folder)], _Place] = {}
    peak_tflops: dict[
        Annotated[str, AfterValidator(_check_dtype)], Annotated[float, AfterValidator(_check_peak)]
    ] = {}


class HostsModel(BaseModel):
    """All of hosts.toml."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    default: list[str] = []
    hosts: dict[Annotated[str, AfterValidator(_check_name)], HostModel] = {}


def read_hosts_file(path: Path, aliases: Collection[str]) -> Hosts:
    """Read hosts.toml; `aliases` are names that ~/.ssh/config knows. Raises ConfigError with every fault."""
    return make_hosts(read_toml(path, private=True), aliases)


def make_hosts(file: TomlFile, aliases: Collection[str]) -> Hosts:
    """Make the hosts of a file that is read, or that is to be written. Raises ConfigError with every fault."""
    model, details = read_model(HostsModel, file.data)
    problems = make_problems(HostsModel, details, NOT_YET)
    problems += [*_find_bad_defaults(file.data, aliases), *_find_two_pythons(file.data)]
    problems += [*_find_more_of_local(file.data), *_find_bad_jumps(file.data, aliases)]
    if problems or model is None:
        raise make_config_error(file, problems)
    return Hosts(
        default=tuple(dict.fromkeys(model.default)),
        hosts={name: _make_spec(name, host) for name, host in model.hosts.items()},
        path=file.path,
    )


def _make_spec(name: str, host: HostModel) -> HostSpec:
    if name == LOCAL:
        return replace(make_local(), peak_tflops=host.peak_tflops)
    fields = host.model_dump(exclude={"address", "venv", "setup", "proxy_jump"})
    fields["proxy_jump"] = None if host.proxy_jump is None else tuple(host.proxy_jump)
    if host.venv is not None:
        fields["python"] = f"{host.venv.rstrip('/')}/bin/python"
    return HostSpec(name=name, address=tuple(host.address) or (name,), setup=tuple(host.setup), **fields)


def _find_bad_defaults(data: dict[str, Any], aliases: Collection[str]) -> Iterator[Problem]:
    names, hosts = data.get("default"), data.get("hosts")
    known = [*(hosts if isinstance(hosts, dict) else ()), *aliases, LOCAL]
    for index, name in enumerate(names if isinstance(names, list) else ()):
        if isinstance(name, str) and name not in known:
            fault = _find_default_fault(name, known)
            if fault is not None:
                yield ("default", index), fault


def _find_bad_jumps(data: dict[str, Any], aliases: Collection[str]) -> Iterator[Problem]:
    """A typo must not become a plain name that leads to another machine, without its pin."""
    hosts = data.get("hosts")
    tables = {
        name: host for name, host in (hosts if isinstance(hosts, dict) else {}).items() if name != LOCAL
    }
    known = [*tables, *aliases]
    for name, host in tables.items():
        jumps = _split_jumps(host.get("proxy_jump")) if isinstance(host, dict) else None
        for index, jump in enumerate(jumps if isinstance(jumps, list) else ()):
            if isinstance(jump, str) and re.fullmatch(r"\w[\w-]*", jump) and jump not in known:
                fault = f"no host {render_shown(jump)} here or in ~/.ssh/config{render_nearest(jump, known)}"
                fault += f" (a name that only DNS or a pattern knows: USER@{jump})"
                yield ("hosts", name, "proxy_jump", index), fault


def _find_default_fault(name: str, known: list[str]) -> str | None:
    if not looks_like_address(name):
        return f"no host {render_shown(name)} here or in ~/.ssh/config{render_nearest(name, known)}"
    try:
        parse_address(name)
    except ValueError as error:
        return str(error)
    return None


def _find_two_pythons(data: dict[str, Any]) -> Iterator[Problem]:
    hosts = data.get("hosts")
    for name, host in hosts.items() if isinstance(hosts, dict) else ():
        said = [key for key in _PYTHON_KEYS if isinstance(host, dict) and host.get(key) not in (None, False)]
        for key in said[1:]:
            yield ("hosts", name, key), f"{said[0]} and {key} both say which Python to use; keep one"


def _find_more_of_local(data: dict[str, Any]) -> Iterator[Problem]:
    hosts = data.get("hosts")
    local = hosts.get(LOCAL) if isinstance(hosts, dict) else None
    for key in local if isinstance(local, dict) else ():
        if key in HostModel.model_fields and key != "peak_tflops":
            fault = f"'{LOCAL}' always means this machine, and takes peak_tflops only; choose another name for a host"
            yield ("hosts", LOCAL, key), fault
