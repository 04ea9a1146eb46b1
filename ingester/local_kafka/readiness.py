"""Whether a broker answers, asked in Kafka's own protocol over a plain socket.

An open port says little: a broker listens before it has joined its cluster. A Metadata answer that
lists every broker expected says that topics can be made and records written.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

_ATTEMPT_SECONDS_MAX = 2.0
_PAUSE_SECONDS = 0.1
_CORRELATION_ID = 1
# Metadata (key 3), version 1, no client id, an empty list of topics: the brokers alone.
# https://kafka.apache.org/protocol#The_Messages_Metadata
_METADATA_REQUEST = struct.pack(">hhihi", 3, 1, _CORRELATION_ID, -1, 0)


def brokers_known(address: str) -> int:
    """How many live brokers the one at `address` (host:port) knows; OSError when it is silent."""
    host, _, port = address.rpartition(":")
    with socket.create_connection(
        (host.strip("[]"), int(port)), _ATTEMPT_SECONDS_MAX
    ) as connection:
        connection.sendall(struct.pack(">i", len(_METADATA_REQUEST)) + _METADATA_REQUEST)
        with connection.makefile("rb") as answer:
            head = answer.read(12)
    if len(head) < 12:
        raise ConnectionError(f"{address} closed the connection instead of answering")
    _, correlation_id, brokers = struct.unpack(">iii", head)
    if correlation_id != _CORRELATION_ID:
        raise ConnectionError(f"{address} does not speak Kafka's protocol")
    return int(brokers)


def wait_for_brokers(
    bootstrap_servers: str, brokers: int, *, seconds_max: float, ended: Callable[[], bool]
) -> bool:
    """Wait until every server knows that many brokers; False when `ended`, or too late."""
    deadline = time.monotonic() + seconds_max
    waiting = bootstrap_servers.split(",")
    while True:
        waiting = [address for address in waiting if not _knows(address, brokers)]
        if not waiting:
            return True
        if ended() or time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_SECONDS)


def _knows(address: str, brokers: int) -> bool:
    try:
        return brokers_known(address) >= brokers
    except OSError:
        return False
