"""The table of secrets: what must never travel, and what must not be taken for one."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.package.secret_names import SECRET_FILES, SECRET_FOLDERS, is_secret_folder, is_secret_name


@pytest.mark.parametrize(
    "name",
    [
        ".env",
        ".ENV",
        ".env.local",
        ".env.production",
        ".envrc",
        ".env.example.local",
        "server.pem",
        "Server.PEM",
        "tls.key",
        "id_rsa",
        "id_ed25519",
        "id_ecdsa_sk",
        ".netrc",
        ".npmrc",
        ".pypirc",
        "store.p12",
        "store.pfx",
        "credentials.json",
        "kaggle.json",
        "client_secret_123.apps.json",
        "service-account-prod.json",
        ".git-credentials",
    ],
)
def test_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        ".env.example",
        ".env.sample",
        ".env.template",
        ".env.local.example",
        "env",
        "env.py",
        "environment.yml",
        "id_rsa.pub",
        "id_ed25519.pub",
        "keys.py",
        "key",
        "pem",
        "monkey.py",
        "tokenizer.json",
        "my_credentials.json.md",
        "client_secret.py",
        "service_account.py",
        "",
    ],
)
def test_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize("name", [".aws", ".ssh", ".SSH", ".gnupg"])
def test_secret_folders(name: str) -> None:
    assert is_secret_folder(name)
    assert not is_secret_folder(name[1:])


@given(st.sampled_from(SECRET_FILES), st.text("abc._-", max_size=6))
def test_the_fast_shape_is_the_table(pattern: str, filler: str) -> None:
    """is_secret_name is the table of globs, cut into shapes that are quick to try."""
    for name in (
        pattern.replace("*", filler),
        filler + pattern.replace("*", ""),
        pattern.replace("*", "") + filler,
    ):
        by_table = any(fnmatch.fnmatchcase(name.lower(), glob) for glob in SECRET_FILES)
        spared = name.lower().startswith(".env") and name.lower().endswith(
            (".example", ".sample", ".template")
        )
        assert is_secret_name(name) is (by_table and not spared)


def test_the_table_has_one_star_at_most() -> None:
    assert all(name.count("*") <= 1 and name == name.lower() for name in SECRET_FILES)
    assert all(name == name.lower() for name in SECRET_FOLDERS)
