"""`python -m remote_train` and the `remote-train` command."""

from __future__ import annotations

import gc


def main() -> None:
    """Run the command line."""
    # A launch is mostly imports, and nothing imported is garbage: collecting meanwhile is pure loss.
    gc.disable()
    from remote_train.cli.main import main as run_command_line  # noqa: PLC0415  (after gc.disable)

    run_command_line()


if __name__ == "__main__":
    main()
