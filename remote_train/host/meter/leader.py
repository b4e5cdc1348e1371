"""Which optimizer's steps are the training's: the first one seen leads, until it is gone or does nothing any more."""

from __future__ import annotations

import weakref

TYPE_CHECKING = False  # of typing, whose import a training need not pay for
if TYPE_CHECKING:
    from typing import Any, Dict

_PATIENCE = 64  # steps of others between two of the leader's before anybody counts whose they are
_PASSES_ON = 16  # steps of one other after that


class Leader:
    """The id of the optimizer that leads, 0 for none; held weakly, so that the script may drop it at any time.

    Hundreds of optimizers that step inside one backward pass are one step: between two of the leader's each of the
    others has one. A script that trains a second model makes the second optimizer lead.
    """

    __slots__ = ("_reference", "_step", "_steps", "id", "patience")

    def __init__(self) -> None:
        self.id = 0
        self.patience = _PATIENCE
        self._reference: Any = None
        self._step = 0
        self._steps: Dict[int, int] = {}

    def lead(self, optimizer: object) -> None:
        """Let an optimizer lead from now on."""
        self.id = id(optimizer)
        self._reference = weakref.ref(optimizer, self._gone)
        self._steps.clear()

    def passes_to(self, optimizer: object, step: int) -> bool:
        """Note another's step after the leader's `step`, once patience is over; tell whether that one should lead."""
        if not self.id:
            return True
        if step != self._step:
            if self._steps:  # the leader was back in spite of all: there are many
                self.patience *= 2
            self._step = step
            self._steps.clear()
        steps = self._steps[id(optimizer)] = self._steps.get(id(optimizer), 0) + 1
        return steps > _PASSES_ON

    def _gone(self, reference: object) -> None:
        if reference is self._reference:
            self.id = 0
