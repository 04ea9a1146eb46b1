"""As much of HTTP/1.1 as the endpoint and its load generator need to talk at full speed."""

from __future__ import annotations

import re
from typing import NamedTuple

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)


class Message(NamedTuple):
    """One request or response: its head without the blank line, its body, the bytes behind it."""

    head: bytes
    body: bytes
    rest: bytes


def split_message(buffer: bytes) -> Message | None:
    """Take the first message off the buffer, or None when it is not complete yet.

    Raises ValueError for a chunked body: everything here states its length.
    """
    head_end = buffer.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = buffer[:head_end]
    found = _LENGTH.search(head)
    if found is None and _CHUNKED.search(head):
        raise ValueError("a chunked body; only bodies of a stated length are understood")
    body_start = head_end + 4
    body_end = body_start + (int(found[1]) if found else 0)
    if len(buffer) < body_end:
        return None
    return Message(head, buffer[body_start:body_end], buffer[body_end:])
