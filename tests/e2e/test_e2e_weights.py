"""`pull --weights` as it is typed, over a real sshd: what arrives, what is said, and what nothing here ever runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import write_project
from tests.weights.checkpoints import Evil, read_safetensors, save, save_trained

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.machines import Box, Laptop

pytestmark = [pytest.mark.sshd, pytest.mark.torch]

SAVING = """
import os, shutil
os.mkdir("out")
print("step 7/10 | loss 1.0 | 10 ms", flush=True)
shutil.copy("seed.bin", "out/ckpt.pt")
"""


def test_the_model_comes_home_and_show_tells_of_it(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    save_trained(tmp_path / "seed.bin", 128)
    write_project(project, {"train.py": SAVING, "seed.bin": (tmp_path / "seed.bin").read_bytes()})
    run = laptop.ok(project, "run", "--no-pull", "train.py").run_id()

    done = laptop.ok(project, "pull", "--weights", "--dtype", "bf16")
    path = project / "runs" / run / "files" / "out" / "ckpt.pt.bf16.safetensors"
    assert f"{path.stat().st_size:,} bytes of weights in place of" in done.err
    assert str(read_safetensors(path)[1]["0.weight"].dtype) == "torch.bfloat16"
    assert (
        "nothing new: 1 file here already" in laptop.ok(project, "pull", "--weights", "--dtype", "bf16").err
    )

    (row,) = laptop.ok(project, "show", "--json").event("run")["checkpoints"]
    assert (row["path"], row["step"], row["intact"]) == ("files/out/ckpt.pt.bf16.safetensors", 250, True)
    assert row["holds"]["metadata"]["source"] == "out/ckpt.pt"
    assert "step 250: model 33.4 k parameters, bfloat16, int64" in laptop.ok(project, "show").out.decode()

    os.utime(
        save(box.code(run) / "out" / "ckpt.pt", {"model": {}, "evil": Evil(tmp_path / "canary")}), (1, 1)
    )
    refused = laptop.type(project, "pull", "--weights").expect(40)
    assert "posix.system" in refused.err
    assert not (tmp_path / "canary").exists()


def test_options_that_do_not_fit_together(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "pass"})
    laptop.ok(project, "run", "--no-pull", "train.py")
    for args in (("--dtype", "bf16"), ("--weights", "--dtype", "int8"), ("--weights", "--all")):
        assert "Invalid value" in laptop.type(project, "pull", *args).expect(2).err
