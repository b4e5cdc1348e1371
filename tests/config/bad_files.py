"""Read the tables of bad files: `=== name`, then TOML in which `#! message` marks each line expected to fail."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class BadFile:
    name: str
    text: str
    expected: list[tuple[int, str]]


def read_bad_files(name: str) -> list[BadFile]:
    sections = (DATA / name).read_text("utf-8").split("=== ")[1:]
    return [_parse(*section.split("\n", 1)) for section in sections]


def _parse(name: str, text: str) -> BadFile:
    lines = text.splitlines()
    marked = [(number, line) for number, line in enumerate(lines, 1) if "#! " in line]
    expected = [(number, line.split("#! ", 1)[1]) for number, line in marked]
    return BadFile(name, "\n".join(line.split("  #! ", 1)[0] for line in lines) + "\n", expected)


def check_problems(problems: list[str], path: Path, bad: BadFile) -> None:
    assert len(problems) == len(bad.expected), problems
    for problem, (line, message) in zip(problems, bad.expected, strict=True):
        assert problem.startswith(f"{path}:{line}: "), problem
        assert message in problem
        assert problem.isprintable()
