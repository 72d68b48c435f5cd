"""A new operator's first quarter of an hour, in a real browser in front of the real system."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.demo.running import RunningDemo, stream_text
from tests.e2e import live_figures
from tests.e2e import ui_pages as ui
from tests.e2e.clients import Clients, Planned, wait_until
from tests.e2e.operators import Operator

pytestmark = [pytest.mark.browser, pytest.mark.model, pytest.mark.timeout(400)]

Open = Callable[..., Page]
ANSWER = "The capital of France is Paris."
BACK_WITHIN_MS = 60_000
STORY_TOKENS = 80


@pytest.fixture
def own_policy(operator: Operator) -> Iterator[int]:
    """The version that is active before the test; its document is active again afterwards."""
    before = operator.active()
    yield int(before["version"])
    operator.publish(lambda document: document.update(before["document"]), "As before the test")


def web_process(system: RunningDemo) -> psutil.Process:
    return next(one for one in system.family() if "uvicorn" in " ".join(one.cmdline()))


def test_nobody_sees_a_page_before_signing_in(browser: Browser, system: RunningDemo) -> None:
    page = ui.open_page(browser)
    page.goto(f"{system.info['url']}/policies")
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    page.context.close()


def test_signing_in_leads_to_live_numbers(browser: Browser, system: RunningDemo) -> None:
    page, info = ui.open_page(browser), system.info
    stream_text(info, "high", "What is the capital of France?")  # before the first request there are none
    ui.sign_in(page, info["url"], info["username"], info["password"])
    expect(page.get_by_role("heading", name="From queue to device")).to_be_visible()
    assert live_figures.read(page)["num_workers_on_policy"] == 1
    page.context.close()


def test_an_anonymous_websocket_is_refused(browser: Browser, system: RunningDemo) -> None:
    page = ui.open_page(browser)
    page.goto(system.info["url"])
    outcome = page.evaluate(
        """() => new Promise(resolve => {
            const socket = new WebSocket(`ws://${location.host}/ws/live/`);
            socket.onmessage = () => resolve('it spoke');
            socket.onclose = event => resolve(event.code);
        })"""
    )
    page.context.close()
    assert outcome == 4401


def test_the_live_page_shows_a_request_while_it_runs(open_page: Open, clients: Clients) -> None:
    page = open_page()
    streams, done = clients.begin([Planned(0.0, "high", "Tell me a long story about the sea.", 400)])
    wait_until(lambda: any(one.is_running for one in streams), 30)
    expect(page.get_by_role("group", name="high on worker-1: 1 running")).to_be_visible()
    done.cancel()
    expect(page.get_by_role("group", name="high on worker-1: 0 running")).to_be_attached()


def test_a_bad_value_is_explained_beside_its_field(open_page: Open) -> None:
    page = open_page("/policies")
    ui.set_field(page, "classes.0.max_wait_s", "0.001")
    field = page.locator('[id="f-classes.0.max_wait_s"]')
    expect(field).to_have_attribute("aria-invalid", "true")
    message = page.locator(f'[id="{field.get_attribute("aria-describedby")}"]')
    expect(message).to_contain_text("TTFT objective")
    expect(page.get_by_role("button", name="Publish to")).to_be_disabled()


def test_a_good_value_runs_on_the_worker_within_seconds(
    open_page: Open, own_policy: int, operator: Operator
) -> None:
    page = open_page("/policies")
    ui.set_field(page, "classes.0.weight", "55")
    said = ui.publish(page, "Less weight for high")
    assert said.startswith(f"1 of 1 worker runs v{own_policy + 1}")
    assert operator.workers()[0]["policy_version"] == own_policy + 1
    assert float(re.findall(r"([\d.]+) s after", said)[0]) < 5


def test_a_published_version_is_listed_and_rolled_back(open_page: Open, own_policy: int) -> None:
    page = open_page("/policies")
    ui.set_field(page, "classes.0.weight", "56")
    ui.publish(page, "A weight to take back")
    expect(page.get_by_role("cell", name="A weight to take back")).to_be_visible()
    back = f"Roll back to v{own_policy}"
    page.get_by_role("button", name=back, exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name=back).click()
    expect(page.get_by_test_id("rollout")).to_contain_text(f"1 of 1 worker runs v{own_policy + 2}")
    expect(page.locator('[id="f-classes.0.weight"]')).not_to_have_value("56")


def test_a_change_while_requests_run_loses_no_token(
    open_page: Open, own_policy: int, clients: Clients
) -> None:
    page = open_page("/policies")
    streams, done = clients.begin(
        [Planned(0.0, name, "Tell me a story.", STORY_TOKENS) for name in ("high", "low")]
    )
    wait_until(lambda: all(one.is_running for one in streams) and len(streams) == 2, 30)
    ui.set_field(page, "classes.0.weight", "57")
    ui.publish(page, "Published while requests run")
    done.result(120)
    assert [len(one.token_at) for one in streams] == [STORY_TOKENS] * 2


def test_the_playground_streams_an_answer_with_its_ttft_and_class(open_page: Open) -> None:
    page = open_page("/playground")
    assert ui.ask(page, "What is the capital of France?", "low").strip() == ANSWER
    expect(page.get_by_test_id("answer-class")).to_have_text("low")
    ttft_s = live_figures.value_of(page.get_by_test_id("answer-ttft").inner_text())
    assert ttft_s is not None
    assert 0 < ttft_s < 30


def test_a_lost_connection_is_seen_at_once_and_mends_itself(open_page: Open, system: RunningDemo) -> None:
    page = open_page()
    web_process(system).send_signal(signal.SIGKILL)
    killed_at = time.monotonic()
    expect(page.get_by_text("Connection lost", exact=False).first).to_be_visible(timeout=2_000)
    assert time.monotonic() - killed_at < 2
    assert ui.panel_states(page) == {"disconnected"}
    expect(page.get_by_text("Connection lost", exact=False)).to_have_count(0, timeout=BACK_WITHIN_MS)
    ui.wait_until_live(page)


def test_requests_are_served_again_after_the_web_process_died(system: RunningDemo) -> None:
    assert stream_text(system.info, "high", "What is the capital of France?") == ANSWER
