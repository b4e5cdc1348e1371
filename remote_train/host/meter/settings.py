"""What a training is set to, as far as it can be seen from within."""

from __future__ import annotations

import os
import platform
import sys

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from .calls import Call
    from .phases import Phases


def read_process(torch: Any, device: str) -> Dict[str, Any]:  # noqa: ANN401  (a module)
    """Return who this process is: pid, rank, world, versions and the device."""
    rank, world = read_rank()
    name = str(torch.cuda.get_device_name()) if device == "cuda" else None
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    return dict(versions, pid=os.getpid(), rank=rank, world=world, device=device, name=name)


def read_rank() -> Tuple[int, int]:
    """Return this process's rank and how many there are: torch.distributed's, or the launcher's, or 0 of 1."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank()), int(distributed.get_world_size())
    return parse_number(os.environ.get("RANK"), 0), parse_number(os.environ.get("WORLD_SIZE"), 1)


def parse_number(text: Optional[str], otherwise: int) -> int:
    """Return a whole number that a launcher has set, or what stands for none."""
    return int(text) if text and text.strip().isdigit() else otherwise


def find_device(parameters: List[Any]) -> str:
    """Return cuda if any parameter is there, else cpu."""
    return "cuda" if any(parameter.device.type == "cuda" for parameter in parameters) else "cpu"


def list_parameters(optimizer: Any) -> List[Any]:  # noqa: ANN401  (torch's)
    """Return what an optimizer updates."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def read_settings(torch: Any, optimizer: Any, call: Optional[Call], phases: Phases) -> Dict[str, Any]:  # noqa: ANN401
    """Return what is known so far of the training's settings."""
    parameters = list_parameters(optimizer)
    groups = optimizer.param_groups
    return {
        "threads": torch.get_num_threads(),
        "compiled": is_compiled(),
        "optimizer": type(optimizer).__name__,
        "fused": read_flag(groups, "fused"),
        "foreach": read_flag(groups, "foreach"),
        "workers": phases.workers,
        "amp": find_autocast(call, find_device(parameters)),
        "tf32": is_tf32_allowed(torch),
        "grad_scaler": phases.scaler,
        "parameters_dtype": str(parameters[0].dtype).partition(".")[2] if parameters else None,
    }


def read_flag(groups: List[Dict[str, Any]], name: str) -> Optional[bool]:
    """Return an optimizer's flag, if its groups agree."""
    values = {group.get(name) for group in groups}
    value = values.pop() if len(values) == 1 else None
    return value if isinstance(value, bool) else None


def is_compiled() -> bool:
    """Tell whether torch.compile has compiled anything in this process."""
    dynamo: Any = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters.get("stats", {}).get("unique_graphs"))


def find_autocast(call: Optional[Call], device: str) -> Optional[str]:
    """Return the dtype of autocast on the device that trains, or None when it is off."""
    return dict(call.autocast).get(device) if call is not None else None


def is_tf32_allowed(torch: Any) -> bool:  # noqa: ANN401  (a module)
    """Tell whether products of float32 may be made in TF32."""
    products = torch.backends.cuda.matmul
    if hasattr(
        products, "fp32_precision"
    ):  # to read allow_tf32 then is an error if the script has set this one
        return bool(products.fp32_precision == "tf32")
    return bool(products.allow_tf32)


def choose_dtype(by_dtype: Dict[str, float], settings: Dict[str, Any], device: str) -> Tuple[str, str]:
    """Return the dtype that most FLOPs are made in, and how that is known."""
    parameters = str(settings["parameters_dtype"])
    most = max(by_dtype, key=lambda name: by_dtype[name]) if by_dtype else settings["amp"] or parameters
    if most == "float32" and device == "cuda" and settings["tf32"]:
        return "tf32", "TF32 is allowed"
    if most == settings["amp"]:
        return most, "autocast"
    return most, "parameters" if most == parameters else "the operations"
