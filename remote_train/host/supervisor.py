"""Our process on the host, one per attempt: it owns the launcher, outlives every connection, and writes the end.

Its truth is files: attempt.json before anything runs, clock.jsonl while it runs, exit.json (durable) before
anybody is told. It never touches the training's output: that goes straight to ranks/N.log.
"""

from __future__ import annotations

import os
import select
import signal
import time

from remote_train.host import cores, disk, layout, peaks_cache
from remote_train.host.affinity import bind, choose_sets, render_sets, work_bound
from remote_train.host.clock import Clock
from remote_train.host.durable import write_record
from remote_train.host.ends import count_oom_kills, make_outcome, measure_others, sync_outputs
from remote_train.host.launcher import make_command, show_gpus
from remote_train.host.peaks_cache import make_peak_key, recall_peak
from remote_train.host.stopping import Stopping, await_gpus
from remote_train.host.telemetry import Telemetry

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional

    from remote_train.host.waiting import Turn

TICK_SECONDS = 0.5
BUSY_LOAD = 0.5
"""Load per thread above which a peak measured on a CPU is kept for BUSY_SECONDS only, as of a GPU that others use too."""
BUSY_SECONDS = 600.0
SPACE_SECONDS = 2.0
"""Between two tries to write the end on a disk that is full or failing."""
GONE_SECONDS = 600.0
"""How long to try where the attempt's folder is not there: a file system may come back, a removed run does not."""


class Supervisor:
    """Run one attempt from its plan to its exit record."""

    def __init__(self, folder: str, record: Dict[str, Any], environment: Dict[str, str], python: str) -> None:
        self.folder = folder
        self.record = record
        self.plan = record["plan"]
        self.environment = environment
        self.agent_python = python
        self.turn: Optional[Turn] = None
        self.child: Optional[int] = None
        self.wake = -1
        self.stopping = Stopping(folder, record["cookie"])
        self._begin()

    def _begin(self) -> None:
        """Have the attempt's time begin now: a wait for GPUs does not count."""
        self.started = time.monotonic()
        self.environment[layout.BEGAN_VARIABLE] = repr(self.started)
        self.clock = Clock(self.folder, self.started)
        self.telemetry = Telemetry(self.folder, self.started)
        self.oom_kills = count_oom_kills()

    def path(self, name: str) -> str:
        """Return a path inside the attempt's folder."""
        return os.path.join(self.folder, name)

    def announce(self, phase: str) -> None:
        """Write attempt.json with the phase the attempt has reached.

        Synced once the training runs: before that a power cut leaves nothing that the record could speak of.
        """
        self.record["phase"] = phase
        write_record(self.path(layout.ATTEMPT), self.record, sync=phase == "running")

    def announce_first(self) -> None:
        """Write attempt.json for the first time, with GPUs or in their queue."""
        if self.turn is not None and not self.turn.gpus:
            from remote_train.host import waiting  # noqa: PLC0415  (imported by whoever took the ticket)

            waiting.note_wait(self.folder, self.turn)
            self.announce("queued")
        else:
            self.announce("starting")

    def _await_turn(self) -> None:
        """Wait for the GPUs, if the attempt has none yet, and begin with them; return early when a stop is asked for."""
        if self.turn is None or self.turn.gpus:
            return
        from remote_train.host import waiting  # noqa: PLC0415  (imported by whoever took the ticket)

        if waiting.await_turn(self.folder, self.turn, self.stopping.is_asked, self._rest):
            self.record.update(gpus=self.turn.gpus, queued=self.record["started"], started=time.time())
            show_gpus(self.environment, self.turn.gpus)
            self._begin()
            self._endure(lambda: self.announce("starting"))

    def _rest(self, seconds: float) -> None:
        """Wait, until a signal comes at the latest."""
        if select.select([self.wake], [], [], seconds)[0]:
            os.read(self.wake, 4096)

    def run(self) -> None:
        """Wait for GPUs, measure what must be measured, train, and write the end."""
        try:
            self._await_turn()
            self._set_up()
            if not self.stopping.is_asked():
                self._measure()
            self.child = None if self.stopping.is_asked() else self._spawn()
        except OSError as error:
            self._finish(None, error)
            return
        if self.child is None:
            why = self.stopping.explain_shutdown() if self.turn and not self.turn.gpus else None
            self.stopping.stopped = why is None
            self._finish(None, why)
            return
        disk.keep_large_reserve(self.folder)
        self.record["child"] = self.child
        self._endure(lambda: self.announce("running"))
        self.telemetry.begin(self.child, self.record.get("gpus") or [])
        self._finish(self._supervise(self.wake, self.child), None)

    def _endure(self, work: Callable[[], None]) -> None:
        """Do what the training can do without, or is done again with the next tick: it must not lose its supervisor."""
        try:
            work()
        except OSError as error:
            self.clock.fail(error)

    def watch_signals(self) -> None:
        """Catch signals: `wake` becomes readable when a child ends or a stop is asked for.

        To be called before anybody can know our pid: until then a stop would end us, and nobody would write the end.
        """
        read_fd, write_fd = os.pipe()
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._note_signal)
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        self.wake = read_fd

    def _note_signal(self, number: int, _frame: object) -> None:
        self.stopping.terminated = self.stopping.terminated or number == signal.SIGTERM

    def _set_up(self) -> None:
        """Run what the user has the host run before a training, and train in the environment that it leaves."""
        if self.stopping.is_asked() or not (self.plan.get("setup") or self.plan.get("conda")):
            return
        from remote_train.host import setup  # noqa: PLC0415  (imports subprocess: only this path pays)

        if setup.is_wanted(self.plan):
            self._endure(lambda: self.announce("setup"))
            self.environment = setup.run_setup(
                self.folder, self.record, self.environment, self.stopping.is_asked
            )

    def _measure(self) -> None:
        wanted = self.plan.get("measure")
        if not wanted:
            return
        peak = recall_peak(self.record["root"], wanted)
        if peak is None:
            from remote_train.host import peak_probe  # noqa: PLC0415  (imports subprocess: only this path pays)

            self._endure(lambda: self.announce("measuring"))
            busy = wanted["device"] == "cpu" and os.getloadavg()[0] > BUSY_LOAD * wanted["threads"]
            busy = busy or (self.turn is not None and self.turn.shared)
            environment = dict(self.environment)
            for name in (layout.COOKIE, layout.METER_VARIABLE, *self.record.get("secrets", ())):
                environment.pop(name, None)
            python = self.plan["python"]
            peak = work_bound(
                wanted.get("cpus", []) if choose_sets(self.plan, environment) else [],
                lambda: peak_probe.measure_peak(python, wanted["device"], wanted["threads"], environment),
            )
            if busy:
                peak.update(busy=True, until=time.time() + BUSY_SECONDS)  # better than nothing, for a while
            if "error" not in peak:
                self._keep_peak(make_peak_key(wanted), peak)
        found = peak
        self._endure(lambda: write_record(self.path(layout.PEAK), found, sync=False))

    def _keep_peak(self, key: str, peak: Dict[str, Any]) -> None:
        self._endure(lambda: peaks_cache.write_peak(self.record["root"], key, peak))

    def _spawn(self) -> int:
        """Start the launcher in its own session; raise OSError when it cannot be executed."""
        command = make_command(self.plan, self.folder, self.agent_python)
        report_read, report_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become_launcher(command, report_write)
        os.close(report_write)
        failed, _, place = os.read(report_read, 4096).partition(b" ")
        os.close(report_read)
        if failed:
            os.waitpid(pid, 0)
            raise OSError(int(failed), os.strerror(int(failed)), os.fsdecode(place))
        return pid

    def _become_launcher(self, command: List[str], report: int) -> None:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            os.setsid()
            os.chdir(os.path.join(self.path(layout.CODE), self.plan.get("cwd", "")))
            self._give_output()
            os.umask(self.record.get("umask", 0o022))
            cores.allow_core()
            self._bind()
            os.execvpe(command[0], command, self.environment)  # noqa: S606  (no shell is the point)
        except OSError as error:
            place = error.filename or command[0]  # the working directory, or what could not be executed
            os.write(report, b"%d " % (error.errno or 0) + os.fsencode(place)[:4000])
        os._exit(127)

    def _bind(self) -> None:
        """Bind plain python to its CPUs; torchrun's ranks find theirs in a variable, and it is left where it is."""
        sets = choose_sets(self.plan, self.environment)
        if self.plan["launcher"] == "python":
            bind(sets[0] if sets else [])
        elif sets:
            self.environment[layout.AFFINITY_VARIABLE] = render_sets(sets)

    def _give_output(self) -> None:
        """Give it no input, and its output to the rank's own file, or torchrun's words to launcher.log."""
        alone = self.plan["launcher"] == "python"
        path = layout.rank_log(self.folder, 0) if alone else self.path(layout.LAUNCHER_LOG)
        output = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)

    def _supervise(self, wake: int, child: int) -> int:
        """Wait for the launcher, noting the clock and answering stop; return its wait status."""
        while True:
            ready, _, _ = select.select([wake], [], [], TICK_SECONDS)
            if ready:
                os.read(wake, 4096)
            status = self._reap(child)
            self.clock.note()
            if status is not None:
                self.stopping.note_end()
                return status
            self._endure(lambda: self.stopping.look(child))

    def _reap(self, child: int) -> Optional[int]:
        """Collect every child that ended (orphans come to us); return the launcher's status if it did."""
        found = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return found
            if pid == 0:
                return found
            if pid == child:
                found = status

    def _finish(self, status: Optional[int], start_error: Optional[OSError]) -> None:
        """Leave no process, make the outputs durable, and only then write the exit record."""
        self.telemetry.close()
        survivors = self.stopping.sweep()
        self.clock.note()
        outcome = make_outcome(self.folder, status, self.plan["launcher"])
        outcome.update(
            launcher=self.plan["launcher"],
            run=self.record["run"],
            attempt=self.record["attempt"],
            stopped=self.stopping.stopped,
            outputs=sync_outputs(self.folder, self.clock.fail),
            others=measure_others(self.folder),
            survivors=survivors,
            gpu_held=self._free_gpus(),
            oom_kills=self._count_oom_kills(),
            seconds=time.monotonic() - self.started,
            ended=time.time(),
        )
        outcome.update(self._explain(start_error))
        self._write_end(outcome)

    def _free_gpus(self) -> Optional[List[Dict[str, Any]]]:
        """Return what is still held on the attempt's GPUs, and only then let the next in line have them."""
        held = await_gpus(self.record)
        if self.turn is not None:
            self.turn.ticket.give_back()
        return held

    def _count_oom_kills(self) -> Optional[int]:
        """Return how many processes the kernel killed for want of memory on this host while the attempt ran."""
        now = count_oom_kills()
        return None if now is None or self.oom_kills is None else now - self.oom_kills

    def _explain(self, error: Optional[OSError]) -> Dict[str, Optional[str]]:
        """Return why the training could not be started, if it could not, and which kind of error that is."""
        if error is None:
            return {"start_error": None, "start_kind": None}
        if error.errno is None:  # of a line of setup or a wait, in words
            return {"start_error": str(error), "start_kind": "start-failed"}
        told = disk.describe_error(error, str(self.plan["python"]))
        return {
            "start_error": told["message"],
            "start_kind": told["kind"] if disk.is_of_machine(error) else "start-failed",
        }

    def _write_end(self, outcome: Dict[str, Any]) -> None:
        """Write the exit record, on a full disk into the space held back for it; where that is gone too, once it can be."""
        began = time.monotonic()
        error = self._try_end(outcome)
        if error is not None:
            self.clock.fail(error)
            disk.drop_reserve(self.folder)
            error = self._try_end(outcome)
        while error is not None:
            if not os.path.isdir(self.folder) and time.monotonic() - began > GONE_SECONDS:
                return
            say("the exit record cannot be written yet: %s" % error)
            time.sleep(SPACE_SECONDS)
            error = self._try_end(outcome)
        disk.drop_reserve(self.folder)

    def _try_end(self, outcome: Dict[str, Any]) -> Optional[OSError]:
        outcome["gaps"] = self.clock.gaps
        try:
            write_record(self.path(layout.EXIT), outcome)
        except OSError as error:
            return error
        return None


def say(text: str) -> None:
    """Write a line to supervisor.log, if it can be written."""
    try:
        os.write(2, (text + "\n").encode("utf-8", "replace"))
    except OSError:
        return
