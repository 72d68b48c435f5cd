"""A draft is tried on traffic that the system has just served: real gateway, Celery, simulator and browser."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.e2e import ui_pages as ui
from tests.e2e.clients import Clients, plan
from tests.e2e.operators import Operator

pytestmark = [pytest.mark.browser, pytest.mark.model, pytest.mark.timeout(400)]

WITHIN_MS = 60_000


def test_a_draft_is_tried_on_what_was_just_served(
    open_page: Callable[..., Page], clients: Clients, operator: Operator
) -> None:
    clients.run(plan({"high": 4, "medium": 3, "low": 3}, num_tokens=12, mean_gap_s=0.3, seed=5))
    version = operator.active()["version"]
    page = open_page("/policies")
    ui.set_field(page, "classes.0.slo.ttft_s", "0.001")  # below a millisecond, or one
    page.get_by_role("button", name="Try this draft").click()
    verdict = page.get_by_test_id("trial-verdict")
    expect(verdict).to_contain_text(re.compile("high would .*break its promise: 0 % within"), timeout=WITHIN_MS)
    high = page.get_by_role("rowgroup", name="high").get_by_role("row", name="Within objectives")
    expect(high.get_by_role("cell").nth(2)).to_have_text("0 %")
    assert operator.active()["version"] == version
