"""What a checkpoint holds, told from its container alone: as torch has it, and no harm from any file."""

from __future__ import annotations

import json
import math
import pickle
import random
import struct
import tracemalloc
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train import contents as reading
from remote_train.contents import Contents, read_contents, render_amount, render_contents
from remote_train.pickled import Opaque, read_outline
from tests.faults.counts import seed, trials
from tests.weights.checkpoints import Evil, make_model, save, save_trained

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KINDS = {"safetensors", "torch", "legacy", "other", "unreadable"}


def write_safetensors(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.torch
def test_a_checkpoint_of_torch_as_torch_has_it(tmp_path: Path) -> None:
    state = save_trained(tmp_path / "ckpt.pt", 128)
    found = read_contents(tmp_path / "ckpt.pt")
    shapes = {
        name: (str(item.dtype).removeprefix("torch."), tuple(item.shape)) for name, item in state.items()
    }
    assert found.tensors == shapes
    assert (found.kind, found.step, found.keys) == ("torch", 250, ("model", "optimizer", "iter_num"))
    assert found.parameters == sum(item.numel() for item in state.values())
    assert render_contents(found) == "model 33.4 k parameters, float32, int64; optimizer: Adam-like state"
    assert found.storages is not None
    assert 0.9 < found.storages / found.size < 1


@pytest.mark.torch
def test_what_else_torch_saves(tmp_path: Path) -> None:
    import torch

    shared = torch.zeros(10, 10)
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    few = {"a": shared, "b": shared, "p": parameter, "u": torch.zeros(2, dtype=torch.uint16)}
    found = read_contents(save(tmp_path / "a.pt", few))
    assert found.parameters == 105
    assert found.tensors["p"] == ("bfloat16", (3,))
    assert found.tensors["u"] == ("uint16", (2,))
    found = read_contents(save(tmp_path / "b.pt", {"lr": 0.1, "seen": torch.zeros(5)}))
    assert render_contents(found) == "tensors of 20 bytes; keys: lr, seen"
    old = save(tmp_path / "c.pt", few, _use_new_zipfile_serialization=False)
    assert (read_contents(old).kind, read_contents(old).size) == ("legacy", old.stat().st_size)
    sgd = {"state": {0: {"momentum_buffer": shared}}, "param_groups": []}
    found = read_contents(save(tmp_path / "d.pt", {"net": few, "opt": sgd, "step": True}))
    assert (found.optimizer, found.step) == ("momentum", None)
    found = read_contents(save(tmp_path / "e.pt", make_model()))  # a whole module, pickled
    assert (found.kind, found.parameters) == ("torch", None)


@pytest.mark.torch
def test_nothing_of_a_pickle_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    save(tmp_path / "a.pt", {"model": {}, "evil": Evil(canary)})
    assert read_contents(tmp_path / "a.pt").keys == ("model", "evil")
    assert read_outline(pickle.dumps(Evil(canary))) == Opaque("posix.system")
    assert not canary.exists()


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "text", b"bytes", (1, 2), (), (3,), {}], 7: 2**80},
        [[[[[]]]]],
        {"x": {"y": {"z": list(range(300))}}},
        "é" * 1000,
    ],
)
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_values_are_what_pickle_makes_of_them(value: object, protocol: int) -> None:
    if protocol < 3 and isinstance(value, dict) and "a" in value:
        value = {**value, "a": value["a"][:5]}  # old protocols make bytes by a call
    assert read_outline(pickle.dumps(value, protocol)) == value


def cycle() -> bytes:
    value: dict[str, Any] = {}
    for key in ("model", "state_dict", "net", "ema"):
        value[key] = value
    return pickle.dumps(value)


def laughs() -> bytes:
    value: Any = {"w": 1}
    for _ in range(60):
        value = {"model": value, "net": value, "x": [value, value]}
    return pickle.dumps(value, 2)


DEEP = 20_000
HOSTILE_PICKLES: dict[str, bytes] = {
    "empty": b"",
    "no end": b"\x80\x02}",
    "unknown": b"\x80\x02\xff.",
    "pops nothing": b"00.",
    "no mark": b"t.",
    "no memo": b"h\x07.",
    "long text": b"\x8d" + b"\xff" * 8 + b"x.",
    "long number": b"\x8b\xff\xff\xff\x7fx.",
    "many digits": b"I" + b"9" * 100_000 + b"\n.",
    "deep": b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "deep dicts": b"\x80\x02" + b"}X\x01\x00\x00\x00a" * DEEP + b"}" + b"s" * DEEP + b".",
    "cycle": cycle(),
    "laughs": laughs(),
    "many opcodes": b"\x80\x02" + b"N0" * 250_000 + b"N.",
    "unhashable": b"\x80\x02}]K\x01s.",
    "a reference of no tuple": b"\x80\x02K\x01Q.",
    "an instance": b"(iposix\nsystem\n.",
}


def make_archive(path: Path, data: bytes, entries: dict[str, bytes] | None = None, method: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in (entries or {}).items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("data", HOSTILE_PICKLES.values(), ids=HOSTILE_PICKLES.keys())
def test_a_hostile_pickle_is_only_odd(tmp_path: Path, data: bytes) -> None:
    found = read_contents(make_archive(tmp_path / "a.pt", data))
    assert found.kind == "torch"
    assert found.parameters is None
    render_contents(found)


def deep_header(path: Path) -> Path:
    return write_safetensors(path, b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}")


def wide_header(path: Path) -> Path:
    return write_safetensors(path, b'{"a":[' + b"[]," * (reading.HEADER_BYTES // 12) + b"[]]}")


def bomb(path: Path) -> Path:
    return make_archive(path, bytes(128 << 20), method=zipfile.ZIP_DEFLATED)


def many_entries(path: Path) -> Path:
    return make_archive(path, b"N.", {f"archive/data/{number}": b"" for number in range(5_000)})


def large_directory(path: Path) -> Path:
    """Write a directory of more than is read, without the time that a hundred thousand entries would take."""
    length = reading.DIRECTORY_BYTES + 1
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(4 + length)
        file.seek(4 + length)
        file.write(b"PK\x05\x06" + bytes(8) + struct.pack("<IIH", length, 4, 0))
    return path


def one_tensor(**changes: Any) -> Callable[[Path], Path]:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return lambda path: write_safetensors(path, {"w": entry}, bytes(8))


HOSTILE_FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a folder": (".pt", lambda path: path.mkdir()),
    "nothing": (".pt", str),
    "empty": (".pt", lambda path: path.touch()),
    "text": (".pt", lambda path: path.write_text("text")),
    "empty header": (".safetensors", lambda path: path.touch()),
    "a header of 2^60": (".safetensors", lambda path: write_safetensors(path, {}, length=1 << 60)),
    "a header of 2^64 - 1": (".safetensors", lambda path: write_safetensors(path, {}, length=(1 << 64) - 1)),
    "deep header": (".safetensors", deep_header),
    "a list": (".safetensors", lambda path: write_safetensors(path, [])),
    "no object": (".safetensors", lambda path: write_safetensors(path, {"w": 7})),
    "huge shape": (".safetensors", one_tensor(shape=[2**62] * 64)),
    "many dimensions": (".safetensors", one_tensor(shape=[1] * 100_000)),
    "negative shape": (".safetensors", one_tensor(shape=[-2])),
    "beyond its end": (".safetensors", one_tensor(data_offsets=[0, 80], shape=[20])),
    "not its size": (".safetensors", one_tensor(shape=[1])),
    "backwards": (".safetensors", one_tensor(data_offsets=[8, 0])),
    "a number for a type": (".safetensors", one_tensor(dtype=3)),
    "large directory": (".pt", large_directory),
}


def measure(path: Path) -> tuple[Contents, int]:
    tracemalloc.start()
    try:
        return read_contents(path), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("suffix", "make"), HOSTILE_FILES.values(), ids=HOSTILE_FILES.keys())
def test_a_hostile_file_is_unreadable_and_says_why(
    tmp_path: Path, suffix: str, make: Callable[[Path], object]
) -> None:
    path = tmp_path / f"file{suffix}"
    make(path)
    found, used = measure(path)
    assert found.kind == "unreadable"
    assert found.why
    assert len(render_contents(found)) < 300
    assert used < 256 << 20


def test_a_header_of_very_many_things_is_no_model(tmp_path: Path) -> None:
    assert read_contents(wide_header(tmp_path / "a.safetensors")).kind == "unreadable"


@pytest.mark.parametrize("make", [bomb, many_entries])
def test_an_archive_that_unpacks_to_much_takes_little(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "a.pt")
    found, used = measure(path)
    assert found.kind == "torch"
    assert found.parameters is None
    assert used < 64 << 20


@pytest.mark.torch
def test_an_archive_that_contradicts_itself(tmp_path: Path) -> None:
    import torch

    path = save(tmp_path / "a.pt", {"w": torch.zeros(4)})
    with zipfile.ZipFile(path) as archive:
        data = archive.read("a/data.pkl")
    for number, content in enumerate((bytes(15), bytes(160), None)):
        entries = {} if content is None else {"archive/data/0": content}
        found = read_contents(make_archive(tmp_path / f"{number}.pt", data, entries))
        assert found.why == "its directory and its pickle do not agree"
    assert (
        read_contents(make_archive(tmp_path / "ok.pt", data, {"archive/data/0": bytes(16)})).parameters == 4
    )


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_are_an_outline_or_a_valueerror(data: bytes) -> None:
    try:
        read_outline(data)
    except ValueError:
        return


def mutate(source: random.Random, data: bytes) -> bytes:
    mutated = bytearray(data)
    for _ in range(source.randint(1, 8)):
        at = source.randrange(len(mutated))
        kind = source.randrange(4)
        if kind == 0:
            mutated[at] = source.randrange(256)
        elif kind == 1:
            mutated[at : at + 8] = source.randbytes(8)
        elif kind == 2:
            del mutated[at : at + source.randint(1, 50)]
        else:
            mutated[at:at] = mutated[at : at + source.randint(1, 50)]
        mutated = mutated or bytearray(b"x")
    return bytes(mutated)


@pytest.mark.torch
def test_mutations_of_real_files_never_raise(tmp_path: Path) -> None:
    import torch

    source = random.Random(seed())
    count = trials("G11 mutated checkpoints", 600, 100_000)
    save_trained(tmp_path / "a.pt", 4)
    tensor = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"step": "7"}}
    write_safetensors(tmp_path / "a.safetensors", tensor, bytes(24))
    save(tmp_path / "b.ckpt", [torch.zeros(2)])
    real = [path for path in tmp_path.iterdir() if path.suffix]
    kinds = set()
    for number in range(count):
        original = real[number % len(real)]
        path = tmp_path / f"mutated{original.suffix}"
        path.write_bytes(mutate(source, original.read_bytes()))
        found = read_contents(path)
        kinds.add(found.kind)
        assert found.kind in KINDS
        json.dumps(found.as_json())
        assert len(render_contents(found)) < 1000
    assert {"unreadable", "torch", "safetensors"} <= kinds


def test_amounts() -> None:
    amounts = {
        0: "0",
        999: "999",
        1000: "1.0 k",
        10_700_000: "10.7 M",
        124_439_808: "124.4 M",
        7 * 10**9: "7.0 B",
    }
    assert {count: render_amount(count) for count in amounts} == amounts
    assert math.isfinite(len(render_amount(2**80)))
