"""How moments are told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ingester.moments import age, age_seconds, iso

NOW = datetime(2025, 6, 10, 14, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "told"),
    [
        (NOW - timedelta(days=1, minutes=12, seconds=41.9), "1 day, 0:12:41"),
        (NOW + timedelta(seconds=5), "0:00:00"),
        (None, "-"),
    ],
)
def test_an_age_is_told_in_whole_seconds(moment: datetime | None, told: str) -> None:
    """None below zero, whatever a producer's clock says, and a dash where it is not known."""
    assert age(moment, NOW) == told


def test_what_is_not_known_has_no_number_and_no_text() -> None:
    """Documents have null there."""
    assert (age_seconds(None, NOW), iso(None)) == (None, None)


def test_a_moment_is_told_with_its_offset() -> None:
    """To the millisecond, or to the second where it is known no better."""
    assert iso(NOW) == "2025-06-10T14:30:00.000+00:00"
    assert iso(NOW, "seconds") == "2025-06-10T14:30:00+00:00"
