"""What settings have in common that are loaded together: spelling, showing, contradicting.

A group that exists contradicts itself nowhere. Groups are inherited from, and add contradictions to
those of their bases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator

from ingester.option import show


class Contradiction(NamedTuple):
    """Settings that are fine one by one and not together; `{name}` in the text is a setting."""

    error_code: str
    text: str


class Group(BaseModel):
    """Settings that are loaded together."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        defer_build=True,  # of seven groups a command loads one or two: 5 ms of each start
    )

    def shown(self, name: str) -> str:
        """A setting's value as an operator would write it, secrets redacted."""
        value = getattr(self, name)
        return "off" if name == "http_listen" and value is None else show(value)

    def contradictions(self) -> Iterator[Contradiction]:
        """What cannot be had together; a group adds its own to those of its bases."""
        yield from ()

    @model_validator(mode="after")
    def _refuse_contradictions(self, info: ValidationInfo) -> Self:
        spelling: Mapping[str, str] = info.context or {}
        named = {
            name: f"{spelling.get(name) or environment_name(name)} ({self.shown(name)})"
            for name in type(self).model_fields
        }
        lines = [f"{code}: {text.format_map(named)}" for code, text in self.contradictions()]
        if lines:
            raise ValueError("\n".join(lines))
        return self


def environment_name(name: str) -> str:
    """The environment variable of a setting."""
    return "PACSPACE_API_KEY" if name == "pacspace_api_key" else f"INGESTER_{name.upper()}"
