"""A bare loop around a model that draws from Python's generator, with hooks of the user's on its modules."""

from __future__ import annotations

from model import Dicing
from steps import train
from told import begin, tell, tell_states

begin()
model = Dicing()
seen = [0, 0]


def before(_module: object, _args: object) -> None:
    seen[0] += 1


def after(_module: object, _gradients: object, _outputs: object) -> None:
    seen[1] += 1


model.layers[0].register_forward_pre_hook(before)
for place in (0, 3):  # torch warns of the first, whose input wants no gradient
    model.layers[place].register_full_backward_hook(after)
train(model)
tell("hooks", *seen, *(len(module._forward_pre_hooks) for module in model.modules()))
tell_states()
