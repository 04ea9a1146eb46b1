"""The basic settlement flow as a client of PacSpace writes it, with `requests`."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import requests

API_BASE = os.environ["PACSPACE_URL"]
HEADERS = {"X-Api-Key": os.environ["PACSPACE_API_KEY"], "Content-Type": "application/json"}


def record_usage(account_id: str, key: str, bits: int, description: str) -> None:
    metadata = {"description": description, "timestamp": datetime.now(UTC).isoformat()}
    item = {"key": key, "accountId": account_id, "bits": bits, "metadata": metadata}
    response = requests.post(f"{API_BASE}/api/v1/writes", headers=HEADERS, json={"items": [item]})
    response.raise_for_status()
    print(f"Recorded: {bits} for {key} → batch {response.json()['data']['batchId']}")


def get_balance(key: str) -> dict:
    response = requests.get(f"{API_BASE}/api/v1/reads/bucket/{key}", headers=HEADERS)
    response.raise_for_status()
    record = response.json()["data"]
    print(f"Balance for {key}: {record['currentBits']} ({record['totalWrites']} writes)")
    return record


def verify_with_counterparty(key: str, expected: int) -> str:
    record = get_balance(key)
    if not record["verified"]:
        return "pending_verification"
    return "agreed" if record["currentBits"] == expected else "balance_mismatch"


def settle() -> None:
    key, account = "settlement-2025-06", "customer-acme"
    record_usage(account, key, 100, "API calls, week 1")
    record_usage(account, key, 250, "API calls, week 2")
    record_usage(account, key, 150, "API calls, week 3")

    total = get_balance(key)["currentBits"]
    print(f"Total usage recorded: {total}")

    outcome = verify_with_counterparty(key, 500)
    if outcome != "agreed":
        print(f"No agreement: {outcome}")
        return
    print(f"Agreement confirmed: both parties agree on {total}")
    print(f"Settlement complete. Generating invoice for {total}")


if __name__ == "__main__":
    settle()
