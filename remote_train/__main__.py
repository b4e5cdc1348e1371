"""`python -m remote_train` and the `remote-train` command."""

from __future__ import annotations

import gc
import signal


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        # While the program is being imported there is nothing to say at a Ctrl-C, and a traceback least of all.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A launch is mostly imports, and nothing imported is garbage: collecting meanwhile is pure loss.
    gc.disable()
    from remote_train.cli.main import main as run_command_line  # noqa: PLC0415  (after gc.disable)

    run_command_line()


if __name__ == "__main__":
    main()
