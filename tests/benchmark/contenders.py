"""Who is measured. Each reads its settings from the same environment variables."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ingester.settings import Settings
from tests.support.processes import COMMAND, environment

ITEMS_MAX: int = Settings.model_fields["items_max"].default


@dataclass(frozen=True)
class Contender:
    """A program that brings a topic to the endpoint."""

    name: str
    command: tuple[str, ...]
    requests_in_flight_max: int
    exit_code: int
    """Of the process that is asked to end by SIGTERM and is well."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What it is told beside where things are."""

    def events_permitted(self, latency_seconds: float) -> float:
        """Events a second that its requests in flight allow at this latency of the endpoint."""
        return self.requests_in_flight_max * ITEMS_MAX / latency_seconds


INGESTER = Contender(
    name="ingester",
    command=(str(COMMAND), "run"),
    requests_in_flight_max=Settings.model_fields["requests_in_flight_max"].default,
    exit_code=0,
)
PLAIN = Contender(
    name="plain",
    command=(sys.executable, str(Path(__file__).with_name("plain_loop.py"))),
    requests_in_flight_max=1,
    exit_code=-signal.SIGTERM,
)
WITHOUT_RECEIPTS = replace(
    INGESTER, name="ingester without receipts", settings={"INGESTER_RECEIPTS": "off"}
)
WITHOUT_INTENTS = replace(
    INGESTER,
    name="ingester without intents",
    command=(sys.executable, str(Path(__file__).with_name("without_intents.py")), "run"),
)
CONTENDERS = (PLAIN, INGESTER)
VARIANTS = (WITHOUT_RECEIPTS, WITHOUT_INTENTS)
"""What single promises cost: the same worker that does not keep them."""


def receipts_topic(group_id: str) -> str:
    """The topic of one run's receipts."""
    return f"{group_id}.receipts"


def settings(
    contender: Contender, bootstrap_servers: str, topic: str, group_id: str, url: str
) -> Mapping[str, str]:
    """The environment of a contender: where things are, its own, and the rest at its default."""
    return environment(
        {
            "INGESTER_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
            "INGESTER_TOPIC": topic,
            "INGESTER_GROUP_ID": group_id,
            # Receipts of another group would say that all of it was settled before.
            "INGESTER_RECEIPTS_TOPIC": receipts_topic(group_id),
            "INGESTER_PACSPACE_URL": url,
            "PACSPACE_API_KEY": "pk_test_benchmark.secret",
            "INGESTER_HTTP_LISTEN": "off",  # its default port may be taken on this machine
            **contender.settings,
        }
    )
