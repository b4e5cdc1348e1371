"""The NVIDIA GPUs of this host through NVML, and their compute units through libcuda: ctypes, no CUDA context.

Nothing here raises: what cannot be known is None, and why is `gpu_error`. Asking can hang on a broken driver, so
facts.py runs `main` in a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import sys

from remote_train.host.nvml import NVML_NAMES, Cuda, GpuError, Nvml, call_quietly, load_library

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

MARKER = "remote-train gpus: "
LIGHT = 2
"""With more arguments than these `main` leaves out the compute units."""

_NOT_AVAILABLE = 2**64 - 1
_MEMORY_CLOCK = 2  # nvml.h, nvmlClockType_t
# cuda.h, CUdevice_attribute
_SM_COUNT, _CLOCK_KHZ, _MAJOR, _MINOR = 16, 13, 75, 76


class Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_t as the functions with _v2 and _v3 fill it."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _OldProcessInfo(ctypes.Structure):
    """The same before driver 450: no instances."""

    _fields_ = (("pid", ctypes.c_uint), ("used", ctypes.c_ulonglong))


class _Attributes(ctypes.Structure):
    """nvmlDeviceAttributes_t of a MIG device; the first number is all we want."""

    _fields_ = (("sm_count", ctypes.c_uint), ("others", ctypes.c_uint * 7), ("memory_mb", ctypes.c_ulonglong))


def missing_driver() -> Optional[str]:
    """Return why there is no driver to ask, or None when its library loads. Costs a host without GPUs 1 ms."""
    try:
        load_library("REMOTE_TRAIN_NVML", NVML_NAMES, "no NVIDIA driver: ")
    except GpuError as error:
        return str(error)
    return None


def list_gpus() -> List[Dict[str, Any]]:
    """Return the GPUs as NVML sees them, compute units unknown; empty without any. For the fast path of a start."""
    gpus: List[Dict[str, Any]] = _read_nvml()["gpus"]
    return gpus


def read_gpus() -> Dict[str, Any]:
    """Return `gpus`, `driver` and `gpu_error`, compute units included; starts CUDA in this process, without a context."""
    answer = _read_nvml()
    if answer["gpus"]:
        try:
            units = read_compute_units()
        except GpuError as error:
            answer["gpu_error"] = answer["gpu_error"] or str(error)
        else:
            for gpu in answer["gpus"]:
                gpu.update(units.get(gpu["uuid"], {}))
    return answer


def _read_nvml() -> Dict[str, Any]:
    answer: Dict[str, Any] = {"gpus": [], "driver": None, "driver_cuda": None, "gpu_error": None}
    try:
        nvml = Nvml()
        answer["driver"] = nvml.text("nvmlSystemGetDriverVersion")
        answer["driver_cuda"] = _driver_cuda(nvml)
        count = nvml.number("nvmlDeviceGetCount_v2")
    except GpuError as error:
        answer["gpu_error"] = str(error)
        return answer
    problems = []
    for index in range(count):
        gpus, problem = _try_device(nvml, index)
        answer["gpus"] += gpus
        problems += problem
    call_quietly(
        nvml, "nvmlShutdown"
    )  # the agent forks the supervisor next: it shall not hold the driver open
    answer["gpu_error"] = "; ".join(problems) or (None if count else "the NVIDIA driver sees no GPU")
    return answer


def _driver_cuda(nvml: Nvml) -> Optional[str]:
    """Return the newest CUDA that the driver runs, like 12.8 (nvml.h: 1000 x major + 10 x minor)."""
    version = ctypes.c_int()
    if not call_quietly(nvml, "nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(version)):
        return None
    return "%d.%d" % (version.value // 1000, version.value % 1000 // 10)


def _try_device(nvml: Nvml, index: int) -> Tuple[List[Dict[str, Any]], List[str]]:
    """Return what is there of one GPU, and what is wrong with it: a lost one must not hide the others."""
    try:
        return _read_device(nvml, index), []
    except GpuError as error:
        return [], ["GPU %d: %s" % (index, error)]


def _read_device(nvml: Nvml, index: int) -> List[Dict[str, Any]]:
    """Return one GPU, or its instances when it is partitioned (MIG): only those can be computed on."""
    device = ctypes.c_void_p()
    nvml.call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
    instances = _mig_instances(nvml, device)
    gpus = [_describe(nvml, index, handle) for handle in instances or [device]]
    for gpu, handle in zip(gpus, instances):
        attributes = _Attributes()
        if call_quietly(nvml, "nvmlDeviceGetAttributes_v2", handle, ctypes.byref(attributes)):
            gpu["sm_count"] = attributes.sm_count
    return gpus


def _describe(nvml: Nvml, index: int, device: ctypes.c_void_p) -> Dict[str, Any]:
    memory = Memory()
    nvml.call("nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
    return {
        "index": index,
        "uuid": nvml.text("nvmlDeviceGetUUID", device),
        "name": nvml.text("nvmlDeviceGetName", device),
        "memory_bytes": memory.total,
        "memory_used_bytes": memory.used,
        "sm_count": None,
        "clock_mhz": None,
        "bandwidth": _bandwidth(nvml, device),
        "capability": _capability(nvml, device),
        "processes": _processes(nvml, device),
    }


def _capability(nvml: Nvml, device: ctypes.c_void_p) -> Optional[List[int]]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    known = call_quietly(
        nvml, "nvmlDeviceGetCudaComputeCapability", device, ctypes.byref(major), ctypes.byref(minor)
    )
    return [major.value, minor.value] if known else None


def _bandwidth(nvml: Nvml, device: ctypes.c_void_p) -> Optional[float]:
    """Return bytes/s of the memory: bus width x highest memory clock x 2 transfers a clock.

    Gives the data sheets' figures: 5120 bits x 2619 MHz are an H100's 3352 GB/s, 192 x 10501 a 4070 Ti's 504.
    """
    width, clock = ctypes.c_uint(), ctypes.c_uint()
    known = call_quietly(nvml, "nvmlDeviceGetMemoryBusWidth", device, ctypes.byref(width)) and call_quietly(
        nvml, "nvmlDeviceGetMaxClockInfo", device, ctypes.c_uint(_MEMORY_CLOCK), ctypes.byref(clock)
    )
    return (width.value * clock.value * 1e6 * 2 / 8 or None) if known else None


def _mig_instances(nvml: Nvml, device: ctypes.c_void_p) -> List[ctypes.c_void_p]:
    current, pending = ctypes.c_uint(), ctypes.c_uint()
    if not call_quietly(nvml, "nvmlDeviceGetMigMode", device, ctypes.byref(current), ctypes.byref(pending)):
        return []
    found = []
    if current.value == 1:
        for place in range(nvml.number("nvmlDeviceGetMaxMigDeviceCount", device)):
            handle = ctypes.c_void_p()
            name = "nvmlDeviceGetMigDeviceHandleByIndex"
            if call_quietly(nvml, name, device, ctypes.c_uint(place), ctypes.byref(handle)):
                found.append(handle)
    return found


def _processes(nvml: Nvml, device: ctypes.c_void_p) -> List[Dict[str, Any]]:
    """Return who uses the GPU; one that computes and draws counts as computing, the server of MPS does not: its clients do."""
    found: Dict[int, Dict[str, Any]] = {}
    for kind in ("Graphics", "MPSCompute", "Compute"):
        for pid, used in list_processes(nvml, "nvmlDeviceGet%sRunningProcesses" % kind, device):
            draws = kind == "Graphics" or (pid in found and found[pid]["draws"])
            computes = kind == "MPSCompute" or (kind == "Compute" and not _serves_mps(pid))
            found[pid] = {"pid": pid, "compute": computes, "draws": draws, "memory_bytes": used}
    return [found[pid] for pid in sorted(found)]


def _serves_mps(pid: int) -> bool:
    """Tell whether it is nvidia-cuda-mps-server, which computes for others and is listed while any of them may come."""
    try:
        with open("/proc/%d/comm" % pid, "rb") as file:
            return file.read(16).startswith(b"nvidia-cuda-mps")
    except OSError:
        return False


def list_processes(nvml: Nvml, name: str, device: ctypes.c_void_p) -> List[Tuple[int, Optional[int]]]:
    """Return pid and bytes of each process that a function of NVML lists, whichever form of it this driver has."""
    for suffix, shape in (("_v3", _ProcessInfo), ("_v2", _ProcessInfo), ("", _OldProcessInfo)):
        count = ctypes.c_uint(256)
        rows = (shape * 256)()
        if call_quietly(nvml, name + suffix, device, ctypes.byref(count), rows):
            chosen = rows[: count.value]
            return [(row.pid, None if row.used == _NOT_AVAILABLE else row.used) for row in chosen]
    return []


def read_compute_units() -> Dict[str, Dict[str, Any]]:
    """Return SM count, clock (the boost clock, which peaks are stated at) and capability by uuid, from libcuda."""
    cuda = Cuda()
    units = {}
    for ordinal in range(cuda.number("cuDeviceGetCount")):
        device = cuda.number("cuDeviceGet", ordinal)
        raw = (ctypes.c_ubyte * 16)()
        cuda.call("cuDeviceGetUuid", ctypes.byref(raw), device)
        units["GPU-" + format_uuid(bytes(raw))] = _read_unit(cuda, device)
    return units


def _read_unit(cuda: Cuda, device: int) -> Dict[str, Any]:
    attributes = (_SM_COUNT, _CLOCK_KHZ, _MAJOR, _MINOR)
    values = [cuda.number("cuDeviceGetAttribute", attribute, device) for attribute in attributes]
    return {"sm_count": values[0], "clock_mhz": values[1] // 1000, "capability": values[2:]}


def format_uuid(raw: bytes) -> str:
    """Return 16 bytes in the grouping that NVML prints: 8-4-4-4-12 hexadecimal digits."""
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def main() -> None:
    """Print `read_gpus` as one marked line, without compute units for who names a second argument.

    This is the process that facts.py may lose to a hanging driver. Compute units cost a start of CUDA, which takes seconds
    on a machine with many cards.
    """
    answer = _read_nvml() if len(sys.argv) > LIGHT else read_gpus()
    sys.stdout.write("\n%s%s\n" % (MARKER, json.dumps(answer)))
