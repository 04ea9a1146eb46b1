"""Kafka in a container, by testcontainers. Import it only when it is wanted: testcontainers is a
development dependency, and its own KafkaContainer is for another image and refuses Kafka 4.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Self, cast

from docker.errors import (  # type: ignore[import-untyped] # ships without types
    APIError,
    DockerException,
    ImageNotFound,
)
from testcontainers.core.config import ConnectionMode, testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient

from ingester.errors import UnavailableError
from ingester.local_kafka.broker import KAFKA_VERSION, broker_settings
from ingester.local_kafka.readiness import wait_for_brokers

IMAGE = f"apache/kafka:{KAFKA_VERSION}"

_CLIENT_PORT = 9092
_CONTROLLER_PORT = 9093
_LOOPBACK = "127.0.0.1"
_START_SCRIPT = "/tmp/start-kafka.sh"  # noqa: S108 - a path inside the container
_ENGINE_SECONDS_MAX = 10
_START_SECONDS_MAX = 120  # 7 to 10 s on an idle machine
_TAIL_LINES = 20


class KafkaContainer(DockerContainer):
    """One broker of the official image, broker and controller in one, on a mapped port.

    Where clients and the engine share a machine, the port is open to that machine alone.
    Clients must be told the mapped address, which is known only once the container runs: so the
    container first waits for a script that carries it.
    """

    def __init__(self) -> None:
        super().__init__(IMAGE)
        self._is_local = _is_local(self.get_docker_client())
        # The annotation allows a number only; the engine's client takes (address,) for any port.
        port = cast("int", (_LOOPBACK,)) if self._is_local else None
        self.ports[str(_CLIENT_PORT)] = port
        self.with_command(
            [
                "sh",
                "-c",
                f"until [ -f {_START_SCRIPT} ]; do sleep 0.1; done; exec sh {_START_SCRIPT}",
            ]
        )
        settings = {
            "node.id": "1",
            "process.roles": "broker,controller",
            "controller.quorum.voters": f"1@localhost:{_CONTROLLER_PORT}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "CLIENT",
            "listeners": f"CLIENT://0.0.0.0:{_CLIENT_PORT},CONTROLLER://0.0.0.0:{_CONTROLLER_PORT}",
            "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            **broker_settings(1),
        }
        # The image drops all of its defaults once one KAFKA_ variable is set.
        self.with_envs(
            KAFKA_HEAP_OPTS="-Xms256m -Xmx512m",
            **{
                f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in settings.items()
            },
        )

    @property
    def bootstrap_servers(self) -> str:
        """Where a client outside Docker finds the broker, once the container is started."""
        host = _LOOPBACK if self._is_local else self.get_container_host_ip()
        return f"{host}:{self.get_exposed_port(_CLIENT_PORT)}"

    def start(self) -> Self:
        super().start()
        script = (
            f"export KAFKA_ADVERTISED_LISTENERS=CLIENT://{self.bootstrap_servers}\n"
            "exec /etc/kafka/docker/run\n"
        )
        self.copy_into_container(script.encode(), _START_SCRIPT, 0o755)
        if not wait_for_brokers(
            self.bootstrap_servers, 1, seconds_max=_START_SECONDS_MAX, ended=self._has_ended
        ):
            raise UnavailableError(
                f"{self.image} did not come up at {self.bootstrap_servers}; "
                f"its log ends with:\n{self._tail()}"
            )
        return self

    def _has_ended(self) -> bool:
        self.reload()
        return self.status == "exited"

    def _tail(self) -> str:
        lines = self.get_wrapped_container().logs(tail=_TAIL_LINES)
        return str(lines, errors="replace").rstrip()


def _is_local(client: DockerClient) -> bool:
    """Whether the engine's loopback interface is ours: neither is remote or in a container."""
    directly = client.get_connection_mode() == ConnectionMode.docker_host
    return directly and client.host() in {"localhost", _LOOPBACK, "::1"}


def engine_problem() -> str | None:
    """Why no container can be started on this machine, or None when a Docker engine answers."""
    try:
        with closing(DockerClient(timeout=_ENGINE_SECONDS_MAX).client) as engine:
            engine.ping()
    except (DockerException, OSError):
        pass
    else:
        return None
    # The client does not close a socket that it could not connect. Whoever is the next to collect
    # garbage would be warned of it.
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()
    return "no Docker engine answers (start one)"


@contextmanager
def kafka_container(report: Callable[[str], None]) -> Iterator[KafkaContainer]:
    """Run a broker until the end of the block, on an engine that answers.

    Raises UnavailableError when the image cannot be had or the broker does not come up.
    """
    image = testcontainers_config.hub_image_name_prefix + IMAGE
    with closing(DockerClient().client) as engine:
        if not _obtain(engine, image, report):
            raise UnavailableError(
                f"a Docker engine answers, but {image} is neither there nor can it be pulled: "
                f"run `docker pull {image}` to see why"
            )
        # The reaper removes containers of a process that was killed. It is an image itself.
        if not testcontainers_config.ryuk_disabled:
            ryuk = testcontainers_config.ryuk_image
            if not _obtain(engine, ryuk, report):
                testcontainers_config.ryuk_disabled = True
                report("ryuk cannot be pulled: if this process is killed, the container stays")
    report(f"starting Kafka {KAFKA_VERSION} in a container")
    with ExitStack() as stack:
        try:
            container = stack.enter_context(KafkaContainer())
        except (DockerException, OSError) as error:
            raise UnavailableError(f"the container of {image} did not start: {error}") from error
        yield container


def _obtain(engine: Any, image: str, report: Callable[[str], None]) -> bool:
    """Whether the engine has the image, after a pull where it has not."""
    try:
        engine.images.get(image)
    except ImageNotFound:
        report(f"pulling {image}")
        try:
            engine.images.pull(image)
        except APIError:
            return False
    return True
