"""Which modules a training trains, and which of them may be watched for a moment without disturbing torch.compile."""

from __future__ import annotations

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Callable, Iterable, List, Optional, Tuple

    Module = Any
    Seen = Callable[[Module, Tuple[Any, ...], Any], None]


class Watchable:
    """A module whose calls can be seen: `watch` begins it; or one that cannot, and `why`."""

    __slots__ = ("how", "module", "why")

    def __init__(self, module: Module, how: Optional[str], why: Optional[str] = None) -> None:
        self.module, self.how, self.why = module, how, why


def find_outermost(torch: ModuleType, parameters: Iterable[Any]) -> List[Module]:
    """Find the modules that hold any of the parameters and lie in no other such module, by one look at all objects.

    About 20 ns an object; only the type of an object is asked for, so that lazy proxies stay asleep.
    """
    raise NotImplementedError


def find_watchable(torch: ModuleType, roots: List[Module]) -> List[Watchable]:
    """Say of each root how its calls can be seen: never by anything that makes torch.compile compile again."""
    raise NotImplementedError


def watch(torch: ModuleType, watchable: Watchable, seen: Seen) -> Callable[[], None]:
    """Call `seen(module, args, kwargs)` before each call of it, until the function returned is called (twice is fine).

    What is put into the module pickles and copies as nothing: a checkpoint written meanwhile loads without us.
    """
    raise NotImplementedError
