"""What `doctor` finds, as steps with plain sentences, and the one sentence at the end. Pure: facts in, words out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remote_train.graphics import name_adapter, render_cpu
from remote_train.host.turns import find_users, is_foreign_busy
from remote_train.preflight import find_driver_fault, may_bring_cuda

if TYPE_CHECKING:
    from remote_train.config.host_spec import HostSpec

Row = dict[str, Any]
LITTLE_DISK = 5 << 30
LITTLE_MEMORY = 2 << 30


@dataclass
class Chart:
    """The steps of one examination, in order; what is said goes to the newest of them."""

    host: str
    steps: list[Row] = field(default_factory=list)
    facts: Row = field(default_factory=dict)
    numbers: Row = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    """Interpreters with torch that were found elsewhere."""

    def step(self, name: str) -> None:
        """Begin a step; one that has said nothing gives way."""
        if self.steps and not self.steps[-1]["lines"]:
            self.steps.pop()
        self.steps.append({"step": name, "state": "ok", "lines": []})

    def drop(self, name: str) -> None:
        """Take back a step that has nothing to say."""
        self.steps = [row for row in self.steps if row["step"] != name or row["lines"]]

    def ok(self, line: str) -> None:
        """Say what is there."""
        self.steps[-1]["lines"].append(line)

    def warn(self, line: str) -> None:
        """Say what may do harm, and keeps no training away."""
        self.ok(line)
        self.steps[-1]["state"] = "warn"

    def fail(self, line: str) -> None:
        """Say what ends the examination."""
        if not self.steps:
            self.step("start")
        self.ok(line)
        self.steps[-1]["state"] = "fail"

    def as_row(self, **more: object) -> Row:
        """Return everything as JSON."""
        row = {"host": self.host, "steps": self.steps, "facts": self.facts, "numbers": self.numbers, **more}
        return {**row, "ok": row["exit_code"] == 0}


def list_surroundings(chart: Chart, facts: Row, around: Row, noise: int, *, local: bool) -> None:
    """Say what kind of machine it is, what its shell prints, and what it does to runs at logout."""
    place = around["surroundings"]
    chart.step("machine")
    words = [f"{facts.get('os')} {facts.get('kernel')}", str(facts.get("machine"))]
    words += ["WSL2"] if place.get("wsl") else ["virtual machine"] if place.get("virtual") else []
    words += [f"{place['container']} container"] if place.get("container") else []
    words += ["laptop"] if place.get("laptop") else []
    chart.ok(", ".join(words))
    if not local:
        chart.step("shell")
        shell = around.get("shell") or "an unknown shell"
        if noise:
            chart.warn(
                f"{shell}; its rc files print {noise} bytes before our program: skipped here, but scp and sftp break on it"
            )
        else:
            chart.ok(f"{shell}, which prints nothing of its own")
        list_logout(chart, around)


def list_logout(chart: Chart, around: Row) -> None:
    """Say whether runs outlive the connection."""
    chart.step("logout")
    kills, lingers = around.get("kills"), around.get("lingers")
    if kills and not lingers:
        chart.warn(
            "logind ends everything of this account at logout: `loginctl enable-linger` there, or runs die with the connection"
        )
    elif kills:
        chart.ok("logind ends an account's processes at logout, but this account lingers")
    elif kills is None and around["surroundings"].get("systemd"):
        chart.ok(
            "whether logind ends runs at logout cannot be seen"
            + (", but the account lingers" if lingers else "")
        )
    else:
        chart.ok("runs outlive it")


def list_facts(chart: Chart, facts: Row, around: Row, host: HostSpec) -> None:
    """Say what interpreter, torch, driver, GPUs, processor, memory and disk there are."""
    _list_python(chart, facts, host.device)
    if host.device == "cuda":
        _list_driver(chart, facts, around["surroundings"], host)
    _list_gpus(chart, facts, around.get("users") or {})
    chart.step("cpu")
    chart.ok(
        render_cpu(facts["cpu"]) + (f"; load {around['load']:.1f}" if around.get("load") is not None else "")
    )
    memory = around.get("memory") or {}
    total, available = memory.get("total") or facts.get("memory_bytes"), memory.get("available")
    if total:
        chart.step("memory")
        (chart.warn if available is not None and available < LITTLE_MEMORY else chart.ok)(
            render_size(total) + (f", {render_size(available)} available" if available is not None else "")
        )
    free = facts.get("disk_free_bytes")
    if free is not None:
        chart.step("disk")
        (chart.warn if free < LITTLE_DISK else chart.ok)(f"{render_size(free)} free where runs are kept")


def _list_python(chart: Chart, facts: Row, device: str) -> None:
    python = facts["python"]
    chart.step("python")
    if python.get("version") is None:
        chart.fail(f"{python['path']}: {python.get('error') or 'not found'}")
        return
    chart.ok(f"{python['path']} {python['version']}")
    chart.step("torch")
    if python.get("torch") is None:
        chart.fail(str(python.get("error") or "torch is not installed"))
    else:
        cuda = python.get("torch_cuda")
        (chart.ok if cuda or device == "cpu" else chart.fail)(
            f"{python['torch']} ({f'CUDA {cuda}' if cuda else 'built without CUDA'})"
        )


def _list_driver(chart: Chart, facts: Row, place: Row, host: HostSpec) -> None:
    chart.step("driver")
    if facts.get("driver"):
        chart.ok(f"NVIDIA {facts['driver']}")
    fault = find_driver_fault(facts) if facts["gpus"] else None
    if fault:
        (chart.warn if may_bring_cuda(host) else chart.fail)(fault)
    if facts.get("gpu_error"):
        (chart.warn if facts["gpus"] else chart.fail)(str(facts["gpu_error"]))
    hint = hint_container(facts, place)
    if hint:
        chart.ok(hint)


def hint_container(facts: Row, place: Row) -> str | None:
    """Return why a container or WSL has no GPU, as far as its devices tell."""
    if facts["gpus"]:
        return None
    if place.get("wsl") and not place.get("dxg"):
        return "WSL without /dev/dxg: it is version 1, or Windows has no GPU driver for it"
    if place.get("container") and not place.get("nvidia_nodes") and not place.get("wsl"):
        return "no /dev/nvidia* in this container: it has to be started with its GPUs (`--gpus all`)"
    return None


def _list_gpus(chart: Chart, facts: Row, users: Row) -> None:
    rows = facts.get("adapters") or []
    named = [row for row in rows if not (facts["gpus"] and row["vendor"] == "NVIDIA")]
    if not facts["gpus"] and not named:
        return
    chart.step("gpus")
    for gpu in facts["gpus"]:
        chart.ok(describe_gpu(gpu, users))
    for row in named:
        chart.ok(f"not for CUDA: {name_adapter(row)}")


def describe_gpu(gpu: Row, users: Row) -> str:
    """Return a CUDA device in a line: index, name, memory, and who computes on it."""
    parts = [f"{gpu.get('index')}: {gpu.get('name')}"]
    for key, words in (("memory_bytes", ""), ("memory_used_bytes", " in use")):
        if gpu.get(key) is not None:
            parts.append(render_size(gpu[key]) + words)
    state = "in use by somebody who cannot be seen from there" if is_foreign_busy(gpu) else "free"
    parts += [f"used by {describe_user(row, users)}" for row in find_users(gpu)] or [state]
    return ", ".join(parts)


def describe_user(row: Row, users: Row) -> str:
    """Return who a process is: its name, account and number, as far as they can be seen."""
    user = users.get(str(row["pid"])) or {}
    words = [str(user[key]) for key in ("process",) if user.get(key)]
    words += [f"of {user['account']}"] if user.get("account") else []
    return " ".join([*words, f"(pid {row['pid']})"])


def judge(host: HostSpec, facts: Row, why: str | None) -> str:
    """Return the one sentence; `why` it cannot train."""
    if why is not None:
        return f"{host.name} cannot train with device = {host.device}: {why}"
    torch = f"torch {facts['python']['torch']}"
    if host.device == "cpu":
        return f"{host.name} is ready: it trains on its CPU with {torch}"
    free = [gpu for gpu in facts["gpus"] if not is_foreign_busy(gpu)]
    gpu = (free or facts["gpus"])[0]
    if not free:
        return f"{host.name} is ready, and every GPU of it is in use: {describe_gpu(gpu, {})}"
    count = f"{len(free)} GPUs, the first " if len(free) > 1 else ""
    return f"{host.name} is ready: it trains on {count}{gpu['name']} with {torch}"


def render_size(count: float) -> str:
    """Return bytes in the unit that people compare machines by."""
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def render_rate(rate: float | None) -> str:
    """Return bytes/s, or that too little was seen."""
    return "too short to tell" if rate is None else f"{render_size(rate)}/s"
