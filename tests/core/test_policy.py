"""A policy document is refused with every mistake, its place and what would be right."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler_worker.core.policy import InvalidPolicy, Mistake, check_policy, default_policy, policy_schema


def a_document() -> dict[str, Any]:
    return default_policy().model_dump(mode="json")


def mistakes_in(document: dict[str, Any]) -> tuple[Mistake, ...]:
    with pytest.raises(InvalidPolicy) as refused:
        check_policy(document)
    return refused.value.mistakes


def the_mistake_in(document: dict[str, Any]) -> tuple[str, str]:
    (mistake,) = mistakes_in(document)
    return mistake.path, mistake.message


def test_the_default_policy_is_one() -> None:
    assert check_policy(a_document()) == default_policy()


def test_by_default_there_are_three_classes_with_the_promises_that_operators_were_given() -> None:
    classes = default_policy().classes
    promises = [(one.id, one.rank, one.weight, one.slo.ttft_s, one.slo.tpot_s, one.max_wait_s) for one in classes]
    assert promises == [
        ("high", 0, 70, 0.1, 0.025, 30.0), ("medium", 1, 20, 0.3, 0.05, 30.0), ("low", 2, 10, 0.5, 0.1, 30.0),
    ]  # fmt: skip


def test_a_missing_field_is_named() -> None:
    document = a_document()
    del document["classes"][0]["weight"]
    assert the_mistake_in(document) == ("classes.0.weight", "is required")


def test_an_unknown_field_is_named() -> None:
    document = a_document()
    document["step"]["colour"] = "blue"
    assert the_mistake_in(document) == ("step.colour", "is not a field of the policy")


def test_a_value_out_of_range_is_shown() -> None:
    document = a_document()
    document["classes"][2]["weight"] = -1
    path, message = the_mistake_in(document)
    assert (path, message.endswith("got -1")) == ("classes.2.weight", True)


def test_mistakes_between_fields_are_told_beside_those_of_single_ones() -> None:
    document = a_document()
    document["classes"][0]["weight"] = -1
    document["classes"][0]["max_wait_s"] = 0.05  # shorter than its TTFT objective of 0.1 s
    document["batch_limit"] |= {"min_slots": 8, "max_slots": 4}
    document["default_class"] = "nobody"
    assert [one.path for one in mistakes_in(document)] == [
        "classes.0.weight", "default_class", "classes.0.max_wait_s", "batch_limit.max_slots",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"ttft_s": -1.0}, {"max_wait_s": 0.05}),  # who knows which objective was meant
        ({"rank": -1}, {"rank": 1}),  # of the next class
        ({"id": "Not An Id"}, {}),
    ],
)
def test_nothing_is_said_of_a_field_that_is_wrong_itself(wrong: dict[str, Any], right: dict[str, Any]) -> None:
    document = a_document()
    document["default_class"] = "high"
    first = document["classes"][0]
    (first["slo"] if "ttft_s" in wrong else first).update(wrong)
    (first if "max_wait_s" in right else document["classes"][1]).update(right)
    path, _ = the_mistake_in(document)
    assert path.split(".")[-1] == next(iter(wrong))


@pytest.mark.parametrize("part", ["classes", "step", "retired"])
def test_a_document_that_cannot_be_mended_is_refused_all_the_same(part: str) -> None:
    document = {**a_document(), part: "nonsense"}
    assert the_mistake_in(document)[0] == part


def test_all_mistakes_are_told_at_once() -> None:
    document = a_document()
    document["classes"][0]["weight"] = 0
    document["classes"][1]["slo"]["ttft_s"] = -0.1
    assert [one.path for one in mistakes_in(document)] == ["classes.0.weight", "classes.1.slo.ttft_s"]


def test_the_error_itself_says_what_is_wrong() -> None:
    document = a_document()
    document["default_class"] = "urgent"
    with pytest.raises(InvalidPolicy, match="default_class: urgent is not a class of this policy"):
        check_policy(document)


def test_two_classes_may_not_share_a_name() -> None:
    document = a_document()
    document["classes"][1]["id"] = "high"
    assert the_mistake_in(document) == ("classes.1.id", "high is the name of another class too")


def test_two_classes_may_not_share_a_rank() -> None:
    document = a_document()
    document["classes"][2]["rank"] = 1
    assert the_mistake_in(document) == (
        "classes.2.rank",
        "1 is the rank of medium too. Give each class its own.",
    )


def test_a_wait_bound_below_the_ttft_objective_is_refused() -> None:
    document = a_document()
    document["classes"][2]["max_wait_s"] = 0.4
    path, message = the_mistake_in(document)
    assert path == "classes.2.max_wait_s"
    assert message.endswith("Choose 0.5 s or more.")


@pytest.mark.parametrize(("given", "missing"), [("e2e_s", "e2e_target"), ("e2e_target", "e2e_s")])
def test_an_end_to_end_promise_needs_both_halves(given: str, missing: str) -> None:
    document = a_document()
    document["classes"][0]["slo"][given] = 0.9
    assert the_mistake_in(document)[0] == f"classes.0.slo.{missing}"


def test_an_end_to_end_promise_with_both_halves_is_accepted() -> None:
    document = a_document()
    document["classes"][0]["slo"] |= {"e2e_s": 10.0, "e2e_target": 0.9}
    assert check_policy(document).classes[0].slo.e2e_s == 10.0


def test_the_most_slots_may_not_be_below_the_least() -> None:
    document = a_document()
    document["batch_limit"] |= {"min_slots": 8, "max_slots": 4}
    assert the_mistake_in(document) == ("batch_limit.max_slots", "4 is below the least, 8. Choose 8 or more.")


def test_a_chunk_must_fit_the_budget_of_a_step() -> None:
    document = a_document()
    document["step"] |= {"max_num_batched_tokens": 100, "max_chunk_tokens": 101}
    assert the_mistake_in(document)[0] == "step.max_chunk_tokens"


def test_a_retired_class_must_lead_to_one_that_is_there() -> None:
    document = a_document()
    document["retired"] = {"batch": "bulk"}
    assert the_mistake_in(document) == ("retired.batch", "bulk does not lead to a class of this policy")


def test_a_class_that_is_there_cannot_be_retired() -> None:
    document = a_document()
    document["retired"] = {"low": "high"}
    assert the_mistake_in(document) == ("retired.low", "low is still a class; class ids are permanent")


def test_retired_classes_are_followed_to_the_one_that_serves_them() -> None:
    document = a_document()
    document["retired"] = {"bulk": "batch", "batch": "low"}
    assert check_policy(document).find("bulk").id == "low"


@pytest.mark.parametrize("retired", [{"a": "b", "b": "a"}, {"a": "a"}])
def test_retired_classes_that_lead_in_a_circle_are_refused(retired: dict[str, str]) -> None:
    document = a_document()
    document["retired"] = retired
    assert {one.path for one in mistakes_in(document)} == {f"retired.{name}" for name in retired}


def test_a_class_that_never_was_one_is_not_found() -> None:
    with pytest.raises(KeyError):
        default_policy().find("urgent")


def test_the_least_urgent_class_has_the_highest_rank() -> None:
    assert default_policy().least_urgent().id == "low"


def test_the_form_is_built_from_a_schema_with_a_title_for_every_limit() -> None:
    step = policy_schema()["$defs"]["Step"]["properties"]
    assert [one["title"] for one in step.values()] == ["Token budget", "Chunk at most", "TTFT rescue from"]
