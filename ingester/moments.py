"""How moments are told: ages to people, ISO 8601 to everybody."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal


def age_seconds(moment: datetime | None, now: datetime) -> int | None:
    """How long ago a moment was, 0 for one to come; None where it is not known."""
    return None if moment is None else max(0, int((now - moment).total_seconds()))


def age(moment: datetime | None, now: datetime) -> str:
    """The same for a cell of a table, as `1 day, 0:12:41`."""
    seconds = age_seconds(moment, now)
    return "-" if seconds is None else str(timedelta(seconds=seconds))


def iso(
    moment: datetime | None, timespec: Literal["seconds", "milliseconds"] = "milliseconds"
) -> str | None:
    """A moment with its offset from UTC; None where it is not known."""
    return moment.isoformat(timespec=timespec) if moment else None
