"""Adds up JUnit reports into one line: python tests/summary.py report.xml..."""

import sys
from pathlib import Path
from xml.etree import ElementTree


def main(reports: list[Path]) -> None:
    """Prints the totals over all test suites, and which reports are missing."""
    found = [report for report in reports if report.exists()]
    suites = [suite for report in found for suite in ElementTree.parse(report).iter("testsuite")]
    total, failed, skipped = (
        sum(int(suite.get(name) or 0) for suite in suites for name in names)
        for names in (("tests",), ("failures", "errors"), ("skipped", "disabled"))
    )
    missing = "".join(f", no {report.name}" for report in reports if report not in found)
    print(f"{total - failed - skipped} passed, {failed} failed, {skipped} skipped{missing}")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
