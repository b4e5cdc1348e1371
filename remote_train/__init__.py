"""Send a PyTorch training run from a laptop to a GPU box over SSH, and make it feel local."""

__version__ = "0.1.0"
