"""A supervisor that does what it is told on stdin, one JSON answer for each line. Standard library, Python 3.8.

Arguments: the repository, the cookie, the descriptor for growing_family.py, then its members.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from remote_train.host import layout, system


def main() -> None:
    cookie, ready = sys.argv[2], int(sys.argv[3])
    subreaper = system.become_subreaper()
    go_read, go_write = os.pipe()
    os.set_inheritable(go_read, True)
    script = str(Path(__file__).with_name("growing_family.py"))
    child = subprocess.Popen(
        [sys.executable, "-S", script, str(ready), str(go_read), *sys.argv[4:]],
        env=dict(os.environ, **{layout.COOKIE: cookie}),
        pass_fds=(ready, go_read),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(ready)
    os.close(go_read)
    family = system.Family(os.getpid())
    answers = {
        "hello": lambda: {"subreaper": subreaper, "child": child.pid, "python": sys.version_info[:2]},
        "observe": family.observe,
        "orphan": lambda: os.close(go_write),
        "members": lambda: sorted(family.members(cookie)),
        "descendants": lambda: system.descendants(os.getpid()),
        "marked": lambda: system.marked_processes(cookie),
        "sweep": lambda: family.sweep(cookie, 20.0),
        "sweep-keep": lambda: family.sweep(cookie, 20.0, keep=child.pid),
        "sweep-reap": lambda: family.sweep(cookie, 20.0, reap_all=True),
        "child": child.poll,
        "children": children_left,
    }
    for line in sys.stdin:
        began = time.perf_counter()
        answer = answers[line.strip()]()
        seconds = time.perf_counter() - began
        sys.stdout.write(json.dumps({"answer": answer, "seconds": seconds}) + "\n")
        sys.stdout.flush()


def children_left() -> int:
    """Return how many children of ours, zombies too, are still to be waited for: 1 stands for any number."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return 1


main()
