"""An account in a folder, a box behind a real sshd, laptops: what faults are done to."""

from tests.e2e.conftest import box, laptop, project
from tests.host.account_kit import account

__all__ = ["account", "box", "laptop", "project"]
