"""The meter: runs inside the training's own Python, loaded as `_remote_train_meter`. Relative imports only; never raises into it."""
