"""Train, and tell."""

from __future__ import annotations

from model import Dicing
from steps import train
from told import begin, tell_states

begin()
train(Dicing())
tell_states()
