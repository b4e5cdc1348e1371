"""A Ctrl-C while the program is only being imported ends it without a word."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.e2e.machines import REPOSITORY

# Sends the signal when the program asks for its first module that is no part of it or built in.
INTERRUPTED = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in sys.builtin_module_names or name in ("remote_train", "remote_train.__main__"):
            return None
        os.kill(os.getpid(), {number})
        for _ in range(1000): pass  # where Python runs a handler
sys.meta_path.insert(0, Finder())
sys.path.insert(0, {place!r})
from remote_train.__main__ import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_the_first_import_shows_nothing(number: int) -> None:
    code = INTERRUPTED.format(number=int(number), place=str(REPOSITORY))
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-number, b"", b"")  # a shell says 128 + number
