"""This machine as a host: the same command behind the same kind of stream, without a network."""

from __future__ import annotations

from remote_train.errors import ConnectionLost
from remote_train.transport.child import Child


class LocalTransport:
    """Runs the command under /bin/sh in a session of its own, so that a Ctrl-C at the terminal does not reach it."""

    name = "local"

    def __init__(self) -> None:
        self._channel: LocalChannel | None = None

    def open(self, command: str) -> LocalChannel:
        """Start `command`; raise ConnectionLost when this machine cannot start a process."""
        self.close()
        try:
            self._channel = LocalChannel(command)
        except OSError as error:
            raise ConnectionLost(f"local: {error}") from error
        return self._channel

    def close(self) -> None:
        """Close the channel that is open."""
        if self._channel:
            self._channel.close()
            self._channel = None


class LocalChannel(Child):
    """A command under /bin/sh."""

    def __init__(self, command: str) -> None:
        super().__init__(LocalTransport.name, ["/bin/sh", "-c", command], start_new_session=True)
