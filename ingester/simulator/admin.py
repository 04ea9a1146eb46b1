"""The simulator's own endpoints, all below `/_simulator/`: faults at run time, and the report."""

from __future__ import annotations

import msgspec
from aiohttp import web

from ingester.simulator import answers
from ingester.simulator.api import Api
from ingester.simulator.faults import Faults, decode_rules

FAULTS_PATH = "/_simulator/faults"
REPORT_PATH = "/_simulator/report"


class Admin:
    """What a test or an operator asks of the simulator; never counted as a request of the API."""

    def __init__(self, api: Api, faults: Faults) -> None:
        """Look at and change the same state that the API's endpoints use."""
        self._api = api
        self._faults = faults

    def routes(self) -> list[web.RouteDef]:
        """Return the endpoints."""
        return [
            web.get(FAULTS_PATH, self._show_faults),
            web.post(FAULTS_PATH, self._add_faults),
            web.delete(FAULTS_PATH, self._clear_faults),
            web.get(REPORT_PATH, self._show_report),
            web.delete(REPORT_PATH, self._clear_report),
        ]

    async def _show_faults(self, _: web.Request) -> web.Response:
        return _json(self._faults.report())

    async def _add_faults(self, request: web.Request) -> web.Response:
        try:
            rules = decode_rules(await request.read())
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            refusal = answers.refusal(400, f"Not a list of fault rules: {error}")
            return web.Response(
                status=refusal.status, body=refusal.body, content_type=refusal.content_type
            )
        self._faults.add(rules)
        return _json(self._faults.report(), status=201)

    async def _clear_faults(self, _: web.Request) -> web.Response:
        self._faults.clear()
        return web.Response(status=204)

    async def _show_report(self, request: web.Request) -> web.Response:
        report = self._api.ledger.report(
            keys=request.query.get("keys") != "false",
            batch_ids=request.query.get("batch_ids") == "true",
        )
        return _json(report)

    async def _clear_report(self, _: web.Request) -> web.Response:
        self._api.reset()
        return web.Response(status=204)


def _json(content: object, *, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(content), content_type="application/json"
    )
