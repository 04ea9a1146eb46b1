"""What the worker gives to the core."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ingester.config import load
from ingester.core.batch import BatchLimits
from ingester.core.deadletter import DeadLetterLimit
from ingester.core.messages import Limits
from ingester.settings import Settings
from ingester.worker.loop import limits_of

SETTINGS = """
kafka_bootstrap_servers = ["localhost:9092"]
topic = "usage"
pacspace_url = "https://pacspace.example"
pacspace_api_key = "pk_test_public.secret"
items_max = 7
body_bytes_max = 5000
linger_seconds = 0.25
requests_in_flight_max = 3
requests_per_second_max = 11
buffer_bytes_max = 70000
backoff_seconds_min = 0.5
backoff_seconds_max = 20
commit_interval_seconds = 0.75
idempotency_window_seconds = 3600
connect_timeout_seconds = 2
request_timeout_seconds = 12
session_timeout_seconds = 15
dead_letters_max = 99
dead_letter_share_max = 0.125
dead_letter_window_seconds = 30
in_doubt = "halt"
receipts = "off"
"""


def test_every_bound_of_the_core_is_a_setting(tmp_path: Path) -> None:
    """None of them keeps a default of its own."""
    file = tmp_path / "ingester.toml"
    file.write_text(SETTINGS)
    file.chmod(0o600)
    limits = limits_of(load(Settings, environ={}, config_file=file).settings)

    assert limits == Limits(
        batch=BatchLimits(7, 5000, 0.25),
        requests_in_flight_max=3,
        requests_per_second_max=11,
        buffer_bytes_max=70000,
        backoff_seconds_min=0.5,
        backoff_seconds_max=20,
        commit_interval_seconds=0.75,
        idempotency_window_seconds=3600,
        request_timeout_seconds=12,
        session_timeout_seconds=15,
        dead_letters=DeadLetterLimit(99, 0.125, 30),
        in_doubt="halt",
        receipts=False,
    )
    others = limits_of(
        load(
            Settings,
            environ={
                "INGESTER_KAFKA_BOOTSTRAP_SERVERS": "localhost:9092",
                "INGESTER_TOPIC": "usage",
                "INGESTER_PACSPACE_URL": "https://pacspace.example",
                "PACSPACE_API_KEY": "pk_test_public.secret",
            },
            config_file=None,
        ).settings
    )
    for field in msgspec.structs.fields(Limits):
        assert getattr(limits, field.name) != getattr(others, field.name), field.name
