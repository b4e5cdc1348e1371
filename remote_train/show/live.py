"""Listeners for people and for programs: what a command tells, as words on a terminal or as lines of JSON."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

from remote_train.show.display import Display
from remote_train.show.screen import Screen
from remote_train.show.words import render_bytes, render_metric, render_seconds
from remote_train.turn_words import render_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from remote_train.watch import Watch

WORTH_SAYING = 1_000_000
"""Bytes sent from which on a person is told."""

LINE_EVERY = 10.0
"""Seconds between metric lines where there is no terminal to keep one line current."""


PARTIAL = 64 * 1024
"""Bytes of a line that are held until it ends, so that no other rank's output stands inside it."""


def make_screen(*, colour: bool) -> Display:
    """Return the screen of this process's own stdout and stderr."""
    screen = Screen(
        sys.stdout.buffer,
        sys.stderr,
        stdout_is_terminal=sys.stdout.isatty(),
        stderr_is_terminal=sys.stderr.isatty(),
        width=lambda: shutil.get_terminal_size().columns,
        colour=colour,
    )
    return Display(screen)


class LiveListener:
    """Show a run to a person: output on stdout, everything else on stderr."""

    def __init__(self, screen: Display, *, prefix_ranks: bool = False) -> None:
        self.screen = screen
        self._prefix = prefix_ranks
        self._partial: dict[int, bytes] = {}
        self._line_at = 0.0
        self._explained = False
        self._wait: str | None = None
        self._watch: Watch | None = None

    def output(self, rank: int, data: bytes) -> None:
        """Pass a rank's bytes on; with several ranks, whole lines behind their rank, endless ones in parts."""
        if not self._prefix:
            self.screen.output(data)
            return
        data = self._partial.get(rank, b"") + data
        end = data.rfind(b"\n") + 1
        if end:
            self._show_lines(rank, data[: end - 1])
        rest = data[end:]
        if len(rest) >= PARTIAL:
            self._show_lines(rank, rest)
            rest = b""
        self._partial[rank] = rest

    def _show_lines(self, rank: int, lines: bytes) -> None:
        prefix = b"[%d] " % rank
        self.screen.output(prefix + lines.replace(b"\n", b"\n" + prefix) + b"\n")

    def tell(self, kind: str, **facts: Any) -> None:  # noqa: ANN401  (facts differ by kind)
        """Say what is worth saying."""
        handler = _WORDS.get(kind)
        if handler is not None:
            handler(self, facts)

    def note(self, facts: Mapping[str, Any]) -> None:
        """Say a note."""
        self.screen.say(str(facts["text"]))

    def warn(self, facts: Mapping[str, Any]) -> None:
        """Say a warning, and what to do."""
        hint = facts.get("hint")
        self.screen.warn(f"{facts['text']}\n{hint}" if hint else str(facts["text"]))

    def reaching(self, facts: Mapping[str, Any]) -> None:
        """Say who is waited for; a host that is silent takes seconds."""
        self.screen.status(f"reaching {', '.join(facts['hosts'])}")

    def reached(self, facts: Mapping[str, Any]) -> None:
        """Say what the host is like, in a line."""
        self.screen.status(None)
        if facts.get("verdict"):
            self.screen.say(str(facts["verdict"]))
        for text in facts.get("warnings", ()):
            self.screen.warn(text)

    def passed_over(self, facts: Mapping[str, Any]) -> None:
        """Say why a host that was asked for first does not train."""
        self.screen.warn(f"passed over: {facts['reason']}")

    def fallback(self, facts: Mapping[str, Any]) -> None:
        """Say loudly that this machine trains."""
        reasons = "\n".join(facts["reasons"])
        self.screen.warn(f"no host can be reached, training on this machine's CPU:\n{reasons}")

    def package(self, facts: Mapping[str, Any]) -> None:
        """Say what will travel, and what will not."""
        for notice in facts["notices"]:
            self.screen.say(notice)

    def resuming(self, facts: Mapping[str, Any]) -> None:
        """Say what the next attempt goes on from."""
        found = facts["checkpoint"]
        if found is not None:
            step = "" if found["step"] is None else f", about step {found['step']}"
            self.screen.say(f"going on from {found['unit']} of attempt {found['attempt']}{step}")

    def started(self, facts: Mapping[str, Any]) -> None:
        """Say which run began where."""
        plan = facts["plan"]
        for text in plan.notes:
            self.screen.say(text)
        how = f"torchrun, {plan.processes} processes" if plan.launcher == "torchrun" else "python"
        where = "this machine's CPU" if facts["host"] == "local" else f"{facts['host']} ({plan.device})"
        self.screen.say(f"{facts['run']} on {where}, {how}")

    def following(self, facts: Mapping[str, Any]) -> None:
        """Let nothing wait for the terminal from here on."""
        self.screen.go_live(facts["log"])

    def state(self, facts: Mapping[str, Any]) -> None:
        """Say what a silent phase is for, and a place in the queue whenever it changes."""
        wait = render_wait(facts["queue"], facts["host"]) if facts.get("queue") else None
        if wait != self._wait:
            self._wait = wait
            if wait or facts["state"] in ("starting", "running"):
                self.screen.say(wait or f"it is its turn on {facts['host']}")
        if facts.get("phase") == "measuring" and facts.get("state") == "starting":
            self.screen.say("measuring the matmul peak of this device; MFU is divided by it")
        if facts.get("phase") == "setup" and facts.get("state") == "starting":
            self.screen.say("running the setup lines of hosts.toml there")
        if facts.get("state") == "running" and facts.get("supervised") is False:
            self.screen.warn(f"{facts['why']}: the training runs on, and how it ends will not be known")

    def quiet(self, facts: Mapping[str, Any]) -> None:
        """Say that a run may hang."""
        self.screen.warn(f"no output for {render_seconds(facts['seconds'])}: it may hang; it is left alone")

    def restarted(self, facts: Mapping[str, Any]) -> None:
        """Say that torchrun began anew."""
        self.screen.warn(f"a rank failed, torchrun has started all ranks anew ({facts['restarts']})")

    def metric(self, facts: Mapping[str, Any]) -> None:
        """Keep the newest figures in sight."""
        self._watch = facts["watch"]
        deriver, record = self._watch.deriver, blend(self._watch)
        steps = deriver.progress[1] if deriver.progress else None
        line = render_metric(record, facts["eta"], steps=steps)
        if self.screen.stderr_is_terminal:
            self.screen.status(line)
        elif time.monotonic() - self._line_at >= LINE_EVERY and record.get("step_seconds") is not None:
            self._line_at = time.monotonic()
            self.screen.say(line)
        if not self._explained and record.get("mfu") is not None and deriver.explanation:
            self._explained = True
            self.screen.say(deriver.explanation)

    def sending(self, facts: Mapping[str, Any]) -> None:
        """Keep in sight how much has travelled; without a terminal, a line of a long upload now and then."""
        done = render_bytes(facts["bytes"])
        if "total" not in facts:
            self.screen.status(f"sending: {done} so far")
            return
        line = f"sending {facts['what']}: {done} of {render_bytes(facts['total'])}, {render_bytes(facts['rate'])}/s"
        if self.screen.stderr_is_terminal:
            self.screen.status(line)
        elif time.monotonic() - self._line_at >= LINE_EVERY:
            self._line_at = time.monotonic()
            self.screen.say(line)

    def data(self, facts: Mapping[str, Any]) -> None:
        """Say that data has to travel first."""
        self._line_at = time.monotonic()
        if facts["bytes"] >= WORTH_SAYING:
            size = render_bytes(facts["bytes"])
            self.screen.say(f"sending {facts['place']} to {facts['host']}: {size}, once; runs there share it")

    def sent(self, facts: Mapping[str, Any]) -> None:
        """Say what travelled, when that was worth waiting for."""
        self.screen.status(None)
        if facts["bytes"] >= WORTH_SAYING:
            self.screen.say(f"sent {facts['files']:,} files, {render_bytes(facts['bytes'])}")

    def detached(self, facts: Mapping[str, Any]) -> None:
        """Say that the run goes on, and what can be done with it."""
        run = facts["run"]
        self.screen.status(None)
        self.screen.wipe()
        self.screen.say(
            f"detached, {run} goes on\nattach again: remote-train logs -f {run}\nstop it:      remote-train stop {run}"
        )

    def interrupted(self, facts: Mapping[str, Any]) -> None:
        """Say what is true now, at a Ctrl-C or another signal."""
        self.screen.status(None)
        self.screen.wipe()
        self.screen.say(str(facts["text"]))

    def silent(self, facts: Mapping[str, Any]) -> None:
        """Say that the host is not heard, and that this is no end."""
        head, reason = f"no word from {facts['host']}", str(facts["reason"])
        words = reason if reason.startswith(head) else f"{head}: {reason}"
        self.screen.warn(f"{words}; {facts['meanwhile']}, reconnecting")

    def back(self, facts: Mapping[str, Any]) -> None:
        """Say that it is heard again."""
        self.screen.say(
            f"{facts['host']} is back after {render_seconds(facts['seconds'])}; nothing was missed"
        )

    def pulled(self, facts: Mapping[str, Any]) -> None:
        """Say which file is here; of a checkpoint of several files that is said once, at its end."""
        self.screen.status(None)
        if facts.get("unit"):
            return
        self.screen.say(
            f"pulled {facts['path']} ({render_bytes(facts['size'])}, sha256 {facts['sha256'][:12]})"
        )

    def pulling(self, facts: Mapping[str, Any]) -> None:
        """Keep in sight how far a long file has come."""
        self.screen.status(f"pulling: {render_bytes(facts['bytes'])} of {render_bytes(facts['size'])}")

    def arrived(self, facts: Mapping[str, Any]) -> None:
        """Say that a checkpoint of several files is here."""
        count, size = facts["files"], render_bytes(facts["size"])
        files = f"{count} file{'s' * (count != 1)}"
        self.screen.say(f"checkpoint {facts['unit']} is here: {facts['path']} ({files}, {size})")

    def dropped(self, facts: Mapping[str, Any]) -> None:
        """Say what made room."""
        self.screen.say(f"removed {facts['path']}, an older checkpoint")

    def remaining(self, facts: Mapping[str, Any]) -> None:
        """Offer what was not brought."""
        count, size = facts["files"], render_bytes(facts["bytes"])
        where = "in this machine's state folder" if facts["host"] == "local" else f"on {facts['host']}"
        hint = f"`remote-train pull {facts['run']} --all`"
        self.screen.say(f"{count:,} more file{'s' * (count != 1)}, {size}, {where}: {hint}")

    def failure(self, facts: Mapping[str, Any]) -> None:
        """Show the last lines of who failed."""
        who = f"rank {facts['rank']}"
        if facts["name"] == "launcher":
            who = "torchrun" if facts["launcher"] == "torchrun" else "the training"
        text = facts["tail"].decode("utf-8", "replace")
        self.screen.say(f"the last lines of {who}:\n{text}")

    def failover(self, facts: Mapping[str, Any]) -> None:
        """Say loudly that the run goes on elsewhere."""
        where = ", ".join(facts["hosts"]) or "nowhere else"
        self.screen.warn(f"{facts['reason']}: {facts['run']} goes on at the first of these that can: {where}")

    def superseded(self, facts: Mapping[str, Any]) -> None:
        """Say that a copy that counts no more is gone."""
        self.screen.say(f"the old copy on {facts['host']} (attempt {facts['attempt']}) is stopped")

    def stopping(self, facts: Mapping[str, Any]) -> None:
        """Say how long it may take."""
        if facts["state"] == "stopping":
            grace = render_seconds(facts["grace"])
            self.screen.say(
                f"stopping {facts['run']}: TERM now, and after {grace} everything of it is killed"
            )
        elif facts["state"] != "ended":  # that is said when it is certain that nothing is left
            self.screen.say(f"{facts['run']} is not running ({facts['state']})")

    def ended(self, facts: Mapping[str, Any]) -> None:
        """Say how the run ended, in the last figures."""
        self.screen.status(None)
        if self._watch is not None:
            progress = self._watch.deriver.progress
            self.screen.say(
                render_metric(blend(self._watch, typical=True), None, steps=progress and progress[1])
            )
        for rank, rest in self._partial.items():
            if rest:
                self._show_lines(rank, rest)
        if facts["verdict"] is None:
            self.screen.say(f"{facts['run']} is done")


def blend(watch: Watch, *, typical: bool = False) -> Mapping[str, Any]:
    """Return the newest figures of all sources as JSON."""
    record = watch.blend(typical=typical)
    return record.as_json() if record is not None else {}


_WORDS: dict[str, Callable[[LiveListener, Mapping[str, Any]], None]] = {
    "note": LiveListener.note,
    "warn": LiveListener.warn,
    "reaching": LiveListener.reaching,
    "reached": LiveListener.reached,
    "passed_over": LiveListener.passed_over,
    "fallback": LiveListener.fallback,
    "package": LiveListener.package,
    "resuming": LiveListener.resuming,
    "started": LiveListener.started,
    "following": LiveListener.following,
    "data": LiveListener.data,
    "sending": LiveListener.sending,
    "sent": LiveListener.sent,
    "state": LiveListener.state,
    "quiet": LiveListener.quiet,
    "restarted": LiveListener.restarted,
    "metric": LiveListener.metric,
    "detached": LiveListener.detached,
    "interrupted": LiveListener.interrupted,
    "silent": LiveListener.silent,
    "back": LiveListener.back,
    "pulled": LiveListener.pulled,
    "pulling": LiveListener.pulling,
    "arrived": LiveListener.arrived,
    "dropped": LiveListener.dropped,
    "remaining": LiveListener.remaining,
    "failure": LiveListener.failure,
    "stopping": LiveListener.stopping,
    "ended": LiveListener.ended,
    "failover": LiveListener.failover,
    "superseded": LiveListener.superseded,
}
