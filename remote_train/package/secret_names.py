"""What looks like a secret, by name; pure tables. Files that match never travel unless a config names them literally."""

from __future__ import annotations

# Names as git globs, because the recorded diff leaves them out by the same list (git's `:(exclude)`).
SECRET_FILES = (
    ".env*",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.jks",
    "*.keystore",
    "*.kdbx",
    "*.ppk",
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ecdsa_sk",
    "id_ed25519",
    "id_ed25519_sk",
    ".netrc",
    "_netrc",
    ".npmrc",
    ".pypirc",
    ".pgpass",
    ".git-credentials",
    ".dockercfg",
    ".htpasswd",
    ".s3cfg",
    ".boto",
    "credentials.json",
    "application_default_credentials.json",
    "client_secret*.json",
    "service_account*.json",
    "service-account*.json",
    "kaggle.json",
)
SECRET_FOLDERS = frozenset({".aws", ".ssh", ".gnupg", ".kube", ".docker", ".azure", ".kaggle"})
_PUBLIC_ENDS = (".example", ".sample", ".template")

# The table once more, in the shape that costs 0.3 us a name: there are as many names as files.
_EXACT = frozenset(name for name in SECRET_FILES if "*" not in name)
_ENDS = tuple(name[1:] for name in SECRET_FILES if name.startswith("*"))
_STARTS = tuple(name.partition("*")[0] for name in SECRET_FILES if "*" in name[1:])
_START_AND_END = tuple(tuple(name.split("*")) for name in SECRET_FILES if "*" in name[1:])


def is_secret_name(name: str) -> bool:
    """Say whether a file of this name is taken for a secret; `.env.example` and its kind are not."""
    name = name.lower()
    if name in _EXACT or name.endswith(_ENDS):
        return True
    if not name.startswith(_STARTS):
        return False
    if name.startswith(".env") and name.endswith(_PUBLIC_ENDS):
        return False
    return any(name.startswith(start) and name.endswith(end) for start, end in _START_AND_END)


def is_secret_folder(name: str) -> bool:
    """Say whether everything in a folder of this name is taken for a secret."""
    return name.lower() in SECRET_FOLDERS
