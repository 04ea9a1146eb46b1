"""Draws from a seed what a world is like: the workers' limits, and how unkind everything is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

from ingester.core.batch import BatchLimits
from ingester.core.deadletter import DeadLetterLimit
from ingester.core.messages import Limits

SESSION_TIMEOUT_SECONDS = 10.0
DRAIN_SECONDS_MAX = 6.0  # of a revocation; below the session timeout
REQUEST_TIMEOUT_SECONDS = 15.0
DELAY_SECONDS_MAX = 40.0  # of a request in the network, long after its sender gave it up
REFUSED_DELAY_SECONDS_MAX = SESSION_TIMEOUT_SECONDS + REQUEST_TIMEOUT_SECONDS
"""The same, where batches are refused: the core takes it that no later one arrives."""
SKEW_SECONDS_MAX = 3.0  # of two workers' clocks, in worlds where keys are forgotten

Keys = Literal["honoured", "ignored", "forgotten"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a world is like until it becomes kind."""

    limits: Limits
    partitions: int
    records: int
    workers: int
    unkind_seconds: float
    fetch_records_max: int
    produce_seconds: float
    """Over how long the records come."""
    keys: Keys
    key_memory_seconds: float
    """For how long the endpoint remembers a key from its application on."""
    looked_up_first: bool
    """Whether the endpoint looks a key up before it refuses for any other reason."""
    answers: Mapping[str, float]
    """Weights of what happens to a request, by the names in `Endpoint.arrive`."""
    poison: float
    """Share of the items that the endpoint never takes, for as long as it does not change its mind;
    it does so only towards what it takes where it looks keys up last."""
    body_limits: bool
    """Whether it has a limit on bodies below the workers' own."""
    minds_changed: int
    poison_stays: bool
    """Whether even a kind endpoint refuses."""
    requests_delayed: float
    """Share of the requests that take up to `delay_seconds_max`; so are the following shares."""
    delay_seconds_max: float
    writes_failing: float
    """Of receipts and dead letters; half of these are appended all the same."""
    commits_failing: float
    """Of the commits; half of these are stored all the same."""
    outages: int
    """Times in which everything the endpoint answers is of one unkind sort, or topics are away."""
    outage_seconds_max: float
    crashes: int
    pauses: int
    drains: int
    reads_failing: int
    vanishing: int
    """Records at the edge of an intended range that the log loses."""
    unreadable: int
    """Records that no client can read, until somebody passes them."""
    clock_jump_seconds: float
    offsets_lost: int
    """Times when all workers end, and the group forgets what they have committed."""


def make_plan(random: Random) -> Plan:
    """Most worlds are a little unkind in every way, some very much so in one."""
    one_by_one = random.random() < 0.04  # more batches than a ledger has room for
    keys: Keys = random.choices(("honoured", "ignored", "forgotten"), (14, 4, 2))[0]
    window = random.choice([3.0, 20.0]) if keys == "forgotten" else random.choice([60.0, 86_400.0])
    kind = random.random() < 0.1
    looked_up_first = random.random() < 0.5
    refusing = random.random() < 0.5
    poison = random.choice([0.0, 0.05, 0.3]) if refusing else 0.0
    body_limits = refusing and random.random() < 0.4
    answers = {
        "acknowledged": random.choice([40.0, 12.0, 3.0]),
        "answer_lost": random.choice([0.0, 1.0, 3.0]),
        "request_lost": random.choice([0.0, 1.0]),
        "failed_after": random.choice([0.0, 1.0]),
        "failed_before": random.choice([0.0, 1.0]),
        "pending": random.choice([0.0, 0.0, 1.0]),
        "nonsense": random.choice([0.0, 0.0, 1.0]),
        "throttled": random.choice([0.0, 0.5]),
        "blocked": random.choice([0.0, 0.0, 0.3]),
        "refused": random.choice([0.0, 0.5]) if refusing and looked_up_first else 0.0,
        "proxied": random.choice([0.0, 0.0, 1.0]) if refusing else 0.0,
        "unreachable": random.choice([0.0, 1.0]),
    }
    return Plan(
        limits=_make_limits(random, keys, window, one_by_one=one_by_one),
        partitions=1 if one_by_one else random.choice([1, 2, 2, 3]),
        records=random.randrange(125, 180) if one_by_one else random.choice([4, 12, 25, 40]),
        workers=1 if one_by_one else random.choice([1, 2, 2, 3]),
        unkind_seconds=100.0 if keys == "forgotten" else random.choice([20.0, 40.0, 60.0]),
        fetch_records_max=300 if one_by_one else random.choice([3, 12]),
        produce_seconds=0.0 if one_by_one else random.choice([0.0, 10.0, 30.0]),
        keys=keys,
        key_memory_seconds=window
        + REQUEST_TIMEOUT_SECONDS  # a doubt begins when an answer was awaited for so long
        + 2 * SKEW_SECONDS_MAX
        + 1.0,  # what an intent says is whole seconds
        looked_up_first=looked_up_first,
        answers={"acknowledged": 1.0} if kind else answers,
        poison=poison,
        body_limits=body_limits,
        minds_changed=random.choice([0, 1, 3]) if refusing else 0,
        poison_stays=random.random() < 0.5,
        delay_seconds_max=REFUSED_DELAY_SECONDS_MAX if refusing else DELAY_SECONDS_MAX,
        requests_delayed=0.0 if kind or keys == "forgotten" else random.choice([0.0, 0.05, 0.2]),
        writes_failing=0.0 if kind else random.choice([0.0, 0.1, 0.5]),
        commits_failing=0.0 if kind else random.choice([0.5] if one_by_one else [0.0, 0.1, 0.5]),
        outages=2 if keys == "forgotten" else random.choice([0, 0, 1, 2]),
        outage_seconds_max=random.choice([5.0, 20.0, 60.0]),
        crashes=random.choice([0, 1] if one_by_one else [0, 1, 2, 4]),
        pauses=0 if one_by_one else random.choice([0, 0, 1, 3]),
        drains=random.choice([0, 0, 1]),
        reads_failing=random.choice([0, 0, 0, 0, 1]),
        vanishing=random.choice([0] * 15 + [1]),
        unreadable=random.choice([0] * 7 + [1]),
        clock_jump_seconds=(
            SKEW_SECONDS_MAX if keys == "forgotten" else random.choice([0.0, 0.0, 50.0, 200_000.0])
        ),
        offsets_lost=random.choice([0] * 9 + [1]),
    )


def _make_limits(random: Random, keys: Keys, window: float, *, one_by_one: bool) -> Limits:
    halting = random.random() < (0.4 if keys == "ignored" else 0.15)
    return Limits(
        batch=BatchLimits(
            items_max=1 if one_by_one else random.choice([1, 2, 3, 7]),
            body_bytes_max=random.choice([90, 150, 400, 4000]),
            linger_seconds=random.choice([0.0, 0.05, 2.0]),
        ),
        requests_in_flight_max=random.choice([1, 2, 3, 8]),
        buffer_bytes_max=100_000 if one_by_one else random.choice([200, 2_000, 10_000]),
        backoff_seconds_min=0.1,
        backoff_seconds_max=random.choice([0.1, 1.0, 10.0]),
        commit_interval_seconds=random.choice([0.01, 0.2, 1.0]),
        idempotency_window_seconds=window,
        request_timeout_seconds=REQUEST_TIMEOUT_SECONDS,
        session_timeout_seconds=SESSION_TIMEOUT_SECONDS,
        dead_letters=DeadLetterLimit(
            count_max=random.choice([3, 1_000_000, 1_000_000, 1_000_000]),
            share_max=0.3,
            window_seconds=10.0,
        ),
        in_doubt="halt" if halting else "retry",
        receipts=random.random() < 0.85,
    )
