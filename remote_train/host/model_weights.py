"""Write the model of a checkpoint as safetensors. Run by the training's own Python; the job comes as a line on stdin.

It gives way to the training, and ends when stdin does: then the laptop is gone. Prints one marked line of JSON: what it
wrote, or why not. Imports torch only inside the functions that need it.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import struct
import sys
import threading
from typing import Any, BinaryIO, Dict, Mapping, Optional, Sequence, Tuple, Union

from remote_train.host.disk import drop, free_bytes, name_place
from remote_train.host.durable import sync_folder
from remote_train.host.model_files import FORMATS, Refused, Tensor, check_unchanged, read_source

MARKER = "remote-train weights: "
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
CONVERTED = ("float64", "float32", "float16", "bfloat16")
"""Eight-bit floats come with scales of their own: they stay as they are."""


def convert(tensor: Any, name: str, dtype: str) -> Any:  # noqa: ANN401  (torch)
    """Return a tensor with its numbers in order and in this dtype; raise Refused where they do not fit it."""
    import torch  # noqa: PLC0415  (this module is read by Pythons without torch)

    wanted = getattr(torch, dtype)
    if tensor.dtype == wanted:
        return tensor.detach().contiguous()
    result = tensor.detach().to(wanted).contiguous()
    if dtype == "float16" and int(result.isinf().sum()) != int(tensor.isinf().sum()):
        raise Refused("pull-incomplete", "%s has numbers that fp16 cannot hold; bf16 can" % name)
    return result


def plan_layout(tensors: Dict[str, Tensor], target: Optional[str]) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """Return the header's entries in the order of their bytes, and what is stored under another's name."""
    import torch  # noqa: PLC0415  (this module is read by Pythons without torch)

    kept: Dict[Any, str] = {}
    tied = {}
    planned = []
    for name, tensor in sorted(tensors.items()):
        first = kept.setdefault(tensor.storage, name)
        if first != name:
            tied[name] = first
            continue
        dtype = target if target and tensor.dtype in CONVERTED else tensor.dtype
        planned.append((torch.empty((), dtype=getattr(torch, dtype)).element_size(), name, dtype))
    entries: Dict[str, Any] = {}
    at = 0
    for width, name, dtype in sorted(
        planned, key=lambda item: (-item[0], item[1])
    ):  # so that each is aligned
        shape = tensors[name].shape
        end = at + width * math.prod(shape)
        entries[name] = {"dtype": FORMATS[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    return entries, tied


def make_header(entries: Dict[str, Any], metadata: Dict[str, str]) -> bytes:
    """Return a safetensors header with its length before it; the data begins at a multiple of eight bytes."""
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def view_bytes(tensor: Any) -> memoryview:  # noqa: ANN401  (torch)
    """Return the bytes of a contiguous tensor, where they lie; of any dtype, and without NumPy."""
    import ctypes  # noqa: PLC0415

    size = tensor.numel() * tensor.element_size()
    return (
        memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")
        if size
        else memoryview(b"")
    )


def write_tensors(file: BinaryIO, tensors: Dict[str, Tensor], entries: Dict[str, Any]) -> None:
    """Write the tensors in the order of the header, one in memory at a time beside what was loaded."""
    names = {form: dtype for dtype, form in FORMATS.items()}
    for name, entry in entries.items():
        tensor = convert(tensors[name].load(), name, names[entry["dtype"]])
        file.write(view_bytes(tensor))


def write_weights(job: Mapping[str, Any], files: Sequence[BinaryIO], path: str) -> None:
    """Write the model in a job's files to a new file, and sync it; raise Refused or OSError."""
    tensors, step = read_source(files, still=job["still"])
    dtype = DTYPES.get(job["dtype"] or "")
    entries, tied = plan_layout(tensors, dtype)
    header = make_header(entries, make_metadata(job["source"], step, dtype, tied))
    size = len(header) + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    check_space(os.path.dirname(path), size + job["spare"])
    with open(path, "wb") as file:
        file.write(header)
        write_tensors(file, tensors, entries)
        file.flush()
        os.fsync(file.fileno())


def make_metadata(
    source: str, step: Optional[int], dtype: Optional[str], tied: Mapping[str, str]
) -> Dict[str, str]:
    """Return what the file says of itself; what is stored under another's name is `tied`, in JSON."""
    import torch  # noqa: PLC0415  (this module is read by Pythons without torch)

    metadata = {"format": "pt", "source": source, "torch": str(torch.__version__)}
    more = {"step": step, "dtype": dtype, "tied": json.dumps(tied, sort_keys=True) if tied else None}
    metadata.update({key: str(value) for key, value in more.items() if value is not None})
    return metadata


def check_space(folder: str, need: int) -> None:
    """Raise OSError when the disk has not these bytes; what is spared is for the training's next checkpoint."""
    if need > free_bytes(folder):
        raise name_place(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), folder, need)


def clear(folder: str, begin: str, keep: str) -> None:
    """Remove older versions of the same source, and what was being written by one that was killed."""
    for name in os.listdir(folder):
        if name != keep and (name.endswith(".tmp") or name.startswith(begin)):
            os.unlink(os.path.join(folder, name))


def name_temporary(target: str) -> str:
    """Return what our file is called until it is whole."""
    return "%s.%d.tmp" % (target, os.getpid())


def publish(job: Mapping[str, Any]) -> None:
    """Write the weights under their final name, unless they are there: whole, or not at all."""
    folder, name = os.path.split(job["target"])
    temporary = name_temporary(job["target"])
    with open(os.path.join(folder, "lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two laptops, or one that came back, wait for each other
        if os.path.exists(job["target"]):
            return
        clear(folder, name.partition("-")[0], name)
        try:
            write_one_version(job, temporary)
            os.replace(temporary, job["target"])
        finally:
            drop(temporary)
        sync_folder(folder)


def write_one_version(job: Mapping[str, Any], path: str) -> None:
    """Write what the files of a job held when it was made; raise Refused when somebody writes to them meanwhile."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(source, "rb")) for source in job["files"]]
        check_unchanged(files, job["identity"])
        try:
            write_weights(job, files, path)
        finally:  # whatever went wrong in a file that changed, that is why
            check_unchanged(files, job["identity"])


def be_modest() -> None:
    """Give way to the training: in time, and in what the kernel ends first when memory runs out."""
    os.nice(19)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        return  # not Linux


def watch_stdin(path: str) -> None:
    """End this process when nobody waits for it any more."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        drop(path)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read_line() -> bytes:
    """Return the first line of stdin, not a byte more: the rest of it is watched."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


def work(job: Mapping[str, Any]) -> Dict[str, Any]:
    """Do the job and return what the agent is told."""
    try:
        _prepare_torch()
        publish(job)
    except OSError as error:
        return {"errno": error.errno, "path": error.filename, "need": getattr(error, "need", None)}
    except (Refused, ImportError, MemoryError) as error:
        return _explain(error)
    except (KeyError, TypeError, ValueError, EOFError, struct.error) as error:
        return {"kind": "pull-incomplete", "message": "it cannot be read: %r" % (error,)}
    return {"ok": True}


def _prepare_torch() -> None:
    import torch  # noqa: PLC0415  (this module is read by Pythons without torch)

    if not hasattr(torch.Tensor, "untyped_storage"):
        raise Refused("host-unfit", "torch %s is too old: 2.0 is needed" % torch.__version__)
    torch.set_num_threads(1)


def _explain(error: "Union[Refused, ImportError, MemoryError]") -> Dict[str, Any]:
    if isinstance(error, Refused):
        return {"kind": error.kind, "message": str(error)}
    if isinstance(error, MemoryError):
        return {"kind": "host-unfit", "message": "there is not enough memory to read it"}
    return {"kind": "host-unfit", "message": "torch does not work there: %s" % error}


def main() -> None:
    """Take a job, do it, and print the marked line."""
    job = json.loads(read_line().decode("utf-8"))
    be_modest()
    watch_stdin(name_temporary(job["target"]))
    answer = work(job)
    sys.stdout.write("\n%s%s\n" % (MARKER, json.dumps(answer)))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
