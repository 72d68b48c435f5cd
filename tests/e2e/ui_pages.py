"""How browser tests read and drive the pages: by roles, words and named figures, never by layout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

FRONTEND = Path(__file__).parents[2] / "frontend"
AXE = FRONTEND / "node_modules" / "axe-core" / "axe.min.js"
WCAG_AA = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT_MS = 15_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """The Chromium that `TIDEGATE_CHROMIUM` names; `bin/test` finds or installs one. Else Debian's."""
    path = os.environ.get("TIDEGATE_CHROMIUM", "/usr/bin/chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def open_page(browser: Browser, *, width: int = 1440, height: int = 1000, theme: str = "light") -> Page:
    """A page of its own profile. It is closed with the browser."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if theme == "dark" else "light",
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    return page


def sign_in(page: Page, url: str, username: str, password: str) -> None:
    """From nobody to the Live page with live numbers."""
    page.goto(f"{url}/live")
    page.get_by_label("Username").fill(username)
    page.get_by_role("textbox", name="Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    wait_until_live(page)


def wait_until_live(page: Page) -> None:
    """Also where a gateway has just been killed, and another takes over what it folded."""
    page.locator("[data-testid=live-pill]", has_text="Live,").wait_for(timeout=60_000)


def figure(page: Page, name: str) -> float | None:
    """A figure of the Live page as it came from the server, such as `high.ttft.p95`; None where none is known.

    Names: `<class>.ttft.p50` (p95, p99, and tpot), `<class>.attainment`, `<class>.waiting`,
    `<class>.tokens_per_s`, `tokens_per_s`, `step_p99_s`, `batch_limit`, `goodput_rps`, `finished_rps`.
    """
    value = page.locator(f'[data-figure="{name}"]').first.get_attribute("data-value")
    return float(value) if value else None


def verdict(page: Page) -> str:
    """kept, broken, no_traffic or no_worker."""
    return page.locator("[data-verdict]").first.get_attribute("data-verdict") or ""


def panel_states(page: Page) -> set[str]:
    """The states of all panels: live, stale, disconnected, loading, empty, error."""
    return set(page.eval_on_selector_all("[data-state]", "all => all.map(one => one.dataset.state)"))


def set_field(page: Page, path: str, value: str) -> None:
    """Type into a field of the policy form, named as in the document: `classes.0.weight`."""
    page.locator(f'[id="f-{path}"]').fill(value)


def publish(page: Page, comment: str) -> str:
    """Publish the draft and wait until every worker runs it; what the page says then."""
    page.locator("#f-comment").fill(comment)
    page.get_by_role("button", name="Publish to").click()
    rollout = page.get_by_test_id("rollout")
    rollout.get_by_text("after you published").wait_for()
    return rollout.inner_text()


def ask(page: Page, prompt: str, priority: str) -> str:
    """Send a prompt in the Playground in one class and wait for the end; the answer's text."""
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.get_by_role("button", name=priority, exact=True).click()
    page.get_by_role("button", name="Send").click()
    page.locator("[data-testid=answer-state]", has_text="finished").or_(
        page.locator("[data-testid=answer-state]", has_text="cut at")
    ).wait_for(timeout=60_000)
    return page.get_by_test_id("answer-text").inner_text()


def accessibility_mistakes(page: Page) -> list[str]:
    """What axe finds against WCAG 2.2 AA on the page as it is."""
    page.evaluate(AXE.read_text())
    result = page.evaluate("tags => axe.run(document, { runOnly: tags })", WCAG_AA)
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in result["violations"]]


def first_look(page: Page) -> dict[str, float]:
    """Where verdict, promises and lanes end, in px from the top of the page before anyone has scrolled."""
    parts = {
        "verdict": page.locator("[data-verdict]").first,
        "promises": page.get_by_role("region", name="Promises by class"),
        "lanes": page.locator(".panel", has=page.get_by_role("heading", name="From queue to device")),
    }
    boxes = {name: part.bounding_box() for name, part in parts.items()}
    return {name: box["y"] + box["height"] for name, box in boxes.items() if box is not None}


def overflow_px(page: Page) -> int:
    """How much wider than the window the page is; 0 when it fits."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
