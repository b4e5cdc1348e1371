"""Which modules a training trains, and how their calls can be seen for a moment without disturbing torch.compile."""

from __future__ import annotations

import gc
import itertools
import sys

from .hooks import can_be_seen, see_calls

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple

    Module = Any
    Seen = Callable[[Module, Tuple[Any, ...], Any], None]
    Done = Callable[[Module], None]


_MANY_BLOCKS = 2_000_000  # of memory, with as many objects or fewer
_MOST_PARTS = 1000
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE


class Watchable:
    """A module whose calls can be seen by `watch`: `how` is "hook" or "call", or None; `why` says why none may be seen."""

    __slots__ = ("how", "module", "why")

    def __init__(self, module: Module, how: Optional[str], why: Optional[str] = None) -> None:
        self.module, self.how, self.why = module, how, why


def find_outermost(torch: ModuleType, parameters: Iterable[Any]) -> List[Module]:
    """Find the modules that hold any of the parameters and lie in no other such module, by one look at all objects.

    About 30 ns an object; only the type of an object is asked for, so that lazy proxies stay asleep. Where there are
    millions, or the script has frozen the collector, which hides its objects, the script's globals are looked at first.
    """
    wanted = {id(parameter) for parameter in parameters}
    frozen = gc.get_freeze_count() > 0
    if frozen or sys.getallocatedblocks() > _MANY_BLOCKS:
        near = _choose_outermost(_list_near(torch), wanted)
        held = {id(parameter) for module in near for parameter in module.parameters()}
        if near and wanted <= held:
            return near
    return _choose_outermost(_list_modules(torch), wanted)


def _list_near(torch: ModuleType) -> List[Module]:
    """List the modules among the script's globals, in what these hold, and below."""
    kinds = _list_subclasses(torch.nn.Module)
    found: Dict[int, Module] = {}
    script = list(vars(sys.modules["__main__"]).values())
    for value in script + [part for one in script for part in _list_parts(one)]:
        if type(value) in kinds and id(value) not in found:
            found.update((id(module), module) for module in value.modules())
    return list(found.values())


def _list_parts(value: Any) -> List[Any]:  # noqa: ANN401  (anything)
    """List what a small container holds, or an object of a class written in Python; without waking a lazy one."""
    kind: Any = type(value)
    if kind in (dict, list, tuple) and len(value) > _MOST_PARTS:
        return []
    written = kind.__flags__ & _HEAP_TYPE and kind is not type and not issubclass(kind, type)
    if kind not in (dict, list, tuple) and not written:
        return []
    parts = gc.get_referents(value)
    small = [held for held in parts if type(held) is dict and len(held) <= _MOST_PARTS]
    return parts + [part for held in small for part in gc.get_referents(held)]


def find_inner(module: Module) -> List[Module]:
    """Find the modules right below this one that hold parameters; none below what torch.compile has compiled.

    For a module that is never called itself (a Lightning module, whose `training_step` calls its parts) or whose call
    cannot be counted.
    """
    if _is_compiled(module):
        return []
    return [part for part in module.children() if any(True for _ in part.parameters())]


def _list_modules(torch: ModuleType) -> List[Module]:
    kinds = _list_subclasses(torch.nn.Module)
    objects = gc.get_objects()
    return list(itertools.compress(objects, map(kinds.__contains__, map(type, objects))))


def _list_subclasses(base: Any) -> Set[Any]:  # noqa: ANN401  (a class)
    found: Set[Any] = {base}
    waiting = [base]
    while waiting:
        new = [kind for kind in type.__subclasses__(waiting.pop()) if kind not in found]
        found.update(new)
        waiting += new
    return found


def _choose_outermost(modules: List[Module], wanted: Set[int]) -> List[Module]:
    attributes = {id(module): module.__dict__ for module in modules}
    children = {
        place: [id(part) for part in (held.get("_modules") or {}).values() if id(part) in attributes]
        for place, held in attributes.items()
    }
    reached = [
        place
        for place, held in attributes.items()
        if any(id(parameter) in wanted for parameter in (held.get("_parameters") or {}).values())
    ]
    parents: Dict[int, List[int]] = {}
    for place, below in children.items():
        for part in below:
            parents.setdefault(part, []).append(place)
    holders = _climb(reached, parents)
    return [module for module in modules if id(module) in holders and not parents.get(id(module))]


def _climb(places: List[int], parents: Dict[int, List[int]]) -> Set[int]:
    """Return these modules and all that they lie in."""
    found, waiting = set(places), list(places)
    while waiting:
        new = [place for place in parents.get(waiting.pop(), ()) if place not in found]
        found.update(new)
        waiting += new
    return found


def find_watchable(roots: List[Module]) -> List[Watchable]:
    """Say of each root how its calls can be seen: never by anything that makes torch.compile compile again."""
    loose = _find_loose_code()
    return [_choose_way(root, loose) for root in roots]


def _choose_way(root: Module, loose: Optional[str]) -> Watchable:
    if vars(root).get("_compiled_call_impl") is not None:
        return Watchable(root, "call")  # a hook would be among what its compiled code was made for
    if not can_be_seen(root):
        return Watchable(root, None, "calls of a %s cannot be seen" % type(root).__name__)
    if loose is None or _is_wrapper(root) or any(_is_compiled(part) for part in root.modules()):
        return Watchable(root, "hook")  # before a wrapper's compiled code is entered
    return Watchable(
        root, "hook", "torch.compile was given a function (%s), in which the model is called unseen" % loose
    )


def _is_wrapper(module: Module) -> bool:
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in (vars(module).get("_modules") or {})


def _is_compiled(module: Module) -> bool:
    return _is_wrapper(module) or vars(module).get("_compiled_call_impl") is not None


def _find_loose_code() -> Optional[str]:
    """Return the name of a compiled function that is neither torch's nor an optimizer's; None when there is none."""
    frames = sys.modules.get("torch._dynamo.convert_frame")
    evaluator = sys.modules.get("torch._C._dynamo.eval_frame")
    tracker = getattr(frames, "input_codes", None)
    list_entries = getattr(evaluator, "_debug_get_cache_entry_list", None)
    if frames is None or tracker is None or list_entries is None:
        return None if frames is None else _say_if_compiled()
    for reference in list(tracker.seen):
        code = reference()
        if code is not None and "/torch/" not in code.co_filename.replace("\\", "/") and list_entries(code):
            return str(code.co_name)
    return None


def _say_if_compiled() -> Optional[str]:
    """The same for a torch that does not list what it compiled: whether it compiled anything."""
    counters = getattr(sys.modules.get("torch._dynamo.utils"), "counters", None) or {}
    return "a function" if counters.get("stats", {}).get("unique_graphs") else None


class _CompiledCall:
    """Stands before the compiled call of a module that was compiled in place; torch leaves it out of pickles and copies."""

    def __init__(self, module: Module, seen: Seen, done: Done) -> None:
        self.module, self.seen, self.done, self.inner = (
            module,
            seen,
            done,
            vars(module)["_compiled_call_impl"],
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        self.seen(self.module, args, kwargs)
        out = self.inner(*args, **kwargs)
        self.done(self.module)
        return out


def nothing(_module: Module) -> None:
    """Take no notice of a call's end."""


def watch(watchable: Watchable, seen: Seen, done: Done = nothing) -> Callable[[], None]:
    """Call `seen(module, args, kwargs)` before each call of it, until the function returned is called (twice is fine).

    `done(module)` is called after it, unless it raises. Neither must raise. What is put into the module pickles and
    copies as nothing: a checkpoint written meanwhile loads without us.
    """
    if watchable.how == "call":
        return _watch_compiled(watchable.module, seen, done)
    return see_calls(watchable.module, seen, done)


def _watch_compiled(module: Module, seen: Seen, done: Done) -> Callable[[], None]:
    stand_in = _CompiledCall(module, seen, done)
    module.__dict__["_compiled_call_impl"] = stand_in

    def stop() -> None:
        if vars(module).get("_compiled_call_impl") is stand_in:  # the script may have compiled it again
            module.__dict__["_compiled_call_impl"] = stand_in.inner

    return stop
