"""Attributes of torch that are replaced for a while, and put back as they were."""

from __future__ import annotations

import functools

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Callable


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[], None]:  # noqa: ANN401  (a class or a module)
    """Put `make(original)` in the place of an attribute; the function returned puts the original back, twice is fine.

    A module or class without the attribute is left alone. What another has put over ours meanwhile stays.
    """
    original = vars(owner).get(name)
    if not callable(original):
        return nothing
    ours = functools.wraps(original)(make(original))
    setattr(owner, name, ours)

    def restore() -> None:
        if vars(owner).get(name) is ours:
            setattr(owner, name, original)

    return restore


def nothing() -> None:
    """Undo what was not done."""


class HookSlot:
    """One of torch's global hooks, whose function is exchanged in its place.

    Adding or removing one while torch goes through them, as it does when ours is called, would raise in the script.
    """

    __slots__ = ("_handle",)

    def __init__(self, handle: Any) -> None:  # noqa: ANN401  (torch's RemovableHandle)
        self._handle = handle

    def put(self, function: Callable[..., None]) -> None:
        """Have this function called from now on."""
        hooks = self._handle.hooks_dict_ref()
        if hooks is not None and self._handle.id in hooks:
            hooks[self._handle.id] = function

    def clear(self) -> None:
        """Have nothing called any more."""
        self.put(ignore)


def ignore(_optimizer: object, _arguments: object, _keywords: object) -> None:
    """Take no notice of an optimizer's step."""
