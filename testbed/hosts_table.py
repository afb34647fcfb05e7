# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests said on each version of ComfyUI, as a table in ``docs/hosts.md``. Standard library only."""

from __future__ import annotations

import datetime
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.hosts import Host
from testbed.paths import ROOT

PAGE = ROOT / "docs" / "hosts.md"
START, END = "<!-- written by python dev.py test --hosts -->", "<!-- end -->"


@dataclass(frozen=True)
class Row:
    """The tests of one host."""

    host: Host
    passed: int
    failed: int
    skipped: Counter[str]  #: by the reason given
    seconds: float

    @classmethod
    def read(cls, host: Host, report: Path) -> Row:
        """Of pytest's JUnit report; a run that left none has failed as a whole."""
        if not report.is_file():
            return cls(host, 0, 1, Counter(), 0.0)
        suites = ET.parse(report).getroot().findall("testsuite")

        def count(key: str) -> int:
            return sum(int(suite.get(key, 0)) for suite in suites)

        skipped = Counter(found.get("message", "") for suite in suites for found in suite.iter("skipped"))
        failed = count("failures") + count("errors")
        passed = count("tests") - failed - skipped.total()
        return cls(host, passed, failed, skipped, sum(float(suite.get("time", 0)) for suite in suites))

    @property
    def text(self) -> str:
        reasons = "".join(f"; {number} x {reason}" for reason, number in self.skipped.items())
        return f"ComfyUI {self.host.version}: {self.passed} passed, {self.failed} failed{reasons}"


def table(rows: Sequence[Row]) -> str:
    lines = ["| ComfyUI | passed | failed | not run there, and why |", "| --- | --- | --- | --- |"]
    for row in rows:
        reasons = "<br>".join(f"{number}: {reason}" for reason, number in sorted(row.skipped.items()))
        lines.append(f"| {row.host.version} | {row.passed} | {row.failed} | {reasons or 'none'} |")
    return "\n".join(lines)


def write(rows: Sequence[Row]) -> None:
    """Put the table in its place on the page."""
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(START)
    today = datetime.datetime.now(datetime.timezone.utc).date()
    PAGE.write_text(f"{before}{START}\n\n{table(rows)}\n\nRun on {today}.\n\n{END}{rest.partition(END)[2]}", "utf-8")
