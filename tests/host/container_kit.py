"""Bytes of small checkpoints, made by hand so that most tests need no torch."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def make_safetensors(tensors: dict[str, bytes], **metadata: str) -> bytes:
    """Return a safetensors file of byte tensors."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(tensors.values())


def make_zip(contents: dict[str, bytes], *, comment: bytes = b"", wide: bool = False) -> bytes:
    """Return a zip as torch.save lays it out, stored and not packed; `wide`: with zip64 fields where they may be."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = comment
        for name, data in contents.items():
            with archive.open(name, "w", force_zip64=wide) as entry:
                entry.write(data)
    return stream.getvalue()


def make_index(folder: Path, weights: dict[str, str], name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weights}))
