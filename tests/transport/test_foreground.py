"""The terminal while something is asked, and after it."""

from __future__ import annotations

import os
import sys
import termios
import threading
from typing import TYPE_CHECKING

from remote_train.transport.foreground import taken
from remote_train.transport.keyholder import Keyholder
from tests.e2e.terminal import open_command

if TYPE_CHECKING:
    from pathlib import Path

ASKING = """\
import sys
from concurrent.futures import ThreadPoolExecutor
from remote_train.cli.main import main
from remote_train.cli.options import app, make_ask

@app.command()
def ask():
    pool = ThreadPoolExecutor()
    try:
        pool.submit(make_ask().ask, "Code: ").result()
    finally:
        pool.shutdown(wait=False)

sys.argv = ["remote-train", "ask"]
main()
"""


def test_a_question_of_another_thread_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    with open_command([sys.executable, "-c", ASKING], tmp_path, dict(os.environ)) as terminal:
        found = termios.tcgetattr(terminal.master)
        terminal.wait_for("Code:")
        assert not termios.tcgetattr(terminal.master)[3] & termios.ECHO
        terminal.key(b"\x03")
        assert terminal.end() == 130
        assert termios.tcgetattr(terminal.master) == found


def test_nothing_is_asked_by_us_while_ssh_has_the_terminal() -> None:
    asked = threading.Event()
    person = Keyholder(lambda _question: False, lambda _prompt, _echo: asked.set())
    asking = threading.Thread(target=person.ask, args=("Code: ",))
    with taken():
        asking.start()
        assert not asked.wait(0.1)
    asking.join()
    assert asked.is_set()
