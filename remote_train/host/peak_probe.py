"""Measure a device's matrix product peak with the training's own Python. Imported only when there is none yet."""

import json
from typing import Any, Dict

from remote_train.host import matmul_peak
from remote_train.host.commands import find_marked, finish_commands, start_command

MEASURE_SECONDS = 60.0
DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16", "float16", "tf32", "float32")}


def measure_peak(python: str, device: str, threads: int, env: Dict[str, str]) -> Dict[str, Any]:
    """Return FLOP/s by dtype as `matmul_peak` prints them, or {"error": words}; takes up to 60 s.

    `env` is the training's environment, so that its thread settings and libraries count.
    """
    dtypes = DTYPES.get(device.partition(":")[0])
    if dtypes is None:
        return {"error": "there is no peak to measure on a device named %s" % device}
    # Our code may lie in an archive, so the script travels as text.
    source = matmul_peak.__loader__.get_source(matmul_peak.__name__)  # type: ignore[union-attr]
    command = start_command([python, "-c", source, device, str(threads), *dtypes], env)
    outcome = finish_commands([command], MEASURE_SECONDS)[0]
    answer = find_marked(outcome.output, matmul_peak.MARKER)
    if answer is None:
        return {"error": outcome.problem or "it printed no measurement"}
    peak: Dict[str, Any] = json.loads(answer)
    return peak
