"""Serves what probes, Prometheus and a curious operator ask of a running worker; changes nothing.

`/healthz` the process serves, `/readyz` it has partitions or waits for its share, `/metrics`
Prometheus' text, `/status` where each partition stands, as JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ingester.core.pipeline import Pipeline
from ingester.core.record import TopicPartition
from ingester.errors import ConfigurationError
from ingester.option import Address
from ingester.worker.telemetry import Telemetry


class HealthServer:
    """One listener beside the worker, in its loop."""

    def __init__(
        self,
        pipeline: Pipeline,
        telemetry: Telemetry,
        group_id: str,
        stalled: Callable[[], Collection[TopicPartition]],
    ) -> None:
        self._pipeline = pipeline
        self._telemetry = telemetry
        self._group_id = group_id
        self._stalled = stalled
        self._runner: web.AppRunner | None = None

    async def start(self, listen: Address) -> None:
        """Listen; ConfigurationError when the address is taken."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/status", self._status)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, *listen).start()
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {listen}: {error.strerror}. Set INGESTER_HTTP_LISTEN to another"
                " HOST:PORT, or to off."
            ) from error

    async def stop(self) -> None:
        """Close the listener, if there is one."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.Response:
        ready = self._pipeline.assigned
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        self._telemetry.blocked.set(self._pipeline.blocked is not None)
        states = self._pipeline.partitions.values()
        self._telemetry.halted.set(sum(each.halt_reason is not None for each in states))
        self._telemetry.write_refused.set(sum(each.write_refused is not None for each in states))
        self._telemetry.held_seconds.set(self._hold()[0])
        self._telemetry.in_flight.set(self._pipeline.in_flight)
        self._telemetry.buffered_bytes.set(self._pipeline.buffered_bytes)
        text = generate_latest(self._telemetry.registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _status(self, _: web.Request) -> web.Response:
        pipeline = self._pipeline
        held_seconds, held_for = self._hold()
        held_until = datetime.now(UTC) + timedelta(seconds=held_seconds)
        stalled = self._stalled()
        return web.json_response(
            {
                "group": self._group_id,
                "requestsInFlight": pipeline.in_flight,
                "bufferedBytes": pipeline.buffered_bytes,
                "blocked": pipeline.blocked.reason if pipeline.blocked else None,
                "heldUntil": held_until.isoformat(timespec="milliseconds") if held_for else None,
                "heldFor": held_for,
                "partitions": {
                    str(name): {
                        "committedOffset": state.committed,
                        "unsettledBatches": state.unsettled_batches,
                        "bufferedBytes": state.buffered_bytes,
                        "halted": state.halt_reason,
                        "writeRefused": state.write_refused,
                        "stalled": name in stalled,
                    }
                    for name, state in pipeline.partitions.items()
                },
            }
        )

    def _hold(self) -> tuple[float, str | None]:
        """For how many seconds nothing is sent from now on, and why; 0 and None otherwise."""
        hold = self._pipeline.hold
        seconds = hold.until - asyncio.get_running_loop().time() if hold else 0.0
        return (seconds, hold.reason) if hold and seconds > 0 else (0.0, None)
