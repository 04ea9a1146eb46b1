"""What the topics of the ingester's own have to look like, and what is wrong with one.

Pure: kafka_admin looks, and creates what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

USAGE_PARTITIONS_ADVISED: Final = 8  # as many workers at most share a topic
DEAD_LETTER_PARTITIONS: Final = 1  # dead letters are few, and read by people

# A dead letter is money until somebody has looked at it, and a receipt is what an invoice is
# explained by: neither expires. A dead letter is larger than the record it holds, by its headers,
# and a receipt names every key of its batch, which may be thousands.
KEPT_TOPIC_CONFIG: Final = MappingProxyType(
    {"cleanup.policy": "delete", "retention.ms": "-1", "max.message.bytes": str(16 * 1024 * 1024)}
)
# The first index entry in a new segment makes a broker's system read ahead in a file of 10 MiB, for
# which all others wait: where it reads 8 MiB ahead, 24 ms for each partition, 12 s for 512. 128 KiB
# take 0.1 ms, and with an entry for each 128 KiB of records they still last for a whole segment.
SMALL_INDEXES_CONFIG: Final = MappingProxyType(
    dict.fromkeys(("segment.index.bytes", "index.interval.bytes"), str(128 * 1024))
)
_FOR_EVER: Final = "-1"
_HEADERS_BYTES_MAX: Final = 8 * 1024  # a dead letter's own: a detail, PacSpace's answer of 2 KiB


class Flaw(NamedTuple):
    """What is wrong with a topic, and the setting of it that mends it."""

    text: str
    name: str
    value: str
    loses: bool
    """Whether records are lost by it that were written well."""


def flaws(config: Mapping[str, str], record_bytes_max: int) -> Iterator[Flaw]:
    """What keeps a topic from holding records of a size for ever."""
    policy = config.get("cleanup.policy", "delete")
    if "compact" in policy:
        text = f"cleanup.policy is {policy}, which removes what has the key of a later record"
        yield Flaw(text, "cleanup.policy", "delete", loses=True)
    if "delete" in policy:
        for name, unit in (("retention.ms", "milliseconds"), ("retention.bytes", "bytes")):
            if config.get(name, _FOR_EVER) != _FOR_EVER:
                text = f"{name} is {config[name]}: it keeps its records for so many {unit} only"
                yield Flaw(text, name, _FOR_EVER, loses=False)
    size = config.get("max.message.bytes")
    if size is not None and int(size) < record_bytes_max:
        text = f"max.message.bytes is {size}, and a record may take {record_bytes_max}"
        yield Flaw(text, "max.message.bytes", str(record_bytes_max), loses=False)


def dead_letter_bytes_max(sources: Iterable[Mapping[str, str] | None]) -> int:
    """The largest dead letter that records of topics with these settings can become, if known."""
    sizes = (config["max.message.bytes"] for config in sources if config)
    largest = max(map(int, sizes), default=0)
    return largest and largest + _HEADERS_BYTES_MAX
