"""What a machine is, from texts that people publish of theirs: lspci, nvidia-smi, lscpu, /proc/cpuinfo, collect_env, system_profiler.

Pure, and told by the shape of each line: one text may hold several outputs, in any order, with quotes around them.
What the texts do not say stays None.
"""

from __future__ import annotations

import re
from typing import Any

from remote_train.host.adapter_table import AMD, INTEL, NVIDIA
from remote_train.host.adapters import identify, is_mobile
from remote_train.host.adapters_read import parse_profiler
from remote_train.host.cpu import parse_model

MOST = 1 << 20
"""Characters of a text that are looked at."""
_PCI = re.compile(
    r"^[>\s|]*((?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])\s+"
    r"(VGA compatible controller|3D controller|Display controller|Processing accelerators)"
    r"(?: \[[0-9a-f]{4}\])?: (.+)$",
    re.IGNORECASE,
)
_SLOT = re.compile(r"^[>\s|]*(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\s", re.IGNORECASE)
_IDS = re.compile(r"\s*\[([0-9a-f]{4}):([0-9a-f]{4})\]", re.IGNORECASE)
_TAIL = re.compile(r"\s*\((rev [0-9a-f]{2}|prog-if [^)]*)\)", re.IGNORECASE)
_UNNAMED = re.compile(r"^Device ([0-9a-f]{4})$", re.IGNORECASE)
_MAKERS = (
    ("NVIDIA Corporation", NVIDIA),
    ("Advanced Micro Devices, Inc. [AMD/ATI]", AMD),
    ("Advanced Micro Devices, Inc. [AMD]", AMD),
    ("Intel Corporation", INTEL),
    ("ASPEED Technology, Inc.", 0x1A03),
    ("Matrox Electronics Systems Ltd.", 0x102B),
    ("Microsoft Corporation", 0x1414),
    ("VMware", 0x15AD),
    ("InnoTek Systemberatung GmbH", 0x80EE),
    ("Red Hat, Inc.", 0x1AF4),
    ("Cirrus Logic", 0x1013),
)

_SMI_ROW = re.compile(
    r"^\|\s+(\d+)\s+(\S.*?)\s+(?:On|Off|WDDM|TCC|MCDM|N/A)\s*\|\s*[0-9A-F]{8}:[0-9A-F:.]+\s+(?:On|Off|N/A)\s*\|"
)
_SMI_MEMORY = re.compile(r"(\d+)MiB\s*/\s*(\d+)MiB")
_SMI_LIST = re.compile(r"^\W*GPU (\d+): (.+?)(?: \(UUID: (GPU-[^)]*)\))?\s*$")
_SMI_MIG = re.compile(r"^\W*MIG (\S+)\s+Device\s+(\d+): \(UUID: (MIG-[^)]*)\)")
_DRIVERS = re.compile(r"(?:Driver Version|Nvidia driver version)\s*: *([0-9][0-9.]+)")
_PRODUCT = re.compile(r"^\s*Product Name\s+: (.+?)\s*$")
_NO_DRIVER = re.compile(r"NVIDIA-SMI has failed because it couldn.t communicate with the NVIDIA driver")
_APPLE_CORES = re.compile(
    r"Total Number of Cores:\s+(\d+) \((\d+) performance and \d+ efficiency\)", re.IGNORECASE
)
_LSCPU = re.compile(r"^[>\s|]*([A-Z][\w()/ .-]+?):\s+(\S.*?)\s*$")


def parse_machine(text: str) -> dict[str, Any]:
    """Return `cpu`, `adapters`, `gpus` (those that NVIDIA's driver lists), `driver`, `gpu_error` and `wsl`."""
    lines = text[:MOST].splitlines()
    gpus = parse_smi(lines)
    found = _DRIVERS.findall(text[:MOST])
    adapters = parse_lspci(lines) or parse_profiler(text[:MOST])
    return {
        "cpu": parse_cpu(lines),
        "adapters": adapters,
        "gpus": gpus,
        "driver": found[-1] if found else None,
        "gpu_error": "nvidia-smi cannot communicate with the NVIDIA driver"
        if _NO_DRIVER.search(text)
        else None,
        "wsl": "microsoft-standard-WSL2" in text or any(row["vendor"] == "Microsoft" for row in adapters),
    }


def parse_lspci(lines: list[str]) -> list[dict[str, Any]]:
    """Return the identity of each graphics device of `lspci`, with or without -nn, -k and -v."""
    devices: list[dict[str, Any]] = []
    inside = False
    for line in lines:
        match = _PCI.match(line)
        if match:
            devices.append(_parse_device(match[1].lower(), match[3]))
        inside = bool(match) or (inside and not _SLOT.match(line))
        if inside and not match and devices:
            _note_detail(devices[-1], line)
    return [_identify(device) for device in devices]


def _parse_device(slot: str, rest: str) -> dict[str, Any]:
    rest = _TAIL.sub("", rest)
    ids = _IDS.findall(rest)
    rest = _IDS.sub("", rest).strip()
    vendor, name = _split_maker(rest)
    number: int | None = None
    if ids:
        vendor, number = int(ids[-1][0], 16), int(ids[-1][1], 16)
    elif unnamed := _UNNAMED.match(name):
        number = int(unnamed[1], 16)
    if _UNNAMED.match(name):
        name = ""
    return {"slot": slot, "vendor": vendor, "device": number, "name": name, "driver": None}


def _split_maker(text: str) -> tuple[int, str]:
    for words, vendor in _MAKERS:
        if text.startswith(words):
            return vendor, text[len(words) :].strip()
    return 0, text


def _note_detail(device: dict[str, Any], line: str) -> None:
    key, _, value = line.strip().partition(": ")
    if key == "Kernel driver in use":
        device["driver"] = value.strip()
    if key in {"Kernel driver in use", "Kernel modules"}:
        device["driver_known"] = True


def _identify(device: dict[str, Any]) -> dict[str, Any]:
    device.setdefault("driver_known", False)
    return identify(device)


def parse_smi(lines: list[str]) -> list[dict[str, Any]]:
    """Return the GPUs of nvidia-smi (its table, -L or -q) and of torch's collect_env; of a partitioned one the instances."""
    listed = [match for line in lines if (match := _SMI_LIST.match(line.rpartition("configuration: ")[2]))]
    rows = [match for line in lines if (match := _SMI_ROW.match(line))]
    products = [match[1] for line in lines if (match := _PRODUCT.match(line))]
    found = {int(m[1]): _make_gpu(int(m[1]), m[2], None) for m in rows}
    for index, gpu in _read_memory(lines).items():
        found.get(index, {}).update(gpu)
    for match in listed:  # a table cuts long names off, a list does not
        index = int(match[1])
        found[index] = {**found.get(index, {}), **_make_gpu(index, match[2], match[3], found.get(index))}
    for index, name in enumerate([] if found else products):
        found[index] = _make_gpu(index, name, None)
    return _add_instances([found[index] for index in sorted(found)], lines)


def _make_gpu(index: int, name: str, uuid: str | None, known: dict[str, Any] | None = None) -> dict[str, Any]:
    memory = known["memory_bytes"] if known else None
    cut = name.endswith("...")
    mobile = None if cut else is_mobile("", name)
    return {"index": index, "name": name, "uuid": uuid, "memory_bytes": memory, "mobile": mobile}


def _read_memory(lines: list[str]) -> dict[int, dict[str, Any]]:
    """Return the memory that stands in the line below each row of nvidia-smi's table."""
    found: dict[int, dict[str, Any]] = {}
    index: int | None = None
    for line in lines:
        match = _SMI_ROW.match(line)
        if match:
            index = int(match[1])
        elif index is not None:
            memory = _SMI_MEMORY.search(line)
            if memory:
                found[index] = {"memory_bytes": int(memory[2]) << 20}
            index = None
    return found


def _add_instances(gpus: list[dict[str, Any]], lines: list[str]) -> list[dict[str, Any]]:
    """Return the GPUs with the MIG instances of each in its place."""
    instances: dict[int, list[dict[str, Any]]] = {}
    index = -1
    for line in lines:
        listed = _SMI_LIST.match(line)
        if listed:
            index = int(listed[1])
        match = _SMI_MIG.match(line)
        if match:
            row = {"index": index, "uuid": match[3], "memory_bytes": None, "mobile": False}
            instances.setdefault(index, []).append({**row, "profile": match[1]})
    shown = []
    for gpu in gpus:
        parts = instances.get(gpu["index"])
        shown += [{**part, "name": f"{gpu['name']} MIG {part['profile']}"} for part in parts or []] or [gpu]
    return shown


def parse_cpu(lines: list[str]) -> dict[str, Any] | None:
    """Return model, logical, physical, performance and efficiency (cores), from lscpu, sysctl or /proc/cpuinfo."""
    pairs = [(match[1].strip(), match[2]) for line in lines if (match := _LSCPU.match(line))]
    if any(key == "CPU(s)" for key, _ in pairs):
        return _read_lscpu(pairs)
    return _read_sysctl(lines) or _read_profiler(lines) or _read_cpuinfo(lines)


def _read_lscpu(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    kinds: list[dict[str, str]] = []
    logical = _number(next(value for key, value in pairs if key == "CPU(s)"))
    for key, value in pairs:
        if key == "Model name":
            kinds.append({})
        if kinds:
            kinds[-1].setdefault(key, value)
    threads = [_number(kind.get("Thread(s) per core")) for kind in kinds]
    cores = [_multiply(kind) for kind in kinds]
    if len(kinds) > 1 and all(cores):
        return _sort_kinds(kinds, cores, logical)
    model = kinds[0]["Model name"] if kinds else None
    physical, performance = (cores[0], None) if cores else (None, None)
    if physical and logical and threads[0] == 2:
        performance = split_hybrid(logical, physical)
    return _make_cpu(model, logical, physical, performance)


def split_hybrid(logical: int, physical: int) -> int | None:
    """Return the performance cores of a processor where only those have two threads, from CPUs and cores.

    With P of one and E of the other kind there are 2P + E CPUs on P + E cores. None where every core has two.
    """
    performance = logical - physical
    return performance if 0 < performance < physical else None


def _sort_kinds(kinds: list[dict[str, str]], cores: list[int | None], logical: int | None) -> dict[str, Any]:
    """Return the facts of a processor that lscpu lists as several models: those with the highest clock perform."""
    clocks = [float(kind.get("CPU max MHz", "0").partition(",")[0] or 0) for kind in kinds]
    counts = [count or 0 for count in cores]
    fast = sum(count for count, clock in zip(counts, clocks, strict=True) if clock == max(clocks))
    model = " + ".join(kind["Model name"] for kind in kinds)
    return _make_cpu(model, logical, sum(counts), fast if fast < sum(counts) else None)


def _multiply(kind: dict[str, str]) -> int | None:
    per_socket = _number(kind.get("Core(s) per socket") or kind.get("Core(s) per cluster"))
    sockets = _number(kind.get("Socket(s)")) or _number(kind.get("Cluster(s)"))
    return per_socket * sockets if per_socket and sockets else None


def _read_sysctl(lines: list[str]) -> dict[str, Any] | None:
    values = dict(
        line.strip().split(": ", 1) for line in lines if re.match(r"\s*(machdep\.cpu|hw)\.\w+", line)
    )
    model = values.get("machdep.cpu.brand_string")
    physical = _number(values.get("hw.physicalcpu") or values.get("machdep.cpu.core_count"))
    if not model and not physical:
        return None
    logical = _number(values.get("hw.logicalcpu") or values.get("machdep.cpu.thread_count"))
    return _make_cpu(model, logical, physical, _number(values.get("hw.perflevel0.physicalcpu")))


def _read_profiler(lines: list[str]) -> dict[str, Any] | None:
    """Return the facts of `system_profiler SPHardwareDataType` on Apple's own processors."""
    text = "\n".join(lines)
    match, chip = _APPLE_CORES.search(text), re.search(r"(?m)^\s*Chip:\s+(Apple .+?)\s*$", text)
    if match is None:
        return None
    return _make_cpu(chip and chip[1], int(match[1]), int(match[1]), int(match[2]))


def _read_cpuinfo(lines: list[str]) -> dict[str, Any] | None:
    text = "\n".join(lines)
    listed = len(re.findall(r"(?m)^processor\s*: \d+", text))
    if not listed:
        return None
    cores = _number(next(iter(re.findall(r"(?m)^cpu cores\s*: (\d+)", text)), None))
    packages = len(set(re.findall(r"(?m)^physical id\s*: (\d+)", text))) or 1
    physical = cores * packages if cores else None
    siblings = _number(next(iter(re.findall(r"(?m)^siblings\s*: (\d+)", text)), None))
    logical = max(listed, (siblings or 0) * packages)  # often only the first of them is shown
    performance = split_hybrid(siblings, cores) if siblings and cores and packages == 1 else None
    return _make_cpu(parse_model(text), logical, physical, performance)


def _make_cpu(
    model: str | None, logical: int | None, physical: int | None, performance: int | None
) -> dict[str, Any]:
    known = physical is not None and performance is not None
    efficiency = (physical or 0) - (performance or 0) if known else None
    return {
        "model": model,
        "logical": logical,
        "physical": physical,
        "performance": performance,
        "efficiency": efficiency,
    }


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdigit() else None
