"""Loads the settings: environment over TOML file over default, each with where it came from.

Unknown names are refused; everything that is wrong is said at once, in the names the operator
wrote, and never with a secret.
"""

from __future__ import annotations

import difflib
import re
import stat
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, get_args

import msgspec
from pydantic import ByteSize, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ingester.errors import ConfigurationError
from ingester.option import Address, parse_address, redact, show
from ingester.setting_group import Group, environment_name
from ingester.settings import KafkaSettings, PacspaceSettings, Settings

__all__ = [
    "Address",
    "Group",
    "KafkaSettings",
    "Loaded",
    "PacspaceSettings",
    "Settings",
    "environment_name",
    "load",
    "parse_address",
    "settings_table",
    "update_markdown",
]

VALUE_LENGTH_MAX: Final = 80  # of a refused value in a message, so that a line stays a line
# What Kubernetes gives every pod beside a Service named ingester, or ingester-metrics.
_SERVICE_LINK = re.compile(
    r"INGESTER_(\w+_)?"
    r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_LINK_URL = re.compile(r"(tcp|udp|sctp)://")

M = TypeVar("M", bound=Group)


class Loaded(msgspec.Struct, Generic[M], frozen=True):
    """Settings, where each of them came from, and what is unwise about that."""

    settings: M
    origins: Mapping[str, str]
    warnings: tuple[str, ...]


def load(model: type[M], *, environ: Mapping[str, str], config_file: Path | None) -> Loaded[M]:
    """Read a group of settings; ConfigurationError says everything that is wrong with them.

    Without `config_file` the file is the one that INGESTER_CONFIG_FILE names, if any. An empty
    variable counts as unset. Settings of other groups are left aside, unknown ones refused.
    """
    if config_file is None and environ.get("INGESTER_CONFIG_FILE"):
        config_file = Path(environ["INGESTER_CONFIG_FILE"])
    in_file = _read_file(config_file) if config_file else {}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    spelling: dict[str, str] = {}
    for name in model.model_fields:
        variable = environment_name(name)
        spelling[name] = variable
        origins[name] = "default"
        if environ.get(variable):
            values[name] = environ[variable]
            origins[name] = f"environment {variable}"
        elif name in in_file:
            values[name] = in_file[name]
            origins[name] = f"file {config_file}"
            spelling[name] = f"{name} in {config_file}"

    problems = [*_unknown_variables(environ), *_unknown_keys(in_file, config_file)]
    try:
        settings = model.model_validate(values, context=spelling)
    except ValidationError as error:
        for details in error.errors():
            problems += _explain(details, model, spelling)
    if problems:  # outside of the except: what pydantic raised would show the values, secrets too
        raise ConfigurationError(
            "the settings cannot be used:\n"
            + "".join(f"  {redact(problem)}\n" for problem in problems)
            + "Correct them and try again; docs/settings.md says what there is."
        )
    return Loaded(settings, origins, tuple(_warnings(in_file, config_file)))


def settings_table() -> str:
    """All settings as a Markdown table."""
    rows = ["| setting | meaning | default | unit |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        meaning = " ".join(filter(None, [field.description, _allowed(field)]))
        unit = next(
            (word for word in name.split("_") if word in {"seconds", "bytes", "items", "requests"}),
            "",
        )
        default = "required" if field.is_required() else show(field.default)
        rows.append(f"| `{environment_name(name)}` | {meaning} | {default} | {unit} |")
    return "\n".join(rows)


def updated_markdown(text: str) -> str:
    """A document with the table between its settings markers renewed; ValueError without them."""
    start, end = "<!-- settings -->", "<!-- /settings -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"there is no {start} followed by {end}")
    return f"{before}{start}\n{settings_table()}\n{end}{after}"


def update_markdown(path: Path) -> None:
    """Renew the table in a document."""
    path.write_text(updated_markdown(path.read_text(encoding="utf-8")), encoding="utf-8")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"the settings file {path} cannot be read: {error.strerror}. "
            "Name another with --config or INGESTER_CONFIG_FILE, or make it readable."
        ) from error
    except ValueError as error:  # TOML's own and UTF-8's are both of this kind
        raise ConfigurationError(
            f"the settings file {path} is not TOML: {error}. Correct it and try again."
        ) from error


def _unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    known = {f"INGESTER_{name.upper()}": environment_name(name) for name in Settings.model_fields}
    for variable, value in sorted(environ.items()):
        if (
            variable.startswith("INGESTER_")
            and variable != "INGESTER_CONFIG_FILE"
            and variable not in known.values()
            and not variable.startswith("INGESTER_TEST_")
            and not _SERVICE_LINK.fullmatch(variable)
            and not (variable.endswith("_PORT") and _SERVICE_LINK_URL.match(value))
        ):
            yield f"{variable} is not a setting{_did_you_mean(variable, known)}"


def _unknown_keys(in_file: Mapping[str, Any], path: Path | None) -> Iterator[str]:
    known = {name: name for name in Settings.model_fields}
    for key in in_file:
        if key not in known:
            yield f"{key} in {path} is not a setting{_did_you_mean(key.lower(), known)}"


def _did_you_mean(name: str, known: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"; did you mean {known[close[0]]}?" if close else ""


def _explain(details: ErrorDetails, model: type[Group], spelling: Mapping[str, str]) -> list[str]:
    """One line for each problem, from one that pydantic found."""
    reason = str(details.get("ctx", {}).get("error", details["msg"])).removeprefix("Input ")
    if not details["loc"]:
        return reason.splitlines()
    name = str(details["loc"][0])
    field = model.model_fields[name]
    if details["type"] == "missing":
        return [f"{spelling[name]} is required: {field.description}"]
    if _is_secret(field):
        return [f"{spelling[name]} {reason}"]
    value = repr(details["input"])
    if len(value) > VALUE_LENGTH_MAX:
        value = f"{value[:VALUE_LENGTH_MAX]}..."
    return [f"{spelling[name]} is {value}: {reason}"]


def _is_secret(field: FieldInfo) -> bool:
    return "SecretStr" in str(field.annotation)


def _allowed(field: FieldInfo) -> str:
    """The bounds or the choices of a setting, as a sentence."""
    choices = [f"`{choice}`" for choice in get_args(field.annotation) if isinstance(choice, str)]
    if choices:
        return f"One of {', '.join(choices)}." if len(choices) > 1 else f"Only {choices[0]} so far."
    bounds = {
        bound: getattr(constraint, bound)
        for constraint in field.metadata
        for bound in ("ge", "le")
        if hasattr(constraint, bound)
    }
    if not bounds:
        return ""
    as_shown = ByteSize if field.annotation is ByteSize else lambda bound: bound
    return f"From {show(as_shown(bounds['ge']))} to {show(as_shown(bounds['le']))}."


def _warnings(in_file: Mapping[str, Any], path: Path | None) -> Iterator[str]:
    secrets = [name for name, field in Settings.model_fields.items() if _is_secret(field)]
    exposed = [name for name in secrets if name in in_file]
    if path and exposed and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        yield (
            f"{path} holds {' and '.join(exposed)} and can be read by others: "
            f"chmod 600 {path}, or use the environment"
        )


if __name__ == "__main__":
    for document in sys.argv[1:]:
        update_markdown(Path(document))
