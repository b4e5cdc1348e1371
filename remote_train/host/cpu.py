"""What this host's processor is, and how many cores a training may use: read from /proc, /sys and cgroups, or sysctl.

Everything is below a root folder that tests replace by a tree of their own. One thread per physical performance core
is what a training gets: hyper-threads add nothing to a matrix product, and a step waits for its slowest core.
"""

import os
import subprocess
import sys
from typing import Any, Dict, FrozenSet, List, Optional, Set

_CPUS = "sys/devices/system/cpu"
_CGROUPS = "sys/fs/cgroup"
# A core below two thirds of the fastest one is an efficiency core: an RK3588 has 530 and 1024, and the cores of
# one kind differ by less than a tenth (favoured cores).
_PERFORMANCE_SHARE = 2.0 / 3.0
_MAC_NAMES = ("machdep.cpu.brand_string", "hw.physicalcpu", "hw.logicalcpu", "hw.perflevel0.physicalcpu")


def read_cpu() -> Dict[str, Any]:
    """Return model, physical, performance, logical and usable cores of this host for this process.

    On Linux also `performance_cpus`, `narrowed` and `quota`; REMOTE_TRAIN_CPU_ROOT names a folder to read instead of /.
    """
    if sys.platform == "darwin":
        return read_mac_cpu()
    return read_linux_cpu(os.environ.get("REMOTE_TRAIN_CPU_ROOT", "/"), allowed_cpus())


def allowed_cpus() -> Optional[Set[int]]:
    """Return the CPUs that the scheduler may give this process, None where there is no such notion."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return None


def read_linux_cpu(root: str, allowed: Optional[Set[int]]) -> Dict[str, Any]:
    """Return the processor facts below `root`; `allowed` are the CPUs of this process, None for all.

    `performance_cpus` has a list for each physical performance core: the CPUs on it that this process may use. `narrowed`
    says that it may not use every CPU that is online, and `quota` how many CPUs' worth of time its cgroups allow.
    """
    online = parse_cpu_list(_read(root, _CPUS, "online")) or set(range(os.cpu_count() or 1))
    cores = {cpu: _read_core(root, cpu) for cpu in online}
    fast = _read_performance_cpus(root, online)
    mine = online if allowed is None else (online & allowed) or online
    quota = read_quota(root)
    return {
        "model": parse_model(_read(root, "proc/cpuinfo")) or os.uname().machine,
        "physical": count_cores(cores, online),
        "performance": count_cores(cores, fast),
        "logical": len(online),
        "usable": choose_usable(count_cores(cores, fast & mine) or count_cores(cores, mine), quota),
        "performance_cpus": list_cores(cores, fast & mine),
        "narrowed": mine != online,
        "quota": quota,
    }


def parse_cpu_list(text: str) -> Set[int]:
    """Return the CPU numbers of the kernel's list format, such as "0-3,8,10-11"."""
    found: Set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isascii() and first.isdigit() and (last or first).isascii() and (last or first).isdigit():
            found.update(range(int(first), int(last or first) + 1))
    return found


def parse_model(cpuinfo: str) -> str:
    """Return the processor's name from /proc/cpuinfo; an ARM one often gives only implementer and part numbers."""
    facts: Dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    for key in ("model name", "Model", "cpu model", "Hardware", "cpu"):
        if facts.get(key):
            return facts[key]
    part = facts.get("CPU part")
    return "ARM %s %s" % (facts.get("CPU implementer", "?"), part) if part else ""


def count_cores(cores: Dict[int, FrozenSet[int]], cpus: Set[int]) -> int:
    """Return how many physical cores the CPUs lie on."""
    return len({cores[cpu] for cpu in cpus if cpu in cores})


def list_cores(cores: Dict[int, FrozenSet[int]], cpus: Set[int]) -> List[List[int]]:
    """Return the CPUs as sorted lists, one for each physical core they lie on."""
    return sorted(sorted(core & cpus) for core in {cores[cpu] for cpu in cpus if cpu in cores})


def choose_usable(cores: int, quota: Optional[float]) -> int:
    """Return how many threads a training gets: its cores, or the cgroup's quota rounded up, and at least one."""
    if quota is not None:
        cores = min(cores, int(-(-quota // 1)))
    return max(cores, 1)


def read_quota(root: str) -> Optional[float]:
    """Return the CPUs' worth of time that the cgroups of this process may use, None without a limit.

    Each cgroup above ours may set a limit too: the smallest counts.
    """
    quotas = []
    for folder in _cgroup_folders(_read(root, "proc/self/cgroup")):
        quotas.append(parse_quota(_read(root, folder, "cpu.max")))
        limit, period = _read(root, folder, "cpu.cfs_quota_us"), _read(root, folder, "cpu.cfs_period_us")
        quotas.append(parse_quota("%s %s" % (limit, period)))
    limits = [quota for quota in quotas if quota is not None]
    return min(limits) if limits else None


def parse_quota(text: str) -> Optional[float]:
    """Return quota divided by period of "150000 100000"; None for "max 100000", and for -1, no limit in version 1."""
    words = text.split()
    if len(words) != 2 or not (words[0] + words[1]).isdigit() or int(words[1]) == 0:
        return None
    return int(words[0]) / int(words[1])


def _cgroup_folders(text: str) -> List[str]:
    """Return the folders that may hold our CPU limit, given /proc/self/cgroup, ours and those above it.

    In a container of version 1 the path is the outer one and does not exist inside: its root is looked at too.
    """
    folders = [_CGROUPS]
    for line in text.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for base in (controllers, "cpu") if controllers else ("",):
            folders += [os.path.join(_CGROUPS, base, *parts[:count]) for count in range(len(parts) + 1)]
    return folders


def _read_core(root: str, cpu: int) -> FrozenSet[int]:
    """Return the CPUs that share a core with this one; itself alone where the kernel does not say."""
    topology = "%s/cpu%d/topology" % (_CPUS, cpu)
    for name in ("core_cpus_list", "thread_siblings_list"):
        siblings = parse_cpu_list(_read(root, topology, name))
        if siblings:
            return frozenset(siblings)
    return frozenset([cpu])


def _read_performance_cpus(root: str, online: Set[int]) -> Set[int]:
    """Return the fast CPUs: the kernel's own word on hybrid Intel, else by capacity, else by clock, else all."""
    hybrid = parse_cpu_list(_read(root, "sys/devices/cpu_core/cpus"))
    if hybrid & online:
        return hybrid & online
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        speeds = {cpu: _read(root, _CPUS, "cpu%d" % cpu, name).strip() for cpu in online}
        if all(speed.isdigit() for speed in speeds.values()):
            top = max(int(speed) for speed in speeds.values())
            return {cpu for cpu, speed in speeds.items() if int(speed) >= top * _PERFORMANCE_SHARE}
    return set(online)


def _read(root: str, *names: str) -> str:
    try:
        with open(os.path.join(root, *names), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def read_mac_cpu() -> Dict[str, Any]:
    """Return the processor facts of a macOS host."""
    values = []
    for name in _MAC_NAMES:
        done = subprocess.run(["sysctl", "-n", name], stdout=subprocess.PIPE, check=False)
        values.append(done.stdout.decode("utf-8", "replace").strip())
    return make_mac_facts(values, os.cpu_count() or 1)


def make_mac_facts(values: List[str], cpus: int) -> Dict[str, Any]:
    """Return the facts from sysctl's answers in the order asked; an Intel Mac has no performance level."""
    logical = _number(values[2], cpus)
    physical = _number(values[1], logical)
    performance = _number(values[3], physical)
    return {
        "model": values[0],
        "physical": physical,
        "performance": performance,
        "logical": logical,
        "usable": performance,
    }


def _number(text: str, otherwise: int) -> int:
    return int(text) if text.isdigit() and int(text) > 0 else otherwise
