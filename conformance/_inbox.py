"""Messages as ``multiprocessing.connection`` writes them, read without ever waiting for the rest of one."""

from __future__ import annotations

import os
import struct

__all__ = ["Inbox"]

# No answer is as long: what announces more was written by somebody else.
LONGEST = 2**30


class Inbox:
    """What has come through a file descriptor so far.

    A connection's own ``recv`` waits until a message is whole. If the implementation under test has written into the
    connection, the rest may never come.

    Examples
    --------
    >>> inbox = Inbox()
    >>> inbox.add(struct.pack("!i", 3) + b"ab"), inbox.message(), inbox.add(b"c"), inbox.message()
    (None, None, None, b'abc')
    """

    def __init__(self) -> None:
        self._come = bytearray()

    def read(self, fd: int) -> None:
        """Take what is there; the descriptor must have something, or be at its end.

        Raises
        ------
        EOFError
            At its end.
        """
        come = os.read(fd, 2**20)
        if not come:
            raise EOFError
        self.add(come)

    def add(self, come: bytes) -> None:
        """Take some bytes."""
        self._come += come

    def message(self) -> bytes | None:
        """The next message, if it is whole.

        Raises
        ------
        ValueError
            If what has come is no message.
        """
        if len(self._come) < 4:
            return None
        (length,), head = struct.unpack_from("!i", self._come), 4
        if length == -1:  # of a message beyond 2 GiB
            raise ValueError("a message of more than 2 GiB")
        if not 0 <= length <= LONGEST:
            raise ValueError(f"a message of {length} bytes")
        if len(self._come) < head + length:
            return None
        content = bytes(self._come[head : head + length])
        del self._come[: head + length]
        return content
