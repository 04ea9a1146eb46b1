"""What the text of a setting means: one type for each kind of value, and how it is shown again.

A type refuses what it cannot mean with a sentence that continues "this setting is ...: ".
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ByteSize, SecretStr

from ingester.wire import API_KEY_FORM

KIB: Final = 1024
MIB: Final = 1024 * KIB
TOPIC_NAME_LENGTH_MAX: Final = 249  # Kafka's own: a longer name cannot be a log directory

_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
_TOPIC_NAME = re.compile(rf"(?!\.{{1,2}}$)[A-Za-z0-9._-]{{1,{TOPIC_NAME_LENGTH_MAX}}}")
_SECRETS = re.compile(r"(://)[^/@\s]+(?=@)|(pk_(?:live|test)_[^.\s]+\.)[^*\s]\S*")


class Address(NamedTuple):
    """Where a server listens; port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Split `HOST:PORT` or `[::1]:PORT`; ValueError says how it should be written."""
    host, _, port = text.rpartition(":")
    bracketed = re.fullmatch(r"\[(.+)\]", host)
    try:
        host = str(ipaddress.IPv6Address(bracketed[1])) if bracketed else host
    except ValueError:
        bracketed = None
    if not (bracketed or _HOST_NAME.fullmatch(host)):
        raise ValueError(f"{text!r} should be HOST:PORT, with an IPv6 address in brackets")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{text!r} should end in a port from 0 to 65535")
    return Address(host, int(port))


def show(value: object) -> str:
    """A value as an operator would write it; of an API key only the public part."""
    match value:
        case None:
            return "unset"
        case SecretStr():
            key = API_KEY_FORM.fullmatch(value.get_secret_value())
            return f"pk_{key['environment']}_{key['public']}.***" if key else "***"
        case Address():
            return str(value)
        case tuple():
            return ",".join(map(str, value))
        case ByteSize():
            return _show_size(value)
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _show_size(size: int) -> str:
    for unit, bytes_each in (("GiB", 1024 * MIB), ("MiB", MIB), ("KiB", KIB)):
        if size and size % bytes_each == 0:
            return f"{size // bytes_each} {unit}"
    return str(size)


def redact(text: str) -> str:
    """Text without API keys and passwords of URLs, wherever somebody may have put them."""
    return _SECRETS.sub(lambda found: f"{found[1] or found[2]}***", text)


def reach(host: str) -> Literal["loopback", "private", "public"]:
    """How far a request to a host travels, as far as its name or address tells."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if host == "localhost" or host.endswith(".localhost"):
            return "loopback"
        private = "." not in host or host.endswith((".local", ".internal"))
        return "private" if private else "public"
    if address.is_loopback:
        return "loopback"
    return "private" if address.is_private else "public"


def _members(value: object) -> object:
    if isinstance(value, str):
        value = [member.strip() for member in value.split(",") if member.strip()]
    return tuple(dict.fromkeys(value)) if isinstance(value, list | tuple) else value


def _server(value: object) -> object:
    if isinstance(value, str) and parse_address(value).port == 0:
        raise ValueError("a broker does not listen on port 0")
    return value


def _topic_name(value: object) -> object:
    if isinstance(value, str) and not _TOPIC_NAME.fullmatch(value):
        raise ValueError(
            f"should be 1 to {TOPIC_NAME_LENGTH_MAX} of letters, digits, '.', '_' and '-', "
            "and not . or .."
        )
    return value


def _listen(value: object) -> object:
    if isinstance(value, str):
        return None if value.lower() == "off" else parse_address(value)
    return value


def _base_url(value: object) -> object:
    if not isinstance(value, str):
        return value
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
        raise ValueError("should be a base URL such as https://app.pacspace.io")
    if parts.username is not None:
        raise ValueError("should hold no user and no password; the key goes into PACSPACE_API_KEY")
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError("should end after host and port; the ingester adds /api/v1 by itself")
    return f"{parts.scheme}://{parts.netloc}"


def _api_key(value: object) -> object:
    if isinstance(value, str):
        value = value.strip()  # a key read from a file tends to bring its line end along
        if not (API_KEY_FORM.fullmatch(value) and value.isascii() and value.isprintable()):
            raise ValueError("should have the form pk_{live,test}_PUBLIC.SECRET")
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("should be a number")  # noqa: TRY004 - the kind that pydantic collects
    return value


Lower = BeforeValidator(_lower)
Upper = BeforeValidator(_upper)
Members = BeforeValidator(_members)

ApiKey = Annotated[SecretStr, BeforeValidator(_api_key)]
BaseUrl = Annotated[str, BeforeValidator(_base_url)]
Number = Annotated[float, BeforeValidator(_number)]
Count = Annotated[int, BeforeValidator(_number)]
Listen = Annotated[Address | None, BeforeValidator(_listen)]
Seconds = Annotated[float, BeforeValidator(_number)]
Server = Annotated[str, BeforeValidator(_server)]
Size = Annotated[ByteSize, BeforeValidator(_number)]
TopicName = Annotated[str, BeforeValidator(_topic_name)]
