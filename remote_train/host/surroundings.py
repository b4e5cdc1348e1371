"""What kind of machine this is beside its parts: a virtual machine, a container, WSL, a laptop; and what it does at logout.

Everything is below a root folder that tests replace. Nothing here needs root, and nothing raises.
"""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

_LAPTOPS = {"8", "9", "10", "14", "30", "31", "32"}
"""DMI chassis types (SMBIOS 3.x, table 17): portable, laptop, notebook, sub notebook, tablet, convertible, detachable."""
_CONTAINERS = (
    ("docker", re.compile(r"[/:-]docker[/-]")),
    ("kubernetes", re.compile(r"kubepods")),
    ("podman", re.compile(r"libpod")),
    ("lxc", re.compile(r"[/:]lxc[/.]")),
)
_LOGIND = ("usr/lib/systemd", "lib/systemd", "run/systemd", "etc/systemd")
_KILL = re.compile(r"(?mi)^[ \t]*KillUserProcesses[ \t]*=[ \t]*(\w+)")


def read_surroundings(root: str) -> Dict[str, Any]:
    """Return what this machine is: `container`, `wsl`, `virtual`, `laptop`, `nvidia_nodes`, `dxg` and `systemd`."""
    kernel = _read(root, "proc/version") + _read(root, "proc/sys/kernel/osrelease")
    nodes = [name for name in _list(root, "dev") if re.match(r"nvidia\d+$", name)]
    return {
        "container": find_container(root),
        "wsl": "microsoft" in kernel.lower(),
        "virtual": bool(re.search(r"(?m)^flags\s*:.*\bhypervisor\b", _read(root, "proc/cpuinfo"))),
        "laptop": _read(root, "sys/class/dmi/id/chassis_type").strip() in _LAPTOPS,
        "nvidia_nodes": len(nodes),
        "dxg": os.path.exists(os.path.join(root, "dev/dxg")),
        "systemd": os.path.isdir(os.path.join(root, "run/systemd/system")),
    }


def find_container(root: str) -> Optional[str]:
    """Return what kind of container this is, None outside of one."""
    if os.path.exists(os.path.join(root, ".dockerenv")):
        return "docker"
    if os.path.exists(os.path.join(root, "run/.containerenv")):
        return "podman"
    groups = _read(root, "proc/self/cgroup") + _read(root, "proc/1/cgroup")
    return next((name for name, pattern in _CONTAINERS if pattern.search(groups)), None)


def read_memory(root: str) -> Dict[str, Optional[int]]:
    """Return `total` and `available` bytes of memory; None where the kernel does not say."""
    text = _read(root, "proc/meminfo")
    found: Dict[str, Optional[int]] = {}
    for key, name in (("total", "MemTotal"), ("available", "MemAvailable")):
        match = re.search(r"(?m)^%s:\s+(\d+) kB" % name, text)
        found[key] = int(match.group(1)) * 1024 if match else None
    return found


def read_kill_setting(root: str) -> Optional[bool]:
    """Return logind's KillUserProcesses as its files say; None where they leave it to how it was built."""
    said: Optional[bool] = None
    for folder in _LOGIND:
        names = [name for name in _list(root, folder + "/logind.conf.d") if name.endswith(".conf")]
        for name in ["logind.conf"] + ["logind.conf.d/" + name for name in names]:
            found = _KILL.findall(_read(root, folder + "/" + name))
            if found:
                said = found[-1].lower() in ("yes", "true", "on", "1")
    return said


def lingers(root: str, account: str) -> bool:
    """Tell whether the account's processes may stay when it logs out (`loginctl enable-linger`)."""
    return os.path.exists(os.path.join(root, "var/lib/systemd/linger", account))


def _list(root: str, name: str) -> List[str]:
    try:
        return sorted(os.listdir(os.path.join(root, name)))
    except OSError:
        return []


def _read(root: str, name: str) -> str:
    try:
        with open(os.path.join(root, name), encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""
