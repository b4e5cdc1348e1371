"""What the processor and memory of this host are doing, and the run's own share: /proc and /sys, or ps elsewhere.

Everything is below a root folder that tests replace by a tree of their own. Files vanish while they are read and
kernels lack some of them: what cannot be known is None. A sample costs about a millisecond, whatever the number of CPUs.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Set, Tuple

LOOKED_AT = 8
"""Clocks and throttle counters are read of so many CPUs: on a large host reading all costs more than the rest together."""
MOST_PROCESSES = 512
_CPUS = "sys/devices/system/cpu"
_ZONES = ("x86_pkg_temp", "cpu-thermal", "cpu_thermal", "soc_thermal", "cpu")
_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")


class CpuLoad:
    """Samples of /proc and /sys below `root`; shares are of the time since the sample before."""

    def __init__(self, pid: int, root: str = "/", own: Optional[int] = None) -> None:
        self._pid, self._root = pid, root
        self._own = own
        self._ticks = float(os.sysconf("SC_CLK_TCK"))
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._last: Optional[Tuple[float, float, float, float]] = None
        self._throttles: Optional[int] = None
        self._sensor = _find_sensor(root)
        self.pids: Set[int] = set()
        """The run's processes as the last sample found them."""

    def sample(self, now: float) -> Dict[str, Any]:
        """Return `cpu` and `memory`; `now` is a moment in seconds. The first sample has no shares."""
        self.pids = self._find_pids()
        seconds, resident = self._measure_run()
        busy, total = parse_busy(_read(self._root, "proc/stat"))
        before, self._last = self._last, (now, seconds, busy, total)
        return {
            "cpu": dict(
                make_shares(before, self._last),
                mhz=self._read_mhz(),
                load=parse_load(_read(self._root, "proc/loadavg")),
                throttled=self._read_throttled(),
                celsius=self._read_celsius(),
            ),
            "memory": dict(parse_memory(_read(self._root, "proc/meminfo")), run=resident),
        }

    def _find_pids(self) -> Set[int]:
        """Return the launcher and its descendants, and orphans of theirs, which the kernel has handed to us."""
        found: Set[int] = set()
        waiting = [self._pid, *(self._children(self._own) if self._own is not None else [])]
        while waiting and len(found) < MOST_PROCESSES:
            pid = waiting.pop()
            if pid not in found:
                found.add(pid)
                waiting += self._children(pid)
        return found

    def _children(self, pid: int) -> List[int]:
        folder = "proc/%d/task" % pid
        try:
            tasks = os.listdir(os.path.join(self._root, folder))
        except OSError:
            return []
        words = [word for task in tasks for word in _read(self._root, folder, task, "children").split()]
        return [int(word) for word in words if word.isdigit()]

    def _measure_run(self) -> Tuple[float, float]:
        """Return the CPU seconds of the run so far, those of children that have ended included, and resident bytes.

        Memory that processes share (a fork's, a library's) counts for each of them.
        """
        stats = [parse_stat(_read(self._root, "proc/%d/stat" % pid)) for pid in self.pids]
        known = [stat for stat in stats if stat is not None]
        return sum(stat[0] for stat in known) / self._ticks, sum(stat[1] for stat in known) * self._page

    def _read_mhz(self) -> Optional[float]:
        clocks = [
            _read(self._root, _CPUS, "cpu%d/cpufreq/scaling_cur_freq" % cpu).strip()
            for cpu in range(LOOKED_AT)
        ]
        known = [int(clock) / 1000.0 for clock in clocks if clock.isdigit()]
        known = known or parse_clocks(_read(self._root, "proc/cpuinfo", most=16384))
        return round(sum(known) / len(known), 1) if known else None

    def _read_throttled(self) -> Optional[bool]:
        """Tell whether heat held a core down since the sample before; None where the kernel does not count it."""
        counts = [
            _read(self._root, _CPUS, "cpu%d/thermal_throttle" % cpu, name).strip()
            for cpu in range(LOOKED_AT)
            for name in ("core_throttle_count", "package_throttle_count")
        ]
        known = [int(count) for count in counts if count.isdigit()]
        before, self._throttles = self._throttles, sum(known) if known else None
        return None if before is None or self._throttles is None else self._throttles > before

    def _read_celsius(self) -> Optional[float]:
        text = _read(self._root, self._sensor).strip() if self._sensor else ""
        return int(text) / 1000.0 if text.isdigit() else None


class PlainLoad:
    """The same on a system without /proc, by one `ps` a sample."""

    def __init__(self, pid: int, run_ps: Optional[Callable[[], str]] = None) -> None:
        self._pid = pid
        self._run_ps = run_ps or _run_ps
        self._last: Optional[Tuple[float, float, float, float]] = None
        self.pids: Set[int] = set()

    def sample(self, now: float) -> Dict[str, Any]:
        """Return `cpu` and `memory` with what ps says."""
        rows = parse_ps(self._run_ps())
        self.pids = find_below(rows, self._pid)
        seconds = sum(rows[pid][2] for pid in self.pids if pid in rows)
        before, self._last = self._last, (now, seconds, 0.0, 0.0)
        resident = sum(rows[pid][1] for pid in self.pids if pid in rows)
        return {
            "cpu": dict(
                make_shares(before, self._last),
                mhz=None,
                load=round(os.getloadavg()[0], 2),
                throttled=None,
                celsius=None,
            ),
            "memory": {"used": None, "total": _total_memory(), "run": resident},
        }


def make_shares(
    before: Optional[Tuple[float, float, float, float]], now: Tuple[float, float, float, float]
) -> Dict[str, Optional[float]]:
    """Return `busy` (of all CPUs) and `run` (CPUs' worth) between two (moment, seconds of the run, busy, total ticks)."""
    if before is None or now[0] <= before[0]:
        return {"busy": None, "run": None}
    ticks = now[3] - before[3]
    busy = round(min(max((now[2] - before[2]) / ticks, 0.0), 1.0), 4) if ticks > 0 else None
    return {"busy": busy, "run": round(max(now[1] - before[1], 0.0) / (now[0] - before[0]), 3)}


def parse_busy(text: str) -> Tuple[float, float]:
    """Return the ticks in which CPUs worked, and all ticks, of the first line of /proc/stat; waiting for a disk is no work."""
    words = text.split("\n", 1)[0].split()
    if len(words) < 5 or words[0] != "cpu" or not all(word.isdigit() for word in words[1:]):
        return 0.0, 0.0
    ticks = [float(word) for word in words[1:9]]  # guests' time is in user's already
    idle = ticks[3] + (ticks[4] if len(ticks) > 4 else 0.0)
    return sum(ticks) - idle, sum(ticks)


def parse_stat(text: str) -> Optional[Tuple[float, float]]:
    """Return ticks, those of ended children included, and resident pages of /proc/PID/stat; None when it is not one."""
    words = text.rpartition(")")[2].split()
    if len(words) < 22 or not all(words[place].isdigit() for place in (11, 12, 13, 14, 21)):
        return None
    return float(sum(int(words[place]) for place in (11, 12, 13, 14))), float(words[21])


def parse_clocks(cpuinfo: str) -> List[float]:
    """Return the MHz that /proc/cpuinfo gives."""
    lines = [line.partition(":") for line in cpuinfo.splitlines() if line.startswith("cpu MHz")]
    texts = [value.strip() for _, _, value in lines]
    return [float(text) for text in texts if text.replace(".", "", 1).isdigit()]


def parse_load(text: str) -> Optional[float]:
    """Return how many threads ran or waited to, as a mean over the last minute."""
    word = text.split(" ", 1)[0]
    return float(word) if word.replace(".", "", 1).isdigit() else None


def parse_memory(text: str) -> Dict[str, Optional[int]]:
    """Return `used` and `total` bytes of /proc/meminfo; what the kernel would give back at once is not used."""
    rows = {key: value.split()[:1] for key, _, value in (line.partition(":") for line in text.splitlines())}
    sizes = {key: int(value[0]) * 1024 for key, value in rows.items() if value and value[0].isdigit()}
    total, free = sizes.get("MemTotal"), sizes.get("MemAvailable")
    return {"used": None if total is None or free is None else total - free, "total": total}


def parse_ps(text: str) -> Dict[int, Tuple[int, int, float]]:
    """Return {pid: (parent, resident bytes, CPU seconds)} of `ps -A -o pid=,ppid=,rss=,time=`."""
    rows = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 4 and all(word.isdigit() for word in words[:3]):
            rows[int(words[0])] = (int(words[1]), int(words[2]) * 1024, parse_duration(words[3]))
    return rows


def parse_duration(text: str) -> float:
    """Return the seconds of ps's [days-][hours:]minutes:seconds[.hundredths]; 0 when it is something else."""
    days, _, clock = text.rpartition("-")
    try:
        parts = [float(part) for part in clock.split(":")]
        return float(days or 0) * 86400.0 + sum(
            part * 60.0**place for place, part in enumerate(reversed(parts))
        )
    except ValueError:
        return 0.0


def find_below(rows: Dict[int, Tuple[int, int, float]], root: int) -> Set[int]:
    """Return a process and its descendants."""
    found: Set[int] = {root}
    grown = True
    while grown:
        fresh = {pid for pid, row in rows.items() if row[0] in found} - found
        found |= fresh
        grown = bool(fresh)
    return found


def _find_sensor(root: str) -> Optional[str]:
    """Return the file of the processor's temperature, below `root`."""
    found: Dict[str, str] = {}
    for folder, name, value in (
        ("sys/class/thermal", "type", "temp"),
        ("sys/class/hwmon", "name", "temp1_input"),
    ):
        for entry in _list(root, folder):
            kind = _read(root, folder, entry, name).strip()
            found.setdefault(kind, "%s/%s/%s" % (folder, entry, value))
    return next((found[kind] for kind in (*_ZONES, *_CHIPS) if kind in found), None)


def _list(root: str, folder: str) -> List[str]:
    try:
        return sorted(os.listdir(os.path.join(root, folder)))[:64]
    except OSError:
        return []


def _read(root: str, *names: str, most: int = 65536) -> str:
    """Return the first bytes of a file as text, "" when it is not there or cannot be read."""
    try:
        fd = os.open(os.path.join(root, *names), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, most).decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def _total_memory() -> Optional[int]:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _run_ps() -> str:
    import subprocess  # noqa: PLC0415  (only where there is no /proc)

    try:
        done = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,rss=,time="], stdout=subprocess.PIPE, check=False, timeout=5.0
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("ascii", "replace")
