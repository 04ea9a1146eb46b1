"""One Kafka for the whole run, topics and processes for each test, and no silent skips."""

from __future__ import annotations

import functools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest
from pytest_timeout import Settings

from ingester.local_kafka import Keeper, LocalKafka, docker_problem, local_kafka
from tests.support.kafka import create_topic, delete_topics
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator

END_SECONDS_MAX = 120.0


class TopicFactory(Protocol):
    """Creates a topic that the test's end deletes, and returns its name."""

    def __call__(
        self,
        partitions: int = 1,
        *,
        name: str | None = None,
        config: Mapping[str, str] | None = None,
    ) -> Awaitable[str]: ...


@pytest.fixture(scope="session")
def kafka(report: Callable[[str], None]) -> Iterator[LocalKafka]:
    """A real Kafka, found as `local_kafka` finds one; without any the tests fail."""
    with local_kafka(report) as found:
        yield found


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Says on the terminal, past the capture, what takes long."""
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    if terminal is None:  # of the processes that share the tests, none has the terminal
        return lambda _: None

    def say(sentence: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.ensure_newline()
            terminal.write_line(f"    {sentence}")

    return say


@pytest.fixture
async def topic(kafka: LocalKafka) -> AsyncIterator[TopicFactory]:
    """A factory of topics with names of their own."""
    names: list[str] = []

    async def create(
        partitions: int = 1,
        *,
        name: str | None = None,
        config: Mapping[str, str] | None = None,
    ) -> str:
        name = name or f"usage-{uuid.uuid4().hex[:12]}"
        await create_topic(kafka.bootstrap_servers, name, partitions, config)
        names.append(name)
        return name

    yield create
    await delete_topics(kafka.bootstrap_servers, names)


@pytest.fixture(scope="session")
def keeper() -> Iterator[Keeper]:
    """What is started through it ends with the tests, even when they are killed."""
    with Keeper() as found:
        yield found


@pytest.fixture
def ingesters(keeper: Keeper, tmp_path: Path) -> Iterator[Ingesters]:
    """Starts `ingester` processes; those that are left are killed at the test's end."""
    started = Ingesters(keeper, tmp_path)
    yield started
    started.close()


@pytest.fixture
def simulator(ingesters: Ingesters) -> Simulator:
    """PacSpace's stand-in, without faults."""
    return Simulator(ingesters)


@functools.cache
def _docker_problem() -> str | None:
    return docker_problem()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a Docker engine only where none answers."""
    if item.get_closest_marker("container") and (problem := _docker_problem()):
        pytest.skip(problem)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Bound the end of a test that has failed, too: pytest-timeout has let go of it by then."""
    settings = Settings(END_SECONDS_MAX, "thread", False, False)
    item.config.hook.pytest_timeout_cancel_timer(item=item)
    item.config.hook.pytest_timeout_set_timer(item=item, settings=settings)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Iterator[None]:
    """Show with a failure what the test's processes printed."""
    result = yield
    ingesters = getattr(item, "funcargs", {}).get("ingesters")
    if result.failed and ingesters is not None:
        for process in ingesters.processes:
            result.sections.append((f"ingester {' '.join(process.arguments)}", process.log()))
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in a section of its own that a half of the tests did not run."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum("container" in report.keywords for report in skipped)
    if count:
        terminalreporter.section("NOT RUN", red=True, bold=True)
        terminalreporter.line(f"tests with containers: {count}, {_docker_problem()}", red=True)
