"""Metering as a client of PacSpace writes it, with `requests`: a month without a record is 0."""

from __future__ import annotations

import os

import requests

API_BASE = os.environ["PACSPACE_URL"]
HEADERS = {"X-Api-Key": os.environ["PACSPACE_API_KEY"], "Content-Type": "application/json"}


def record_api_call(customer_id: str, month: str, endpoint: str) -> None:
    item = {
        "key": f"usage-{customer_id}-{month}",
        "accountId": customer_id,
        "bits": 1,
        "metadata": {"endpoint": endpoint},
    }
    response = requests.post(f"{API_BASE}/api/v1/writes", headers=HEADERS, json={"items": [item]})
    response.raise_for_status()


def get_usage(customer_id: str, month: str) -> dict:
    url = f"{API_BASE}/api/v1/reads/bucket/usage-{customer_id}-{month}"
    response = requests.get(url, headers=HEADERS)
    if response.status_code == 404:
        return {"total_calls": 0, "verified": False}
    response.raise_for_status()
    record = response.json()["data"]
    return {"total_calls": record["currentBits"], "verified": record["verified"]}


if __name__ == "__main__":
    for endpoint in ("/v1/search", "/v1/search", "/v1/export"):
        record_api_call("customer-acme", "2025-06", endpoint)
    for month in ("2025-05", "2025-06"):
        print(month, get_usage("customer-acme", month)["total_calls"])
