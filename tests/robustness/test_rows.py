"""Every row has a test, or says why it has none."""

from __future__ import annotations

import rows


def test_every_row_has_a_test_or_a_reason():
    tests = rows.proofs()
    missing = [number for number in rows.ROWS if not tests[number] and number not in rows.NOT_YET]
    assert not missing
    assert set(tests) == set(rows.ROWS) == set(range(1, 44))
    assert set(rows.NOT_YET) <= set(rows.ROWS)


def test_the_page_is_up_to_date():
    assert rows.PAGE.read_text() == rows.page()
