"""What a training script can ask and tell us, imported as `from remote_train import report`. Standard library only.

Nothing here raises, and outside of remote-train every answer is the harmless one.
"""

from __future__ import annotations

import os

from remote_train.host import layout

_polled = False


def should_stop() -> bool:
    """Return whether `remote-train stop` was asked for: save what you need and leave the training loop.

    A script that asks gets the whole grace to leave by itself and no SIGTERM, which would end its DataLoader workers
    before it can save. Ask on every rank, at a step's end; it costs one look at a file.
    """
    stop = os.environ.get(layout.STOP_VARIABLE)
    if not stop:
        return False
    _note_polling(stop)
    return os.path.exists(stop)


def _note_polling(stop: str) -> None:
    global _polled  # noqa: PLW0603  (said once in a process)
    if _polled:
        return
    _polled = True
    try:
        os.close(os.open(os.path.join(os.path.dirname(stop), layout.POLLED), os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError:  # a full disk: then TERM comes as for everybody
        return
