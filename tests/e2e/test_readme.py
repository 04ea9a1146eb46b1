"""What the README shows of the auditor's commands is what they print, executed as written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.conftest import TopicFactory
from tests.support.kafka import read_all
from tests.support.processes import Ingesters
from tests.support.simulator import Simulator
from tests.support.workers import Group, totals, usage

GroupOf = Callable[..., Group]
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
VARIABLE = re.compile(r"batch_\w+|ingester-[0-9a-f]{40}|\d{4}-\d\d-\d\dT[\d:.]+(\+00:00|Z)?|-?\d+")


def chapter(name: str) -> list[tuple[str, list[str]]]:
    """The commands of a chapter's examples, each with the lines that it is said to print."""
    text = README[README.index(f"## {name}\n") :]
    text = text[: text.index("\n## ", 3)]
    told: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                told.append((line[2:].partition("  #")[0].strip(), []))
            else:
                told[-1][1].append(line)
    return told


def in_form(text: str) -> str:
    """A text with everything that differs from run to run, widths included, made the same."""
    return re.sub(r"[ ─━]+", " ", VARIABLE.sub("#", text)).strip()


class Book:
    """What the README calls `usage`, settled, and the names of it here."""

    def __init__(self, group: Group, ingesters: Ingesters, names: Mapping[str, str]) -> None:
        self._group = group
        self._ingesters = ingesters
        self._names = names

    def plays(self, command: str, output: list[str], exit_code: int = 0) -> None:
        """Run a command of the README; where it shows an output, that is what is printed."""
        for written, here in self._names.items():
            command = command.replace(written, here)
        program, *arguments = shlex.split(command)
        assert program == "ingester"
        ended = self._ingesters.run(*arguments, settings=self._group.settings())
        assert ended.returncode == exit_code, command + ended.stdout + ended.stderr
        printed = ended.stdout
        for written, here in self._names.items():
            printed = printed.replace(here, written)
        if output:
            assert in_form("\n".join(output)) == in_form(printed)


@pytest.fixture
async def book(group_of: GroupOf, topic: TopicFactory, ingesters: Ingesters) -> Book:
    """Five thousand events, settled by the hundred."""
    group = group_of(await topic())
    name = group.topics[0]
    await group.produce(usage(5000), partition=0)
    worker = group.start(linger_seconds="5")
    await group.settled()
    worker.process.terminate()
    assert worker.process.wait() == 0
    receipts = [each.value.decode() for each in await read_all(group.servers, f"{name}.receipts")]
    (settled,) = [each for each in receipts if '"firstOffset":4100,' in each]
    batch_id = re.findall(r"batch_\w+", settled)[0]
    names = {"usage:": f"{name}:", "usage.": f"{name}.", "batch_6dc3be4f00000042": batch_id}
    return Book(group, ingesters, names)


async def test_what_proves_it_runs_as_written(book: Book) -> None:
    """Each command of the chapter does what it says, and prints what is shown."""
    told = chapter("Prove it")
    assert any(command.startswith("ingester explain usage:") for command, _ in told)

    for command, output in told:
        book.plays(command, output)


async def test_a_backfill_runs_as_written(
    group_of: GroupOf, topic: TopicFactory, ingesters: Ingesters, simulator: Simulator
) -> None:
    """Each command of the chapter sends what it says, the plan by its name included."""
    group = group_of(await topic(4))
    await group.produce(usage(5000), partition=3)
    worker = group.start()
    await group.settled()
    worker.process.terminate()
    assert worker.process.wait() == 0
    await group.produce(usage(5000, first=5000), partition=3)
    name = group.topics[0]
    book = Book(group, ingesters, {"usage:": f"{name}:", "usage ": f"{name} "})
    told = [command for command, _ in chapter("Backfill")]
    *once, forced = told
    assert "--force" in forced

    for command in once:
        book.plays(command, [])
    assert simulator.report()["keys"] == totals(usage(10_000))

    book.plays(forced, [])
    again = usage(100, first=4100)
    assert simulator.report()["keys"] == totals([*usage(10_000), *again])
