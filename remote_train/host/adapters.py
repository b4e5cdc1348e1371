"""What graphics devices a machine has, told by their PCI ids: vendor, name, in the processor or a card, and what drives them.

Pure. A device is what sysfs or lspci says of it: `{slot, vendor, device, name, driver, primary, memory_bytes, gfx}`, ids as
integers, None where nothing is known. That a device is named here does not mean that torch can use it: CUDA devices are
what NVML lists (gpus.py).
"""

from __future__ import annotations

import re

from remote_train.host.adapter_table import (
    AMD,
    DISCRETE,
    INTEGRATED,
    INTEL,
    KINDS,
    NAMES,
    NVIDIA,
    RANGES,
    UNKNOWN,
    VENDORS,
)

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

RESERVED = ("vfio-pci", "pci-stub", "xen-pciback")
OPEN_NVIDIA = ("nouveau", "nova", "nova_core")
_BRACKETS = re.compile(r"^(.*?)\s*\[([^\[\]]+)\]\s*$")
_MOBILE_CHIP = re.compile(r"[A-Z]{2}\d{3}(GL)?M\b")
_MOBILE_NAME = re.compile(r"\b(Laptop|Mobile|Max-Q)\b|\bArc A\d{3}M\b|\bRX \d{4}[MS]\b", re.IGNORECASE)
_AMD_CARDS = (
    "navi",
    "vega 1",
    "vega 2",
    "ellesmere",
    "polaris",
    "baffin",
    "aldebaran",
    "arcturus",
    "aqua",
    "fiji",
)
_DISPLAY, _ACCELERATOR = 0x03, 0x12  # PCI base classes


def is_graphics(base_class: int, vendor: int) -> bool:
    """Tell a graphics device from any other on the bus; accelerators without a display count when a GPU maker's."""
    return base_class == _DISPLAY or (base_class == _ACCELERATOR and vendor in (NVIDIA, AMD, INTEL, 0x1DA3))


def identify(device: Dict[str, Any]) -> Dict[str, Any]:
    """Return the identity of a device: vendor, name, chip, kind, mobile, note, and what it came with.

    `kind` is discrete, integrated, virtual, management or unknown. `memory_bytes` of an integrated one is what the
    firmware has set aside of the machine's memory.
    """
    vendor, number = int(device["vendor"]), device["device"]
    chip, name = split_name(device.get("name") or NAMES.get((vendor, number)) or "")
    slot = str(device.get("slot") or "")
    kind, family = (
        find_kind(vendor, number, slot)
        if number is not None
        else (guess_kind(vendor, chip or name, slot), "")
    )
    chip = chip or family
    return {
        "vendor": VENDORS.get(vendor, "vendor %04x" % vendor),
        "name": name or family or None,
        "chip": chip if chip and chip != name else None,
        "kind": kind,
        "mobile": kind == DISCRETE and is_mobile(chip, name or family),
        "id": None if number is None else "%04x:%04x" % (vendor, number),
        "slot": device.get("slot"),
        "driver": device.get("driver"),
        "primary": bool(device.get("primary")),
        "memory_bytes": device.get("memory_bytes"),
        "gfx": device.get("gfx"),
        "note": make_note(vendor, device.get("driver"), known=bool(device.get("driver_known", True))),
    }


def find_kind(vendor: int, number: int, slot: str) -> Tuple[str, str]:
    """Return the kind of a device and the name of its family, "" for an unknown one."""
    for first, last, kind, family in RANGES.get(vendor, ()):
        if first <= number <= last:
            return kind, family
    if vendor == INTEL:  # newer than the table: Intel's processors have had their GPU at 00:02 ever since
        return (INTEGRATED if re.search(r"(^|:)00:02\.", slot) else DISCRETE if slot else UNKNOWN), ""
    return KINDS.get(vendor, UNKNOWN), ""


def guess_kind(vendor: int, chip: str, slot: str) -> str:
    """Return the kind of a device of which only a name is known, as of `lspci` without numbers."""
    words = chip.lower().replace("-", "")
    for _, _, kind, family in RANGES.get(vendor, ()):
        name = family.split(" (")[0].lower().replace("-", "")
        if name and any(words.startswith(part.strip()) for part in name.split("/")):
            return kind
    if vendor == AMD:
        return DISCRETE if words.startswith(_AMD_CARDS) else UNKNOWN
    return DISCRETE if vendor == NVIDIA else find_kind(vendor, -1, slot)[0]


def split_name(text: str) -> Tuple[str, str]:
    """Return chip and product of a name in the PCI ID repository, "AD104 [GeForce RTX 4070 Ti]"."""
    match = _BRACKETS.match(text)
    return (match.group(1), match.group(2)) if match else ("", text.strip())


def is_mobile(chip: str, name: str) -> bool:
    """Tell a laptop's card by its name; one that desktops have under the same id is none."""
    if _MOBILE_CHIP.match(chip):
        return True
    parts = [part for part in name.split("/") if part.strip()]
    return bool(parts) and all(_MOBILE_NAME.search(part) for part in parts)


def make_note(vendor: int, driver: Optional[str], *, known: bool) -> Optional[str]:
    """Return what keeps torch from using the device as cuda, in a half sentence; None for one that NVIDIA's driver has."""
    if driver in RESERVED:
        return "reserved for a virtual machine by %s" % driver
    if vendor == NVIDIA:
        if driver in OPEN_NVIDIA:
            return "driven by %s, which has no CUDA: NVIDIA's own driver is needed" % driver
        return "no driver loaded" if driver is None and known else None
    return None


def parse_pci_ids(lines: List[str], wanted: List[Tuple[int, int]]) -> Dict[Tuple[int, int], str]:
    """Return the names that the PCI ID repository's file has for the wanted pairs of vendor and device."""
    found: Dict[Tuple[int, int], str] = {}
    vendor = -1
    vendors = {pair[0] for pair in wanted}
    for line in lines:
        if line[:1] not in ("\t", "#", "\n", ""):
            vendor = _parse_hex(line[:4])
            if line.startswith("C "):
                break  # the classes of devices come last
        elif vendor in vendors and line[:1] == "\t" and line[1:2] != "\t":
            pair = (vendor, _parse_hex(line[1:5]))
            if pair in wanted:
                found[pair] = line[5:].strip()[:200]
    return found


def _parse_hex(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return -1


def parse_gfx(properties: str) -> Optional[Dict[str, int]]:
    """Return location, domain and version of one node of the kernel's KFD topology; None for a node without a GPU."""
    values = {}
    for line in properties.splitlines():
        key, _, value = line.partition(" ")
        if value.strip().isdigit():
            values[key] = int(value)
    if not values.get("simd_count") or not values.get("gfx_target_version"):
        return None
    return {key: values.get(key, 0) for key in ("location_id", "domain", "gfx_target_version")}


def render_gfx(version: int) -> str:
    """Return "gfx1100" for 110000, "gfx90a" for 90010: major, minor, stepping in hexadecimal."""
    return "gfx%d%x%x" % (version // 10000, version // 100 % 100, version % 100)


def render_slot(domain: int, location: int) -> str:
    """Return the PCI address of a KFD node, as sysfs writes it."""
    return "%04x:%02x:%02x.%x" % (domain, location >> 8 & 0xFF, location >> 3 & 0x1F, location & 7)


def make_mac_adapter(name: str, bus: str, cores: Optional[str] = None) -> Dict[str, Any]:
    """Return the identity of a GPU that macOS lists: its name, and "Built-In" or "PCIe"."""
    vendor = next((word for word in ("Apple", "AMD", "Intel", "NVIDIA") if word in name), None)
    if vendor is None and "Radeon" in name:
        vendor = "AMD"
    built_in = bus.lower().replace("-", "").endswith("builtin")
    kind = INTEGRATED if built_in else DISCRETE if bus else UNKNOWN
    row = dict.fromkeys(("chip", "id", "slot", "driver", "memory_bytes", "gfx", "note"))
    return {
        **row,
        "vendor": vendor or "unknown",
        "name": name,
        "kind": kind,
        "mobile": False,
        "primary": False,
        "cores": int(cores) if cores and cores.isdigit() else None,
    }
