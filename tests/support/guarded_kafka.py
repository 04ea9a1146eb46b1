"""A broker in a container that asks for logins and permissions, as the shared one does not."""

from __future__ import annotations

from typing import Self

from testcontainers.core.container import DockerContainer

from ingester.local_kafka.container import IMAGE
from tests.support.waiting import eventually

_LOGIN_PORT = 9092
_MISLEADING_PORT = 9096
_START_SCRIPT = "/tmp/start-kafka.sh"
_JAAS = (
    "org.apache.kafka.common.security.plain.PlainLoginModule required "
    'username="admin" password="{0}" user_admin="{0}" user_reader="{0}";'
)


class GuardedKafka(DockerContainer):
    """`admin` may do everything and `reader` nothing; a second port needs no login, and advertises
    a name that does not exist.
    """

    def __init__(self, password: str) -> None:
        super().__init__(IMAGE)
        self.with_exposed_ports(_LOGIN_PORT, _MISLEADING_PORT)
        self.with_command(
            [
                "sh",
                "-c",
                f"until [ -f {_START_SCRIPT} ]; do sleep 0.1; done; exec sh {_START_SCRIPT}",
            ]
        )
        self.with_envs(
            KAFKA_HEAP_OPTS="-Xms256m -Xmx512m",
            KAFKA_NODE_ID="1",
            KAFKA_PROCESS_ROLES="broker,controller",
            KAFKA_CONTROLLER_QUORUM_VOTERS="1@localhost:9093",
            KAFKA_CONTROLLER_LISTENER_NAMES="CONTROLLER",
            KAFKA_INTER_BROKER_LISTENER_NAME="LOGIN",
            KAFKA_LISTENERS=f"LOGIN://0.0.0.0:{_LOGIN_PORT},CONTROLLER://0.0.0.0:9093,"
            f"MISLEADING://0.0.0.0:{_MISLEADING_PORT}",
            KAFKA_LISTENER_SECURITY_PROTOCOL_MAP="LOGIN:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT,"
            "MISLEADING:PLAINTEXT",
            KAFKA_SASL_ENABLED_MECHANISMS="PLAIN",
            KAFKA_SASL_MECHANISM_INTER_BROKER_PROTOCOL="PLAIN",
            KAFKA_LISTENER_NAME_LOGIN_PLAIN_SASL_JAAS_CONFIG=_JAAS.format(password),
            KAFKA_AUTHORIZER_CLASS_NAME="org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            KAFKA_SUPER_USERS="User:admin;User:ANONYMOUS",
            KAFKA_AUTO_CREATE_TOPICS_ENABLE="true",
            KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR="1",
            KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS="1",
        )

    @property
    def bootstrap_servers(self) -> str:
        """Where a login is asked for."""
        return f"{self.get_container_host_ip()}:{self.get_exposed_port(_LOGIN_PORT)}"

    @property
    def misleading_servers(self) -> str:
        """Where none is asked for, and clients are sent to an address that does not exist."""
        return f"{self.get_container_host_ip()}:{self.get_exposed_port(_MISLEADING_PORT)}"

    def start(self) -> Self:
        super().start()
        script = (
            f"export KAFKA_ADVERTISED_LISTENERS=LOGIN://{self.bootstrap_servers},"
            f"MISLEADING://nowhere.invalid:{_MISLEADING_PORT}\nexec /etc/kafka/docker/run\n"
        )
        self.copy_into_container(script.encode(), _START_SCRIPT, 0o755)
        eventually(lambda: b"Kafka Server started" in b"".join(self.get_logs()), 120)
        return self
