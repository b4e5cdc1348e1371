"""`from remote_train import report`: what a training script can ask us while it runs."""

from remote_train.host.report import should_stop

__all__ = ["should_stop"]
