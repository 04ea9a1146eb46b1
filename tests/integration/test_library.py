"""The README's example of the client as a library, run as it is printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.simulator import API_KEY, Simulator

README = Path(__file__).parents[2] / "README.md"


def test_the_example_runs_as_printed(simulator: Simulator) -> None:
    """With the stand-in's address and key in it, it acknowledges, reads and agrees."""
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    program = example.replace("https://app.pacspace.io", simulator.url)
    program = program.replace("pk_test_PUBLIC.SECRET", API_KEY)

    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )

    assert ended.returncode == 0, ended.stderr
    acknowledged, balance, agreement = ended.stdout.splitlines()
    assert acknowledged.startswith("Acknowledged(batch_id='batch_")
    assert "current_bits=100" in balance
    assert agreement.startswith("Agreement(status='agreed'")
