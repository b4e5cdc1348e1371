"""`from remote_train import report`: what a training script can ask and tell us while it runs."""

from remote_train.host.report import checkpoint, should_stop, step

__all__ = ["checkpoint", "should_stop", "step"]
