"""Records that a broker takes and no client of this kind can read."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c

_CHECKSUM, _CHECKED = 17, 21  # where they are in a record batch


async def produce_unreadable(
    servers: str, topic: str, values: Sequence[bytes], index: int, *, partition: int = 0
) -> None:
    """Write one record batch; the record at the index has a header name that is no UTF-8."""
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
        batch = producer.create_batch()
        for number, value in enumerate(values):
            headers = [("n?me", b"")] if number == index else []
            batch.append(timestamp=None, key=None, value=value, headers=headers)
        written = batch._build()
        at = written.index(b"n?me")
        written[at : at + 4] = b"n\xffme"
        struct.pack_into(">I", written, _CHECKSUM, calc_crc32c(bytes(written[_CHECKED:])))
        await (await producer.send_batch(batch, topic, partition=partition))
