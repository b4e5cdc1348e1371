"""Containers: a file that is cut, or still grows, shows it; nothing is unpickled and no size in a file is believed."""

from __future__ import annotations

import pickle
import resource
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from remote_train.host.containers import check_file, check_folder
from tests.host.container_kit import make_index, make_safetensors, make_zip

if TYPE_CHECKING:
    from pathlib import Path

ENTRIES = {"ckpt/data.pkl": pickle.dumps({"a": 1}), "ckpt/data/0": b"w" * 300, "ckpt/version": b"3\n"}
ZIPS = {
    "plain": make_zip(ENTRIES),
    "with a comment": make_zip(ENTRIES, comment=b"PK\x05\x06 and words"),
    "with zip64 fields": make_zip(ENTRIES, wide=True),
}


def widen(data: bytes) -> bytes:
    """Return a zip with zip64 records at its end, as torch writes for more than 4 GB, the old fields being full."""
    place = data.rfind(b"PK\x05\x06")
    count, length, begin = struct.unpack_from("<HII", data, place + 10)
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, length, begin)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, place, 1)
    full = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:place] + record + locator + full


def check(path: Path, data: bytes) -> bool | None:
    path.write_bytes(data)
    return check_file(str(path))


@pytest.mark.parametrize("name", [*ZIPS, "with zip64 records"])
def test_a_zip_is_whole_at_its_full_length_only(name: str, tmp_path: Path) -> None:
    data = ZIPS[name] if name in ZIPS else widen(ZIPS["plain"])
    path = tmp_path / "ckpt.pt"
    assert check(path, data) is True
    for size in range(len(data)):
        assert check(path, data[:size]) is False, size
    assert check(path, data + b"\0") is False
    assert check(path, data[:100] + data) is False


@pytest.mark.parametrize("number", [1, 2])
def test_a_zip_with_a_hole_where_an_entry_should_be_is_torn(number: int, tmp_path: Path) -> None:
    data = ZIPS["plain"]
    place = 0
    for _ in range(number):
        place = data.find(b"PK\x03\x04", place + 1)
    holed = data[:place] + bytes(30) + data[place + 30 :]
    assert check(tmp_path / "ckpt.bin", holed) is False


@pytest.mark.parametrize("field", [(20, 4), (24, 4), (28, 2), (42, 4)])
def test_sizes_in_a_zip_are_not_believed(field: tuple[int, int], tmp_path: Path) -> None:
    data = bytearray(ZIPS["plain"])
    place = data.find(b"PK\x01\x02") + field[0]
    data[place : place + field[1]] = b"\xff" * field[1]
    assert check(tmp_path / "ckpt.pt", bytes(data)) is False


@pytest.mark.torch
def test_what_torch_saves_is_whole_at_its_full_length_only(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "ckpt.pt"
    torch.save({"model": {f"layer{n}": torch.randn(17) for n in range(20)}, "step": 7}, path)
    data = path.read_bytes()
    assert check_file(str(path)) is True
    for size in range(0, len(data), 7):
        assert check(path, data[:size]) is False, size
    torch.save({"step": 7}, path, _use_new_zipfile_serialization=False)
    assert check_file(str(path)) is None


def test_what_does_not_tell_is_neither_whole_nor_torn(tmp_path: Path) -> None:
    data = pickle.dumps({"a": 1}, protocol=2)
    assert check(tmp_path / "ckpt.pt", data) is None
    assert check(tmp_path / "ckpt.pt", data[:-1]) is None
    assert check(tmp_path / "notes.txt", b"notes") is None
    assert check(tmp_path / "empty.txt", b"") is None
    assert check(tmp_path / "empty.pt", b"") is False


def test_safetensors_are_whole_at_their_full_length_only(tmp_path: Path) -> None:
    data = make_safetensors({"a": b"x" * 30, "b": b"", "c": b"y" * 5}, format="pt")
    path = tmp_path / "model.safetensors"
    assert check(path, data) is True
    for size in range(len(data)):
        assert check(path, data[:size]) is False, size
    assert check(path, data + b"\0") is False
    assert check(path, make_safetensors({})) is True


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b"{", b'{"a": 7}', b'{"a": {"data_offsets": [0, true]}}', b'{"a": {"data_offsets": [5, 4]}}',
        b'{"a": {"data_offsets": [-9, 4]}}', b'{"a": {"data_offsets": [0, 1e1]}}', b"[" * 100_000, b"\xff",
        b'{"a": {"data_offsets": [0, ' + b"9" * 5000 + b"]}}",
    ],
    ids=lambda header: header[:40].decode("latin-1"),
)  # fmt: skip
def test_a_safetensors_header_that_is_none_is_torn(header: bytes, tmp_path: Path) -> None:
    assert check(tmp_path / "m.safetensors", len(header).to_bytes(8, "little") + header + b"four") is False


def test_a_header_of_any_length_costs_no_memory(tmp_path: Path) -> None:
    """A sparse file of a terabyte, whose header claims to be nearly all of it."""
    path = tmp_path / "m.safetensors"
    for length in (2**64 - 1, 2**40 - 8, 100_000_001):
        with path.open("wb") as file:
            file.write(length.to_bytes(8, "little"))
            file.truncate(2**40)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert check_file(str(path)) is False
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


@given(st.binary(max_size=200))
@example(b"PK\x03\x04" + b"PK\x05\x06" + bytes(18))
@settings(deadline=None, max_examples=60)
def test_no_bytes_make_it_fail(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in ("x.pt", "x.safetensors", "x.distcp"):
        assert check(folder / name, data) in {True, False, None}
        assert check(folder / name, b"PK\x03\x04" + data) in {True, False, None}


@given(st.integers(0, len(ZIPS["with zip64 fields"]) - 1), st.binary(min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_no_damage_makes_it_fail(tmp_path_factory: pytest.TempPathFactory, place: int, damage: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    for whole in (ZIPS["with zip64 fields"], widen(ZIPS["plain"])):
        data = whole[:place] + damage + whole[place + len(damage) :]
        assert check(path, data) in {True, False, None}


def test_shards_are_whole_when_all_of_their_index_is_there_and_whole(tmp_path: Path) -> None:
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name in names:
        (tmp_path / name).write_bytes(make_safetensors({"a": b"abc"}))
    index = "model.safetensors.index.json"
    assert check_folder(str(tmp_path), names) is True
    assert check_folder(str(tmp_path), names[:1]) is False
    make_index(tmp_path, {"a": names[0], "b": names[1]})
    assert check_folder(str(tmp_path), [*names, index]) is True
    assert check_folder(str(tmp_path), [names[0], index]) is False
    (tmp_path / names[1]).write_bytes(make_safetensors({"a": b"abc"})[:-1])
    assert check_folder(str(tmp_path), [*names, index]) is False
    for text in ("{}", "{", '{"weight_map": {"a": 7}}', '{"weight_map": {"a": "../../etc/passwd"}}'):
        (tmp_path / index).write_text(text)
        assert check_folder(str(tmp_path), [names[0], index]) is False


def test_a_dcp_folder_needs_its_metadata_and_data(tmp_path: Path) -> None:
    for name in ("__0_0.distcp", "__1_0.distcp", ".metadata"):
        (tmp_path / name).write_bytes(b"data")
    assert check_folder(str(tmp_path), ["__0_0.distcp", "__1_0.distcp", ".metadata"]) is True
    assert check_folder(str(tmp_path), ["__0_0.distcp", "__1_0.distcp"]) is False
    assert check_folder(str(tmp_path), [".metadata"]) is False
    (tmp_path / ".metadata").write_bytes(b"")
    assert check_folder(str(tmp_path), ["__0_0.distcp", ".metadata"]) is False


def test_a_folder_is_as_whole_as_each_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / "model.safetensors").write_bytes(make_safetensors({"a": b"abc"}))
    (tmp_path / "deeper" / "optimizer.pt").write_bytes(ZIPS["plain"])
    (tmp_path / "trainer_state.json").write_text("")
    names = ["model.safetensors", "deeper/optimizer.pt", "trainer_state.json"]
    assert check_folder(str(tmp_path), names) is True
    assert check_folder(str(tmp_path), names[2:]) is None
    (tmp_path / "deeper" / "optimizer.pt").write_bytes(ZIPS["plain"][:-1])
    assert check_folder(str(tmp_path), names) is False
