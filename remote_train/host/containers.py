"""Whether a checkpoint is whole, told from its container alone: nothing is unpickled, and no size in it is believed.

The directory of a zip stands at its end and a safetensors header says where its tensors end, so a file that is cut
anywhere shows it. A legacy pickle and a file of another kind say nothing: they are None, neither whole nor torn.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Dict, Iterable, List, Optional, Set, Tuple

HEADER_BYTES = 100_000_000
"""Of a safetensors header and of an index: the format's own limit."""
DIRECTORY_BYTES = 64 << 20
"""Of a zip's directory: some 500,000 tensors. A longer one is not read, and such a file is None."""
PIECE = 1 << 20

SAFETENSORS = ".safetensors"
ZIPPED = (".pt", ".pth", ".ckpt", ".bin")
INDEXES = (".safetensors.index.json", ".bin.index.json")
METADATA = ".metadata"
DISTCP = ".distcp"

_LOCAL = struct.Struct("<4s22xHH")
_ENTRY = struct.Struct("<4s16xIIHHH8xI")  # up to the offset of the local header, 46 bytes
_END = struct.Struct("<4s6xHIIH")
_LOCATOR = struct.Struct("<4s4xQ4x")
_END64 = struct.Struct("<4s28xQQQ")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.(?:safetensors|bin)\Z", re.DOTALL)


def is_shard(name: str) -> bool:
    """Tell whether a file is by its name one part of a checkpoint of several."""
    return name.endswith((DISTCP, *INDEXES)) or bool(_SHARD.match(name))


def has_container(name: str) -> bool:
    """Tell whether a file's name promises a container that can be checked."""
    return name.endswith((SAFETENSORS, DISTCP, METADATA, *ZIPPED, *INDEXES))


def check_file(path: str) -> Optional[bool]:
    """Return True for a whole file, False for a torn or empty one, None where its container does not tell.

    Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return False
        if status.st_size == 0:
            return False if has_container(path) else None
        if path.endswith(SAFETENSORS):
            return _is_whole_safetensors(fd, status.st_size)
        if path.endswith(ZIPPED):
            return _check_zipped(fd, status.st_size)
        return None
    finally:
        os.close(fd)


def check_folder(folder: str, names: Iterable[str]) -> Optional[bool]:
    """Return True for a folder whose files below, by relative path, make a whole checkpoint; False and None as for a file.

    Raises OSError.
    """
    by_place: Dict[str, Set[str]] = {}
    for name in names:
        place, _, last = name.rpartition("/")
        by_place.setdefault(place, set()).add(last)
    answers: List[Optional[bool]] = []
    for place, files in sorted(by_place.items()):
        here = os.path.join(folder, place)
        answers += [check_file(os.path.join(here, name)) for name in sorted(files)]
        answers.append(_check_parts(here, files))
        if False in answers:
            return False
    return True if True in answers else None


def _check_parts(folder: str, names: Set[str]) -> Optional[bool]:
    """Return whether all parts are there that an index, the shards' own names, or DCP's metadata speak of."""
    indexes = [name for name in names if name.endswith(INDEXES)]
    if any(name.endswith(DISTCP) for name in names) or METADATA in names:
        return METADATA in names and any(name.endswith(DISTCP) for name in names)
    if indexes:
        return all(_read_parts(os.path.join(folder, index)) <= names for index in indexes)
    counts: Dict[Tuple[str, str], int] = {}
    for match in filter(None, map(_SHARD.match, names)):
        key = (match.group(1), match.group(3))
        counts[key] = counts.get(key, 0) + 1
    return all(count >= int(total) for (_, total), count in counts.items()) if counts else None


def _read_parts(index: str) -> Set[str]:
    """Return the file names of a weight map; one that is none names a file that cannot be there."""
    with open(index, "rb") as file:
        value = _parse_object(file.read(HEADER_BYTES + 1))
    weights = (value or {}).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        return {""}
    return {name if isinstance(name, str) else "" for name in weights.values()}


def _parse_object(data: bytes) -> Optional[Dict[str, object]]:
    if len(data) > HEADER_BYTES:
        return None
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_whole_safetensors(fd: int, size: int) -> bool:
    head = os.pread(fd, 8, 0)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > min(HEADER_BYTES, size - 8):
        return False
    header = _parse_object(os.pread(fd, length, 8))
    if header is None:
        return False
    ends = [_find_end(entry) for name, entry in header.items() if name != "__metadata__"]
    return -1 not in ends and max(ends, default=0) == size - 8 - length


def _find_end(entry: object) -> int:
    """Return where a tensor ends, -1 for an entry that does not say so."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or {type(item) for item in offsets} != {int}:
        return -1
    return int(offsets[1]) if 0 <= offsets[0] <= offsets[1] else -1


def _check_zipped(fd: int, size: int) -> Optional[bool]:
    """Check a file that may be a zip, as torch.save writes since 1.6, or a pickle, as it wrote before."""
    head = os.pread(fd, 4, 0)
    if not head.startswith(b"PK\x03\x04"[: len(head)]):
        return None
    found = _find_directory(fd, size)
    if found is None:
        return False
    begin, end, count = found
    return None if end - begin > DIRECTORY_BYTES else _check_entries(fd, begin, end, count)


def _find_directory(fd: int, size: int) -> Optional[Tuple[int, int, int]]:
    """Return where a zip's directory begins and ends, and its entries; None for a file that does not end with it."""
    tail_at = max(0, size - _END.size - 0xFFFF)
    tail = os.pread(fd, size - tail_at, tail_at)
    place = tail.rfind(b"PK\x05\x06")
    while place >= 0:
        if place + _END.size <= len(tail):
            _, count, length, begin, comment = _END.unpack_from(tail, place)
            if place + _END.size + comment == len(tail):
                return _widen(fd, tail_at + place, (begin, length, count))
        place = tail.rfind(b"PK\x05\x06", 0, place)
    return None


def _widen(fd: int, end: int, said: Tuple[int, int, int]) -> Optional[Tuple[int, int, int]]:
    """Return begin, end and entries of a directory that must lie right before the records at `end`; zip64 has its own."""
    begin, length, count = said
    locator = os.pread(fd, _LOCATOR.size, end - _LOCATOR.size) if end >= _LOCATOR.size else b""
    if locator.startswith(b"PK\x06\x07"):
        place = _LOCATOR.unpack(locator)[1]
        record = os.pread(fd, _END64.size, place) if place < end else b""
        if len(record) < _END64.size or not record.startswith(b"PK\x06\x06"):
            return None
        _, count, length, begin = _END64.unpack(record)
        end = place
    return (begin, end, count) if begin + length == end and count else None


def _check_entries(fd: int, begin: int, end: int, count: int) -> bool:
    """Tell whether a directory has exactly so many entries, each of which lies before it with its local header."""
    data, place, left = b"", 0, begin
    for _ in range(count):
        if len(data) - place < _ENTRY.size + 3 * 0xFFFF and left < end:
            piece = os.pread(fd, min(PIECE, end - left), left)
            data, place, left = data[place:] + piece, 0, left + len(piece)
        if place + _ENTRY.size > len(data):
            return False
        signature, packed, plain, name, extra, comment, offset = _ENTRY.unpack_from(data, place)
        more = place + _ENTRY.size + name
        wide = _read_wide(data[more : more + extra], (plain, packed, offset))
        if signature != b"PK\x01\x02" or wide is None or not _lies_before(fd, wide, begin):
            return False
        place = more + extra + comment
    return left == end and place == len(data)


def _read_wide(extra: bytes, said: Tuple[int, int, int]) -> Optional[Tuple[int, int]]:
    """Return an entry's packed size and offset: from its zip64 field where the fields of 32 bits are full."""
    wide = _find_wide(extra)
    found = []
    for value in said:
        if value == 0xFFFFFFFF:
            if len(wide) < 8:
                return None
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]  # noqa: PLW2901  (the same size, in full)
        found.append(value)
    return found[1], found[2]


def _find_wide(extra: bytes) -> bytes:
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            return extra[4 : 4 + length]
        extra = extra[4 + length :]
    return b""


def _lies_before(fd: int, wide: Tuple[int, int], begin: int) -> bool:
    packed, offset = wide
    head = os.pread(fd, _LOCAL.size, offset) if offset < begin else b""
    if len(head) < _LOCAL.size:
        return False
    signature, name, extra = _LOCAL.unpack(head)
    return bool(signature == b"PK\x03\x04" and offset + _LOCAL.size + name + extra + packed <= begin)
