"""A signal is heard as itself, whatever Python is doing when it comes."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import signal, sys
from remote_train.cli.signals import Ended, end_on_signals

def interrupt():
    signal.raise_signal(signal.SIGINT)
    return [number for number in range(1000)]

class Field:
    def __set_name__(self, owner, name):
        interrupt()

class Resource:
    def __del__(self):
        interrupt()

def make_class():
    class Settings:
        field = Field()

def lose_resource():
    Resource()

def wait():
    interrupt()

end_on_signals()
try:
    globals()[sys.argv[1]]()
    signal.pause()
except Ended as ended:
    print("ended by", ended.number)
"""


@pytest.mark.parametrize("moment", ["wait", "make_class", "lose_resource"])
def test_a_signal_reaches_who_waits_for_it(moment: str) -> None:
    """Python makes a RuntimeError of what is raised while a class is made, and drops what a destructor raises."""
    command = [sys.executable, "-c", PROGRAM, moment]
    made = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (made.stdout, made.stderr, made.returncode) == ("ended by 2\n", "", 0)
