"""Cores from /proc, /sys and cgroups: each machine is a table of files, written below a folder."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.host import cpu

CPU = "sys/devices/system/cpu"
Files = dict[str, str]


def topology(siblings: list[str]) -> Files:
    return {f"{CPU}/cpu{n}/topology/thread_siblings_list": text for n, text in enumerate(siblings)}


def pairs(cores: int) -> list[str]:
    """Hyper-threads side by side: 0-1, 2-3, …"""
    return [f"{n - n % 2}-{n - n % 2 + 1}" for n in range(2 * cores)]


def apart(cores: int) -> list[str]:
    """Hyper-threads as most servers number them: 0 and 8, 1 and 9, …"""
    return [f"{n % cores},{n % cores + cores}" for n in range(2 * cores)]


def each(count: int, name: str, values: list[int]) -> Files:
    return {f"{CPU}/cpu{n}/{name}": f"{values[n]}\n" for n in range(count)}


def named(model: str) -> Files:
    return {"proc/cpuinfo": f"processor\t: 0\nvendor_id\t: x\nmodel name\t: {model}\n\nprocessor\t: 1\n"}


HYBRID = {
    f"{CPU}/online": "0-19\n",
    "sys/devices/cpu_core/cpus": "0-11\n",
    "sys/devices/cpu_atom/cpus": "12-19\n",
    **topology(pairs(6) + [str(n) for n in range(12, 20)]),
    **named("12th Gen Intel(R) Core(TM) i7-12700H"),
}
PLAIN = {f"{CPU}/online": "0-15\n", **topology(apart(8)), **named("AMD Ryzen 7 5800X 8-Core Processor")}
QUOTA_V2 = {**PLAIN, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}
QUOTA_ABOVE = {
    **PLAIN,
    "proc/self/cgroup": "0::/user.slice/run.scope\n",
    "sys/fs/cgroup/user.slice/cpu.max": "300000 100000\n",
    "sys/fs/cgroup/user.slice/run.scope/cpu.max": "max 100000\n",
}
V1_CGROUP = "11:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n"
QUOTA_V1 = {
    **PLAIN,
    "proc/self/cgroup": V1_CGROUP,
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
}
NO_QUOTA_V1 = {**QUOTA_V1, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n"}
SMALL_QUOTA = {**QUOTA_V2, "sys/fs/cgroup/cpu.max": "10000 100000\n"}
ARM = {
    f"{CPU}/online": "0-7\n",
    **topology([str(n) for n in range(8)]),
    **each(8, "cpu_capacity", [530] * 4 + [1024] * 4),
    "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd05\n",
}
ARM_CLOCKS = {
    f"{CPU}/online": "0-5\n",
    **topology([str(n) for n in range(6)]),
    **each(6, "cpufreq/cpuinfo_max_freq", [1416000] * 4 + [2400000] * 2),
}
FAVOURED = {**PLAIN, **each(16, "cpufreq/cpuinfo_max_freq", [4850000] * 2 + [4700000] * 14)}
METEOR = {  # Core Ultra 7 155H: six P cores with two threads each, eight E cores, two slow ones in the other tile
    f"{CPU}/online": "0-21\n",
    "sys/devices/cpu_core/cpus": "0-11\n",
    "sys/devices/cpu_atom/cpus": "12-21\n",
    **topology(pairs(6) + [str(n) for n in range(12, 22)]),
    **each(22, "cpufreq/cpuinfo_max_freq", [4800000] * 12 + [3800000] * 8 + [2500000] * 2),
    **named("Intel(R) Core(TM) Ultra 7 155H"),
}
VIRTUAL = {f"{CPU}/online": "0-3\n", **named("QEMU Virtual CPU version 2.5+")}
OFFLINE = {**PLAIN, f"{CPU}/online": "0-3,8-11\n"}

MACHINES = [
    # name, files, allowed CPUs, model, (physical, performance, logical, usable)
    ("hybrid", HYBRID, None, "12th Gen Intel(R) Core(TM) i7-12700H", (14, 6, 20, 6)),
    ("hybrid, two P cores allowed", HYBRID, {0, 1, 2, 12, 13}, None, (14, 6, 20, 2)),
    ("hybrid, E cores only", HYBRID, {12, 13, 14}, None, (14, 6, 20, 3)),
    ("plain", PLAIN, None, "AMD Ryzen 7 5800X 8-Core Processor", (8, 8, 16, 8)),
    ("one core, both threads", PLAIN, {3, 11}, None, (8, 8, 16, 1)),
    ("favoured cores", FAVOURED, None, None, (8, 8, 16, 8)),
    ("half of it offline", OFFLINE, None, None, (4, 4, 8, 4)),
    ("quota of 1.5", QUOTA_V2, None, None, (8, 8, 16, 2)),
    ("quota above us", QUOTA_ABOVE, None, None, (8, 8, 16, 3)),
    ("quota, version 1", QUOTA_V1, None, None, (8, 8, 16, 4)),
    ("no quota, version 1", NO_QUOTA_V1, None, None, (8, 8, 16, 8)),
    ("a tenth of a core", SMALL_QUOTA, None, None, (8, 8, 16, 1)),
    ("big and little", ARM, None, "ARM 0x41 0xd05", (8, 4, 8, 4)),
    ("big and little by clock", ARM_CLOCKS, None, os.uname().machine, (6, 2, 6, 2)),
    ("three kinds of core", METEOR, None, "Intel(R) Core(TM) Ultra 7 155H", (16, 6, 22, 6)),
    ("a virtual machine", VIRTUAL, None, "QEMU Virtual CPU version 2.5+", (4, 4, 4, 4)),
]


def write_tree(root: Path, files: Files) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


@pytest.mark.parametrize(
    ("files", "allowed", "model", "counts"), [row[1:] for row in MACHINES], ids=[row[0] for row in MACHINES]
)
def test_machines(
    tmp_path: Path, files: Files, allowed: set[int] | None, model: str | None, counts: tuple[int, ...]
) -> None:
    facts = cpu.read_linux_cpu(write_tree(tmp_path, files), allowed)

    found = (facts["physical"], facts["performance"], facts["logical"], facts["usable"])
    assert found == counts
    assert model in (None, facts["model"])


def test_a_host_that_hides_everything_still_has_its_cpus(tmp_path: Path) -> None:
    count = os.cpu_count() or 1

    assert cpu.read_linux_cpu(str(tmp_path), None) == {
        "model": os.uname().machine,
        "physical": count,
        "performance": count,
        "logical": count,
        "usable": count,
        "performance_cpus": [[number] for number in range(count)],
        "narrowed": False,
        "quota": None,
    }


PAIRS = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]


@pytest.mark.parametrize(
    ("files", "allowed", "cpus", "narrowed", "quota"),
    [
        (HYBRID, None, PAIRS, False, None),
        (HYBRID, set(range(20)), PAIRS, False, None),
        (HYBRID, {1, 2, 3, 12}, [[1], [2, 3]], True, None),
        (HYBRID, {12, 13}, [], True, None),
        ({**QUOTA_ABOVE, **HYBRID}, None, PAIRS, False, 3.0),
        (METEOR, None, PAIRS, False, None),
        (ARM, None, [[4], [5], [6], [7]], False, None),
        (OFFLINE, None, [[0, 8], [1, 9], [2, 10], [3, 11]], False, None),
        (VIRTUAL, None, [[0], [1], [2], [3]], False, None),
    ],
)
def test_the_cpus_of_the_performance_cores(
    tmp_path: Path, files: Files, allowed: set[int] | None, cpus: list[list[int]], narrowed: bool, quota: Any
) -> None:
    facts = cpu.read_linux_cpu(write_tree(tmp_path, files), allowed)

    assert (facts["performance_cpus"], facts["narrowed"], facts["quota"]) == (cpus, narrowed, quota)


def test_this_host() -> None:
    facts = cpu.read_cpu()

    assert facts["model"]
    assert 1 <= facts["usable"] <= facts["performance"] <= facts["physical"] <= facts["logical"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["Apple M2 Pro", "12", "12", "8"], ("Apple M2 Pro", 12, 8, 12, 8)),
        (["Intel(R) Core(TM) i7", "6", "12", ""], ("Intel(R) Core(TM) i7", 6, 6, 12, 6)),
        (["", "", "", ""], ("", 3, 3, 3, 3)),
    ],
)
def test_a_mac(values: list[str], expected: tuple[Any, ...]) -> None:
    facts = cpu.make_mac_facts(values, 3)

    assert tuple(facts[key] for key in ("model", "physical", "performance", "logical", "usable")) == expected


@given(st.sets(st.integers(0, 300)))
def test_any_cpu_list_is_read_back(cpus: set[int]) -> None:
    parts: list[list[int]] = []
    for number in sorted(cpus):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    text = ",".join(f"{a}-{b}" if a != b else str(a) for a, b in parts)

    assert cpu.parse_cpu_list(text + "\n") == cpus


@given(st.text())
def test_no_text_of_a_foreign_kernel_raises(text: str) -> None:
    cpu.parse_cpu_list(text.replace("-", ":"))
    cpu.parse_quota(text)
    cpu.parse_model(text)
