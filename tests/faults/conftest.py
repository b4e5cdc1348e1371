"""An account in a folder, a box behind a real sshd, laptops: what faults are done to."""

from tests.e2e.conftest import alone, box, laptop, measured, project
from tests.host.account_kit import account

__all__ = ["account", "alone", "box", "laptop", "measured", "project"]
