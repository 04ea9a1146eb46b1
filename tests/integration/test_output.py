"""Where the commands' output cannot go: a full device, a reader that has gone, no output at all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ingester.local_kafka import free_ports
from tests.support.processes import COMMAND, environment

FULL = Path("/dev/full")
BUFFERED, UNBUFFERED = "", "1"


def run(
    *arguments: str, stdout: int, stderr: int = subprocess.PIPE, unbuffered: str = ""
) -> subprocess.CompletedProcess[str]:
    (port,) = free_ports(1)
    settings = {
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{port}",
        "INGESTER_TOPIC": "usage",
        "INGESTER_PACSPACE_URL": f"http://127.0.0.1:{port}",
        "PACSPACE_API_KEY": "pk_test_public.secret",
        "PYTHONUNBUFFERED": unbuffered,
    }
    return subprocess.run(
        [COMMAND, *arguments],
        stdout=stdout,
        stderr=stderr,
        text=True,
        check=False,
        env=environment(settings),
        timeout=60,
    )


@pytest.mark.parametrize("unbuffered", [BUFFERED, UNBUFFERED])
@pytest.mark.parametrize(
    "arguments", [("--version",), ("--help",), ("check",), ("check", "--json")]
)
def test_a_full_device_is_told_in_one_line(arguments: tuple[str, ...], unbuffered: str) -> None:
    """Exit code 74 and a sentence, whenever it is noticed; no word of Python's."""
    with FULL.open("w") as full:
        ended = run(*arguments, stdout=full.fileno(), unbuffered=unbuffered)

    assert ended.returncode == 74
    assert ended.stderr == (
        "ingester: the output cannot be written: No space left on device. What the command did is"
        " done; make room, or send the output elsewhere.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "exit_code"), [(("--version",), 74), (("balance",), 64), (("balance", "k"), 69)]
)
def test_where_nothing_can_be_said_the_exit_code_says_it(
    arguments: tuple[str, ...], exit_code: int
) -> None:
    """Both streams full, the code is what it is with either of them."""
    with FULL.open("w") as full:
        ended = run(*arguments, stdout=full.fileno(), stderr=full.fileno())

    assert ended.returncode == exit_code


@pytest.mark.parametrize("unbuffered", [BUFFERED, UNBUFFERED])
def test_a_reader_that_has_gone_is_no_failure(unbuffered: str) -> None:
    """As with `| head`, exit code 0 without a word."""
    process = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    process.wait()
    assert process.stdin is not None

    ended = run("--help", stdout=process.stdin.fileno(), unbuffered=unbuffered)

    process.stdin.close()
    assert (ended.returncode, ended.stderr) == (0, "")


def test_closed_output_is_nobodys_loss() -> None:
    """A command whose standard output is closed does its work."""
    ended = subprocess.run(
        ["sh", "-c", f"'{COMMAND}' --version >&-"],
        capture_output=True,
        text=True,
        check=False,
        env=environment({}),
        timeout=60,
    )

    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments", [["balance", b"\xff"], ["explain", b"\xff:0:0"], ["dlq", "list", "--key", b"\xff"]]
)
def test_an_argument_that_is_no_text_is_refused(arguments: list[str | bytes]) -> None:
    """Exit code 64 and a sentence, whatever it would be used for."""
    ended = subprocess.run(
        [COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment({}),
        timeout=60,
    )

    assert ended.returncode == 64
    assert ended.stderr.startswith("ingester: the argument b'\\xff")


def test_an_error_message_steers_no_terminal() -> None:
    """What somebody else wrote, as a key, is shown and not carried out."""
    ended = run("balance", "k\x1b]0;owned\x07\x1b[2J", stdout=subprocess.PIPE)

    assert ended.returncode == 69
    assert "no balance of k\\x1b]0;owned\\x07\\x1b[2J from" in ended.stderr
    assert "\x1b" not in ended.stderr
