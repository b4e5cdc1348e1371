"""A structural copy of a module: its own parameters and buffers, no hooks, no wrappers, nothing compiled, no collective."""

from __future__ import annotations

from .copying import Copier, has_finaliser
from .tensors import CannotCopyError, TensorShape, make_empty, make_stand_in

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Dict, Optional

    Module = Any

LIMIT = 10000  # objects beside modules and tensors that a model may hold

# Left out of a copy: back ways to what runs the training, and what is compiled for the original.
_LEFT_OUT = ("_trainer", "_fabric", "_compiled_call_impl", "_fsdp_state", "_composable_registry")


class Leaf:
    """A module among the arguments of a call, held weakly."""

    __slots__ = ("find",)

    def __init__(self, find: Any) -> None:  # noqa: ANN401  (weakref.ref of a module)
        self.find = find


def make_copier(torch: ModuleType, *, real: bool) -> Copier:
    """Return what copies modules and the arguments of calls; `real` copies the values of tensors too."""
    stand_in = make_stand_in(torch, real=real)
    copier = Copier([], LIMIT)

    def copy_module(module: Module) -> Module:
        copier.limit += 2 * len(vars(module))  # modules and their dictionaries come on top of the limit
        return _copy_module(torch, copier, module)

    def copy_leaf(leaf: Leaf) -> Module:
        module = leaf.find()
        if module is None:
            raise CannotCopyError("a module among the arguments is gone")
        return copier.copy(module)

    copier.rules += [
        (torch.Tensor, stand_in),
        (torch.nn.Module, copy_module),
        (TensorShape, lambda shape: make_empty(torch, shape)),
        (Leaf, copy_leaf),
    ]
    return copier


def _copy_module(torch: ModuleType, copier: Copier, module: Module) -> Module:
    inner = unwrap_once(module)
    if inner is not None:
        return copier.copy(inner)
    obstacle = _find_obstacle(torch, module)
    if obstacle:
        raise CannotCopyError(obstacle)
    made = object.__new__(_choose_class(torch, type(module)))
    copier.remember(module, made)
    attributes = {name: value for name, value in vars(module).items() if name not in _LEFT_OUT}
    made.__dict__.update(
        {
            name: type(value)() if _is_hooks(name, value) else copier.copy(value)
            for name, value in attributes.items()
        }
    )
    made.__dict__.update({name: None for name in ("_trainer", "_fabric") if name in vars(module)})
    if (
        type(module).__name__ == "_FabricModule"
    ):  # Lightning Fabric's refuses a backward that Fabric did not begin
        made.__dict__["_register_backward_hook"] = _leave_alone
    return made


def _leave_alone(tensor: Any) -> Any:  # noqa: ANN401
    return tensor


def unwrap_once(module: Module) -> Optional[Module]:
    """Return the module in a wrapper that adds no arithmetic (torch.compile, data parallel); None for any other."""
    wrapped: Dict[str, str] = {
        "OptimizedModule": "_orig_mod",
        "DistributedDataParallel": "module",
        "DataParallel": "module",
    }
    name = next((wrapped[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in wrapped), None)
    return None if name is None else vars(module)["_modules"][name]


def _find_obstacle(torch: ModuleType, module: Module) -> Optional[str]:
    names = {kind.__name__ for kind in type(module).__mro__}
    if "FullyShardedDataParallel" in names:
        return "FullyShardedDataParallel keeps each layer's parameters in pieces"
    if "DeepSpeedEngine" in names:
        return "DeepSpeed's engine cannot be copied"
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript modules cannot be copied"
    if has_finaliser(type(module)):
        return "%s has a __del__, which would be called at the end of its copy" % type(module).__name__
    return None


def _is_hooks(name: str, value: Any) -> bool:  # noqa: ANN401  (an attribute)
    return name.startswith("_") and "_hooks" in name and isinstance(value, dict)


def _choose_class(torch: ModuleType, kind: Any) -> Any:  # noqa: ANN401  (a class)
    """FSDP's own class gives way to the module's, batch norms that talk to other processes to those that do not."""
    bases = kind.__bases__
    if bases and bases[0].__name__ == "FSDPModule":
        return _choose_class(torch, bases[1])
    if kind.__name__ == "SyncBatchNorm":
        norm = torch.nn.modules.batchnorm._BatchNorm  # noqa: SLF001  (the base of all, which checks no dimension)
        return type("BatchNorm", (norm,), {"_check_input_dim": lambda _, __: None})
    return kind
