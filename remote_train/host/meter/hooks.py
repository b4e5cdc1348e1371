"""Hooks that nobody but a module's own call sees: whoever lists, copies, pickles, scripts or compiles it finds none of ours."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import MutableMapping

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Tuple

    Module = Any

_BEFORE = "_forward_pre_hooks"
_KEYWORDS = "_forward_pre_hooks_with_kwargs"
_AFTER = "_forward_hooks"


class Hooks(MutableMapping, OrderedDict):  # type: ignore[type-arg, misc, metaclass]
    """Stands before a module's own dict of hooks, which keeps the script's: its handles know that one.

    Module.__call__ asks for the truth of it, for `items()` and for `in`, and gets ours besides; all else is as it was.
    """

    def __init__(self, theirs: Any = None) -> None:  # noqa: ANN401  (an OrderedDict)
        super().__init__()
        self.theirs = OrderedDict() if theirs is None else theirs
        self.ours: Dict[Any, Any] = {}
        self.known = False  # a handle of the script's removes its hook from this one

    def __bool__(self) -> bool:
        return bool(self.ours) or bool(self.theirs)

    def __contains__(self, key: object) -> bool:
        return key in self.theirs or key in self.ours

    def items(self) -> Any:  # noqa: ANN401  (a list would do; a view is promised)
        """Return the script's hooks, then ours; torch.compile asks by iterating instead."""
        return {**self.theirs, **self.ours}.items()

    def __len__(self) -> int:
        return len(self.theirs)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.theirs)

    def __reversed__(self) -> Any:  # noqa: ANN401  (an iterator)
        return reversed(self.theirs)

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401
        return self.theirs[key]

    def __setitem__(self, key: Any, hook: Any) -> None:  # noqa: ANN401
        self.known = True
        self.theirs[key] = hook

    def __delitem__(self, key: Any) -> None:  # noqa: ANN401
        del self.theirs[key]

    def __eq__(self, other: object) -> bool:
        return bool(self.theirs == (other.theirs if isinstance(other, Hooks) else other))

    def __repr__(self) -> str:
        return repr(self.theirs)

    def move_to_end(self, key: Any, last: bool = True) -> None:  # noqa: ANN401  (OrderedDict's own)
        """Do what OrderedDict does."""
        self.theirs.move_to_end(key, last)

    def copy(self) -> Any:  # noqa: ANN401  (an OrderedDict)
        """Copy the script's."""
        return self.theirs.copy()

    def __reduce_ex__(self, _protocol: Any) -> Tuple[Any, ...]:  # noqa: ANN401
        return OrderedDict, (), None, None, iter(self.theirs.items())

    __hash__ = None  # type: ignore[assignment]


def can_be_seen(module: Module) -> bool:
    """Tell whether a module's calls can be seen by `see_calls`."""
    return all(isinstance(vars(module).get(name), dict) for name in (_BEFORE, _KEYWORDS, _AFTER))


def see_calls(
    module: Module, before: Callable[..., None], after: Callable[[Module], None]
) -> Callable[[], None]:
    """Call `before(module, args, kwargs)` and, unless it raises, `after(module)` at each call, until the function returned is called."""
    key = object()
    entries = {_BEFORE: before, _KEYWORDS: True, _AFTER: lambda module, *_: after(module)}
    stops = [_lend(module, name, key, entry) for name, entry in entries.items()]
    return lambda: _call_all(stops)


def _call_all(functions: List[Callable[[], None]]) -> None:
    for function in functions:
        function()


def _lend(module: Module, name: str, key: object, entry: object) -> Callable[[], None]:
    attributes: Any = module.__dict__
    found = attributes[name]
    hooks = found if isinstance(found, Hooks) else Hooks(found)
    hooks.ours[key] = entry
    attributes[name] = hooks

    def stop() -> None:
        hooks.ours.pop(key, None)
        if not hooks.ours and attributes.get(name) is hooks:
            attributes[name] = hooks.theirs  # torch.compile would take no notice of what is in ours
            if hooks.known:  # handles hold it weakly: it lives as long as the module does
                weakref.finalize(module, len, hooks).atexit = False

    return stop
