"""The pages in a real Chromium, in front of made-up numbers: states, words, keys, themes and widths."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.e2e import ui_pages as ui
from tests.frontend.conftest import Mock

pytestmark = pytest.mark.browser

Open = Callable[..., Page]
WIDTHS = [390, 720, 1000, 1280, 1440]
LIVE_SCENARIOS = ["broken", "calm", "silent", "empty", "no-worker"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_state_of_the_live_page_is_accessible(open_live: Open, theme: str) -> None:
    mistakes = {
        scenario: ui.accessibility_mistakes(open_live(scenario=scenario, theme=theme))
        for scenario in LIVE_SCENARIOS
    }
    assert mistakes == {scenario: [] for scenario in LIVE_SCENARIOS}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/policies", "/playground"])
def test_the_other_pages_are_accessible(open_live: Open, path: str, theme: str) -> None:
    assert ui.accessibility_mistakes(open_live(path, theme=theme)) == []


@pytest.mark.parametrize("path", ["/live", "/policies", "/playground"])
def test_no_page_is_wider_than_its_window(open_live: Open, path: str) -> None:
    page = open_live(path)
    too_wide = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 1000})
        too_wide[width] = ui.overflow_px(page)
    assert too_wide == dict.fromkeys(WIDTHS, 0)


def test_the_page_opens_with_the_broken_promise_and_its_cause(open_live: Open) -> None:
    page = open_live(scenario="broken")
    assert ui.verdict(page) == "broken"
    expect(
        page.get_by_role("heading", name="high is breaking its promise: late first tokens")
    ).to_be_visible()
    expect(page.get_by_text("Nobody is left to yield", exact=False)).to_be_visible()
    expect(page).to_have_title("(1) high: late first tokens · Tidegate")


@pytest.mark.parametrize("width", [1000, 1280, 1440])
def test_figures_of_changed_objectives_say_since_when_and_stay_apart(open_live: Open, width: int) -> None:
    page = open_live(scenario="changed", width=width)
    expect(page.get_by_text("Since the objectives changed at", exact=False)).to_be_visible()
    labels = page.locator(".foot").first.locator("dt")
    assert [re.sub(r"\d\d:\d\d", "hh:mm", text) for text in labels.all_inner_texts()] == [
        "Attainment, since hh:mm",
        "Error budget left, since hh:mm",
    ]
    spilled = labels.evaluate_all("all => all.filter(one => one.scrollWidth > one.clientWidth + 1).length")
    assert spilled == 0


def test_a_wordy_verdict_moves_nothing_below_it(open_live: Open) -> None:
    page = open_live(scenario="no-cause")
    short = ui.first_look(page)
    page = open_live(scenario="wordy")
    expect(page.get_by_text("Recovering: kept again from", exact=False)).to_be_visible()
    assert ui.first_look(page) == short
    assert max(short.values()) <= 1000


def test_one_click_from_a_class_says_why_a_tenant_waits(open_live: Open) -> None:
    page = open_live()
    page.get_by_role("link", name="Why requests of medium wait").click()
    medium = page.get_by_role("rowgroup", name="medium")
    expect(medium).to_be_in_viewport()
    row = medium.get_by_role("row", name="lumen-docs")
    expect(row).to_contain_text("8")
    expect(row).to_contain_text("2.9 s")
    expect(row).to_contain_text("61 %, due 50 %")
    expect(row).to_contain_text("so fjord-search goes first.")


def test_a_card_leads_from_its_late_requests_to_those_that_still_wait(open_live: Open) -> None:
    page = open_live()
    page.get_by_role("article", name="high").get_by_role("link", name="3 waiting").click()
    expect(page.get_by_role("rowgroup", name="high")).to_be_in_viewport()


def test_another_page_opens_at_its_top(open_live: Open) -> None:
    page = open_live("/policies")
    page.get_by_role("button", name="Roll back to v40").scroll_into_view_if_needed()
    page.get_by_role("link", name="Live", exact=True).first.click()
    expect(page.get_by_role("heading", name="Live", exact=True)).to_be_visible()
    assert page.evaluate("scrollY") == 0


def test_a_mistake_is_told_in_the_units_of_its_field(open_live: Open) -> None:
    page = open_live("/policies")
    ui.set_field(page, "classes.1.slo.target", "120")
    expect(
        page.get_by_text("medium, promised for: 120 % is too much. Choose less than 100 %.")
    ).to_be_visible()


def test_a_mistake_of_all_classes_together_covers_nothing(open_live: Open) -> None:
    page = open_live("/policies")
    ui.set_field(page, "batch_limit.min_slots", "0")
    mistake = page.get_by_text("at least: 0 slots is too little. Choose 1 slot or more.").bounding_box()
    hint = page.get_by_text("Slots per worker", exact=True).bounding_box()
    assert mistake is not None
    assert hint is not None
    assert mistake["y"] + mistake["height"] <= hint["y"]


def test_the_way_to_a_mistake_can_be_taken_twice(open_live: Open) -> None:
    page = open_live("/policies")
    ui.set_field(page, "classes.1.slo.target", "120")
    for _ in range(2):
        page.get_by_role("link", name="1 field").click()
        expect(page.locator('[id="f-classes.1.slo.target"]')).to_be_focused()
        page.locator("#f-comment").focus()


def test_a_cause_that_the_events_do_not_show_is_not_guessed(open_live: Open) -> None:
    page = open_live(scenario="no-cause")
    expect(page.get_by_text("No cause found in the scheduler’s events.")).to_be_visible()


def test_the_verdict_leads_to_the_rule_that_the_events_name(open_live: Open) -> None:
    page = open_live(scenario="broken")
    page.get_by_role("link", name="Draft a change to this rule").click()
    expect(page.get_by_role("switch", name="medium, May be preempted")).to_be_focused()


def test_the_verdict_leads_to_the_versions_to_roll_back_to(open_live: Open) -> None:
    page = open_live(scenario="no-cause")
    page.get_by_role("link", name="Earlier versions").click()
    expect(page.get_by_role("button", name="Roll back to v40")).to_be_in_viewport()
    expect(page.get_by_role("heading", name="Versions")).to_be_focused()


def test_a_lost_connection_is_visible_at_once_and_mends_itself(open_live: Open, mock: Mock) -> None:
    page = open_live(scenario="broken")
    mock.play("refuse")
    mock.play("drop")
    expect(page.get_by_text("Connection lost", exact=False).first).to_be_visible(timeout=1500)
    assert ui.panel_states(page) == {"disconnected"}
    expect(page.get_by_test_id("live-pill")).to_contain_text("Not live")
    mock.play("accept")
    ui.wait_until_live(page)
    expect(page.get_by_text("Connection lost", exact=False)).to_have_count(0)


def test_a_worker_is_drained_and_resumed_from_its_row(open_live: Open) -> None:
    page = open_live(scenario="calm")
    page.get_by_role("button", name="Drain node1-gpu0").click()
    expect(page.get_by_text("goes to the other 3 workers", exact=False)).to_be_visible()
    assert ui.accessibility_mistakes(page) == []
    page.get_by_role("dialog").get_by_role("button", name="Drain node1-gpu0").click()
    row = page.locator("tr", has_text="node1-gpu0")
    expect(row.locator("[data-worker-state=draining]")).to_contain_text("draining")
    page.get_by_role("button", name="Resume node1-gpu0").click()
    page.get_by_role("dialog").get_by_role("button", name="Resume node1-gpu0").click()
    expect(row.locator("[data-worker-state=live]")).to_be_visible()


@pytest.mark.parametrize("width", [*WIDTHS, 1001, 1321, 1401])
def test_the_workers_table_shows_its_button_without_scrolling(open_live: Open, width: int) -> None:
    page = open_live(scenario="calm")
    page.set_viewport_size({"width": width, "height": 1000})
    page.get_by_role("button", name="Drain node1-gpu0").click()
    page.get_by_role("dialog").get_by_role("button", name="Drain node1-gpu0").click()
    expect(page.get_by_role("button", name="Resume node1-gpu0")).to_be_visible()
    hidden_px = page.locator(".ws").evaluate("t => t.parentElement.scrollWidth - t.parentElement.clientWidth")
    assert hidden_px == 0


def test_a_silent_worker_is_not_a_broken_promise(open_live: Open) -> None:
    page = open_live(scenario="silent")
    assert ui.verdict(page) == "kept"
    expect(page.get_by_text("node2-gpu0 has been silent", exact=False)).to_be_visible()


def test_a_sequence_is_read_with_the_arrow_keys(open_live: Open) -> None:
    page = open_live()
    group = page.get_by_role("group", name="high on node1-gpu0", exact=False)
    group.get_by_role("button").first.focus()
    page.keyboard.press("ArrowRight")
    expect(group.get_by_role("button").nth(1)).to_be_focused()
    expect(page.get_by_role("tooltip")).to_contain_text("decoding")


def test_every_chart_of_the_machines_has_a_table(open_live: Open) -> None:
    page = open_live()
    for _ in range(3):
        page.get_by_role("button", name="Show as a table").first.click()
    tables = page.get_by_role("region", name="as a table", exact=False)
    expect(tables).to_have_count(3)


def test_a_mistake_stands_beside_its_field_and_blocks_publishing(open_live: Open) -> None:
    page = open_live("/policies")
    ui.set_field(page, "classes.1.max_wait_s", "2.5")
    field = page.get_by_role("textbox", name="medium, Wait bound")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.locator(f'[id="{field.get_attribute("aria-describedby")}"]')).to_contain_text(
        "Choose 3 s or more."
    )
    expect(page.get_by_role("button", name="Publish to")).to_be_disabled()
    expect(page.locator("#blocked")).to_have_text("Mend 1 field first.")


def test_a_change_is_published_and_seen_on_every_worker(open_live: Open) -> None:
    page = open_live("/policies")
    ui.set_field(page, "classes.0.weight", "75")
    expect(page.get_by_text("was 70")).to_be_visible()
    assert ui.publish(page, "More weight for high").startswith("4 of 4 workers run v42")
    expect(page.get_by_role("cell", name="More weight for high")).to_be_visible()


def test_nothing_is_overwritten_when_somebody_else_publishes(open_live: Open, mock: Mock) -> None:
    page = open_live("/policies")
    ui.set_field(page, "classes.0.weight", "75")
    mock.play("other-editor")
    expect(page.get_by_text("M. Okafor published v42 while you edited.")).to_be_visible()
    page.get_by_role("button", name="Move my 1 change onto v42").click()
    expect(page.locator('[id="f-classes.0.weight"]')).to_have_value("75")
    expect(page.locator('[id="f-step.max_chunk_tokens"]')).to_have_value("256")


def test_who_may_only_look_is_told_before_pressing_anything(open_live: Open) -> None:
    page = open_live("/policies", scenario="viewer")
    ui.set_field(page, "classes.0.weight", "75")
    page.locator("#f-comment").fill("More for high")
    expect(page.get_by_text("Your account may look, but change nothing")).to_have_count(2)
    for name in ("Try this draft", "Publish to all 4 workers now", "Roll back to v40"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()
    page.get_by_role("link", name="Live").first.click()
    expect(page.get_by_role("button", name="Drain").first).to_be_disabled()


def test_an_older_version_is_one_click_away(open_live: Open) -> None:
    page = open_live("/policies")
    page.get_by_role("button", name="Roll back to v40").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back to v40").click()
    expect(page.get_by_test_id("rollout")).to_contain_text("4 of 4 workers run v42")
    expect(page.get_by_role("row").filter(has_text="Roll back to v41")).to_contain_text("superseded")


def test_a_draft_survives_a_look_at_another_page(open_live: Open) -> None:
    page = open_live("/policies")
    ui.set_field(page, "classes.0.weight", "75")
    page.get_by_role("link", name="Live").first.click()
    page.get_by_role("link", name="Policies").first.click()
    expect(page.locator('[id="f-classes.0.weight"]')).to_have_value("75")


def test_the_playground_streams_an_answer_in_the_chosen_class(open_live: Open) -> None:
    page = open_live("/playground")
    assert "Paris" in ui.ask(page, "What is the capital of France?", "low")
    expect(page.get_by_test_id("answer-class")).to_have_text("low")
    expect(page.get_by_test_id("answer-ttft")).to_contain_text("ms")


def test_a_refusal_is_told_in_its_own_words(open_live: Open) -> None:
    page = open_live("/playground")
    page.get_by_role("textbox", name="Prompt").fill("refuse me")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("exceeds low’s bound of 60 s. Come back in 20 s.")


def test_signing_out_and_in_again(open_live: Open, mock: Mock) -> None:
    page = open_live()
    page.get_by_role("button", name="Sign out").first.click()
    page.get_by_label("Username").fill("ines")
    page.get_by_role("textbox", name="Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("wrong")
    page.get_by_role("textbox", name="Password").fill("right")
    page.get_by_role("button", name="Sign in").click()
    ui.wait_until_live(page)


def try_draft(page: Page) -> None:
    ui.set_field(page, "classes.0.weight", "75")
    page.get_by_role("button", name="Try this draft").click()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_draft_is_tried_on_recorded_traffic_before_it_is_published(open_live: Open, theme: str) -> None:
    page = open_live("/policies", theme=theme)
    try_draft(page)
    expect(page.get_by_test_id("trial-verdict")).to_contain_text(
        "high would keep its promise: 99.3 % within 800 ms and 40 ms a token, instead of 92.4 %"
    )
    row = page.get_by_role("rowgroup", name="high").get_by_role("row", name="TTFT p99")
    expect(row).to_contain_text("better, −57 %")
    assert ui.accessibility_mistakes(page) == []


def test_a_trial_of_an_earlier_draft_says_so(open_live: Open) -> None:
    page = open_live("/policies")
    try_draft(page)
    expect(page.get_by_test_id("trial-verdict")).to_be_visible()
    ui.set_field(page, "classes.1.weight", "40")
    expect(page.get_by_text("for an earlier state of this draft. You changed 1 field since.")).to_be_visible()
    expect(page.get_by_role("button", name="Try this draft")).to_be_enabled()


def test_a_trial_is_still_there_after_a_look_at_another_page(open_live: Open) -> None:
    page = open_live("/policies")
    try_draft(page)
    expect(page.get_by_test_id("trial-verdict")).to_be_visible()
    page.get_by_role("link", name="Live").first.click()
    page.get_by_role("link", name="Policies").first.click()
    expect(page.get_by_test_id("trial-verdict")).to_be_visible()


def test_a_trial_under_way_can_be_cancelled(open_live: Open, mock: Mock) -> None:
    page = open_live("/policies")
    mock.play("slow-trial")
    try_draft(page)
    expect(page.get_by_text("Replayed under v41, then under the draft: 50 %")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("button", name="Try this draft")).to_be_enabled()


def test_a_cancelled_trial_says_who_ended_it(open_live: Open, mock: Mock) -> None:
    page = open_live("/policies")
    mock.play("slow-trial")
    try_draft(page)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancelled by ines.")).to_be_visible()


def test_a_reload_leaves_a_trial_under_way_on_its_own_traffic(open_live: Open, mock: Mock) -> None:
    page = open_live("/policies")
    mock.play("slow-trial")
    ui.set_field(page, "classes.0.weight", "75")
    page.get_by_role("button", name="last day").click()
    page.get_by_role("button", name="Try this draft").click()
    page.reload()
    expect(page.get_by_text("Recorded traffic: last day")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("button", name="last day")).to_have_attribute("aria-pressed", "true")


def test_what_was_out_of_reach_for_a_while_is_no_problem_any_more(open_live: Open, mock: Mock) -> None:
    page = open_live("/policies")
    mock.play("slow-trial")
    try_draft(page)
    page.route("**/api/v1/policies/trials/*", lambda route: route.abort())
    problem = page.get_by_test_id("trial").get_by_text("The control plane could not be reached.")
    expect(problem).to_be_visible(timeout=15_000)
    page.unroute("**/api/v1/policies/trials/*")
    expect(problem).not_to_be_visible()


def test_traffic_that_comes_later_is_found_without_a_reload(open_live: Open, mock: Mock) -> None:
    page = open_live("/policies")
    mock.play("no-traffic")
    ui.set_field(page, "classes.0.weight", "75")
    expect(page.get_by_role("button", name="Try this draft")).to_be_disabled()
    mock.play("traffic")
    expect(page.get_by_role("button", name="Try this draft")).to_be_enabled(timeout=25_000)


def test_a_draft_of_an_older_version_is_moved_before_it_is_tried(open_live: Open, mock: Mock) -> None:
    page = open_live("/policies")
    ui.set_field(page, "classes.0.weight", "75")
    mock.play("other-editor")
    trial = page.get_by_test_id("trial")
    expect(trial.get_by_text("v42 was published meanwhile; move your changes onto it first.")).to_be_visible()
    expect(trial.get_by_role("button", name="Try this draft")).to_be_disabled()
    page.get_by_role("button", name="Move my 1 change").click()
    expect(trial.get_by_role("button", name="Try this draft")).to_be_enabled()


def test_without_recorded_traffic_the_reason_stands_beside_the_button(open_live: Open, mock: Mock) -> None:
    page = open_live("/policies")
    mock.play("no-traffic")
    ui.set_field(page, "classes.0.weight", "75")
    expect(page.get_by_role("button", name="Try this draft")).to_be_disabled()
    expect(page.get_by_text("There is no traffic in this window to try it on.")).to_be_visible()


def test_a_failed_trial_says_what_would_help(open_live: Open, mock: Mock) -> None:
    page = open_live("/policies")
    mock.play("failed-trial")
    try_draft(page)
    expect(page.get_by_text("It took longer than 5 min. Choose a shorter window.")).to_be_visible()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_trials_figures_fit_every_width(open_live: Open, width: int) -> None:
    page = open_live("/policies", width=width)
    try_draft(page)
    figures = page.get_by_role("group", name="Figures of the trial")
    assert ui.overflow_px(page) == 0
    assert figures.evaluate("one => one.scrollWidth - one.clientWidth") == 0
    page.get_by_role("button", name="Show all figures").click()
    assert ui.overflow_px(page) == 0
    if width > 390:
        assert figures.evaluate("one => one.scrollWidth - one.clientWidth") == 0
