"""`ingester check`: the settings in effect, and whether the worker could work with them.

Looks only: nothing is created, joined or written. Every failure says what to do about it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import typer

from ingester.arguments import AsJson, ConfigFile
from ingester.config import Loaded, Settings, environment_name, load
from ingester.core.delivery import Answer, AnswerLost, NothingSent, Response, read_envelope
from ingester.errors import (
    EXIT_OK,
    ConfigurationError,
    RefusedError,
    UnavailableError,
)
from ingester.kafka.admin import ADMIN_TIMEOUT_SECONDS, KafkaAdmin
from ingester.kafka.check import CheckResult, KafkaProbe, Status, check_kafka
from ingester.output import whoever_reads
from ingester.pacspace import PacspaceClient
from ingester.wire import BUCKET_PATH

UNKNOWN_KEY: Final = "pacspace-ingester-check"  # nobody's; a balance under it would do no harm

_COLOURS: Final = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW}


class PacspaceProbe(Protocol):
    """What a check asks of PacSpace: one bare answer."""

    async def get(self, path: str) -> Answer: ...


class _Verdict(NamedTuple):
    status: Status
    exit_code: int
    detail: str
    remedy: str


_NOT_PACSPACE: Final = _Verdict(
    "failed",
    UnavailableError.exit_code,
    "something other than PacSpace's API answered",
    "Correct INGESTER_PACSPACE_URL: the base URL of the API, without a path.",
)
_UNWELL: Final = _Verdict(
    "failed",
    UnavailableError.exit_code,
    "PacSpace is not well",
    "Try again later; the worker itself would wait.",
)
_VERDICTS: Final[Mapping[int, _Verdict]] = {
    401: _Verdict(
        "failed",
        RefusedError.exit_code,
        "the key is refused",
        "Correct PACSPACE_API_KEY; one that was switched off can be switched on in the dashboard.",
    ),
    402: _Verdict(
        "failed",
        UnavailableError.exit_code,
        "the account has nothing left to spend",
        "Top it up or change the plan; until then the worker would hold everything back.",
    ),
    403: _Verdict(
        "failed",
        RefusedError.exit_code,
        "the key is known and not permitted here",
        "Use a key of the environment that INGESTER_PACSPACE_URL serves: pk_live_ or pk_test_.",
    ),
    412: _Verdict(
        "failed",
        UnavailableError.exit_code,
        "the account's environment is not set up",
        "Ask PacSpace to set it up.",
    ),
    429: _Verdict(
        "warning",
        EXIT_OK,
        "PacSpace answers, and asks for fewer requests",
        "Try again later to see whether the key is accepted.",
    ),
    **dict.fromkeys((408, 500, 502, 503, 504), _UNWELL),
}

_LOST_REMEDY: Final = "Is that PacSpace's API? If INGESTER_PACSPACE_URL is right, try again later."
_NOTHING_SENT: Final = {
    "refused": "Is it running there, on that port? Correct INGESTER_PACSPACE_URL.",
    "dns": "Correct the host in INGESTER_PACSPACE_URL, or the name service.",
    "certificate": "Name the authority's PEM file in SSL_CERT_FILE, or correct the host's name.",
    "tls": "Does that port speak TLS? Correct INGESTER_PACSPACE_URL.",
    "timeout": "Is there a firewall or a proxy between?",
    "other": "Is there a way from here to there? Correct INGESTER_PACSPACE_URL, or the network.",
}


async def run_checks(
    loaded: Loaded[Settings], kafka: KafkaProbe, pacspace: PacspaceProbe
) -> list[CheckResult]:
    """Check settings, Kafka and PacSpace; one that fails does not keep another from its check."""
    on_settings = [CheckResult("settings", "warning", text) for text in loaded.warnings]
    on_kafka, on_pacspace = await asyncio.gather(
        check_kafka(loaded.settings, kafka), _check_pacspace(loaded.settings, pacspace)
    )
    return [*(on_settings or [CheckResult("settings", "ok", "valid")]), *on_kafka, on_pacspace]


def check(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show the settings in effect, and try Kafka and PacSpace.

    Every failure comes with what to do about it; nothing is created, joined or written.

    \b
    Examples:
      ingester check
      ingester check --config ingester.toml --json

    Exit codes: 0 all is well; 69 something is missing or out of reach; 77 a credential is refused;
    78 the settings; of several the highest.
    """
    loaded = None
    try:
        loaded = load(Settings, environ=os.environ, config_file=config)
        if not as_json:
            with whoever_reads():
                typer.echo(render_settings(loaded))
        results = asyncio.run(_check_for_real(loaded))
    except ConfigurationError as error:
        results = [CheckResult("settings", "failed", str(error), exit_code=error.exit_code)]
    exit_code = max(result.exit_code for result in results)
    if as_json:
        document = {
            "exit_code": exit_code,
            "settings": _settings_document(loaded) if loaded else None,
            "checks": [asdict(result) for result in results],
        }
        said = json.dumps(document, indent=2)
    else:
        said = render_results(results)
    with whoever_reads():
        typer.echo(said)
    raise typer.Exit(exit_code)


def render_settings(loaded: Loaded[Settings]) -> str:
    """The effective settings with their origins, one line each, secrets redacted."""
    rows = [
        (environment_name(name), _shown(loaded.settings, name), loaded.origins[name])
        for name in Settings.model_fields
    ]
    name_width = max(len(name) for name, _, _ in rows)
    value_width = min(48, max(len(value) for _, value, _ in rows))
    return "\n".join(
        f"{name:<{name_width}}  {value:<{value_width}}  {origin}" for name, value, origin in rows
    )


def render_results(results: Iterable[CheckResult]) -> str:
    """What was found, one line each, and what to do in the lines below."""
    lines = [""]
    for result in results:
        status = typer.style(f"{result.status:<7}", fg=_COLOURS.get(result.status, "red"))
        first, *more = [*result.detail.splitlines(), *result.remedy.splitlines()]
        lines.append(f"{status}  {result.subject}: {first}")
        lines += [f"         {line}" for line in more]
    return "\n".join(lines)


def _shown(settings: Settings, name: str) -> str:
    """A setting as an operator would write it, or what holds where it is unset."""
    effective = _effective(settings, name)
    if isinstance(effective, float):
        return f"{effective:g} (four fifths of the session timeout)"
    return ",".join(effective.values()) if effective else settings.shown(name)


def _effective(settings: Settings, name: str) -> float | dict[str, str] | None:
    """What holds for a setting whose absence has a meaning of its own, else None."""
    if getattr(settings, name) is None:
        if name == "drain_timeout_seconds":
            return settings.drain_seconds
        if name == "dead_letter_topic":
            return {topic: settings.dead_letter_topic_for(topic) for topic in settings.topics}
        if name == "receipts_topic":
            return {topic: settings.receipts_topic_for(topic) for topic in settings.topics}
    return None


def _settings_document(loaded: Loaded[Settings]) -> dict[str, dict[str, Any]]:
    """Values with the types of JSON; `effective` is there where an unset one has a meaning."""
    document: dict[str, dict[str, Any]] = {}
    for name in Settings.model_fields:
        value = getattr(loaded.settings, name)
        if name == "http_listen" or not isinstance(value, int | float | tuple | None):
            value = loaded.settings.shown(name)
        setting = {"value": value, "origin": loaded.origins[name]}
        effective = _effective(loaded.settings, name)
        if effective is not None:
            setting["effective"] = effective
        document[environment_name(name)] = setting
    return document


async def _check_for_real(loaded: Loaded[Settings]) -> list[CheckResult]:
    settings = loaded.settings
    kafka = KafkaAdmin(settings, timeout_seconds=ADMIN_TIMEOUT_SECONDS)
    async with PacspaceClient.from_settings(settings) as pacspace:
        return await run_checks(loaded, kafka, pacspace)


async def _check_pacspace(settings: Settings, pacspace: PacspaceProbe) -> CheckResult:
    answer = await pacspace.get(BUCKET_PATH + UNKNOWN_KEY)
    where = f"{settings.pacspace_url}: "
    match answer:
        case NothingSent(reason, kind):
            return CheckResult(
                "pacspace",
                "failed",
                where + reason,
                _NOTHING_SENT[kind],
                UnavailableError.exit_code,
            )
        case AnswerLost(reason):
            return CheckResult(
                "pacspace", "failed", where + reason, _LOST_REMEDY, UnavailableError.exit_code
            )
        case Response(status, _, body):
            if _is_pacspace(status, body):
                key = f"the {settings.pacspace_environment} key is accepted"
                return CheckResult("pacspace", "ok", where + key)
            verdict = _VERDICTS.get(status, _NOT_PACSPACE)
            said = f"HTTP {status}, {read_envelope(body).sentence(body)}"
            return CheckResult(
                "pacspace",
                verdict.status,
                f"{where}{verdict.detail} ({said})",
                verdict.remedy,
                verdict.exit_code,
            )


def _is_pacspace(status: int, body: bytes) -> bool:
    """Whether an answer is one that only PacSpace gives, and only to a key that it accepts."""
    if status == 404:
        return read_envelope(body).is_api
    try:
        document: Any = msgspec.json.decode(body) if status == 200 else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(document, dict) and "data" in document
