"""Processes and a folder that end with this process, however it ends.

A shell in a process group of its own reads from a pipe that only this process holds. The kernel
closes the pipe when this process ends, by SIGKILL too; the shell then removes the folder and kills
its group. No thread, no signal handler and nothing that only one operating system has. The group
is not the terminal's, so that Ctrl-C reaches this process alone.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

# The folder goes first because the last command ends the shell itself; it is tried twice because
# a process that still runs may put a file where rm has just looked.
_AFTERWARDS = 'read -r _; rm -rf -- "$0" || rm -rf -- "$0"; kill -KILL 0'


class Keeper:
    """Starts processes that share one temporary folder and do not outlive this process.

    Closing it kills them all and removes the folder; none is asked to end by itself first.
    """

    def __init__(self, *, within: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=".pacspace-ingester-", dir=within))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._shell = subprocess.Popen(  # noqa: S603 - our own words
            ["/bin/sh", "-c", _AFTERWARDS, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            process_group=0,
        )

    def start(
        self,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process whose output is appended to `log`."""
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - no shell reads the command
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                process_group=self._shell.pid,
            )
        self._processes.append(process)
        return process

    def close(self) -> None:
        """Kill what still runs and remove the folder; may be called again."""
        for process in self._processes:
            process.kill()
            process.wait()
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
