"""What the ingester's own topics are made with."""

from __future__ import annotations

from ingester.kafka.topics import SMALL_INDEXES_CONFIG

SEGMENT_BYTES = 2**30  # unless the topic or the brokers say otherwise
ENTRY_BYTES_MAX = 12  # of the index by time; those of the one by offset take 8


def test_a_small_index_lasts_for_a_segment() -> None:
    """Otherwise a segment would end when its index is full, and brokers keep more files open."""
    config = {name: int(value) for name, value in SMALL_INDEXES_CONFIG.items()}
    entries = config["segment.index.bytes"] // ENTRY_BYTES_MAX

    assert entries * config["index.interval.bytes"] > SEGMENT_BYTES
