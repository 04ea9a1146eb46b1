"""Kafka in processes of this machine's JVM: the jars come from Maven, once, into the user's cache.

Every broker is a KRaft broker and controller in one, on loopback ports, with its data in a folder
that ends with it. A test may kill one broker of several and start it again.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ingester.errors import UnavailableError
from ingester.local_kafka.broker import KAFKA_VERSION, broker_settings
from ingester.local_kafka.keeper import Keeper
from ingester.local_kafka.readiness import wait_for_brokers

_JAVA_VERSION_MIN = 17  # Kafka 4's brokers
_JAVA_SECONDS_MAX = 30
_MAVEN_SECONDS_MAX = 900  # 54 MB over a slow line
_FORMAT_SECONDS_MAX = 60
_START_SECONDS_MAX = 90  # 3 s on an idle machine
_HEAP = "512m"
# Below what Linux (32768), macOS and Windows (49152) hand to outgoing connections: a port that is
# free when it is chosen is still free when the broker, a second later, binds it.
_PORTS = range(20_000, 32_000)
_TAIL_LINES = 20


@dataclass(frozen=True, slots=True)
class ProxyRoute:
    """The way through a proxy to one broker: clients are sent to the one port, it to the other."""

    listen_port: int
    target_port: int


class JvmCluster:
    """The brokers of one cluster, numbered from 0.

    With `proxied` each has a second listener, which sends clients to a proxy's port (`routes`);
    the brokers among themselves, and clients that start from `bootstrap_servers`, pass it by.
    """

    def __init__(
        self, keeper: Keeper, java: str, jars: Path, brokers: int, *, proxied: bool = False
    ) -> None:
        self._keeper = keeper
        self._java = java
        self._jars = jars
        ports = free_ports(4 * brokers)
        self._ports = ports[:brokers]
        self._controller_ports = ports[brokers : 2 * brokers]
        further = zip(ports[2 * brokers : 3 * brokers], ports[3 * brokers :], strict=True)
        self.routes = tuple(ProxyRoute(*each) for each in further) if proxied else ()
        # Written by start() and kill(): the process of every broker that was ever started.
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self._ports)

    def pid(self, index: int) -> int:
        """The process id of the broker's latest start."""
        return self._processes[index].pid

    def kill(self, index: int) -> None:
        """End one broker as a power failure would; the others miss it after 9 s."""
        self._processes[index].kill()
        self._processes[index].wait()

    def start(self, index: int) -> None:
        """Start one broker again, on its port and with its data; returns when it answers.

        The cluster lets a killed broker back in only once it has missed it, up to 9 s after.
        """
        self._launch(index)
        running = sum(process.poll() is None for process in self._processes.values())
        self._wait([index], running)

    def start_all(self) -> None:
        """Format the storage of every broker and start them together: alone none has a quorum."""
        self._format()
        indexes = list(range(len(self._ports)))
        for index in indexes:
            self._launch(index)
        self._wait(indexes, len(indexes))

    def _format(self) -> None:
        cluster_id = secrets.token_urlsafe(16)
        formatting = []
        for index in range(len(self._ports)):
            self._folder(index).mkdir()
            self._properties(index).write_text(self._settings(index), encoding="utf-8")
            # With an equals sign, because an id may begin with a dash.
            arguments = [
                "format",
                f"--cluster-id={cluster_id}",
                f"--config={self._properties(index)}",
            ]
            command = [*self._command(), "-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool"]
            formatting.append(self._keeper.start([*command, *arguments], log=self._log(index)))
        for index, process in enumerate(formatting):
            if not _succeeds(process, _FORMAT_SECONDS_MAX):
                raise UnavailableError(
                    f"Kafka {KAFKA_VERSION} could not format its storage:\n"
                    f"{_tail(self._log(index))}"
                )

    def _launch(self, index: int) -> None:
        self._processes[index] = self._keeper.start(
            [*self._command(), "kafka.Kafka", str(self._properties(index))], log=self._log(index)
        )

    def _wait(self, indexes: list[int], brokers: int) -> None:
        processes = [self._processes[index] for index in indexes]
        for index in indexes:
            if not wait_for_brokers(
                f"127.0.0.1:{self._ports[index]}",
                brokers,
                seconds_max=_START_SECONDS_MAX,
                ended=lambda: any(process.poll() is not None for process in processes),
            ):
                raise UnavailableError(
                    f"Kafka {KAFKA_VERSION} did not come up on port {self._ports[index]}; "
                    f"its log ends with:\n{_tail(self._log(index))}"
                )

    def _command(self) -> list[str]:
        return [self._java, f"-Xmx{_HEAP}", "-XX:+UseSerialGC", "-cp", f"{self._jars}/*"]

    def _settings(self, index: int) -> str:
        voters = ",".join(
            f"{node + 1}@127.0.0.1:{port}" for node, port in enumerate(self._controller_ports)
        )
        listeners = advertised = f"PLAINTEXT://127.0.0.1:{self._ports[index]}"
        if self.routes:
            listeners += f",PROXIED://127.0.0.1:{self.routes[index].target_port}"
            advertised += f",PROXIED://127.0.0.1:{self.routes[index].listen_port}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": str(index + 1),
            "controller.quorum.voters": voters,
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": f"{listeners},CONTROLLER://127.0.0.1:{self._controller_ports[index]}",
            "advertised.listeners": advertised,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,"
            "PROXIED:PLAINTEXT",
            "log.dirs": str(self._folder(index) / "data"),
            **broker_settings(len(self._ports)),
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())

    def _folder(self, index: int) -> Path:
        return self._keeper.folder / f"broker-{index}"

    def _properties(self, index: int) -> Path:
        return self._folder(index) / "server.properties"

    def _log(self, index: int) -> Path:
        return self._folder(index) / "broker.log"


@contextmanager
def jvm_cluster(
    report: Callable[[str], None], brokers: int, *, proxied: bool = False
) -> Iterator[JvmCluster]:
    """Run a cluster until the end of the block; UnavailableError says what is missing."""
    java = _java()
    jars = _jars(report)
    report(f"starting Kafka {KAFKA_VERSION} in {'a JVM' if brokers == 1 else f'{brokers} JVMs'}")
    with Keeper() as keeper:
        cluster = JvmCluster(keeper, java, jars, brokers, proxied=proxied)
        cluster.start_all()
        yield cluster


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if java is None:
        where = f"JAVA_HOME ({home})" if home else "PATH"
        raise UnavailableError(f"no Java was found in {where}: install a JRE {_JAVA_VERSION_MIN}")
    said = subprocess.run(  # noqa: S603 - no shell reads the command
        [java, "-version"], capture_output=True, text=True, check=False, timeout=_JAVA_SECONDS_MAX
    ).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < _JAVA_VERSION_MIN:
        found = said.strip().partition("\n")[0] or "it says nothing about its version"
        raise UnavailableError(
            f"Kafka needs Java {_JAVA_VERSION_MIN} or newer and {java} is not ({found}): "
            f"install a JRE {_JAVA_VERSION_MIN}"
        )
    return java


def _jars(report: Callable[[str], None]) -> Path:
    """The folder with Kafka's jars, fetched when it is not there yet by whoever comes first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pacspace-ingester"
    jars = cache / f"kafka-{KAFKA_VERSION}"
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise UnavailableError("no Maven was found to fetch Kafka with: install Maven (mvn)")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:  # given back by the kernel when its holder dies
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another process that is fetching Kafka {KAFKA_VERSION}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not jars.is_dir():
            report(f"fetching Kafka {KAFKA_VERSION} with Maven (54 MB, once)")
            _fetch(maven, jars)
    return jars


def _fetch(maven: str, jars: Path) -> None:
    with Keeper(within=jars.parent) as keeper:
        pom = resources.files(__package__).joinpath("pom.xml").read_text(encoding="utf-8")
        (keeper.folder / "pom.xml").write_text(pom, encoding="utf-8")
        log = keeper.folder / "maven.log"
        command = [maven, "-q", "-B", f"-Dkafka.version={KAFKA_VERSION}"]
        command += ["dependency:copy-dependencies", "-DincludeScope=runtime"]
        process = keeper.start([*command, "-DoutputDirectory=jars"], log=log, cwd=keeper.folder)
        if not _succeeds(process, _MAVEN_SECONDS_MAX):
            raise UnavailableError(
                f"Maven could not fetch Kafka {KAFKA_VERSION}; check that it reaches a repository. "
                f"It said:\n{_tail(log)}"
            )
        # Only a whole folder ever bears the final name.
        (keeper.folder / "jars").rename(jars)


def _succeeds(process: subprocess.Popen[bytes], seconds_max: float) -> bool:
    try:
        return process.wait(seconds_max) == 0
    except subprocess.TimeoutExpired:
        return False


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing listens on and that no outgoing connection will be given."""
    ports: list[int] = []
    while len(ports) < count:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])
