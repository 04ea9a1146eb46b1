"""The installed `ingester` command as real processes, as an operator would start them."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from ingester.local_kafka import Keeper

COMMAND = Path(sys.executable).parent / "ingester"
END_SECONDS_MAX = 60.0


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings and nothing else of the tests' own environment but PATH and HOME."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, **settings}


class IngesterProcess:
    """A running `ingester` command; what it prints goes to a file."""

    def __init__(
        self, keeper: Keeper, arguments: tuple[str, ...], *, settings: Mapping[str, str], log: Path
    ) -> None:
        self.arguments = arguments
        self._log = log
        self._process = keeper.start(
            [str(COMMAND), *arguments], log=log, env=environment(settings), cwd=log.parent
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; below zero when a signal ended it."""
        return self._process.poll()

    def log(self) -> str:
        """Everything it printed so far, on either stream."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def terminate(self) -> None:
        """Ask it to drain and leave, as an orchestrator does."""
        self._process.send_signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        """Send it any signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it without a chance to clean up, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Stop it in mid-step, as a starved or a swapped-out machine does."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def wait(self, timeout_seconds: float = END_SECONDS_MAX) -> int:
        """Wait for its end and return the exit code."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"ingester {' '.join(self.arguments)} still runs after {timeout_seconds:g} s; "
                f"it printed:\n{self.log()}"
            ) from None


class Ingesters:
    """Starts ingester processes for one test, and kills those that are left at its end."""

    def __init__(self, keeper: Keeper, folder: Path) -> None:
        self._keeper = keeper
        self._folder = folder
        self.processes: list[IngesterProcess] = []

    def start(self, *arguments: str, settings: Mapping[str, str] | None = None) -> IngesterProcess:
        """Start `ingester ARGUMENTS` with these environment variables."""
        log = self._folder / f"ingester-{len(self.processes)}.log"
        process = IngesterProcess(self._keeper, arguments, settings=settings or {}, log=log)
        self.processes.append(process)
        return process

    def run(
        self,
        *arguments: str,
        settings: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout_seconds: float = END_SECONDS_MAX,
    ) -> subprocess.CompletedProcess[str]:
        """Run `ingester ARGUMENTS` to its end, with its two output streams apart."""
        return subprocess.run(
            [COMMAND, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=environment(settings or {}),
            cwd=self._folder,
            timeout=timeout_seconds,
        )

    def close(self) -> None:
        """Kill what still runs."""
        for process in self.processes:
            process.kill()


def said_on_a_terminal(
    settings: Mapping[str, str],
    *arguments: str,
    stdin: str = "",
    stdout: IO[str] | int = subprocess.DEVNULL,
) -> str:
    """What a command writes to standard error, which is a terminal; it has to end with 0."""
    ours, its = pty.openpty()
    said = b""
    with subprocess.Popen(
        [COMMAND, *arguments],
        env=environment(settings),
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=its,
    ) as process:
        os.close(its)
        assert process.stdin is not None
        process.stdin.write(stdin.encode())
        process.stdin.close()
        with suppress(OSError):  # EIO: nobody has it open any more
            while read := os.read(ours, 65536):
                said += read
    os.close(ours)
    assert process.returncode == 0, said
    return said.decode()
