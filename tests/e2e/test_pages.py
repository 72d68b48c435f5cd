"""The pages under a real load: accessible in both themes, whole at every width, and pictures to look at.

The pictures are in `tidegate-screenshots` under pytest's base temporary directory, or in the folder that
TIDEGATE_SCREENSHOTS names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.e2e import live_figures
from tests.e2e import ui_pages as ui
from tests.e2e.clients import Clients, plan, wait_until
from tests.e2e.operators import Document, Operator

pytestmark = [pytest.mark.browser, pytest.mark.model, pytest.mark.timeout(400)]

Open = Callable[..., Page]
PAGES = ["/live", "/policies", "/playground"]
THEMES = ["light", "dark"]
NUMS = {"high": 30, "medium": 60, "low": 60}


@pytest.fixture(scope="module", autouse=True)
def load(clients: Clients, operator: Operator) -> Iterator[None]:
    """More than the worker can carry, so that every part of the page has something to show."""
    operator.publish(strained, "Let medium and low yield to high")
    streams, done = clients.begin(plan(NUMS, num_tokens=32, mean_gap_s=0.5, seed=11))
    wait_until(lambda: sum(one.ended_at is not None for one in streams) >= 2, 90)
    yield
    done.cancel()


def strained(document: Document) -> None:
    for one, ttft_s, max_wait_s in zip(
        document["classes"], (1.0, 2.0, 20.0), (30.0, 60.0, 600.0), strict=True
    ):
        one["slo"] |= {"ttft_s": ttft_s, "tpot_s": 0.5}
        one |= {"max_wait_s": max_wait_s}
        one["preemption"]["preemptible"] = one["rank"] > 0


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("TIDEGATE_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.getbasetemp() / "tidegate-screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


SPILLED = """() => [...document.querySelectorAll('.panel')].flatMap(panel => {
    const right = panel.getBoundingClientRect().right;
    return [...panel.querySelectorAll('p, b, dd, dt, span, td, h2, h3, li, button, pre')]
        .filter(one => one.closest('.scroll, pre, .sr') === null)
        .filter(one => one.getBoundingClientRect().right > right + 1)
        .map(one => `${one.tagName} ${one.textContent.slice(0, 60)}`);
})"""


def spilled(page: Page) -> list[str]:
    """Texts that reach beyond the right edge of their panel."""
    found: list[str] = page.evaluate(SPILLED)
    return found


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_accessible(open_page: Open, pictures: Path, path: str, theme: str) -> None:
    page = open_page(path, theme=theme)
    page.screenshot(path=pictures / f"{path[1:]}-{theme}.png", full_page=True)
    assert ui.accessibility_mistakes(page) == []


@pytest.mark.parametrize("path", PAGES)
def test_a_page_fits_a_phone(open_page: Open, pictures: Path, path: str) -> None:
    page = open_page(path, width=390, height=844)
    page.screenshot(path=pictures / f"{path[1:]}-phone.png", full_page=True)
    assert ui.overflow_px(page) == 0
    assert spilled(page) == []


@pytest.mark.parametrize("width", [1000, 1280, 1440])
def test_nothing_on_the_live_page_leaves_its_panel(open_page: Open, width: int) -> None:
    assert spilled(open_page("/live", width=width)) == []


def test_verdict_promises_and_lanes_are_seen_without_scrolling(open_page: Open, pictures: Path) -> None:
    page = open_page("/live", width=1440, height=1000)
    page.screenshot(path=pictures / "live-first-look.png")
    ends = ui.first_look(page)
    assert live_figures.read(page)["num_running"] > 0
    assert list(ends) == ["verdict", "promises", "lanes"]
    assert max(ends.values()) <= 1000


def test_every_panel_is_live_under_load(open_page: Open) -> None:
    """A machine that stands still for a moment makes old numbers, which may look old; they do not stay so."""
    page = open_page("/live")
    wait_until(lambda: ui.panel_states(page) <= {"live", "empty"}, 15)
