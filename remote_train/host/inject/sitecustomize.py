"""What Python's `site` imports first in every training of ours: leaves no trace but two finders, and costs nothing without torch.

Steps aside for any other sitecustomize, lends `remote_train` to a training where none is installed, and loads the
meter beside torch's optimizers, to be handed the first step, if there ever is one.
"""

import os
import sys

TYPE_CHECKING = False  # of typing, whose import would cost every Python that starts here 5 ms
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any, List, Optional

HERE = os.path.dirname(os.path.abspath(__file__))
HOST = os.path.dirname(HERE)
OURS = os.path.dirname(HOST)
WATCHED = "torch.optim.optimizer"
METER_VARIABLE = "REMOTE_TRAIN_METER"
PACKAGE = "_remote_train_meter"
LAUNCHERS = {
    "torchrun",
    "accelerate",
    "accelerate-launch",
    "deepspeed",
    "torch.distributed.run",
    "torch.distributed.launch",
    "accelerate.commands.launch",
}
"""Programs and modules that import torch's optimizers and leave the training to other processes."""


def make_package_spec(name: str, folder: str) -> "Optional[ModuleSpec]":
    """Return the spec of a package of ours, found by its path and not by sys.path."""
    from importlib.util import spec_from_file_location  # noqa: PLC0415  (only who asks for it pays)

    place = os.path.join(folder, "__init__.py")
    return spec_from_file_location(name, place, submodule_search_locations=[folder])


class LastResort:
    """The last finder of all: `remote_train`, where nothing else has it."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> "Optional[ModuleSpec]":  # noqa: ARG004
        """Find our own package, and nothing else."""
        return make_package_spec(name, OURS) if name == "remote_train" else None


class Doorbell:
    """The first finder of all: lets the others find torch's optimizers, and rings once these have been imported."""

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Optional[ModuleSpec]":  # noqa: ANN401
        """Ask the other finders; the spec and its loader are theirs, and stay as they made them."""
        if name != WATCHED:
            return None
        for finder in [finder for finder in sys.meta_path if finder is not self]:
            find = getattr(finder, "find_spec", None)
            spec: Optional[ModuleSpec] = find(name, path, target) if find else None
            if spec is not None:
                self.ring_after_execution(spec)
                return spec
        return None

    def ring_after_execution(self, spec: "ModuleSpec") -> None:
        """Have `begin` called when the module has been executed; the loader has forgotten it by then."""
        loader: Any = spec.loader

        def execute(module: "ModuleType") -> None:
            del loader.exec_module
            loader.exec_module(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                attempt(begin, module)

        try:
            loader.exec_module = execute
        except AttributeError:  # a loader of another kind: then there is no meter
            return


def begin(optimizers: "ModuleType") -> None:
    """Load the meter while the script imports what it needs, and wait for the first optimizer step of this process.

    Other ranks than the first have nothing to write, and no hook.
    """
    if os.environ.get("RANK", "0").strip() != "0":
        return
    register = getattr(optimizers, "register_optimizer_step_post_hook", None)
    if register is None:
        load().refuse("this torch has no hook for the steps of every optimizer: torch 2.3 or newer has")
        return

    def before_step(optimizer: object, arguments: object, keywords: object) -> None:
        pass  # until the meter puts something here

    def after_first_step(optimizer: object, arguments: object, keywords: object) -> None:  # noqa: ARG001
        if not waits:
            return
        is_compiling = getattr(getattr(torch, "compiler", None), "is_compiling", None)
        if is_compiling is None or not is_compiling():
            waits.clear()
            attempt(begin_life if is_compiling else give_up, optimizer)

    def begin_life(optimizer: object) -> None:
        load().begin(torch, optimizer, before, after)

    def give_up(_optimizer: object) -> None:
        load().refuse("this torch does not say when it compiles: torch 2.3 or newer does")

    torch: Any = sys.modules["torch"]
    waits = [True]  # once: what fails at the first step is not tried at each
    before = optimizers.register_optimizer_step_pre_hook(before_step)
    after = register(after_first_step)
    if trains_here(read_command()):
        load()


def load() -> "Any":  # noqa: ANN401  (a module)
    """Import the meter under its private name: an installed remote_train is not touched."""
    from importlib import import_module  # noqa: PLC0415  (only who has torch pays)
    from importlib.util import module_from_spec  # noqa: PLC0415

    if PACKAGE not in sys.modules:
        spec: Any = make_package_spec(PACKAGE, os.path.join(HOST, "meter"))
        sys.modules[PACKAGE] = module_from_spec(spec)
    return import_module(PACKAGE + ".life")


def attempt(function: "Any", *arguments: object) -> None:  # noqa: ANN401  (a function)
    """Call ours; where it fails there is no meter, and the script goes on: the agent's folder may be gone, the stack full."""
    try:
        function(*arguments)
    except (MemoryError, RecursionError):  # no room to look where it came from
        return
    except Exception as error:
        guard = sys.modules.get(PACKAGE + ".guard")
        if guard is not None and guard.is_from_a_signal(error):
            raise


def read_command() -> "List[str]":
    """Return the command line of this process as Python was given it; empty where nothing tells."""
    command: Optional[List[str]] = getattr(sys, "orig_argv", None)  # of Python 3.10
    if command is not None:
        return list(command)
    try:
        with open("/proc/self/cmdline", "rb") as file:
            return [os.fsdecode(part) for part in file.read().split(b"\0")]
    except OSError:
        return []


def trains_here(command: "List[str]") -> bool:
    """Tell whether a process may train itself: no launcher, and not a child of multiprocessing's, mostly a DataLoader's.

    One that trains all the same loads the meter at its first step.
    """
    if "--multiprocessing-fork" in command or any("multiprocessing.forkserver" in part for part in command):
        return False
    rest = command[1:]
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option in ("-m", "-c", "-W", "-X") and rest:
            value = rest.pop(0)
            if option in ("-m", "-c"):
                return option == "-c" or value not in LAUNCHERS
    return not rest or os.path.basename(rest[0]) not in LAUNCHERS


def step_aside() -> None:
    """Import the sitecustomize that comes next; without one be none: `site` takes this ImportError for just that."""
    for place, entry in enumerate(sys.path):
        if os.path.abspath(entry) == HERE:
            del sys.path[place]
            break
    sys.modules.pop("sitecustomize", None)
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401, PLC0415


sys.meta_path.append(LastResort())
if os.environ.get(METER_VARIABLE):
    sys.meta_path.insert(0, Doorbell())
step_aside()
