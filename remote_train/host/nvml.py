"""The NVIDIA driver's own libraries, NVML and libcuda, by ctypes: load one, call it by name, have refusals as GpuError.

REMOTE_TRAIN_NVML and REMOTE_TRAIN_LIBCUDA name other libraries (tests compile one). A broken driver can let a call
hang: who asks does so in a process or a thread that it can do without.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Sequence, Union

# The loader's own search, then where WSL, NixOS and GKE keep them outside of it.
_FOLDERS = ("/usr/lib/wsl/lib", "/run/opengl-driver/lib", "/usr/local/nvidia/lib64")
NVML_NAMES = ("libnvidia-ml.so.1", "libnvidia-ml.so", *(folder + "/libnvidia-ml.so.1" for folder in _FOLDERS))
CUDA_NAMES = ("libcuda.so.1", *(folder + "/libcuda.so.1" for folder in _FOLDERS))

_NOT_SUPPORTED = 3  # nvml.h, nvmlReturn_t, as the next four
_ERRORS = {
    4: "no permission to ask the NVIDIA driver",
    9: "the NVIDIA driver is not loaded",
    15: "the GPU has fallen off the bus: restart the host",
    18: "driver/library version mismatch: the driver was updated, restart the host",
}


class GpuError(Exception):
    """The library or the driver refused; the text is for people, `code` is NVML's."""

    def __init__(self, text: str, code: int = -1) -> None:
        super().__init__(text)
        self.code = code


class Library:
    """A C library: calls by name, what it lacks as GpuError."""

    def __init__(self, variable: str, names: Sequence[str], problem: str) -> None:
        self._library = load_library(variable, names, problem)

    def run(self, name: str, *arguments: Any) -> int:  # noqa: ANN401  (C values)
        """Return the code that a function returns."""
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise GpuError("this NVIDIA driver has no %s" % name, _NOT_SUPPORTED) from None
        return int(function(*arguments))


class Nvml(Library):
    """An initialised NVML, refusals as GpuError."""

    def __init__(self) -> None:
        super().__init__("REMOTE_TRAIN_NVML", NVML_NAMES, "no NVIDIA driver: ")
        self.call("nvmlInit_v2")

    def call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401  (C values)
        """Call a function; raise GpuError when it fails."""
        code = self.run(name, *arguments)
        if code != 0:
            raise GpuError(_ERRORS.get(code) or "%s: %s" % (name, self._words(code)), code)

    def number(self, name: str, *arguments: Any) -> int:  # noqa: ANN401  (C values)
        """Return the unsigned int that a function puts behind its last argument."""
        value = ctypes.c_uint()
        self.call(name, *arguments, ctypes.byref(value))
        return value.value

    def text(self, name: str, *arguments: Any) -> str:  # noqa: ANN401  (C values)
        """Return the string that a function writes."""
        buffer = ctypes.create_string_buffer(96)
        self.call(name, *arguments, buffer, ctypes.c_uint(96))
        return buffer.value.decode("utf-8", "replace")

    def _words(self, code: int) -> str:
        self._library.nvmlErrorString.restype = ctypes.c_char_p
        words = self._library.nvmlErrorString(code)
        return words.decode("utf-8", "replace") if words else "NVML error %d" % code


class Cuda(Library):
    """An initialised libcuda; no context is made on any device."""

    def __init__(self) -> None:
        super().__init__("REMOTE_TRAIN_LIBCUDA", CUDA_NAMES, "no CUDA driver library: ")
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401  (C values)
        """Call a function; raise GpuError when it fails."""
        code = self.run(name, *arguments)
        if code != 0:
            raise GpuError("%s failed with CUDA error %d" % (name, code), code)

    def number(self, name: str, *arguments: Any) -> int:  # noqa: ANN401  (C values)
        """Return the int that a function puts behind its first argument."""
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value


def load_library(variable: str, names: Sequence[str], problem: str) -> ctypes.CDLL:
    """Return the first library that loads: the one an environment variable names, else the usual names."""
    override = os.environ.get(variable)
    problems = []
    for name in [override] if override else names:
        library = _try_load(name)
        if not isinstance(library, str):
            return library
        problems.append(library)
    raise GpuError(problem + problems[0])


def _try_load(name: str) -> Union[ctypes.CDLL, str]:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        return _explain_load(name, str(error))


def _explain_load(name: str, words: str) -> str:
    missing = "No such file" in words or "image not found" in words or "no such file" in words
    return "%s not found" % name if missing else words


def call_quietly(nvml: Nvml, name: str, *arguments: Any) -> bool:  # noqa: ANN401  (C values)
    """Call what not every card or driver supports; tell whether it answered."""
    try:
        nvml.call(name, *arguments)
    except GpuError:
        return False
    return True


def lists_our_pids() -> bool:
    """Tell whether the driver's pids are those that we see: in a container they are the numbers outside of it.

    It numbers processes as the machine's first pid namespace does (linux/proc_ns.h, PROC_PID_INIT_INO).
    """
    try:
        return os.stat("/proc/self/ns/pid").st_ino == 0xEFFFFFFC
    except OSError:
        return False


def exists(pid: int) -> bool:
    """Tell whether a process of this number exists, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
