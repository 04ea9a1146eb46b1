"""PacSpace's stand-in as a real process, and what a test asks of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import httpx

from tests.support.processes import Ingesters
from tests.support.waiting import eventually

API_KEY = "pk_test_tests.secret"


class Simulator:
    """`ingester simulate`, serving on a free port of the loopback interface."""

    def __init__(self, ingesters: Ingesters, *options: str) -> None:
        """Start it with further options of the command line, and wait until it listens."""
        self.process = ingesters.start("simulate", "--listen", "127.0.0.1:0", *options)
        self.url = eventually(self._listening_url)

    def settings(self) -> dict[str, str]:
        """The settings that make an ingester talk to it."""
        return {"INGESTER_PACSPACE_URL": self.url, "PACSPACE_API_KEY": API_KEY}

    def report(self, *, keys: bool = True, batch_ids: bool = False) -> dict[str, Any]:
        """What was applied so far."""
        asked = {"keys": str(keys).lower(), "batch_ids": str(batch_ids).lower()}
        answer = httpx.get(f"{self.url}/_simulator/report", params=asked).raise_for_status()
        return dict(answer.json())

    def add_faults(self, *rules: Mapping[str, Any]) -> None:
        """Arm fault rules behind those in force."""
        httpx.post(f"{self.url}/_simulator/faults", json=list(rules)).raise_for_status()

    def clear_faults(self) -> None:
        """Disarm all fault rules."""
        httpx.delete(f"{self.url}/_simulator/faults").raise_for_status()

    def _listening_url(self) -> str | None:
        said = self.process.log()
        assert self.process.exit_code is None, f"the simulator ended; it printed:\n{said}"
        listening = re.search(r"simulator listening on (http://\S+)\n", said)
        return listening and listening[1]
