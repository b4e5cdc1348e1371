"""Attributes of torch that are replaced for a while, and put back as they were."""

from __future__ import annotations

import functools
import sys

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from types import ModuleType
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


def watch_backward(torch: ModuleType, notice: Callable[[], None]) -> Callable[[], None]:
    """Call `notice()` when a backward pass begins, torch.autograd.grad's left out, until the function returned is called.

    No frame of ours is around the pass, where it would shift what warnings in hooks are attributed to, and show them
    once more: torch asks its engine for a method, and hears from a property.
    """
    owner = torch.autograd.variable.Variable
    engine = owner._execution_engine  # noqa: SLF001
    kind: Any = type(engine)
    ours: Any = _make_engine(kind)()
    ours.notice, ours.gradient = notice, getattr(torch.autograd.grad, "__code__", None)
    owner._execution_engine = ours  # noqa: SLF001

    def restore() -> None:
        if owner._execution_engine is ours:  # noqa: SLF001
            owner._execution_engine = engine  # noqa: SLF001

    return restore


@functools.lru_cache(maxsize=1)
def _make_engine(kind: Any) -> Callable[[], object]:  # noqa: ANN401  (a class)

    class Engine(kind):  # type: ignore[misc]
        @property
        def run_backward(self) -> Any:  # noqa: ANN401  (a method of torch's)
            asks: Any = sys._getframe(1)  # noqa: SLF001
            if asks.f_code.co_name == "_engine_run_backward":
                asks = asks.f_back
            if asks.f_code is not self.gradient:
                self.notice()
            return super().run_backward

    return Engine


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
