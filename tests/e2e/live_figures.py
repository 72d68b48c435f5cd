"""The figures of the Live page as an operator reads them: the text, not what is behind it."""

from __future__ import annotations

import re

from playwright.sync_api import Page

Figures = dict[str, float]
FACTORS = {"ms": 0.001, "s": 1.0, "min": 60.0, "%": 0.01}
READ = """() => [...document.querySelectorAll('[data-figure]')].map(one => [one.dataset.figure, one.innerText])"""


def read(page: Page) -> Figures:
    """Every figure on the page at one instant, in seconds, shares or counts. Figures without a value are left
    out."""
    found = ((name, value_of(text)) for name, text in page.evaluate(READ))
    return {name: value for name, value in found if value is not None}


def value_of(text: str) -> float | None:
    """`1.24 s`, `39 ms`, `96.6 %`, `1,204`, `v12`, `18 /s`, `6 slots` and `p99 82 ms` as a number."""
    match = re.fullmatch(r"(?:p\d+ |v)?([\d,]*\.?\d+)\s*(\S*)", text.strip())
    if match is None:
        return None
    number, unit = match.groups()
    return float(number.replace(",", "")) * FACTORS.get(unit, 1.0)
