"""Ask a host what there is of a run's files, and check every row of its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remote_train.errors import ConnectionLost, PullIncomplete
from remote_train.host.commits import COMMITTED, SETTLING
from remote_train.host.containers import has_container
from remote_train.host.files import CHECKPOINTS
from remote_train.listed import make_patterns, make_units, parse_page
from remote_train.refusals import NoSuchFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from remote_train.blocks import Line
    from remote_train.listed import Row, Unit
    from remote_train.listener import Listener
    from remote_train.records import Run
    from remote_train.session import Session

MAX_FILES = 100_000
LISTING_SECONDS = 600.0
"""A host may have to read all that it was sent, to tell what was written over."""


class Lister:
    """The files of one attempt."""

    def __init__(self, run: Run, attempt: int, line: Line, listener: Listener) -> None:
        self.line = line
        self.look: Callable[[], object] = int
        """Called every second while the host does not answer; what it raises ends the listing."""
        self.left_out: list[Unit] = []
        """Checkpoints that are not whole, as listed last."""
        self.settling: list[Unit] = []
        """Those that may be written to at the moment."""
        self._run = run
        self._attempt = attempt
        self._listener = listener

    def list_checkpoints(self, globs: tuple[str, ...] = ()) -> list[Row]:
        """Return the rows of the checkpoints that are whole: the project's, or those that the globs name."""
        units = self.list_units(globs)
        self.left_out = [unit for unit in units if unit.state not in (COMMITTED, SETTLING)]
        self.settling = [unit for unit in units if unit.state == SETTLING]
        return [row for unit in units if unit.state == COMMITTED for row in unit.rows]

    def list_units(self, globs: tuple[str, ...] = ()) -> list[Unit]:
        """Return the checkpoints as they stand, whole or not."""
        plan = self._run.read()["attempts"][self._attempt - 1]["plan"]
        globs = globs or tuple(plan.get("checkpoints") or CHECKPOINTS)
        return make_units(self.list_rows(list(globs), checkpoints=True))

    def list_all(self, globs: list[str]) -> list[Row]:
        """Return the rows of all files that the globs name, checkpoints or not, less checkpoints that are being written.

        A row that says nothing of its state may be brought in whatever version it is by then.
        """
        units = make_units(self.list_rows(globs, checkpoints=True))
        self.left_out = []
        self.settling = [unit for unit in units if unit.state == SETTLING and _may_be_torn(unit)]
        rows = [row for unit in units if unit not in self.settling for row in unit.rows]
        return [row if row["state"] == COMMITTED else _forget_state(row) for row in rows]

    def list_rows(self, globs: list[str], **asked: Any) -> list[Row]:  # noqa: ANN401  (JSON values)
        """Return all rows of a listing, checked: the host does not choose where anything lands, nor what."""
        make_patterns(globs)
        while True:
            try:
                return self._leave_repositories(self.list_now(globs, **asked))
            except ConnectionLost as loss:
                self.line.renew(loss)

    def list_now(self, globs: list[str], **asked: Any) -> list[Row]:  # noqa: ANN401  (as above)
        """Return all rows of a listing, over the connection as it is; raise ConnectionLost."""
        facts = {"run": self._run.id, "attempt": self._attempt, "globs": globs, **asked}
        try:
            return read_listing(self.line.session, facts, self.look)
        except NoSuchFile as error:
            raise PullIncomplete(
                f"{error}: the folder it ran in was removed",
                hint=f"`remote-train logs {self._run.id}` still shows its output",
            ) from None

    def _leave_repositories(self, rows: list[Row]) -> list[Row]:
        """Leave out what git would obey once it lies here."""
        inside = [row for row in rows if ".git" in row["path"].lower().split("/")]
        if inside:
            self._listener.tell("note", text=f"{len(inside)} files below a .git folder are not brought")
        return [row for row in rows if row not in inside] if inside else rows


def read_listing(session: Session, asked: dict[str, Any], look: Callable[[], object] = int) -> list[Row]:
    """Return all rows of the listing that a `files` request asks for, page by page, each checked.

    Raises NoSuchFile where there is no snapshot any more, PullIncomplete for too many files, ProtocolError, ConnectionLost.
    """
    rows: list[Row] = []
    after: str | None = ""
    while after is not None:
        number = session.submit("files", after=after, **asked)
        page = session.wait(number, LISTING_SECONDS, look)
        rows += parse_page(page, after, asked["globs"], checkpoints=bool(asked.get("checkpoints")))
        after = page["next"]
        if len(rows) > MAX_FILES:
            raise PullIncomplete(f"more than {MAX_FILES:,} files to bring", hint="take fewer with --match")
    return rows


def _may_be_torn(unit: Unit) -> bool:
    return any(has_container(row["path"]) for row in unit.rows)


def _forget_state(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in {"unit", "state"}}
