"""`doctor` without a host: what this laptop brings along, then this machine as a host; and a machine of which there is only a text."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.config.host_spec import LOCAL
from remote_train.config.hosts_file import hosts_path, read_hosts
from remote_train.config.ssh_aliases import read_aliases
from remote_train.doctor import examine_host
from remote_train.errors import ConfigError, LocalSpace
from remote_train.findings import Chart
from remote_train.graphics import COMPUTE, name_adapter, render_cores
from remote_train.machine_texts import parse_machine
from remote_train.records import client_root
from remote_train.transport.key_files import DEFAULT_KEYS, show_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remote_train.reach import HostLink

PROGRAM_SECONDS = 5.0


def examine_laptop(link: HostLink, hosts_file: Path | None, version: str) -> dict[str, Any]:
    """Return the row of this laptop: its own steps first, then those of `local` as a host."""
    chart = Chart("this machine")
    chart.step("remote-train")
    chart.ok(f"{version} on Python {platform.python_version()} ({sys.executable})")
    _look_at_ssh(chart, os.environ)
    problem = _look_at_config(chart, hosts_file)
    space = _look_at_state(chart)
    row = examine_host(link)
    row.update(host=chart.host, steps=[*chart.steps, *row["steps"]])
    if problem is not None:
        row.update(
            verdict=f"hosts.toml is wrong: {problem.problems[0]}",
            next=problem.hint,
            exit_code=problem.exit_code,
        )
    elif space is not None:
        row.update(verdict=space, next=f"make {client_root()} writable", exit_code=LocalSpace.exit_code)
    return {**row, "ok": row["exit_code"] == 0}


def _look_at_ssh(chart: Chart, environ: Mapping[str, str]) -> None:
    chart.step("ssh")
    program = shutil.which("ssh")
    if program is None:
        chart.warn("no ssh program here: ~/.ssh/config is not read as OpenSSH reads it")
    else:
        chart.ok(f"{program}, {_ask(['ssh', '-V'])}")
    chart.step("keys")
    files = [path for path in (Path(name).expanduser() for name in DEFAULT_KEYS) if path.is_file()]
    if files:
        chart.ok(", ".join(map(show_path, files)))
    agent = count_agent_keys(environ)
    chart.ok({None: "no agent", 1: "one key in the agent"}.get(agent, f"{agent} keys in the agent"))
    if not files and not agent:
        chart.warn(
            "no key to log in with, unless hosts.toml or ~/.ssh/config name one: `ssh-keygen -t ed25519` makes one"
        )


def count_agent_keys(environ: Mapping[str, str]) -> int | None:
    """Return how many keys the agent offers, None without an agent."""
    if not environ.get("SSH_AUTH_SOCK") or shutil.which("ssh-add") is None:
        return None
    try:
        done = subprocess.run(
            ["ssh-add", "-l"],
            capture_output=True,
            timeout=PROGRAM_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode not in {0, 1}:  # 2: there is nobody behind the socket
        return None
    return len(done.stdout.splitlines()) if done.returncode == 0 else 0


def _ask(command: list[str]) -> str:
    """Return the first line of what a program prints on stderr."""
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=PROGRAM_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return "which does not answer"
    return done.stderr.decode("utf-8", "replace").splitlines()[0][:120] if done.stderr else ""


def _look_at_config(chart: Chart, hosts_file: Path | None) -> ConfigError | None:
    chart.step("hosts.toml")
    problem = None
    try:
        known = read_hosts(hosts_file)
    except ConfigError as error:
        problem = error
        for line in error.problems:
            chart.fail(line)
    else:
        names = [name for name in known.hosts if name != LOCAL]
        place = known.path or hosts_path(hosts_file, os.environ)
        listed = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
        chart.ok(
            f"{place}: {listed or 'no host'}"
            if known.path
            else f"{place} does not exist; `remote-train init` says what belongs there"
        )
    chart.step("ssh_config")
    aliases = read_aliases(Path.home())
    count = {0: "no host", 1: "one host"}.get(len(aliases), f"{len(aliases)} hosts")
    chart.ok(f"{count} in ~/.ssh/config")
    return problem


def _look_at_state(chart: Chart) -> str | None:
    """Return why the records of runs cannot be written, None when they can."""
    chart.step("state")
    root = client_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root) as file:
            file.write(b".")
    except OSError as error:
        why = f"{root} cannot be written: {error.strerror}"
        chart.fail(why)
        return why
    chart.ok(f"{root} can be written")
    return None


def examine_text(name: str, text: str) -> dict[str, Any]:
    """Return the row of a machine of which there is only what somebody published: lspci, nvidia-smi, lscpu and the like."""
    found = parse_machine(text)
    chart = Chart(name)
    chart.facts = found
    if found["wsl"]:
        chart.step("machine")
        chart.ok("WSL2")
    cpu = found["cpu"]
    if cpu is not None:
        chart.step("cpu")
        chart.ok(", ".join(part for part in (cpu["model"], render_cores(cpu)) if part))
    if found["driver"] or found["gpu_error"]:
        chart.step("driver")
        (chart.fail if found["gpu_error"] else chart.ok)(found["gpu_error"] or f"NVIDIA {found['driver']}")
    if found["gpus"] or found["adapters"]:
        chart.step("gpus")
    for gpu in found["gpus"]:
        chart.ok(f"{gpu['index']}: {gpu['name']}" + (" (laptop)" if gpu["mobile"] else ""))
    for row in found["adapters"]:
        chart.ok(name_adapter(row))
    return chart.as_row(verdict=judge_text(name, found), next=None, exit_code=0)


def judge_text(name: str, found: Mapping[str, Any]) -> str:
    """Return in one sentence what a text lets one expect of a machine."""
    rows = [row for row in found["adapters"] if row["kind"] in COMPUTE]
    nvidia = [row for row in rows if row["vendor"] == "NVIDIA"]
    if found["gpus"] and not found["gpu_error"]:
        return f"{name} has {found['gpus'][0]['name']} behind NVIDIA's driver: device = cuda, if its torch is built for CUDA"
    if nvidia and not any(row["note"] for row in nvidia):
        return f"{name} has {name_adapter(nvidia[0])}: device = cuda, once `nvidia-smi` lists it there"
    if nvidia:
        return f"{name} has {name_adapter(nvidia[0])}: NVIDIA's driver is needed for device = cuda"
    if rows:
        return f"{name} has {name_adapter(rows[0])} and no NVIDIA GPU: device = cpu"
    return f"{name}: the text names no GPU"
