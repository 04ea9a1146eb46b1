"""The `simulate` verb: command line to options."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ingester.errors import ConfigurationError, UsageError
from ingester.simulator.faults import Rule, decode_rules
from ingester.simulator.options import Idempotency, IdField, KeyLookup, Options
from ingester.simulator.server import serve

_DEFAULTS = Options()


def simulate(
    *,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to serve; port 0 picks a free one.")
    ] = f"{_DEFAULTS.host}:{_DEFAULTS.port}",
    verify_delay_seconds: Annotated[
        float, typer.Option(min=0, help="How long a record reads `verified: false`.")
    ] = _DEFAULTS.verify_delay_seconds,
    id_field: Annotated[
        IdField, typer.Option(help="How the acknowledgement spells its id.")
    ] = _DEFAULTS.id_field,
    idempotency: Annotated[
        Idempotency, typer.Option(help="Whether Idempotency-Key has any effect.")
    ] = _DEFAULTS.idempotency,
    key_lookup: Annotated[
        KeyLookup, typer.Option(help="Look the key up before or after the body is validated.")
    ] = _DEFAULTS.key_lookup,
    items_max: Annotated[
        int, typer.Option(min=1, help="More items than this in one request are refused: 400.")
    ] = _DEFAULTS.items_max,
    body_bytes_max: Annotated[
        int, typer.Option(min=1, help="A larger body is refused: 413.")
    ] = _DEFAULTS.body_bytes_max,
    latency_seconds: Annotated[
        float, typer.Option(min=0, help="How long every request takes, at least.")
    ] = _DEFAULTS.latency_seconds,
    faults: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Fault rules to start with.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Decides which requests a rule with a probability takes.")
    ] = _DEFAULTS.seed,
    api_key: Annotated[
        str | None, typer.Option(help="Let in this key only; otherwise any of the right form.")
    ] = None,
) -> None:
    """Serve a stand-in for PacSpace's API until interrupted.

    It validates, accumulates and verifies as documented, honours Idempotency-Key, and says on
    every response that it is a simulator. What it applied: GET /_simulator/report.

    \b
    Examples:
      ingester simulate
      ingester simulate --listen 127.0.0.1:0 --verify-delay-seconds 2
      ingester simulate --idempotency ignore --latency-seconds 0.02
      ingester simulate --faults faults.json --seed 7

    Every tenth write is applied, but its answer never arrives; then one read is throttled:

    \b
      [{"match": {"method": "POST", "every_nth": 10}, "effect": {"kind": "lose"}},
       {"match": {"method": "GET", "count": 1},
        "effect": {"kind": "answer", "status": 429, "retry_after": 2}}]

    Rules are also added, listed and removed at run time: POST, GET, DELETE /_simulator/faults.
    """
    host, port = _address(listen)
    options = Options(
        host=host,
        port=port,
        verify_delay_seconds=verify_delay_seconds,
        id_field=id_field,
        idempotency=idempotency,
        key_lookup=key_lookup,
        items_max=items_max,
        body_bytes_max=body_bytes_max,
        latency_seconds=latency_seconds,
        faults=_rules(faults) if faults else (),
        seed=seed,
        api_key=api_key,
    )
    asyncio.run(serve(options))


def _address(listen: str) -> tuple[str, int]:
    host, separator, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (separator and host and port.isascii() and port.isdigit() and int(port) < 65_536):
        raise UsageError(f"--listen {listen}: expected HOST:PORT, such as 127.0.0.1:8099")
    return host, int(port)


def _rules(path: Path) -> tuple[Rule, ...]:
    try:
        return decode_rules(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"--faults {path}: cannot be read: {error.strerror}; name a readable JSON file"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--faults {path}: not a list of fault rules: {error}") from error
