"""How many dead letters are too many."""

from __future__ import annotations

import pytest

from ingester.core.deadletter import DeadLetterLimit, DeadLetterWindow, origin_of
from ingester.core.record import TopicPartition


def window(
    count_max: int = 4, share_max: float = 0.5, window_seconds: float = 60.0
) -> DeadLetterWindow:
    return DeadLetterWindow(DeadLetterLimit(count_max, share_max, window_seconds))


@pytest.mark.parametrize(
    ("records", "dead_letters", "too_many"),
    [(4, 4, False), (5, 5, True), (10, 5, False), (9, 5, True), (100, 50, False), (99, 50, True)],
)
def test_more_than_the_count_and_more_than_the_share_is_too_many(
    records: int, dead_letters: int, too_many: bool
) -> None:
    """Both bounds have to be crossed: reaching them is allowed."""
    assert bool(window().add(0.0, records, dead_letters)) == too_many


def test_it_says_how_many_of_how_many() -> None:
    """And which settings would let them pass."""
    assert window().add(0.0, 7, 6) == (
        "6 of 7 records within 60 s are dead letters"
        " (INGESTER_DEAD_LETTERS_MAX, INGESTER_DEAD_LETTER_SHARE_MAX)"
    )


def test_batches_of_a_window_are_counted_together() -> None:
    """However they come; a good one after too many does not make them less."""
    counting = window()
    assert counting.add(0.0, 3, 3) is None
    assert counting.add(20.0, 2, 1) is None
    assert counting.add(40.0, 2, 1) is not None
    counting.add(41.0, 3, 0)

    assert counting.add(42.0, 0, 1) is not None


def test_a_batch_without_dead_letters_is_never_too_much() -> None:
    """Though the good ones that were before it leave the window, and the share grows by that."""
    counting = window()
    assert counting.add(0.0, 1000, 0) is None
    assert counting.add(30.0, 10, 9) is None
    assert counting.add(61.0, 1, 0) is None

    assert counting.add(62.0, 1, 1) is not None


def test_what_is_older_than_the_window_counts_no_more() -> None:
    """A few each minute, for ever, are bad data and no deployment."""
    counting = window()
    for minute in range(100):
        assert counting.add(minute * 60.0, 4, 4) is None


def test_the_window_slides_by_tenths() -> None:
    """What came within six seconds goes together, with the first of it."""
    counting = window()
    counting.add(0.0, 2, 2)
    counting.add(5.9, 2, 2)
    counting.add(6.0, 1, 0)
    assert counting.add(59.9, 1, 1) is not None

    assert counting.add(60.0, 1, 1) is None


def test_a_long_window_takes_no_more_memory_than_a_short_one() -> None:
    """Ten or eleven sums, however many batches it holds."""
    counting = window(window_seconds=86400.0)
    for second in range(100_000):
        counting.add(float(second), 100, 0)

    assert len(counting._buckets) <= 11


def test_without_a_count_the_share_alone_counts() -> None:
    """With none of both, the first dead letter is too much."""
    assert window(count_max=0).add(0.0, 2, 1) is None
    assert window(count_max=0).add(0.0, 1, 1) is not None
    assert window(count_max=0, share_max=0.0).add(0.0, 1000, 1) is not None


def test_a_share_of_all_is_no_limit() -> None:
    """Nor for records that were counted long before PacSpace refused them."""
    counting = window(share_max=1.0)
    assert counting.add(0.0, 100, 100) is None
    for late in range(100):
        assert counting.add(100.0 + late / 100, 0, 1) is None


def test_records_that_are_refused_late_are_records_of_that_window() -> None:
    """A share of more than all would be a sentence that nobody understands."""
    counting = window()
    for late in range(4):
        assert counting.add(float(late), 0, 1) is None
    why = counting.add(5.0, 0, 1)

    assert why is not None
    assert why.startswith("5 of 5 records within 60 s")


HEADERS = [
    ("ingester-error-code", b"refused"),
    ("ingester-error-detail", b"no such account"),
    ("ingester-source-topic", b"usage"),
    ("ingester-source-partition", b"3"),
    ("ingester-source-offset", b"17"),
    ("ingester-dead-lettered-at", b"2025-06-10T14:30:00.000+00:00"),
    ("ingester-http-status", b"422"),
    ("ingester-http-body", b"{}"),
]


def test_a_dead_letter_says_where_it_came_from() -> None:
    """What the headers of the last writer say, whatever the record's own are."""
    own = [("trace", b"1"), ("ingester-source-topic", b"another"), ("ingester-error-code", None)]

    origin = origin_of([*own, *HEADERS])

    assert origin is not None
    assert origin.partition == TopicPartition("usage", 3)
    assert origin[1:-1] == (17, "refused", "no such account", 422, b"{}")
    assert origin.dead_lettered_at == "2025-06-10T14:30:00.000+00:00"


@pytest.mark.parametrize("missing", range(5))
def test_what_lacks_a_header_is_no_dead_letter(missing: int) -> None:
    """Only the answer of PacSpace, and the sentence, may be missing."""
    left = [each for number, each in enumerate(HEADERS[:5]) if number != missing]

    assert (origin_of(left) is None) == (HEADERS[missing][0] != "ingester-error-detail")


@pytest.mark.parametrize("content", [b"x", b"", b"\xff", None, b"-5", b"9223372036854775808"])
def test_a_foreign_position_is_no_dead_letters(content: bytes | None) -> None:
    """Somebody else's record in the topic is passed over."""
    assert origin_of([*HEADERS, ("ingester-source-offset", content)]) is None
