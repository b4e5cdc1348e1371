"""The table of hosts that the matrix makes: login shells, rc files, sshd_config, Pythons, homes, limits, and what each does.

What a `Trait` comes to stands beside it, and the tests hold every row to it; the table in docs/hosts.md is made of it:

    python -m tests.shells.hosts          # writes the table into docs/hosts.md
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "hosts.md"
BEGIN, END = "<!-- made by `python -m tests.shells.hosts` -->", "<!-- end of what is made -->"
WAITS = "still had not started"
"""In the words of every host that says nothing for as long as we wait."""


@dataclass(frozen=True)
class Trait:
    """One thing that may be said of a host. `words` stand in the error when it does not work."""

    name: str
    code: int = 0
    words: str = ""
    shell: str = ""
    rc: dict[str, str] = field(default_factory=dict)
    """Syntax (`sh`, `fish`, `csh`) -> what the rc file says."""
    sshd: tuple[str, ...] = ()
    """Lines for this account alone (Match User)."""
    python: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    """Programs in the account's home."""
    mount: str = ""
    """Run by root where the host is made, with the home as $H."""

    @property
    def waits(self) -> bool:
        """Tell a host that never answers."""
        return self.words == WAITS


SYNTAX = {"bash": ("sh", ".bashrc"), "zsh": ("sh", ".zshenv"), "fish": ("fish", ".config/fish/config.fish")}
SYNTAX |= {"tcsh": ("csh", ".cshrc")}
"""Login shells that read an rc file for a command, and which."""


def everywhere(text: str) -> dict[str, str]:
    """Return what every shell understands."""
    return dict.fromkeys(("sh", "fish", "csh"), text)


SHELLS = [
    Trait("bash", shell="/bin/bash"),
    Trait("zsh", shell="/bin/zsh"),
    Trait("dash", shell="/bin/dash"),
    Trait("fish", shell="/usr/bin/fish"),
    Trait("tcsh", shell="/bin/tcsh"),
    Trait("busybox sh", shell="/opt/busybox/sh"),
    Trait("bash, restricted", 13, "restricted", shell="/bin/rbash"),
    Trait("nologin", 13, "This account is currently not available.", shell="/usr/sbin/nologin"),
    Trait("/bin/false", 13, "our agent did not come up", shell="/bin/false"),
    Trait("a shell that is not there", 12, "did not let", shell="/bin/no-such-shell"),
]

_ODD = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONUTF8", "LD_PRELOAD", "ENV", "BASH_ENV", "TMPDIR")
NOISES = [
    Trait("none"),
    Trait("prints", rc=everywhere("echo Welcome; sh -c 'echo oops >&2'; printf '\\0RT1 0 READY\\n'")),
    Trait("prints 300 KB", rc=everywhere("head -c 300000 /dev/zero | tr '\\0' x")),
    Trait("prints without end", 13, "without end", rc=everywhere("yes 'rc says'")),
    Trait("reads stdin", 13, WAITS, rc={"sh": "read -r line", "fish": "read line", "csh": "set line = $<"}),
    Trait("sleeps a second", rc=everywhere("sleep 1")),
    Trait("set -eu", rc={"sh": "set -eu"}),
    Trait("set -x", rc={"sh": "set -x", "csh": "set echo"}),
    Trait("changes directory", rc=everywhere("cd /")),
    Trait("fails", rc={"sh": "no-such-command\nfalse", "fish": "no-such-command\nfalse", "csh": "false"}),
    Trait(
        "exports odd variables",
        rc={
            "sh": "".join(f"export {name}=/nowhere\n" for name in _ODD),
            "fish": "".join(f"set -gx {name} /nowhere\n" for name in _ODD),
            "csh": "".join(f"setenv {name} /nowhere\n" for name in _ODD),
        },
    ),
    Trait("exit 0, in bash or zsh", 13, "our agent did not come up", rc={"sh": "exit 0"}),
    Trait("exec dash", 13, WAITS, rc=everywhere("exec /bin/dash")),
]

OPTIONS = [
    Trait("none of these"),
    Trait("MaxSessions 1", sshd=("MaxSessions 1",)),
    Trait("MaxSessions 0", 13, "lets us in, but", sshd=("MaxSessions 0",)),
    Trait("RekeyLimit 1M", sshd=("RekeyLimit 1M",)),
    Trait("PermitTTY no", sshd=("PermitTTY no",)),
    Trait("DisableForwarding yes", sshd=("DisableForwarding yes",)),
    Trait("Banner", sshd=("Banner /etc/passwd",)),
    Trait(
        "ForceCommand that runs what was asked",
        sshd=('ForceCommand exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"',),
    ),
    Trait("ForceCommand of its own", 13, "Backups only.", sshd=("ForceCommand echo Backups only.",)),
    Trait(
        "ForceCommand internal-sftp",
        13,
        "This service allows sftp connections only.",
        sshd=("ForceCommand internal-sftp",),
    ),
    Trait("ChrootDirectory without a shell", 13, "No such file", sshd=("ChrootDirectory /opt",)),
]


def old_python(version: str, code: int = 0, words: str = "") -> Trait:
    """Return a Python of pyenv's, wherever its libraries were meant to lie."""
    folder = f"/mnt/versions/{version}"
    name = ".".join(version.split(".")[:2])
    return Trait(
        name, code, words, python=f"{folder}/bin/python", sshd=(f"SetEnv LD_LIBRARY_PATH={folder}/lib",)
    )


PYTHONS = [
    Trait("python3 of the system"),
    Trait("none at all", 13, "it has no python3", sshd=("SetEnv PATH=/nowhere",)),
    Trait("`python` that is not there, python3 is", python="/nowhere/python"),
    old_python("2.7.18", 13, "its Python is older than 3.4, 3.8 is needed"),
    old_python("3.6.15", 13, "its Python is 3.6 at"),
    old_python("3.8.18"),
    old_python("3.13.0"),
    Trait("a shim", python="~/py", files={"py": '#!/bin/sh\nexec python3 "$@"\n'}),
    Trait(
        "dies",
        13,
        "loading libpython",
        python="~/py",
        files={"py": "#!/bin/sh\necho loading libpython >&2; exit 127\n"},
    ),
    Trait("killed", 13, "our agent did not come up", python="~/py", files={"py": "#!/bin/sh\nkill -9 $$\n"}),
    Trait("prints garbage", 13, "garbage", python="~/py", files={"py": "#!/bin/sh\necho garbage\n"}),
    Trait("hangs", 13, WAITS, python="~/py", files={"py": "#!/bin/sh\nexec sleep 60\n"}),
]

HOMES = [
    Trait("a home"),
    Trait(
        "read-only",
        14,
        "Read-only file system",
        mount='mount --bind "$H" "$H"; mount -o remount,ro,bind "$H"',
    ),
    Trait("missing", 13, "Permission denied", mount='rm -r "$H"'),
    Trait("somebody else's", 13, "Permission denied", mount='chown 0:0 "$H"'),
    Trait("noexec", mount='mount -t tmpfs -o noexec,mode=700,uid=$U none "$H"'),
    Trait("full", 14, "No space left", mount='mount -t tmpfs -o size=64k,mode=700,uid=$U none "$H"'),
    Trait(
        "open to all",
        13,
        "chmod 700",
        mount='mkdir -p "$H/.local/state/remote-train"; chmod -R 777 "$H"; chown -R "$U" "$H"',
    ),
    Trait("64 open files", rc={"sh": "ulimit -n 64"}),
    Trait("24 processes", rc={"sh": "ulimit -u 24"}),
    Trait("256 MB of address space", rc={"sh": "ulimit -v 262144"}),
    Trait("files of 1 MB at most", rc={"sh": "ulimit -f 1024"}),
    Trait("files of 4 KB at most", 13, "File too large", rc={"sh": "ulimit -f 4"}),
    Trait("TMPDIR missing", sshd=("SetEnv TMPDIR=/nowhere",)),
    Trait("a locale that is not there", sshd=("SetEnv LC_ALL=xx_XX.UTF-8 LANG=xx_XX",)),
    Trait("LC_ALL=C", sshd=("SetEnv LC_ALL=C",)),
    Trait("umask 000", rc={"sh": "umask 000"}),
]

AXES = {
    "Login shell": SHELLS,
    "rc file": NOISES,
    "sshd_config": OPTIONS,
    "Python": PYTHONS,
    "Home and limits": HOMES,
}


@dataclass(frozen=True)
class Host:
    """One account: a trait of each axis that is named, and the first of the others."""

    traits: tuple[Trait, ...]

    @property
    def label(self) -> str:
        """What it is, for a test's name."""
        return " + ".join(trait.name for trait in self.traits)

    def first(self, what: str, default: str) -> str:
        """Return what the first trait that says anything of `what` says."""
        return next((str(getattr(trait, what)) for trait in self.traits if getattr(trait, what)), default)

    @property
    def shell(self) -> str:
        """Its login shell."""
        return self.first("shell", "/bin/bash")

    @property
    def rc(self) -> tuple[str, str] | None:
        """Its rc file and what that says, None when its shell reads none."""
        syntax = SYNTAX.get(self.shell.rsplit("/", 1)[1])
        lines = [trait.rc[syntax[0]] for trait in self.traits if syntax and syntax[0] in trait.rc]
        return (syntax[1], "\n".join(lines) + "\n") if syntax and lines else None

    def faults(self) -> list[Trait]:
        """Return the traits that keep us out, less an rc file that is not read."""
        syntax = SYNTAX.get(self.shell.rsplit("/", 1)[1], ("", ""))[0]
        return [trait for trait in self.traits if trait.code and (not trait.rc or syntax in trait.rc)]

    @property
    def sshd(self) -> list[str]:
        """Its lines of sshd_config; of several SetEnv lines sshd heeds one."""
        lines = [line for trait in self.traits for line in trait.sshd]
        given = [line.removeprefix("SetEnv ") for line in lines if line.startswith("SetEnv ")]
        others = [line for line in lines if not line.startswith("SetEnv ")]
        return [*others, "SetEnv " + " ".join(given)] if given else others


def render_table() -> str:
    """Return the table of the page: a row for each trait."""
    rows = ["| | | |", "|---|---|---|"]
    for axis, traits in AXES.items():
        rows += [f"| {axis} | {trait.name} | {render_outcome(trait)} |" for trait in traits]
    return "\n".join(rows)


def render_outcome(trait: Trait) -> str:
    """Return what comes of a trait."""
    if trait.waits:
        return "exit 13 after 30 s, which names what may wait"
    return f"exit {trait.code}: “{trait.words}”" if trait.code else "works"


def put_table(page: str) -> str:
    """Return a page with the table in its place."""
    head, rest = page.split(BEGIN, 1)
    return f"{head}{BEGIN}\n\n{render_table()}\n\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    PAGE.write_text(put_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
