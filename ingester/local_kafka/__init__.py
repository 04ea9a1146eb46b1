"""A real Kafka for tests, benchmark and demo, on any machine: one that is named in the environment,
one in a container, or one in this machine's JVM. It is thrown away at the end, its data too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from ingester.errors import UnavailableError
from ingester.local_kafka.broker import KAFKA_VERSION
from ingester.local_kafka.jvm import JvmCluster, free_ports, jvm_cluster
from ingester.local_kafka.keeper import Keeper
from ingester.local_kafka.readiness import wait_for_brokers

__all__ = [
    "JvmCluster",
    "Keeper",
    "Kind",
    "LocalKafka",
    "docker_problem",
    "free_ports",
    "local_kafka",
]

Kind = Literal["auto", "env", "docker", "jvm"]
Report = Callable[[str], None]

_VARIABLES = ("INGESTER_TEST_KAFKA", "KAFKA_BOOTSTRAP_SERVERS")
_ANSWER_SECONDS_MAX = 5


@dataclass(frozen=True, slots=True)
class LocalKafka:
    """A Kafka that answers; `cluster` is there when its brokers can be killed one by one."""

    bootstrap_servers: str
    how: str
    cluster: JvmCluster | None = None


@contextmanager
def local_kafka(report: Report, *, kind: Kind = "auto", brokers: int = 1) -> Iterator[LocalKafka]:
    """Provide a Kafka until the end of the block.

    `auto` takes the first that can be had: the one that INGESTER_TEST_KAFKA or
    KAFKA_BOOTSTRAP_SERVERS names, a container, a JVM. More than one broker is always the JVM's.
    `report` is told what is being done, a sentence at a time.
    Raises UnavailableError, which says what to install, when there is none.
    """
    assert brokers == 1 or kind in {"auto", "jvm"}, "only the JVM runs more than one broker"
    ways: list[Callable[[], AbstractContextManager[LocalKafka]]] = []
    if kind == "env" or (kind == "auto" and brokers == 1 and _named()):
        ways.append(_from_environment)
    else:
        if kind == "docker" or (kind == "auto" and brokers == 1):
            ways.append(lambda: _from_docker(report))
        if kind in {"auto", "jvm"}:
            ways.append(lambda: _from_jvm(report, brokers))
    problems: list[str] = []
    for way in ways:
        with ExitStack() as stack:
            try:
                kafka = stack.enter_context(way())
            except UnavailableError as error:
                problems.append(str(error))
                if way is not ways[-1]:
                    report(f"{error}; trying the next way")
                continue
            report(kafka.how)
            yield kafka
            return
    if len(ways) > 1:
        problems.append(f"or name a Kafka that runs: {_VARIABLES[0]}=host:port")
    raise UnavailableError("there is no Kafka to work with: " + "; ".join(problems))


def docker_problem() -> str | None:
    """Why no container can be started on this machine, or None when a Docker engine answers."""
    try:
        # testcontainers is a development dependency, and takes 0.2 s to import
        from ingester.local_kafka.container import engine_problem  # noqa: PLC0415 - as said above
    except ImportError as error:
        package = (error.name or "docker").partition(".")[0]
        return f"the Python package `{package}` is missing (pip install '.[dev]')"
    return engine_problem()


def _named() -> str | None:
    return next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), None)


@contextmanager
def _from_environment() -> Iterator[LocalKafka]:
    named = _named()
    if named is None:
        raise UnavailableError(f"neither {' nor '.join(_VARIABLES)} is set")
    if not wait_for_brokers(named, 1, seconds_max=_ANSWER_SECONDS_MAX, ended=lambda: False):
        raise UnavailableError(
            f"the Kafka that the environment names does not answer at {named} "
            f"within {_ANSWER_SECONDS_MAX} s: start it, or unset {' and '.join(_VARIABLES)}"
        )
    yield LocalKafka(named, f"using the Kafka that the environment names, at {named}")


@contextmanager
def _from_docker(report: Report) -> Iterator[LocalKafka]:
    problem = docker_problem()
    if problem is not None:
        raise UnavailableError(problem)
    from ingester.local_kafka.container import kafka_container  # noqa: PLC0415 - as above

    with kafka_container(report) as container:
        servers = container.bootstrap_servers
        yield LocalKafka(servers, f"using {container.image} in a container, at {servers}")


@contextmanager
def _from_jvm(report: Report, brokers: int) -> Iterator[LocalKafka]:
    with jvm_cluster(report, brokers) as cluster:
        servers = cluster.bootstrap_servers
        jvms = "a JVM" if brokers == 1 else f"{brokers} JVMs"
        yield LocalKafka(servers, f"using Kafka {KAFKA_VERSION} in {jvms}, at {servers}", cluster)
