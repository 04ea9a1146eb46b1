"""Names on the wire of PacSpace's HTTP API, shared by everything that speaks it.

Owns spellings only: paths, header names and the form of an API key. Never decides anything.
"""

from __future__ import annotations

import re

WRITES_PATH = "/api/v1/writes"
BUCKET_PATH = "/api/v1/reads/bucket/"  # followed by the record's key, percent-encoded

API_KEY_HEADER = "X-Api-Key"
IDEMPOTENCY_KEY_HEADER = "Idempotency-Key"
SIMULATOR_HEADER = "X-PacSpace-Simulator"

IDEMPOTENCY_PENDING = "IDEMPOTENCY_PENDING"
IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"

# The secret's own form changed over the years: all that is certain is that it is not empty.
API_KEY_FORM = re.compile(r"pk_(?P<environment>live|test)_(?P<public>[^.\s]+)\.(?P<secret>\S+)")
