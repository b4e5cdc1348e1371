"""`python -m remote_train` and the `remote-train` command."""

from remote_train.cli.main import main

if __name__ == "__main__":
    main()
