"""What Python's `site` imports first in every training of ours: leaves no trace but two finders, and costs nothing without torch.

Steps aside for any other sitecustomize, lends `remote_train` to a training where none is installed, and hands the meter
the first optimizer step, if there ever is one.
"""

import os
import sys

TYPE_CHECKING = False  # of typing, whose import would cost every Python that starts here 5 ms
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any, Optional

HERE = os.path.dirname(os.path.abspath(__file__))
HOST = os.path.dirname(HERE)
OURS = os.path.dirname(HOST)
WATCHED = "torch.optim.optimizer"
METER_VARIABLE = "REMOTE_TRAIN_METER"
PACKAGE = "_remote_train_meter"


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
                begin(module)

        try:
            loader.exec_module = execute
        except AttributeError:  # a loader of another kind: then there is no meter
            return


def begin(optimizers: "ModuleType") -> None:
    """Wait for the first optimizer step of this process; loading the meter can wait until then as well."""
    register = getattr(optimizers, "register_optimizer_step_post_hook", None)
    if register is None:
        with_meter(
            "refuse", "this torch has no hook for the steps of every optimizer: torch 2.1 or newer has"
        )
        return

    def before_step(optimizer: object, arguments: object, keywords: object) -> None:
        pass  # until the meter puts something here

    def after_first_step(optimizer: object, arguments: object, keywords: object) -> None:  # noqa: ARG001
        if not torch.compiler.is_compiling():
            with_meter("begin", torch, optimizer, before, after)

    torch: Any = sys.modules["torch"]
    before = optimizers.register_optimizer_step_pre_hook(before_step)
    after = register(after_first_step)


def with_meter(name: str, *arguments: object) -> None:
    """Call a function of the meter, loaded under its private name: an installed remote_train is not touched."""
    from importlib import import_module  # noqa: PLC0415  (only who trains pays)
    from importlib.util import module_from_spec  # noqa: PLC0415

    try:
        if PACKAGE not in sys.modules:
            spec: Any = make_package_spec(PACKAGE, os.path.join(HOST, "meter"))
            sys.modules[PACKAGE] = module_from_spec(spec)
        life = import_module(PACKAGE + ".life")
    except (ImportError, OSError, SyntaxError):  # the agent's folder is gone: then there is no meter
        return
    getattr(life, name)(*arguments)


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
