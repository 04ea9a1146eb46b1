"""How many requests a second may start: a token bucket, kept as the time when it will be full.

This is the generic cell rate algorithm (ITU-T I.371): one number instead of tokens that are counted
up, hence nothing to do between requests and an exact answer to when the next may start. The times
of requests are counted from the last idle moment, so that rounding errors do not add up.
"""

from __future__ import annotations

_BURST_SECONDS = 0.1  # what was not used for so long may be used at once, and no more


class Rate:
    """Lets `requests_per_second` start, after a pause a tenth of them at once; None is any."""

    def __init__(self, requests_per_second: float | None) -> None:
        assert requests_per_second is None or requests_per_second > 0
        self._interval_seconds = 0.0 if requests_per_second is None else 1 / requests_per_second
        self._ahead_seconds = max(0.0, _BURST_SECONDS - self._interval_seconds)
        self._idle_at = float("-inf")  # when the bucket was last full and a request was taken
        self._taken = 0  # requests since then
        self.start_at = float("-inf")
        """When the next request may start, by the clock that `take` is told; may be past."""

    def take(self, now: float) -> None:
        """Count a request that starts now; `now` is not before `start_at`."""
        assert now >= self.start_at
        if self._idle_at + self._taken * self._interval_seconds < now:
            self._idle_at = now
            self._taken = 0
        self._taken += 1
        full_at = self._idle_at + self._taken * self._interval_seconds
        self.start_at = full_at - self._ahead_seconds
