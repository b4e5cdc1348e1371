"""A job of two processes without torch: FAIL names the rank that ends with code 7, the others wait for their end."""

import os
import sys
import time

rank = os.environ["RANK"]
print(f"rank {rank} of {os.environ['WORLD_SIZE']} is here", flush=True)
if rank == os.environ.get("FAIL"):
    print(f"boom in rank {rank}", file=sys.stderr)
    sys.exit(7)
time.sleep(600)
