"""What arrives in pieces: a manifest, and batches of blobs. The reply to the request comes after the END."""

from __future__ import annotations

from remote_train.host import layout, store

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, List

    from remote_train.host.operations import Operations


class ManifestUpload:
    """A manifest on its way in."""

    LIMIT = 64 << 20

    def __init__(self, operations: Operations, request: Dict[str, Any]) -> None:
        self.operations = operations
        self.id = request["id"]
        self.stream = request["stream"]
        self.package = request["package"]
        self.base = request.get("base")
        self.parts: List[bytes] = []
        self.size = 0
        if not layout.is_hash(self.package) or not (self.base is None or layout.is_hash(self.base)):
            raise ValueError("not a package id")

    def data(self, payload: bytes) -> None:
        """Take a piece."""
        self.size += len(payload)
        if self.size > self.LIMIT:
            raise ValueError("a manifest over %d bytes" % self.LIMIT)
        self.parts.append(payload)

    def end(self) -> None:
        """Keep it, or say that its base is not here."""
        import json  # noqa: PLC0415  (loaded already by wire; the name is needed only here)
        import zlib  # noqa: PLC0415

        del self.operations.uploads[self.stream]
        try:
            delta = json.loads(zlib.decompressobj().decompress(b"".join(self.parts), self.LIMIT))
        except (zlib.error, RecursionError) as error:
            raise store.StoreError("the manifest arrived damaged: %s" % error) from None
        stored = store.store_package(self.operations.root, self.package, self.base, delta)
        self.operations.connection.send({"id": self.id, "ok": {"stored": stored}})

    def abandon(self) -> None:
        """Nothing of it was written."""


class BlobUpload:
    """A batch of blobs on its way in."""

    def __init__(self, operations: Operations, request: Dict[str, Any]) -> None:
        self.operations = operations
        self.id = request["id"]
        self.stream = request["stream"]
        items = [(item[0], item[1]) for item in request["items"]]
        self.writer = store.BatchWriter(operations.root, items, compressed=bool(request["zlib"]))
        self.failed = False

    def data(self, payload: bytes) -> None:
        """Take a piece."""
        if self.failed:
            return
        try:
            self.writer.write(payload)
        except (store.StoreError, OSError):
            self.failed = True
            self.writer.abandon()
            raise

    def end(self) -> None:
        """Say how many were stored."""
        del self.operations.uploads[self.stream]
        if not self.failed:
            self.operations.connection.send({"id": self.id, "ok": {"stored": self.writer.close()}})

    def abandon(self) -> None:
        """Drop the blob that was being written."""
        self.writer.abandon()
