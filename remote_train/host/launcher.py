"""What the supervisor starts: plain python, or torchrun with our rank shim; and the environment it gets."""

from __future__ import annotations

import os

from remote_train.host import layout

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List


INJECTED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inject")
"""The folder of the `sitecustomize` that the training's Python finds first."""


def inject(environment: Dict[str, str]) -> None:
    """Put our `sitecustomize` before all else that PYTHONPATH names, which stays behind it."""
    if os.pathsep in INJECTED:  # a name that PYTHONPATH cannot hold
        return
    own = environment.get("PYTHONPATH")  # an empty item of it would be the working directory
    environment["PYTHONPATH"] = INJECTED + os.pathsep + own if own else INJECTED


def make_environment(base: Dict[str, str], plan: Dict[str, Any], secrets: Dict[str, str]) -> Dict[str, str]:
    """Return the training's environment: the login's, the plan's over it, its defaults where neither speaks."""
    environment = {key: value for key, value in base.items() if not key.startswith("SSH_")}
    if plan.get("conda"):
        from remote_train.host import conda  # noqa: PLC0415  (only an environment of conda pays for it)

        conda.activate(environment, str(plan["conda"]))
    environment.update(plan.get("env", {}))
    environment.update(secrets)
    for key, value in plan.get("default_env", {}).items():
        environment.setdefault(key, value)
    return environment


def show_gpus(environment: Dict[str, str], gpus: List[Dict[str, Any]]) -> None:
    """Have the training see the GPUs that it was given, by UUID; without any nothing is changed."""
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpu["uuid"] for gpu in gpus)


def make_command(plan: Dict[str, Any], folder: str, agent_python: str) -> List[str]:
    """Return the launcher's argument list: plain python, or torchrun with our rank shim."""
    python = str(plan["python"])
    argv: List[str] = plan["argv"]
    if plan["launcher"] == "python":
        return [python, "-u", *argv]
    shim = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rank.py")
    torchrun = [python, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(plan["processes"])]
    torchrun += ["--max-restarts", str(plan.get("max_restarts", 0)), "--no-python"]
    torchrun += ["--log-dir", os.path.join(folder, layout.TORCHRUN)]
    return [*torchrun, agent_python, "-I", "-S", shim, folder, python, *argv]
