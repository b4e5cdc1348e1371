"""The one way from the training's process into our code: nothing of ours is ever raised into the script."""

from __future__ import annotations

import functools
import sys
import threading
import warnings

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Callable, List, Optional, Set, Tuple

# `object` as the category sets it apart from any filter of the script's.
_SILENCE: Tuple[Any, ...] = ("ignore", None, object, None, 0)


class Quiet:
    """No warning is shown, raised or remembered within: what the script would have seen once, it still sees once.

    `warnings.catch_warnings` would not do: it makes Python forget which warnings it has shown already, and it is not
    safe beside other threads that use it.
    """

    __slots__ = ("_filters",)

    def __enter__(self) -> None:
        self._filters: Any = getattr(warnings, "filters")  # noqa: B009  (a list, though typed as a sequence)
        self._filters.insert(0, _SILENCE)

    def __exit__(self, *failure: object) -> None:
        if _SILENCE in self._filters:
            self._filters.remove(_SILENCE)


class Guard:
    """Runs our code; the first exception of it ends the meter for good, with a line that says where it was.

    KeyboardInterrupt, SystemExit and what a signal handler of the script raises while our code runs go to the script.
    `undo` is told in which order things were changed in torch, so that switching off leaves it as it was.
    """

    __slots__ = ("_busy", "_undo", "off", "tell")

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.off = False
        self._busy = threading.Lock()
        self.tell = tell
        self._undo: List[Callable[[], object]] = []

    def undo(self, action: Callable[[], object]) -> None:
        """Remember what to do when the meter is switched off; twice must do no harm."""
        self._undo.append(action)

    def run(self, place: str, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401  (anything's answer)
        """Return what the function returns; None when the meter is off, fails, or is at work already in this process."""
        if self.off or not self._busy.acquire(False):
            return None
        try:
            error, answer = self._attempt(function, arguments)
            if error is not None:
                self.switch_off("%s in %s" % (describe(error), place))
            return answer
        finally:
            self._busy.release()

    def switch_off(self, why: Optional[str]) -> None:
        """End the meter: undo everything, newest first, and say why, unless there is nothing to say."""
        self.off = True
        while self._undo:
            self._attempt(self._undo.pop(), ())
        if why is not None:
            self._attempt(self.tell, (why,))

    @staticmethod
    def _attempt(function: Callable[..., Any], arguments: Tuple[Any, ...]) -> Tuple[Optional[Exception], Any]:
        try:
            with Quiet():
                return None, function(*arguments)
        except (MemoryError, RecursionError) as error:  # no room to look where it came from
            return error, None
        except Exception as error:
            if is_from_a_signal(error):
                raise
            return error, None


def describe(error: BaseException) -> str:
    """Name an exception's type and the innermost of our lines that it went through; not its text, which is of no use here.

    What a model's own forward said on a copy is quoted in the `why` of a count: it is the script's word on its model.
    """
    place, ours = error.__traceback__, ""
    while place is not None:
        if place.tb_frame.f_globals.get("__package__") == __package__:
            ours = " (%s:%d)" % (
                place.tb_frame.f_globals.get("__name__", "").rpartition(".")[2],
                place.tb_lineno,
            )
        place = place.tb_next
    return type(error).__name__ + ours


def is_from_a_signal(error: Optional[BaseException]) -> bool:
    """Tell whether an exception, or one that it was made of, came out of a signal handler of the script's."""
    signals = sys.modules.get("signal")
    if signals is None:
        return False
    handlers = {_find_code(signals.getsignal(number)) for number in signals.valid_signals()} - {None}
    seen: Set[int] = set()
    while handlers and error is not None and id(error) not in seen:
        seen.add(id(error))
        if _went_through(error.__traceback__, handlers):
            return True
        error = error.__cause__ or error.__context__
    return False


def _find_code(handler: Any) -> Any:  # noqa: ANN401  (whatever was given to signal.signal)
    """Return the code of a function, a method, a partial or an object that can be called; None for what is made in C."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not callable(handler):
        return None
    return getattr(handler, "__code__", None) or getattr(type(handler).__call__, "__code__", None)


def _went_through(place: Optional[TracebackType], codes: Set[Any]) -> bool:
    while place is not None:
        if place.tb_frame.f_code in codes:
            return True
        place = place.tb_next
    return False
