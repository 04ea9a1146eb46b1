"""Where log lines go and how they look: structured, one line each, those of the libraries too."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from typing import Literal, TextIO, cast

import structlog

from ingester.settings import Settings

_CLIENT_LINE_SECONDS = 10.0  # an outage is noticed in time, and does not fill the disk


def configure_logging(
    level: Literal["debug", "info", "warning", "error"],
    format_: Literal["auto", "console", "json"],
    stream: TextIO = sys.stderr,
) -> None:
    """Send structured lines to `stream`, those of the libraries among them."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    console = format_ == "console" or (format_ == "auto" and stream.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty())
        if console
        else structlog.processors.JSONRenderer()
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Stream(stream))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(cast("TextIO", _Stream(stream)))
    handler.addFilter(_KafkaClientLines())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def configure_command_logging(settings: Settings) -> None:
    """The same for a command that shows how far it is: on a terminal warnings, unless told."""
    is_told = "log_level" in settings.model_fields_set or not sys.stderr.isatty()
    configure_logging(settings.log_level if is_told else "warning", settings.log_format)


class _Stream:
    """Never fails: a log that nobody can read is no reason to stop settling."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # closed pipe, full disk; closed file
            return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class _KafkaClientLines(logging.Filter):
    """Thins out what the Kafka client says at each of its retries: 40 errors a second, otherwise.

    It goes on retrying, so nothing of it is worse than a warning.
    """

    def __init__(self) -> None:
        super().__init__()
        self._silent_until: dict[tuple[str, int], float] = {}
        # By the place in the client's code: when it may be heard again.

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("aiokafka"):
            return True
        place, now = (record.pathname, record.lineno), time.monotonic()
        if now < self._silent_until.get(place, now):
            return False
        self._silent_until[place] = now + _CLIENT_LINE_SECONDS
        if record.levelno > logging.WARNING:
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True
