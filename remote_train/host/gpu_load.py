"""What the GPUs of an attempt are doing now, through NVML: load, memory, power, clock, heat, and what holds the clock down.

The calls may hang on a broken driver, and the driver stays open from the first sample to `close`: to be used by a thread
that its process can do without, after everything that is forked has been.
"""

from __future__ import annotations

import ctypes

from remote_train.host.gpus import Memory, list_processes
from remote_train.host.nvml import GpuError, Nvml, call_quietly, exists

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Sequence, Set

_SM_CLOCK, _CORE_SENSOR = 1, 0  # nvml.h, nvmlClockType_t and nvmlTemperatureSensors_t
# nvml.h, nvmlClocksEventReason*: what each bit says of why the clock is not higher.
_REASONS = (
    (0x1, "idle"),
    (0x2, "set clocks"),
    (0x4, "power"),
    (0x8, "hardware"),
    (0x10, "other GPUs"),
    (0x20, "thermal"),
    (0x40, "thermal"),
    (0x80, "power"),
    (0x100, "set clocks"),
)


class _Load(ctypes.Structure):
    """nvmlUtilization_t: per cent of the last moments in which a kernel ran, and in which memory was read or written."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class GpuLoad:
    """Samples of the GPUs with these uuids; one that cannot be asked (any more) is left out of a sample."""

    def __init__(self, gpus: Sequence[Dict[str, Any]]) -> None:
        self._gpus = [(gpu["uuid"], gpu.get("index")) for gpu in gpus]
        self._nvml: Optional[Nvml] = None
        self._failed = not gpus

    def sample(self, ours: Set[int]) -> List[Dict[str, Any]]:
        """Return one row for each GPU; `ours` are the pids that do not count as others."""
        if self._failed:
            return []
        try:
            self._nvml = self._nvml or Nvml()
        except GpuError:
            self._failed = True
            return []
        rows = [_read_row(self._nvml, uuid, ours) for uuid, _ in self._gpus]
        return [dict(row, index=index) for row, (_, index) in zip(rows, self._gpus) if row is not None]

    def close(self) -> None:
        """Let go of the driver."""
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            call_quietly(nvml, "nvmlShutdown")


def _read_row(nvml: Nvml, uuid: str, ours: Set[int]) -> Optional[Dict[str, Any]]:
    device, memory = ctypes.c_void_p(), Memory()
    try:
        nvml.call("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(device))
        nvml.call("nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
    except GpuError:
        return None  # fallen off the bus, or never there
    load = _Load()
    loaded = call_quietly(nvml, "nvmlDeviceGetUtilizationRates", device, ctypes.byref(load))
    return {
        "uuid": uuid,
        "utilization": load.gpu / 100.0 if loaded else None,
        "memory_used": memory.used,
        "watts": _watts(nvml, "nvmlDeviceGetPowerUsage", device),
        "watt_limit": _watts(nvml, "nvmlDeviceGetEnforcedPowerLimit", device),
        "watt_default": _watts(nvml, "nvmlDeviceGetPowerManagementDefaultLimit", device),
        "sm_mhz": _number(nvml, "nvmlDeviceGetClockInfo", device, ctypes.c_uint(_SM_CLOCK)),
        "celsius": _number(nvml, "nvmlDeviceGetTemperature", device, ctypes.c_uint(_CORE_SENSOR)),
        "throttle": _reasons(nvml, device),
        "others": count_others([pid for pid, _ in _computing(nvml, device)], ours),
    }


def _number(nvml: Nvml, name: str, *arguments: Any) -> Optional[int]:  # noqa: ANN401  (C values)
    value = ctypes.c_uint()
    return value.value if call_quietly(nvml, name, *arguments, ctypes.byref(value)) else None


def _watts(nvml: Nvml, name: str, device: ctypes.c_void_p) -> Optional[float]:
    milliwatts = _number(nvml, name, device)
    return None if milliwatts is None else milliwatts / 1000.0


def _reasons(nvml: Nvml, device: ctypes.c_void_p) -> Optional[List[str]]:
    """Return in words what holds the clock down; NVML renamed the function in driver 535 and keeps the old name."""
    bits = ctypes.c_ulonglong()
    for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        if call_quietly(nvml, name, device, ctypes.byref(bits)):
            return name_reasons(bits.value)
    return None


def name_reasons(bits: int) -> List[str]:
    """Return the words for the bits that are set, each once."""
    return sorted({word for bit, word in _REASONS if bits & bit})


def _computing(nvml: Nvml, device: ctypes.c_void_p) -> List[Any]:
    return list_processes(nvml, "nvmlDeviceGetComputeRunningProcesses", device)


def count_others(pids: Sequence[int], ours: Set[int]) -> Optional[int]:
    """Return how many computing processes are not ours; None where the driver's pids are not those of this namespace.

    That is a container: the driver names the processes as the machine outside does, and none of them exists here.
    """
    if pids and not any(pid in ours for pid in pids) and not any(map(exists, pids)):
        return None
    return sum(1 for pid in pids if pid not in ours)
