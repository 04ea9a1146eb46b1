"""How many requests may be open: found by trials of more or fewer, of which the good are kept.

A trial measures the latency at another limit. By Little's law that says whether more requests bring
more answers a second, and fewer as many; so a slow endpoint is not taken for a congested one. Its
ancestors are TCP's slow start, Vector's adaptive request concurrency and Netflix's gradient. What a
request was refused at is kept away from for a while; after an outage or a hold all begins anew.
"""

from __future__ import annotations

_LIMIT_AT_START = 4  # three doublings below 32: 0.3 s at 20 ms, 1 s at 100 ms
_STEP_SHARE = 4  # a trial goes up or down by this part; less would drown in the noise of a round
_ROUND_SECONDS_MIN = 0.2  # a busy machine stalls for up to some 30 ms, many requests at a time
_ROUND_TRIPS_MAX = 16  # a round ends after so many answers per request, precise or not
_HASTE = 4  # rounds are so much shorter while the limit doubles: the step is larger, too
_ERROR_MAX = 0.1  # standard error of a round's mean latency, relative, below which it is precise
_ROUNDS_BETWEEN_MAX = 32  # between trials that all fail, or of fewer than all; they cost a percent
_SMOOTHING = 0.4  # weight of a new round in the latency at a limit; Vector's
_JUMP = 2.0  # factor on that latency, up or down, after which a trial is due next
_DECREASE = 0.9  # after a refusal; Vector's and Netflix's
_PATIENCE_SECONDS_MIN = 10.0  # for which a limit that was refused is kept away from; it doubles
_PATIENCE_SECONDS_MAX = 120.0  # each visit costs a hold of a second or more
_PATIENCE_LOST_SECONDS = 600.0  # without a refusal, after which it begins at its minimum again

# How much latency may grow with the limit, as the exponent of their ratio. At 0 a limit of twice as
# many brings twice the answers, at 1 no more than before, above 1 fewer: more only do harm.
_GROWTH_MAX = 0.5
_GROWTH_MAX_DOUBLING = 0.8  # a doubling too many is undone within a second, one too few takes more
_GROWTH_MAX_QUIET = 1.25  # latency may be this worker's own: more are kept unless they do harm
_QUIET_SECONDS = 0.03  # latency up to here is quiet


class Concurrency:
    """Is told of every answer and says in `limit` how many requests may be open: 1 to `limit_max`.

    `in_flight` counts the requests that were open when the answer came, with the one it is to;
    `latency_seconds` is from the start of a request to its answer, or to the end of waiting for it.
    All times are by one monotonic clock.
    """

    def __init__(self, limit_max: int) -> None:
        assert limit_max >= 1
        self._limit_max = limit_max
        self._ceiling = limit_max  # written by refusals, in force until `_ceiling_until`
        self._ceiling_until = float("-inf")
        self._patience_seconds = 0.0
        self._refused_at = float("-inf")
        self._deviation = 0.0  # of a round's latency from those before it at the same limit, smooth
        self._restart(float("-inf"))

    def answered(self, now: float, latency_seconds: float, in_flight: int) -> None:
        """Take an answer that shows the endpoint at work, whatever it thinks of the batch."""
        self._failures_in_row = 0
        if now - latency_seconds >= self._changed_at:
            self._good_count += 1
            self._good_seconds += latency_seconds
            self._good_squares += latency_seconds * latency_seconds
            self._count(now, in_flight)

    def failed(self, now: float, latency_seconds: float, in_flight: int) -> None:
        """Take an error or a lost answer; as many in a row as may be open are an outage."""
        self._failures_in_row += 1
        if self._failures_in_row >= self.limit:
            self._restart(now)
        elif now - latency_seconds >= self._changed_at:
            self._bad_count += 1
            self._count(now, in_flight)

    def refused(self, now: float, latency_seconds: float, in_flight: int) -> None:
        """Take an answer that asks for less; what was sent before the last of them is no news."""
        if now - latency_seconds <= self._refused_at:
            return
        if in_flight > 1:  # one that was alone is not refused because of how many there are
            known = now - self._refused_at < _PATIENCE_LOST_SECONDS
            patience = 2 * self._patience_seconds if known else 0.0
            self._patience_seconds = min(
                max(_PATIENCE_SECONDS_MIN, patience), _PATIENCE_SECONDS_MAX
            )
            # Fewer were good before this trial; without one all that is known is that it is less.
            rising = 0 < self._tried_from < self.limit
            less = int(min(in_flight, self.limit) * _DECREASE)
            self._ceiling = self._tried_from if rising else max(1, less)
            self._ceiling_until = now + self._patience_seconds
        self._refused_at = now
        self._restart(now)

    def held(self, now: float) -> None:
        """Begin anew: the endpoint wants nothing for a while, for reasons other than load."""
        self._restart(now)

    def _restart(self, now: float) -> None:
        self._failures_in_row = 0
        self._doubling = (
            2  # trials that double may fail, where latency is quiet; at 0 steps are small
        )
        self._upward = True  # where the next trial goes
        self._tried_from = 0  # the limit to return to from a trial; 0 between trials
        self._latency_seconds = 0.0  # what a trial is compared with; 0 is not known
        self._rounds_between = 1  # trials; doubled by each that is not kept
        self._rounds_left = 1
        self._set_limit(min(_LIMIT_AT_START, self._highest(now)), now)

    def _highest(self, now: float) -> int:
        return self._ceiling if now < self._ceiling_until else self._limit_max

    def _set_limit(self, limit: int, now: float) -> None:
        """Begin a round at this limit, once as many as it allows were sent and answered."""
        self.limit = limit
        self._changed_at = now  # answers to what was sent before do not count
        self._settling = True
        self._begin_round(now)

    def _begin_round(self, now: float) -> None:
        seconds = _ROUND_SECONDS_MIN / _HASTE if self._doubling else _ROUND_SECONDS_MIN
        self._round_until = now if self._settling else now + seconds
        self._answers_left = self.limit
        self._reached = False
        self._good_count = 0
        self._good_seconds = 0.0
        self._good_squares = 0.0
        self._bad_count = 0

    def _count(self, now: float, in_flight: int) -> None:
        self._reached = self._reached or in_flight >= self.limit
        self._answers_left -= 1
        if self._answers_left > 0 or now < self._round_until:
            return
        if self._settling:
            self._settling = False
            self._begin_round(now)
        elif not self._reached or not self._good_count:
            # How many more could be open is not known, nor if fewer would do.
            self._begin_round(now)
        elif self._is_precise():
            self._end_round(now)

    def _is_precise(self) -> bool:
        trips_max = _ROUND_TRIPS_MAX // _HASTE if self._doubling else _ROUND_TRIPS_MAX
        if self._answers_left <= -(trips_max - 1) * self.limit:
            return True
        # The squared standard error of the mean, times n squared, against that of the mean itself.
        error = self._good_squares - self._good_seconds**2 / self._good_count
        return error <= (_ERROR_MAX * self._good_seconds) ** 2

    def _end_round(self, now: float) -> None:
        # A request that fails delays a good answer by its share.
        share = self._good_count / (self._good_count + self._bad_count)
        latency_seconds = self._good_seconds / self._good_count / share
        usual_seconds = self._latency_seconds
        if self._tried_from:
            self._judge(latency_seconds, now)
        elif not usual_seconds:
            self._latency_seconds = latency_seconds
            self._try(now)
        elif usual_seconds / _JUMP < latency_seconds < usual_seconds * _JUMP:
            change = latency_seconds - usual_seconds
            self._latency_seconds += change * _SMOOTHING
            self._deviation += (abs(change) / usual_seconds - self._deviation) * _SMOOTHING
            self._rounds_left -= 1
            if self._rounds_left > 0:
                self._begin_round(now)
            else:
                self._try(now)
        else:
            self._upward = latency_seconds < usual_seconds
            self._latency_seconds = 0.0  # this round may be half from before the jump
            self._rounds_between = 1
            self._begin_round(now)

    def _try(self, now: float) -> None:
        """Begin a trial upward or downward, or where there is room."""
        highest = self._highest(now)
        if self.limit >= highest:
            self._doubling = 0
            self._upward = False
        elif self.limit == 1:
            self._upward = True
        step = self.limit if self._doubling else -(-self.limit // _STEP_SHARE)
        target = min(self.limit + step, highest) if self._upward else max(1, self.limit - step)
        if target != self.limit:
            self._tried_from = self.limit
        self._set_limit(target, now)

    def _judge(self, latency_seconds: float, now: float) -> None:
        """Keep the limit that was tried and go on from it, or return to the one before."""
        quiet = max(latency_seconds, self._latency_seconds) <= _QUIET_SECONDS
        steady = _GROWTH_MAX_DOUBLING if self._doubling else _GROWTH_MAX
        growth_max = _GROWTH_MAX_QUIET if quiet else steady
        bearable = (self.limit / self._tried_from) ** growth_max
        # In doubt for more: chance neither prevents a rise nor makes a descent.
        bearable += self._deviation if self.limit > self._tried_from else -self._deviation
        if latency_seconds <= self._latency_seconds * bearable:
            self._keep(latency_seconds, now)
            return
        if self._doubling:
            chance = self._latency_seconds <= _QUIET_SECONDS  # one stall is enough to spoil it
            self._doubling = self._doubling - 1 if chance else 0
        else:
            self._upward = not self._upward
            self._rounds_between = min(2 * self._rounds_between, _ROUNDS_BETWEEN_MAX)
        self._rounds_left = self._rounds_between
        limit, self._tried_from = self._tried_from, 0
        self._set_limit(limit, now)

    def _keep(self, latency_seconds: float, now: float) -> None:
        self._tried_from = 0
        self._latency_seconds = latency_seconds
        if self.limit < self._highest(now):
            self._rounds_between = 1
            self._try(now)
        else:
            self._doubling = 0
            self._rounds_between = self._rounds_left = _ROUNDS_BETWEEN_MAX
            self._begin_round(now)
