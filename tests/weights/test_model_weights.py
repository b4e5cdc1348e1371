"""The script that the training's Python runs: which tensors it takes, and what it writes of them."""

from __future__ import annotations

import json
import os
import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.contents import read_contents
from remote_train.host import weights
from remote_train.host.model_keys import find_model, find_step, strip_prefixes
from remote_train.host.model_weights import work
from remote_train.host.start import Refusal
from tests.examples.example_runs import GPT, TINY, run_lines
from tests.weights.checkpoints import Evil, make_model, read_safetensors, same, save, save_trained

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = pytest.mark.torch


class Attempt:
    """An attempt's folder with a snapshot, and the script that works in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.code = folder / "code"
        self.code.mkdir()
        (folder / "weights").mkdir()

    def job(self, path: str, dtype: str | None = None, *, still: bool = False) -> dict[str, Any]:
        return weights.make_job(str(self.folder), path, dtype, still=still)

    def convert(
        self, path: str, dtype: str | None = None, *, still: bool = False
    ) -> tuple[dict[str, str], dict[str, Tensor]]:
        job = self.job(path, dtype, still=still)
        assert work(job) == {"ok": True}
        return read_safetensors(Path(job["target"]))

    def made(self) -> list[Path]:
        return [path for path in (self.folder / "weights").iterdir() if path.name != "lock"]


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(tmp_path)


@pytest.mark.parametrize("still", [False, True])
def test_the_model_of_an_adamw_training_is_a_third_of_it_and_a_sixth_in_bf16(
    attempt: Attempt, *, still: bool
) -> None:
    state = save_trained(attempt.code / "ckpt.pt", 512)
    metadata, tensors = attempt.convert("ckpt.pt", still=still)
    assert same(tensors, state)
    assert (metadata["step"], metadata["source"]) == ("250", "ckpt.pt")
    whole = (attempt.code / "ckpt.pt").stat().st_size
    assert 0.30 < attempt.made()[0].stat().st_size / whole < 0.35
    attempt.made()[0].unlink()
    metadata, half = attempt.convert("ckpt.pt", "bf16", still=still)
    assert metadata["dtype"] == "bfloat16"
    assert 0.15 < attempt.made()[0].stat().st_size / whole < 0.18
    assert half["1.num_batches_tracked"].dtype == state["1.num_batches_tracked"].dtype
    assert same({name: tensor.to(half[name].dtype) for name, tensor in state.items()}, half)


def test_the_checkpoint_of_the_gpt_example(attempt: Attempt) -> None:
    import torch

    run_lines(attempt.code, GPT, [*TINY, "--steps=3"])
    checkpoint = torch.load(attempt.code / "out" / "ckpt.pt", weights_only=True)
    metadata, tensors = attempt.convert("out/ckpt.pt")
    tied = json.loads(metadata.get("tied", "{}"))
    assert same({**tensors, **{name: tensors[kept] for name, kept in tied.items()}}, checkpoint["model"])
    assert metadata["step"] == "3"
    whole, alone = (read_contents(path) for path in (attempt.code / "out" / "ckpt.pt", attempt.made()[0]))
    assert (whole.step, whole.optimizer, whole.dtypes) == (3, "Adam-like state", ("float32",))
    assert (alone.step, alone.parameters, alone.dtypes) == (3, whole.parameters, whole.dtypes)


def test_tied_tensors_are_stored_once_and_views_each(attempt: Attempt) -> None:
    import torch

    table, block = torch.randn(100, 8), torch.randn(3, 8)
    state = {
        "wte": table,
        "head": table,
        "q": block[0],
        "k": block[1],
        "turned": block.t(),
        "none": block[:0],
    }
    save(attempt.code / "a.pt", state)
    metadata, tensors = attempt.convert("a.pt")
    assert json.loads(metadata["tied"]) == {"wte": "head"}
    assert same(
        {**tensors, "wte": tensors["head"]}, {name: item.contiguous() for name, item in state.items()}
    )


def test_other_dtypes_and_no_tensor_at_all_of_some_kind(attempt: Attempt) -> None:
    import torch

    state = {
        "w": torch.randn(3, 5).bfloat16(),
        "n": torch.tensor(7),
        "d": torch.randn(2, dtype=torch.float64),
    }
    save(attempt.code / "a.pt", state)
    _, tensors = attempt.convert("a.pt", "fp32")
    assert same(tensors, {"w": state["w"].float(), "n": state["n"], "d": state["d"].float()})
    save(attempt.code / "b.pt", {"w": torch.tensor([1e30])})
    answer = work(attempt.job("b.pt", "fp16"))
    assert answer["kind"] == "pull-incomplete"
    assert "w has numbers that fp16 cannot hold" in answer["message"]


def test_lightning_and_wrappers(attempt: Attempt) -> None:
    state = make_model().state_dict()
    wrapped = {f"_orig_mod.module.{name}": item for name, item in state.items()}
    extra = {"pytorch-lightning_version": "2.4", "epoch": 1, "global_step": 40, "callbacks": {}}
    save(attempt.code / "last.ckpt", {**extra, "optimizer_states": [{"state": {}}], "state_dict": wrapped})
    metadata, tensors = attempt.convert("last.ckpt")
    assert same(tensors, dict(state))
    assert metadata["step"] == "40"


def test_the_old_format_of_torch(attempt: Attempt) -> None:
    state = make_model().state_dict()
    save(attempt.code / "a.pt", {"model": state}, _use_new_zipfile_serialization=False)
    for still in (False, True):
        assert same(attempt.convert("a.pt", still=still)[1], dict(state))


MODEL, OTHER = {"w": 1}, {"v": 2}


@pytest.mark.parametrize(
    ("value", "path", "model"),
    [
        (MODEL, (), MODEL),
        ({"w": 1, "block._extra_state": b"x"}, (), {"w": 1, "block._extra_state": b"x"}),
        ({"ema": OTHER, "model": MODEL}, ("model",), MODEL),
        ({"ema": MODEL, "optimizer": {"state": {0: OTHER}}}, ("ema",), MODEL),
        ({"model": {"state_dict": MODEL}}, ("model", "state_dict"), MODEL),
        ({"model": "gpt", "net": MODEL}, ("net",), MODEL),
        ({"encoder": MODEL, "epoch": "x"}, ("encoder",), MODEL),
    ],
)
def test_where_a_model_is_found(value: Any, path: tuple[str, ...], model: Any) -> None:
    assert find_model(value, lambda item: isinstance(item, int)) == (path, model)


@pytest.mark.parametrize(
    "value",
    [
        *({}, [], 7, None, {"step": "x"}, {"a": MODEL, "b": OTHER}, {1: 2}),
        {"model": {"model": {"model": {"model": {"model": MODEL}}}}},
    ],
)
def test_where_none_is_found(value: Any) -> None:
    assert find_model(value, lambda item: isinstance(item, int)) is None


def test_prefixes_go_only_where_all_have_them() -> None:
    assert strip_prefixes(["module.a", "module.b"]) == {"module.a": "a", "module.b": "b"}
    assert strip_prefixes(["module.a", "b"]) == {"module.a": "module.a", "b": "b"}
    assert strip_prefixes(["module."]) == {"module.": "module."}
    assert strip_prefixes(["module._orig_mod.a"]) == {"module._orig_mod.a": "a"}


def test_a_step_is_a_number() -> None:
    assert find_step({"step": True, "iter_num": 3}) == 3
    assert find_step([3]) is None


def test_nothing_of_a_hostile_pickle_runs(attempt: Attempt, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    save(attempt.code / "a.pt", {"model": {}, "evil": Evil(canary)})
    (attempt.code / "b.pt").write_bytes(pickle.dumps(Evil(canary), 2))
    save(attempt.code / "c.pt", {"config": Path("x"), **make_model().state_dict()})
    for path in ("a.pt", "b.pt", "c.pt"):
        for still in (False, True):
            answer = work(attempt.job(path, still=still))
            assert answer["kind"] == "pull-incomplete"
            assert "nsupported" in answer["message"], answer
            assert "weights_only" not in answer["message"]
    assert not canary.exists()
    assert attempt.made() == []
    pickle.loads((attempt.code / "b.pt").read_bytes())
    assert canary.exists(), "the canary would not have shown anything"


def test_what_is_no_checkpoint_says_so(attempt: Attempt) -> None:
    save(attempt.code / "a.pt", {"step": 3, "history": [1.0]})
    answer = work(attempt.job("a.pt"))
    assert answer["message"].endswith("its keys are step (int), history (list)")
    whole = save(attempt.code / "b.pt", make_model().state_dict()).read_bytes()
    for number, data in enumerate((b"", b"text", whole[:-100], whole[: len(whole) // 2], b"\x80\x02")):
        (attempt.code / f"{number}.pt").write_bytes(data)
        assert work(attempt.job(f"{number}.pt"))["kind"] == "pull-incomplete"
    (attempt.code / "a.safetensors").write_bytes(b"\xff" * 100)
    (attempt.code / "b.safetensors").write_bytes(b"12")
    for path in ("a.safetensors", "b.safetensors"):
        assert work(attempt.job(path, "bf16"))["kind"] == "pull-incomplete"
    assert attempt.made() == []


def test_a_folder_of_safetensors_becomes_one_file(attempt: Attempt) -> None:
    state = make_model().state_dict()
    names = sorted(state)
    for number, part in enumerate((names[:2], names[2:]), 1):
        save(attempt.code / "part.pt", {name: state[name] for name in part})
        job = attempt.job("part.pt")
        assert work(job) == {"ok": True}
        target = attempt.code / "checkpoint-5" / f"model-{number:05}-of-00002.safetensors"
        target.parent.mkdir(exist_ok=True)
        Path(job["target"]).rename(target)
    save(attempt.code / "checkpoint-5" / "optimizer.pt", {"state": {}})
    _, tensors = attempt.convert("checkpoint-5", "bf16")
    assert tensors.keys() == state.keys()
    assert str(tensors["0.weight"].dtype) == "torch.bfloat16"


def test_a_folder_of_pickles_and_one_that_only_comes_whole(attempt: Attempt) -> None:
    state = make_model().state_dict()
    save(attempt.code / "hf" / "pytorch_model.bin", state)
    save(attempt.code / "hf" / "training_args.bin", {"lr": 1})
    assert same(attempt.convert("hf")[1], dict(state))
    (attempt.code / "dcp").mkdir()
    (attempt.code / "dcp" / ".metadata").write_bytes(b"")
    with pytest.raises(Refusal, match="only comes whole"):
        attempt.job("dcp")
    (attempt.code / "logs").mkdir()
    with pytest.raises(Refusal, match="no file of a model"):
        attempt.job("logs")


@pytest.mark.parametrize("path", ["..", ".", "/etc/passwd", "../attempt.json", "out", "link"])
def test_nothing_outside_the_snapshot_is_read(attempt: Attempt, path: str) -> None:
    (attempt.code / "link").symlink_to("/etc/passwd")
    with pytest.raises(Refusal, match="no such checkpoint"):
        attempt.job(path)


def test_an_unchanged_source_is_not_converted_twice_and_a_new_version_replaces_the_old(
    attempt: Attempt,
) -> None:
    save_trained(attempt.code / "ckpt.pt")
    save_trained(attempt.code / "other.pt")
    attempt.convert("other.pt")
    attempt.convert("ckpt.pt")
    before = {path: path.stat().st_mtime_ns for path in attempt.made()}
    attempt.convert("ckpt.pt")
    assert {path: path.stat().st_mtime_ns for path in attempt.made()} == before
    (attempt.folder / "weights" / "killed.safetensors.123.tmp").write_bytes(b"left by one that was killed")
    save_trained(attempt.code / "ckpt.pt", 32)
    attempt.convert("ckpt.pt")
    assert len(attempt.made()) == 2
    assert len(set(attempt.made()) & set(before)) == 1


def test_a_source_that_is_not_what_was_asked_for_is_told(attempt: Attempt) -> None:
    path = save(attempt.code / "ckpt.pt", {"w": make_model().state_dict()["0.weight"]})
    job = attempt.job("ckpt.pt")
    with path.open("r+b") as file:
        file.write(b"x")
    os.utime(path, ns=(1, 1))
    assert work(job) == {"kind": "changed", "message": "it changed while being read"}
    assert attempt.made() == []


def test_what_is_rewritten_in_place_all_the_time_is_never_torn(attempt: Attempt) -> None:
    import torch

    path = attempt.code / "ckpt.pt"
    done = threading.Event()
    written = 0

    def rewrite() -> None:
        nonlocal written
        while not done.is_set():
            with path.open("wb") as file:
                torch.save({"w": torch.full((1 << 18,), float(written))}, file)
            written += 1
            done.wait(0.02)

    save(path, {"w": torch.zeros(1 << 18)})
    writer = threading.Thread(target=rewrite)
    writer.start()
    kinds: list[object] = []
    values: set[float] = set()
    try:
        while len(values) < 5 and len(kinds) < 500:
            job = attempt.job("ckpt.pt")
            answer = work(job)
            kinds.append(answer.get("kind"))
            if "ok" in answer:
                tensor = read_safetensors(Path(job["target"]))[1]["w"]
                values.add(float(tensor[0]))
                assert torch.equal(tensor, torch.full_like(tensor, float(tensor[0]))), "torn"
    finally:
        done.set()
        writer.join()
    assert len(values) == 5
    # One that was begun before the job and not gone on with since is a broken file, and no more.
    assert set(kinds) <= {None, "changed", "pull-incomplete"}
    attempt.convert("ckpt.pt")


def test_the_disk_is_asked_before_and_the_next_checkpoint_has_room(attempt: Attempt) -> None:
    save_trained(attempt.code / "ckpt.pt")
    job = attempt.job("ckpt.pt")
    assert job["spare"] == (attempt.code / "ckpt.pt").stat().st_size
    assert attempt.job("ckpt.pt", still=True)["spare"] == 0
    answer = work({**job, "spare": 1 << 60})
    assert answer["errno"] == 28
    assert answer["need"] > 1 << 60
    assert attempt.made() == []
