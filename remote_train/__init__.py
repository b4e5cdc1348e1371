"""Send a PyTorch training run from a laptop to a GPU box over SSH, and make it feel local.

`launch`, `find_training` and `Training` are the Python API; they are imported when they are first used.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from remote_train.api import Training, find_training, launch

__all__ = ["Training", "__version__", "find_training", "launch"]


def __getattr__(name: str) -> object:
    """Import the API on first use: `import remote_train` alone costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'remote_train' has no attribute {name!r}")
    from remote_train import api  # noqa: PLC0415  (see above)

    return getattr(api, name)
