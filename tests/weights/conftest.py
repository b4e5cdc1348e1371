"""The account that these tests reach."""

from tests.host.account_kit import account

__all__ = ["account"]
