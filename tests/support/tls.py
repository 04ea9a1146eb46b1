"""A certificate for localhost that nobody trusts unless told, and a server's use of it."""

from __future__ import annotations

import ssl
from pathlib import Path

SELF_SIGNED = Path(__file__).with_name("self_signed.pem")


def server_context() -> ssl.SSLContext:
    """What a server shows the certificate with."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(SELF_SIGNED)
    return context
