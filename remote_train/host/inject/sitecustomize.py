"""What the training's own Python runs first, because its PYTHONPATH begins with this folder."""
