"""Print numbered lines; wait in the middle for a file named `go`, whose place the environment says."""

import os
import sys
import time
from pathlib import Path

gate = Path(os.environ["GATE"])
for number in range(2000):
    print(f"line {number}: {'x' * (number % 97)}")
print("half way", flush=True)
while not gate.exists():
    time.sleep(0.01)
for number in range(2000, 4000):
    print(f"line {number}", file=sys.stderr if number % 2 else sys.stdout)
Path("out").mkdir()
Path("out/ckpt.pt").write_bytes(os.urandom(300_000))
