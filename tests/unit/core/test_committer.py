"""When positions and intents are recorded, and how many of them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ingester.core.batch import BatchBuilder, BatchLimits
from ingester.core.committer import Committer
from ingester.core.coverage import Coverage
from ingester.core.deadletter import DeadLetterWindow
from ingester.core.dispatch import Delivery
from ingester.core.event import event_decoder
from ingester.core.intent import INTENTS_MAX, METADATA_BYTES_MAX, Ledger, Range, decode
from ingester.core.messages import CommitOffsets
from ingester.core.offsets import OffsetTracker, Span
from ingester.core.partition import Partition
from ingester.core.record import TopicPartition
from tests.support.records import usage_records
from tests.support.scenario import LIMITS, P0, P1, WALL_SECONDS, ranges_of

SPLITS_RESERVE = 20  # of the intents: only the first of a partition may take the last of them
ROOM = INTENTS_MAX - SPLITS_RESERVE
LONG = replace(LIMITS, commit_interval_seconds=100.0)


def partition(name: TopicPartition = P0) -> Partition:
    return Partition(
        BatchBuilder(name, 1, BatchLimits(2, 1000, 1.0), event_decoder("refuse")),
        Coverage(name, ()),
        OffsetTracker(0),
        DeadLetterWindow(LIMITS.dead_letters),
        DeadLetterWindow(LIMITS.dead_letters),
        quiet_at=0.0,
        acknowledged=(),
        committed=0,
        resent=(),
    )


def delivery(part: Partition, range_: Range) -> Delivery:
    batch = part.builder.form(usage_records(range_[1] - range_[0], range_[0]))
    return Delivery(batch, Span(*range_, batch.intent_digest))


def cut(committer: Committer, part: Partition, *ranges: Range) -> list[Delivery]:
    """What the pipeline does with a new batch."""
    deliveries = [delivery(part, each) for each in ranges]
    for each in deliveries:
        part.offsets.track(each.span)
        committer.intend(part, each)
    return deliveries


def split(committer: Committer, part: Partition, whole: Delivery) -> list[Delivery]:
    """What the pipeline does with a refused batch."""
    first, end = whole.span.first_offset, whole.span.next_offset
    middle = (first + end) // 2
    parts = [delivery(part, (first, middle)), delivery(part, (middle, end))]
    part.offsets.split(whole.span, (parts[0].span, parts[1].span), WALL_SECONDS)
    committer.intend_halves(part, parts)
    return parts


def begun(committer: Committer, now: float = 0.0) -> CommitOffsets:
    return committer.begin(now, WALL_SECONDS)


def succeeded(committer: Committer) -> list[Delivery]:
    return [each for _, intended in committer.succeeded() for each in intended]


def recorded(command: CommitOffsets, name: TopicPartition = P0) -> list[Range]:
    commit = command.offsets[name]
    assert len(commit.metadata) <= METADATA_BYTES_MAX
    ledger = decode(commit.next_offset, commit.metadata)
    assert isinstance(ledger, Ledger)
    return ranges_of(ledger)


def singles(count: int, first: int = 0) -> list[Range]:
    return [(offset, offset + 1) for offset in range(first, first + count)]


# -- what a commit holds ------------------------------------------------------------------------


def test_a_commit_carries_all_partitions_that_have_something_to_say() -> None:
    """Positions and intents together; those of which nothing changed are not in it."""
    committer = Committer(LIMITS)
    one, other, silent = (partition(TopicPartition("usage", number)) for number in range(3))
    (first,) = cut(committer, one, (0, 2))
    other.offsets.track(span := Span(0, 9, 1))
    other.offsets.settle(span)
    committer.changed(other)
    command = begun(committer)

    assert {name: each.next_offset for name, each in command.offsets.items()} == {P0: 0, P1: 9}
    assert recorded(command) == [(0, 2)]
    assert succeeded(committer) == [first]
    assert (one.committed, other.committed, silent.committed) == (0, 9, 0)
    assert committer.idle


def test_nothing_is_idle_before_the_commit_succeeded() -> None:
    """Neither what waits for a commit nor what is under way."""
    committer = Committer(LIMITS)
    part, other = partition(), partition(P1)
    assert committer.idle
    cut(committer, part, (0, 2))
    assert (committer.idle, committer.concerns(part)) == (False, True)
    begun(committer)
    assert (committer.idle, committer.concerns(part)) == (False, True)
    assert not committer.concerns(other)
    succeeded(committer)

    assert (committer.idle, committer.concerns(part)) == (True, False)


def test_what_changes_amid_a_commit_goes_with_the_next() -> None:
    """One commit at a time; its success says nothing of what came later."""
    committer = Committer(LIMITS)
    part = partition()
    (first,) = cut(committer, part, (0, 2))
    begun(committer)
    (second,) = cut(committer, part, (2, 4))
    assert committer.next_at(runs_short=True, hurried=True) is None
    with pytest.raises(AssertionError):
        begun(committer)
    assert succeeded(committer) == [first]
    begun(committer)

    assert succeeded(committer) == [second]


def test_a_commit_ends_once() -> None:
    """A second end would be of another commit."""
    committer = Committer(LIMITS)
    cut(committer, partition(), (0, 2))
    begun(committer)
    succeeded(committer)

    with pytest.raises(AssertionError):
        committer.succeeded()
    with pytest.raises(AssertionError):
        committer.failed(0.0, 0.5)


def test_a_commit_that_failed_puts_everything_back_in_its_order() -> None:
    """Before what came meanwhile, with the moment at which it was first said."""
    committer = Committer(LIMITS)
    part = partition()
    early = cut(committer, part, (0, 2), (2, 4))
    begun(committer)
    late = cut(committer, part, (4, 6))
    assert list(committer.failed(1.0, 0.5)) == [part]
    command = committer.begin(9.0, WALL_SECONDS + 50)

    assert recorded(command) == [(0, 2), (2, 4), (4, 6)]
    assert [each.span.intended_at for each in (*early, *late)] == [
        WALL_SECONDS,
        WALL_SECONDS,
        WALL_SECONDS + 50,
    ]
    assert succeeded(committer) == [*early, *late]


def test_what_is_given_up_is_not_intended() -> None:
    """What a commit under way has said is for its end to give up."""
    committer = Committer(LIMITS)
    part = partition()
    early = cut(committer, part, (0, 2))
    begun(committer)
    late = cut(committer, part, (2, 4), (4, 6))

    assert committer.give_up(part) == late
    assert committer.give_up(part) == []
    assert succeeded(committer) == early
    assert recorded(begun(committer)) == [(0, 2)]
    assert succeeded(committer) == []


# -- when ---------------------------------------------------------------------------------------


def test_positions_wait_for_the_interval() -> None:
    """However short of batches the worker is; a hurried one does not wait."""
    committer = Committer(LONG)
    part = partition()
    committer.changed(part)
    begun(committer, 50.0)
    succeeded(committer)
    assert committer.next_at(runs_short=True, hurried=True) is None
    committer.changed(part)

    assert committer.next_at(runs_short=True, hurried=False) == 150.0
    assert committer.next_at(runs_short=False, hurried=True) == 0.0


def test_intents_wait_only_while_there_is_enough_to_send() -> None:
    """Then a moment, so that a fast endpoint does not make a commit of each batch."""
    committer = Committer(LONG)
    part = partition()
    cut(committer, part, (0, 2))
    begun(committer, 50.0)
    succeeded(committer)
    cut(committer, part, (2, 4))

    assert committer.next_at(runs_short=False, hurried=False) == 150.0
    assert committer.next_at(runs_short=True, hurried=False) == 50.005


@pytest.mark.parametrize(
    ("batches", "spacing_seconds"), [(1, 0.005), (10, 0.005), (16, 0.008), (40, 0.01)]
)
def test_the_more_a_commit_intends_the_later_may_the_next_be(
    batches: int, spacing_seconds: float
) -> None:
    """A busy worker makes fewer and larger commits; none waits for long."""
    committer, part = Committer(LONG), partition()
    cut(committer, part, *((2 * each, 2 * each + 2) for each in range(batches)))
    begun(committer, now=50.0)
    succeeded(committer)
    cut(committer, part, (2 * batches, 2 * batches + 2))

    due = committer.next_at(runs_short=True, hurried=False)
    assert due == pytest.approx(50.0 + spacing_seconds)


def test_what_a_failed_commit_put_back_hurries_no_later_one() -> None:
    """Once it is recorded, positions wait for the interval again."""
    committer = Committer(LONG)
    part = partition()
    cut(committer, part, (0, 2), (2, 4))
    begun(committer)
    committer.failed(0.0, jitter=0.5)
    begun(committer, now=10.0)
    succeeded(committer)

    committer.changed(part)
    assert committer.next_at(runs_short=True, hurried=False) == 110.0


def test_halves_wait_only_for_a_moment() -> None:
    """Their partition is not committed past them; what is given up makes no hurry any more."""
    committer = Committer(LONG)
    part = partition()
    (whole,) = cut(committer, part, (0, 4))
    begun(committer, 50.0)
    succeeded(committer)
    split(committer, part, whole)

    assert committer.next_at(runs_short=False, hurried=False) == 50.005
    begun(committer, 60.0)
    succeeded(committer)
    committer.changed(part)
    assert committer.next_at(runs_short=False, hurried=False) == 160.0


def test_after_a_failure_its_backoff_counts_alone() -> None:
    """Growing, for whoever hurries, too; a success ends it."""
    committer = Committer(LONG)
    part = partition()
    (whole,) = cut(committer, part, (0, 4))
    for failures, wait in enumerate((0.15, 0.25, 0.45)):
        begun(committer, 50.0)
        committer.failed(50.0, 0.5)
        expected = pytest.approx(50.0 + wait)
        for hurried in (False, True):
            assert committer.next_at(runs_short=True, hurried=hurried) == expected, failures
    begun(committer, 50.0)
    assert succeeded(committer) == [whole]
    committer.changed(part)

    assert committer.next_at(runs_short=False, hurried=False) == 150.0


# -- how many -----------------------------------------------------------------------------------


def test_new_batches_leave_room_for_splits() -> None:
    """The rest stays in order for the next commit, and takes the place of what is passed."""
    committer = Committer(LIMITS)
    part = partition()
    deliveries = cut(committer, part, *singles(ROOM + 30))
    assert recorded(begun(committer)) == singles(ROOM)
    assert succeeded(committer) == deliveries[:ROOM]
    for each in deliveries[:7]:
        part.offsets.settle(each.span)
    committer.changed(part)

    assert recorded(begun(committer)) == singles(ROOM, first=7)
    assert succeeded(committer) == deliveries[ROOM : ROOM + 7]


def test_a_full_commit_that_failed_is_made_again_in_full() -> None:
    """Its batches have their room; others do not take it."""
    committer = Committer(LIMITS)
    part = partition()
    deliveries = cut(committer, part, *singles(ROOM + 5))
    begun(committer)
    committer.failed(0.0, 0.5)

    assert recorded(begun(committer)) == singles(ROOM)
    assert succeeded(committer) == deliveries[:ROOM]


def test_halves_go_ahead_of_what_waits_for_room() -> None:
    """They have taken their room when they were split."""
    committer = Committer(LIMITS)
    part = partition()
    whole, *_, last = cut(committer, part, (0, 4), *singles(ROOM, first=4))
    begun(committer)
    succeeded(committer)
    assert list(part.unintended) == [last]
    assert committer.may_split(part, whole)
    parts = split(committer, part, whole)

    assert recorded(begun(committer)) == [(0, 2), (2, 4), *singles(ROOM - 1, first=4)]
    assert succeeded(committer) == parts
    assert list(part.unintended) == [last]


def test_any_batch_may_be_split_while_there_is_room() -> None:
    """Beyond it only the first of the partition, which makes room when it is settled."""
    committer = Committer(LIMITS)
    part = partition()
    first, second, *_ = cut(committer, part, (0, 2), (2, 4), *singles(ROOM - 3, first=4))
    begun(committer)
    succeeded(committer)
    assert committer.may_split(part, second)
    split(committer, part, second)

    assert part.offsets.intended_count == ROOM
    *_, other = part.unintended
    assert not committer.may_split(part, other)
    assert committer.may_split(part, first)


def test_the_first_may_be_split_as_deep_as_a_batch_is_large() -> None:
    """In a full ledger, level by level: 2^14 items are more than any batch has."""
    committer = Committer(LIMITS)
    part = partition()
    whole, *_ = cut(committer, part, (0, 2**14), *singles(ROOM - 1, first=2**14))
    begun(committer)
    succeeded(committer)
    levels = 0
    while whole.span.next_offset - whole.span.first_offset > 1:
        assert committer.may_split(part, whole)
        whole, _ = split(committer, part, whole)
        command = begun(committer)
        succeeded(committer)
        levels += 1

    assert levels == 14
    assert len(recorded(command)) == ROOM + 14


def test_nothing_is_split_beyond_what_the_metadata_holds() -> None:
    """Not even the first; no batch is large enough to bring it about."""
    committer = Committer(LIMITS)
    part = partition()
    whole, *_ = cut(committer, part, (0, 2), *singles(ROOM - 1, first=2))
    begun(committer)
    succeeded(committer)
    for number in range(SPLITS_RESERVE):
        assert committer.may_split(part, whole)
        part.offsets.track(span := Span(10**6 + number, 10**6 + number + 1, 0))
        span.intended_at = WALL_SECONDS

    assert not committer.may_split(part, whole)
