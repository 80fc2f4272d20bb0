"""What a benchmark leaves: a JSON file, and tables in the pages that quote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(result: dict[str, Any], path: Path) -> None:
    """One line per row, so that a changed measurement is a changed line."""
    head = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1)
    rows = ",\n".join(json.dumps(row) for row in result["rows"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head.removesuffix("}").rstrip()},\n "rows": [\n{rows}\n]}}\n')


def update_page(page: Path, name: str, text: str, command: str, *, check: bool) -> int:
    """Put text between the page's markers `<!-- NAME: begin -->` and `<!-- NAME: end -->`.

    With `check` the page stays as it is. Returns an exit status: 1 where the markers are missing,
    or where `check` finds that `command` would change the page.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = page.read_text()
    before, found_begin, rest = old.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        print(f"{page.name} must contain {begin} and {end}, got neither or one.")
        return 1
    new = f"{before}{begin}\n{text}\n{end}{after}"
    if check:
        if new != old:
            print(f"{page.name} is outdated, run `{command}`.")
        return int(new != old)
    page.write_text(new)
    return 0
