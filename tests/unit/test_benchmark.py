"""The benchmark's own arithmetic: what it feeds, counts, plans and concludes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest
import typer

from ingester.core.event import UsageEvent, event_decoder
from tests.benchmark import blast
from tests.benchmark.__main__ import main
from tests.benchmark.contenders import INGESTER, PLAIN, VARIANTS, WITHOUT_RECEIPTS
from tests.benchmark.endpoint import Ledger
from tests.benchmark.events import VALUE_BYTES_MEAN, generate
from tests.benchmark.flame import explained
from tests.benchmark.http1 import Message, split_message
from tests.benchmark.measure import Capacity, Run, RunFailedError, check_shares
from tests.benchmark.observed import Passage
from tests.benchmark.pace import Delay, conclude, quantiles
from tests.benchmark.plan import SLOW_SHARE, parse_latencies, steps
from tests.benchmark.report import (
    COLUMNS,
    Circumstances,
    Comparison,
    as_data,
    compare,
    markdown,
    rows,
    sentences,
    summarize,
)
from tests.benchmark.workload import (
    Workload,
    parse_accounts,
    parse_partitions,
    parse_value_bytes,
    parse_workers,
    workloads,
)

RUN = Run(
    contender="plain",
    latency_ms=0.0,
    workload=Workload(1_000_000),
    requests=10_000,
    requests_repeated=0,
    seconds=20.0,
    wall_seconds=25.0,
    cpu_seconds=15.0,
    resident_bytes_max=100 * 1024**2,
    endpoint_cpu_seconds=2.0,
    machine_cpu_seconds=30.0,
    endpoint_latency_seconds=0.0001,
    items_by_tenth=(5_000,) * 200,
)
OURS = replace(RUN, contender="ingester", seconds=5.0, cpu_seconds=5.0)
CAPACITY = Capacity(
    latency_ms=0.0, items=2_000_000, connections=32, seconds=1.0, endpoint_cpu_seconds=0.9
)
CIRCUMSTANCES = Circumstances(
    started_at=datetime(2025, 6, 1, 12, 30, tzinfo=UTC),
    machine="a machine",
    kafka="using a Kafka",
)


# -- events -----------------------------------------------------------------------------------


def test_events_are_the_same_ones_every_time_and_a_prefix_of_more() -> None:
    """Every run of every day is fed the same events, a shorter one the first of them."""
    assert list(generate(100)) == list(generate(1_000))[:100]


def test_another_seed_gives_other_events() -> None:
    """The events depend on the seed."""
    assert list(generate(100)) != list(generate(100, seed=1))


def test_events_are_what_the_ingester_accepts() -> None:
    """Each value is a usage event without a fault, with the bits that are added up for it."""
    decode = event_decoder("refuse")
    for event in generate(1_000):
        decoded = decode(event.value)
        assert isinstance(decoded, tuple)
        usage = decoded[0]
        assert isinstance(usage, UsageEvent)
        assert (usage.bits, usage.accountId) == (event.bits, f"acct_{event.account:06d}")


@pytest.mark.parametrize("value_bytes", [100, 1_000, 10_000])
def test_a_wanted_size_of_an_event_is_its_size(value_bytes: int) -> None:
    """Values of a stated length have exactly that length, and are usage events."""
    decode = event_decoder("refuse")
    for event in generate(1_000, accounts=1_000_000, value_bytes=value_bytes):
        assert len(event.value) == value_bytes
        assert isinstance(decode(event.value), tuple)


def test_the_stated_size_of_an_event_is_its_size() -> None:
    """The report does not lie about the length of the values."""
    sizes = [len(event.value) for event in generate(10_000)]

    assert round(sum(sizes) / len(sizes)) == VALUE_BYTES_MEAN


# -- HTTP ---------------------------------------------------------------------------------------


def test_a_message_is_complete_only_with_its_last_byte() -> None:
    """A request that arrives in pieces is read once, when all of it is there."""
    whole = b"POST /api/v1/writes HTTP/1.1\r\ncontent-LENGTH: 5\r\nHost: x\r\n\r\n12345"

    assert [split_message(whole[:cut]) for cut in range(len(whole))] == [None] * len(whole)
    assert split_message(whole) == Message(whole[:-9], b"12345", b"")


def test_messages_in_one_piece_are_told_apart() -> None:
    """What follows a message is left for the next."""
    first, second = b"A / HTTP/1.1\r\nContent-Length: 1\r\n\r\n1", b"B / HTTP/1.1\r\n\r\n"

    message = split_message(first + second)

    assert message is not None
    assert (message.body, message.rest) == (b"1", second)
    assert split_message(message.rest) == Message(b"B / HTTP/1.1", b"", b"")


def test_a_chunked_body_is_not_taken_for_an_empty_one() -> None:
    """A client that states no length is refused loudly instead of counted as nothing."""
    with pytest.raises(ValueError, match="chunked"):
        split_message(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")


# -- the endpoint's sums -----------------------------------------------------------------------


def test_a_key_counts_once_and_a_write_without_one_every_time() -> None:
    """A worker's repetition is not a doubled event, a plain loop's is."""
    ledger = Ledger()
    ledger.request_seen()

    waits = {0.01: b"a", 0.02: b"a", 0.03: b"b", 0.04: None, 0.05: None}
    numbers = [ledger.acknowledge(100, 7, key, seconds) for seconds, key in waits.items()]

    totals = ledger.totals
    assert numbers == [1, 2, 3, 4, 5]
    assert (totals.items, totals.bits) == (400, 28)
    assert (totals.requests, totals.requests_repeated, totals.keys) == (5, 1, 2)
    assert sum(totals.items_by_tenth) == 400
    assert totals.latency_seconds == pytest.approx(0.03)


def test_a_blast_states_what_it_adds_up_to() -> None:
    """The totals by which a blast is checked are those of the bodies it sends."""
    load = blast.prepare(list(generate(250)), items_max=100, rounds=3)

    items = [item for body in load.bodies for item in json.loads(body)["items"]]
    assert [len(json.loads(body)["items"]) for body in load.bodies] == [100, 100, 50]
    assert load.requests == 9
    assert load.items == 3 * len(items)
    assert load.bits == 3 * sum(item["bits"] for item in items)


# -- the plan ---------------------------------------------------------------------------------


def test_contenders_take_turns() -> None:
    """No contender runs twice in a row, so that a busy minute of the machine hits both."""
    plan = list(steps(workloads=[Workload(1_000)], rounds=3, latencies_ms=(0.0, 20.0)))

    assert len(plan) == 12
    assert all(one.contender is not other.contender for one, other in pairwise(plan))


def test_only_one_request_at_a_time_shortens_a_run_and_only_with_latency() -> None:
    """The ingester gets every event at every latency, the plain loop where it is quick enough."""
    plan = steps(workloads=[Workload(1_000)], rounds=1, latencies_ms=(0.0, 20.0))

    assert [(step.contender.name, step.latency_ms, step.workload.events) for step in plan] == [
        (PLAIN.name, 0.0, 1_000),
        (INGESTER.name, 0.0, 1_000),
        (PLAIN.name, 20.0, 1_000 // SLOW_SHARE),
        (INGESTER.name, 20.0, 1_000),
    ]


def test_one_contender_can_be_measured_alone() -> None:
    """With `only`, the other one does not run."""
    plan = list(steps(workloads=[Workload(1)], rounds=2, latencies_ms=(0.0,), only="ingester"))

    assert [step.contender for step in plan] == [INGESTER, INGESTER]


def test_workloads_and_variants_take_turns_within_a_round() -> None:
    """What is compared with each other runs one after the other, in every round."""
    kinds = list(workloads(10, (1, 8), (10,), ()))

    plan = list(
        steps(workloads=kinds, rounds=2, latencies_ms=(0.0,), only="ingester", variants=True)
    )

    assert kinds == [Workload(10, 1, 10), Workload(10, 8, 10)]
    one_round = [(each, kind) for kind in kinds for each in (INGESTER, *VARIANTS)]
    assert [(step.contender, step.workload) for step in plan] == one_round * 2


def test_a_worker_without_a_partition_is_not_planned() -> None:
    """More workers than partitions are refused before anything is started."""
    with pytest.raises(typer.BadParameter, match="more workers than partitions"):
        main(partitions="8,2", workers="1,4")


def test_lists_of_counts_are_read_in_order_and_once() -> None:
    """A repeated count is one count, and no size of values is the usual mixture."""
    assert parse_partitions("8, 1,8") == (8, 1)
    assert parse_accounts("10,1_000_000") == (10, 1_000_000)
    assert parse_value_bytes("100,10000") == (100, 10_000)
    assert parse_value_bytes("") == ()
    assert parse_workers("1,2,4,2") == (1, 2, 4)


@pytest.mark.parametrize(
    ("parse", "text", "what"),
    [
        (parse_partitions, "0", "'0' is not a number of partitions from 1 to 4,096"),
        (parse_partitions, "8,", "'' is not a number of partitions"),
        (parse_accounts, "1000001", "'1000001' is not a number of accounts"),
        (parse_value_bytes, "99", "'99' is not a number of bytes from 100 to 100,000"),
        (parse_value_bytes, "many", "'many' is not a number of bytes"),
        (parse_workers, "0", "'0' is not a number of workers from 1 to 64"),
    ],
)
def test_what_is_no_count_is_refused(parse: Callable[[str], object], text: str, what: str) -> None:
    """A topic that cannot be made is not planned."""
    with pytest.raises(ValueError, match=what):
        parse(text)


def test_latencies_are_read_in_order_and_once() -> None:
    """A repeated latency is one latency."""
    assert parse_latencies("20, 0,20,0.5") == (20.0, 0.0, 0.5)


@pytest.mark.parametrize("text", ["", "fast", "0,,20", "-1", "nan", "inf", "10001"])
def test_what_is_no_latency_is_refused(text: str) -> None:
    """A latency is a number of milliseconds that a run can bear."""
    with pytest.raises(ValueError, match="is not a latency"):
        parse_latencies(text)


# -- several workers ---------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "found"), [(1, [8]), (2, [4, 4]), (3, [2, 3, 3])])
def test_workers_with_their_shares_are_a_run(workers: int, found: list[int]) -> None:
    """Partitions that cannot be shared evenly are shared as evenly as they can."""
    check_shares("ingester", found, Workload(1, partitions=8, workers=workers))


@pytest.mark.parametrize("found", [[], [8], [0, 8], [3, 5], [2, 3, 3]])
def test_a_worker_that_came_late_or_left_early_is_a_failed_run(found: list[int]) -> None:
    """Two workers who did not share the topic say nothing about two workers."""
    with pytest.raises(RunFailedError, match=r"due were \[4, 4\]"):
        check_shares("ingester", found, Workload(1, partitions=8, workers=2))


def test_several_workers_are_compared_with_one() -> None:
    """What another worker brings is told beside what it costs, and how the figures are meant."""
    two = replace(OURS, workload=Workload(1_000_000, workers=2), seconds=3.125, cpu_seconds=5.5)

    summaries = summarize([OURS, two])

    assert [cells[1] for cells in rows(summaries)] == ["ingester, 1 worker", "ingester, 2 workers"]
    assert compare(summaries) == [
        Comparison("ingester, 2 workers", "one worker", 0.0, 1.6, cpu_seconds_per_million=1.1)
    ]
    below = sentences(summaries, [CAPACITY], CIRCUMSTANCES)
    assert (
        "ingester, 2 workers / one worker at 0 ms: 1.60 times the events a second,"
        " 1/0.91 of the CPU per event."
    ) in below
    assert any("2 workers are one group" in sentence for sentence in below)


def test_several_workers_have_more_in_flight_together() -> None:
    """At a latency each worker's own requests are permitted to it."""
    two = replace(OURS, workload=Workload(1_000_000, workers=2), latency_ms=20.0)

    below = sentences(summarize([two]), [CAPACITY], CIRCUMSTANCES)

    assert any("64 in flight, 100 items each, permit 320,000 events/s" in each for each in below)


# -- the conclusions ----------------------------------------------------------------------------


def test_a_run_is_judged_by_the_endpoints_clock_and_the_whole_cpu() -> None:
    """Events a second leave out starting up, CPU seconds do not."""
    assert RUN.events_per_second == 50_000
    assert RUN.cpu_seconds_per_million == 15.0
    assert RUN.endpoint_busy == 0.1
    assert RUN.rest_cores == (30.0 - 15.0 - 2.0) / 25.0


def test_summaries_are_medians_and_name_the_extremes() -> None:
    """One lucky and one unlucky run change nothing but the range."""
    runs = [replace(RUN, seconds=seconds) for seconds in (20.0, 10.0, 100.0)]

    (summary,) = summarize(runs)

    assert summary.runs == 3
    assert summary.events_per_second == 50_000
    assert (summary.events_per_second_min, summary.events_per_second_max) == (10_000, 100_000)


def test_the_ingester_is_compared_with_the_plain_loop_at_its_own_latency() -> None:
    """Ratios are of medians, at each latency where both ran."""
    slow = replace(OURS, latency_ms=20.0)

    assert compare(summarize([RUN, OURS, slow])) == [
        Comparison("ingester", "plain", 0.0, 4.0, cpu_seconds_per_million=5.0 / 15.0)
    ]


def test_a_variant_is_compared_with_the_ingester() -> None:
    """What a promise costs is what the worker that does not keep it saves."""
    careless = replace(OURS, contender=WITHOUT_RECEIPTS.name, seconds=4.0, cpu_seconds=4.5)

    summaries = summarize([RUN, OURS, careless])

    assert compare(summaries)[1:] == [
        Comparison("ingester without receipts", "ingester", 0.0, 1.25, cpu_seconds_per_million=0.9)
    ]
    assert (
        "ingester without receipts / ingester at 0 ms: 1.25 times the events a second,"
        " 1/1.11 of the CPU per event."
    ) in sentences(summaries, [CAPACITY], CIRCUMSTANCES)


def test_only_what_differs_is_named() -> None:
    """Workloads are told apart by their properties, and one alone needs none."""
    many = replace(OURS, workload=Workload(1_000_000, partitions=512))

    assert [cells[1] for cells in rows(summarize([OURS, many]))] == [
        "ingester, 8 partitions",
        "ingester, 512 partitions",
    ]
    assert [cells[1] for cells in rows(summarize([many]))] == ["ingester"]


def test_a_climb_ends_where_the_speed_of_the_second_half_begins() -> None:
    """What a slow start costs is told from what the worker reaches."""
    climbing = replace(OURS, items_by_tenth=(0, 10, 20, *(100,) * 20, 30))

    assert climbing.steady_events_per_second == 1_000
    assert climbing.climb_seconds == 0.3


def test_cpu_of_runs_of_different_length_is_not_compared() -> None:
    """The fewer the events, the more starting up weighs in each."""
    short = replace(RUN, workload=Workload(100_000), seconds=2.0)

    (comparison,) = compare(summarize([short, OURS]))

    assert comparison.events_per_second == 4.0
    assert comparison.cpu_seconds_per_million is None


def test_the_table_has_a_cell_for_every_column() -> None:
    """The page's table is a table: a head, a rule, and a line for each summary."""
    lines = markdown(COLUMNS, rows(summarize([RUN, OURS]))).splitlines()

    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    assert "| ingester | 1,000,000 | 200,000 | 200.0k-200.0k | 29 | 5.00 | 100 |" in lines[3]


def test_the_report_says_so_when_the_endpoint_may_have_been_the_limit() -> None:
    """A table that measured the endpoint does not pass for one that measured the worker."""
    tight = replace(OURS, endpoint_cpu_seconds=4.0)

    def said(run: Run) -> str:
        return "\n".join(sentences(summarize([RUN, run]), [CAPACITY], CIRCUMSTANCES))

    assert "10.0 times the fastest run" in said(OURS)
    assert "so that they did not wait for it" in said(OURS)
    assert "busy for at most 80% of the time: it may have been what they waited for" in said(tight)


def test_the_report_says_what_the_requests_in_flight_permit() -> None:
    """At a latency the reader sees how far from the possible a contender stayed."""
    slow = replace(OURS, latency_ms=20.0, seconds=12.5, items_by_tenth=(*(0,) * 5, *(12_000,) * 9))
    slow = replace(slow, endpoint_latency_seconds=0.025)
    bare = replace(CAPACITY, latency_ms=20.0, items=300_000, seconds=2.0)

    below = sentences(summarize([slow]), [CAPACITY, bare], CIRCUMSTANCES)

    assert (
        "ingester at 20 ms: 32 in flight, 100 items each, permit 160,000 events/s;"
        " it reached 50% of that, 75% in the second half of the run, nearly so much after 0.5 s."
        " In fact the endpoint took 25.0 ms, and with that they permit 128,000: 62%, and 94%."
        " The same bodies over as many bare connections, without Kafka: 150,000 items/s, 94%."
    ) in below


def test_quantiles_are_values_that_occurred() -> None:
    """Of a thousand the median is the 500th, and the largest is in no quantile but the last."""
    assert quantiles(range(1000, 0, -1)) == [500, 990, 999]
    assert quantiles([0.5]) == [0.5, 0.5, 0.5]


def test_the_parts_of_a_latency_are_between_its_steps() -> None:
    """Each part has its own two steps, and the whole goes from the broker to the answer."""
    passages = [
        Passage(10.0 + at, 10.5 + at, 11.5 + at, 13.5 + at, 17.5 + at, 25.5 + at)
        for at in range(11)
    ]

    pace = conclude(passages)

    assert (pace.events, pace.events_per_second) == (11, 1.0)
    assert pace.delays == [
        Delay("broker to worker", 0.5, 0.5, 0.5),
        Delay("linger", 1.0, 1.0, 1.0),
        Delay("intent", 2.0, 2.0, 2.0),
        Delay("request", 4.0, 4.0, 4.0),
        Delay("all of it", 7.5, 7.5, 7.5),
        Delay("receipt, afterwards", 8.0, 8.0, 8.0),
    ]


def test_a_forbidden_profile_says_what_would_allow_it() -> None:
    """What the profiler says of permissions is turned into something to do, all else is kept."""
    assert "SYS_PTRACE" in explained("Error: Permission denied (os error 13)")
    assert explained("the topic has gone") == "the topic has gone"


def test_repeated_requests_are_not_hidden() -> None:
    """A worker that needed retries is shown to have needed them."""
    below = sentences(summarize([replace(OURS, requests_repeated=3)]), [CAPACITY], CIRCUMSTANCES)

    assert "ingester at 0 ms sent up to 3 requests again; they were counted once." in below


def test_the_file_holds_each_run_and_what_was_made_of_them() -> None:
    """The figures behind the medians can be read later."""
    data = as_data([RUN, OURS], [CAPACITY], None, CIRCUMSTANCES)

    assert isinstance(data, dict)
    assert [run["events_per_second"] for run in data["runs"]] == [50_000, 200_000]
    assert [each["contender"] for each in data["summaries"]] == ["plain", "ingester"]
    assert data["comparisons"][0]["events_per_second"] == 4.0
