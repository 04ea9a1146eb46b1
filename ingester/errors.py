"""What ends a command: one class for each next action, each with its exit code.

    IngesterError
    ├── UsageError          64   the command line: correct it
    ├── DataError           65   part of the input is no usage event: correct and send that part
    ├── ConfigurationError  78   the settings: correct them, see `ingester check`
    ├── UnavailableError    69   Kafka or PacSpace did not answer in time: try again later
    ├── RefusedError        77   a credential was refused: replace it
    ├── OutputError         74   standard output takes nothing: make room; what was done is done
    └── IncompleteError     75   stopped with something unsettled: run it again, nothing is lost

Expected outcomes of records and batches are values, not exceptions (core/).
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_MISMATCH = 1
EXIT_PENDING = 2
EXIT_BUG = 70


class IngesterError(Exception):
    """A failure that an operator can act on; its message says what, with what, and what to do."""

    exit_code = EXIT_BUG


class UsageError(IngesterError):
    """The command line cannot be carried out as written."""

    exit_code = 64


class DataError(IngesterError):
    """Part of the input was refused; the message says which, all the rest was taken."""

    exit_code = 65


class ConfigurationError(IngesterError):
    """The settings are missing, unknown, malformed or contradict each other."""

    exit_code = 78


class UnavailableError(IngesterError):
    """Kafka or PacSpace could not be reached within the time the settings allow."""

    exit_code = 69


class RefusedError(IngesterError):
    """Kafka or PacSpace answered and refused the credentials."""

    exit_code = 77


class OutputError(IngesterError):
    """What the command did is done, and what it has to say of it cannot be written."""

    exit_code = 74


class IncompleteError(IngesterError):
    """The command ended before everything it had taken on was settled; nothing is lost."""

    exit_code = 75
