"""`ingester run`: from the settings to a running worker."""

from __future__ import annotations

import os

import structlog
import uvloop

from ingester.arguments import ConfigFile
from ingester.config import load
from ingester.log_lines import configure_logging
from ingester.settings import Settings
from ingester.worker.loop import run_worker


def run(config: ConfigFile = None) -> None:
    """Settle the usage topics until SIGTERM, then drain and leave.

    A second signal exits at once.

    Settings come from INGESTER_* variables and the file; `ingester check` shows and tries them.

    \b
    Example:
      INGESTER_KAFKA_BOOTSTRAP_SERVERS=kafka:9092 INGESTER_TOPIC=usage \\
      INGESTER_PACSPACE_URL=https://app.pacspace.io PACSPACE_API_KEY=pk_test_... ingester run

    Exit codes: 0 drained; 69 Kafka or a topic is missing for longer than
    INGESTER_STARTUP_TIMEOUT_SECONDS; 75 the drain deadline passed before everything was settled,
    or a partition had halted and waits for a decision (nothing is lost; the log says which); 77
    Kafka refuses the credentials; 78 the settings.
    """
    loaded = load(Settings, environ=os.environ, config_file=config)
    configure_logging(loaded.settings.log_level, loaded.settings.log_format)
    for warning in loaded.warnings:
        structlog.get_logger().warning("settings.warned", detail=warning)
    uvloop.run(run_worker(loaded.settings))
