"""What a trial says of its figures, in one sentence."""

from __future__ import annotations

from typing import Any

from controlplane.policies.verdict import verdict


def figures(**fields: Any) -> dict[str, Any]:
    """A class of 1,000 requests that keeps 99 % within 100 ms."""
    return {
        "num": 1000, "num_refused": 0, "within": 0.995, "target": 0.99, "ttft_objective_s": 0.1,
        "tpot_objective_s": 0.025,
        "ttft_p50_s": 0.04, "ttft_p99_s": 0.09, **fields,
    }  # fmt: skip


def headline(before: dict[str, Any], after: dict[str, Any]) -> str:
    return str(verdict(before, after)["headline"])


def test_a_promise_that_would_be_kept_again_comes_before_what_it_costs() -> None:
    before = {"low": figures(ttft_p99_s=0.5), "high": figures(within=0.921)}
    after = {"low": figures(ttft_p99_s=2.6), "high": figures(within=0.9943)}
    assert headline(before, after) == (
        "high would keep its promise: 99.4 % within 100 ms and 25 ms a token, instead of 92.1 %; "
        "low would wait 2.1 s longer at p99: 2.6 s instead of 500 ms."
    )


def test_a_promise_that_would_break_comes_first() -> None:
    before = {"high": figures(within=0.9), "low": figures()}
    after = {"high": figures(within=0.99), "low": figures(within=0.6)}
    assert headline(before, after).startswith("low would break its promise: 60 % within 100 ms")


def test_a_share_is_never_rounded_up_to_the_promise() -> None:
    after = {"high": figures(within=0.98999)}
    assert "98.9 %" in headline({"high": figures()}, after)


def test_small_differences_are_none() -> None:
    before, after = {"high": figures()}, {"high": figures(within=0.993, ttft_p99_s=0.093, num_refused=4)}
    assert headline(before, after) == "No class would notice: no figure differs by 5 % or more."


def test_a_promise_that_is_broken_anyway_is_still_broken() -> None:
    found = verdict({"high": figures(within=0.9)}, {"high": figures(within=0.9)})
    assert found["effects"][0]["text"].startswith("high would hardly notice and still break its promise: 90 %")


def test_more_refusals_are_worse() -> None:
    found = verdict({"low": figures()}, {"low": figures(num_refused=40)})
    assert found["effects"] == [
        {"kind": "worse", "class_id": "low", "text": "low would have 40 more refused: 40 of 1,000 instead of 0"}
    ]


def test_a_class_without_traffic_says_so() -> None:
    none = figures(num=0, within=None, ttft_p50_s=None, ttft_p99_s=None)
    assert verdict({"low": none}, {"low": none})["effects"][0]["text"] == "low had no request in this traffic"


def test_of_many_effects_two_are_told() -> None:
    names = ("a", "b", "c")
    before = {one: figures() for one in names}
    after = {one: figures(within=0.5) for one in names}
    assert headline(before, after).endswith("; and 1 more below.")
