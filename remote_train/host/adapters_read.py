"""Read the graphics devices of this machine: PCI from sysfs, AMD's compute nodes from KFD, names from the PCI ID repository.

No lspci, no root. Everything is below a root folder that tests replace; REMOTE_TRAIN_CPU_ROOT names it for the whole agent.
"""

from __future__ import annotations

import os
import sys

from remote_train.host.adapters import (
    identify,
    is_graphics,
    make_mac_adapter,
    parse_gfx,
    parse_pci_ids,
    render_gfx,
    render_slot,
)

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

_PCI = "sys/bus/pci/devices"
_KFD = "sys/class/kfd/kfd/topology/nodes"
_NAMES = (
    "usr/share/misc/pci.ids",
    "usr/share/hwdata/pci.ids",
    "usr/share/pci.ids",
    "var/lib/pciutils/pci.ids",
)
_MOST = 64
_PROFILER_SECONDS = 10.0


def read_adapters() -> List[Dict[str, Any]]:
    """Return the identity of each graphics device of this machine, in the order of the bus."""
    if sys.platform == "darwin":
        return read_mac_adapters()
    return read_linux_adapters(os.environ.get("REMOTE_TRAIN_CPU_ROOT", "/"))


def read_linux_adapters(root: str) -> List[Dict[str, Any]]:
    """Return the identities below `root`."""
    devices = [device for device in (_read_device(root, slot) for slot in _list(root, _PCI)) if device]
    wanted = [(int(device["vendor"]), int(device["device"])) for device in devices]
    names = _read_names(root, wanted) if wanted else {}
    versions = read_gfx(root) if devices else {}
    for device, pair in zip(devices, wanted):
        device["name"] = device.pop("product") or names.get(pair)
        device["gfx"] = versions.get(device["slot"])
    return [identify(device) for device in devices[:_MOST]]


def _read_device(root: str, slot: str) -> Optional[Dict[str, Any]]:
    numbers = [_read_hex(root, _PCI, slot, name) for name in ("class", "vendor", "device")]
    if None in numbers or not is_graphics(int(numbers[0] or 0) >> 16, int(numbers[1] or 0)):
        return None
    memory = _read(root, _PCI, slot, "mem_info_vram_total").strip()
    return {
        "slot": slot,
        "vendor": numbers[1],
        "device": numbers[2],
        "product": _read(root, _PCI, slot, "product_name").strip()[:200] or None,
        "driver": _read_driver(root, slot),
        "primary": _read(root, _PCI, slot, "boot_vga").strip() == "1",
        "memory_bytes": int(memory) if memory.isdigit() else None,
    }


def _read_driver(root: str, slot: str) -> Optional[str]:
    try:
        return os.path.basename(os.readlink(os.path.join(root, _PCI, slot, "driver")))
    except OSError:
        return None


def _read_names(root: str, wanted: List[Any]) -> Dict[Any, str]:
    place = next((place for place in _NAMES if os.path.isfile(os.path.join(root, place))), None)
    if place is None:
        return {}
    try:
        with open(os.path.join(root, place), encoding="utf-8", errors="replace") as file:
            return parse_pci_ids(list(file), wanted)
    except OSError:
        return {}


def read_gfx(root: str) -> Dict[str, str]:
    """Return the instruction set that ROCm calls each AMD GPU by, by its PCI address."""
    found = {}
    for node in _list(root, _KFD):
        values = parse_gfx(_read(root, _KFD, node, "properties"))
        if values is not None:
            slot = render_slot(values["domain"], values["location_id"])
            found[slot] = render_gfx(values["gfx_target_version"])
    return found


def read_mac_adapters() -> List[Dict[str, Any]]:
    """Return what system_profiler lists; on Apple's own processors their name is enough, should it hang."""
    from remote_train.host.commands import finish_commands, start_command  # noqa: PLC0415  (macOS only)

    command = start_command(["system_profiler", "SPDisplaysDataType"])
    found = parse_profiler(finish_commands([command], _PROFILER_SECONDS)[0].output)
    if not found and os.uname().machine == "arm64":
        found = [make_mac_adapter("Apple GPU", "Built-In")]
    return found


def parse_profiler(text: str) -> List[Dict[str, Any]]:
    """Return the GPUs of `system_profiler SPDisplaysDataType`."""
    rows: List[Dict[str, str]] = []
    for line in text.splitlines():
        key, _, value = line.strip().partition(": ")
        if key == "Chipset Model":
            rows.append({})
        if rows and value:
            rows[-1].setdefault(key, value.strip())
    return [
        make_mac_adapter(row["Chipset Model"], row.get("Bus", ""), row.get("Total Number of Cores"))
        for row in rows[:_MOST]
    ]


def _list(root: str, *names: str) -> List[str]:
    try:
        return sorted(os.listdir(os.path.join(root, *names)))
    except OSError:
        return []


def _read(root: str, *names: str) -> str:
    try:
        with open(os.path.join(root, *names), encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return ""


def _read_hex(root: str, *names: str) -> Optional[int]:
    try:
        return int(_read(root, *names), 16)
    except ValueError:
        return None
