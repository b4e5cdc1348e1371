"""`python -m remote_train` and the `remote-train` command."""

# Only built-in modules here, not even `signal`: until a Ctrl-C is answered it shows Python's traceback.
import _signal  # type: ignore[import-not-found]
import gc


def main() -> None:
    """Run the command line."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        # While the program is being imported there is nothing to say at a Ctrl-C, and a traceback least of all.
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    # A launch is mostly imports, and nothing imported is garbage: collecting meanwhile is pure loss.
    gc.disable()
    from remote_train.cli.main import main as run_command_line  # noqa: PLC0415  (after gc.disable)

    run_command_line()


if __name__ == "__main__":
    main()
