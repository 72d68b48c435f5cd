"""The command line: what it prints and writes, and how it refuses what it cannot use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scheduler_worker.core.policy import default_policy
from scheduler_worker.sim.__main__ import main

HEADER = "arrival_s,class,tenant,input_tokens,output_tokens\n"
PER_CLASS = {"requests", "rejected", "ttft_s", "tpot_s", "e2e_s", "wait_s", "slo_attainment", "token_share"}
IN_ALL = {
    "tokens_per_s", "goodput_rps", "busy_fraction", "preemptions", "recomputed_tokens", "max_wait_s", "steps",
    "jain_index",
}  # fmt: skip


def write_trace(folder: Path, body: str = "") -> str:
    rows = body or "".join(
        f"{n / 10},{'high' if n % 2 else 'low'},t{n % 3},{20 + n},{5 + n % 7}\n" for n in range(60)
    )
    path = folder / "trace.csv"
    path.write_text(HEADER + rows, encoding="utf-8")
    return str(path)


def write_policy(folder: Path, name: str, text: str = "") -> str:
    path = folder / f"{name}.json"
    path.write_text(text or default_policy().model_dump_json(), encoding="utf-8")
    return str(path)


def figures(folder: Path, *arguments: str) -> dict[str, dict[str, object]]:
    out = folder / "out.json"
    assert main(["--trace", write_trace(folder), "--json", str(out), *arguments]) == 0
    return dict(json.loads(out.read_text(encoding="utf-8")))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    return capsys.readouterr().err


def test_one_run_has_every_figure(tmp_path: Path) -> None:
    run = figures(tmp_path)["tidegate"]
    assert run.keys() >= IN_ALL
    assert all(one.keys() == PER_CLASS for one in run["classes"].values())  # type: ignore[attr-defined]


def test_percentiles_are_p50_p95_p99_and_max(tmp_path: Path) -> None:
    classes = figures(tmp_path)["tidegate"]["classes"]
    assert list(classes["high"]["ttft_s"]) == ["p50", "p95", "p99", "max"]  # type: ignore[index]


def test_schedulers_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("tidegate", "fcfs", "static", "priority", "vtc", "lcf")
    figures(tmp_path, *(part for name in names for part in ("--scheduler", name)))
    assert capsys.readouterr().out.splitlines()[0].split() == list(names)


def test_policies_stand_side_by_side(tmp_path: Path) -> None:
    one, other = write_policy(tmp_path, "calm"), write_policy(tmp_path, "keen")
    assert list(figures(tmp_path, "--policy", one, "--policy", other)) == ["calm", "keen"]


def test_a_load_is_a_multiple_of_the_sample_s_own_saturated_rate(tmp_path: Path) -> None:
    half, double = (figures(tmp_path, "--load", load)["tidegate"]["offered_rps"] for load in ("0.5", "1"))
    assert double == pytest.approx(2 * half)  # type: ignore[operator]


def test_two_steps_in_flight_on_two_workers_serve_everybody(tmp_path: Path) -> None:
    run = figures(tmp_path, "--workers", "2", "--in-flight", "2", "--no-admission")["tidegate"]
    assert (run["requests"], run["rejected"]) == (60, 0)


def test_a_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    figures(tmp_path, "--plot", str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("0,high,t,10,5\n1,high,t,0,5\n", "trace.csv:3: input_tokens is '0'"),
        ("soon,high,t,10,5\n", "trace.csv:2: arrival_s is 'soon'"),
        ("0,high,t,10\n", "trace.csv:2: the row has another number of columns"),
        ("0,vip,t,10,5\n", "the trace has class 'vip'"),
    ],
)
def test_a_malformed_row_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, said: str
) -> None:
    assert said in refusal(capsys, "--trace", write_trace(tmp_path, row))


def test_nothing_is_written_when_the_trace_is_refused(tmp_path: Path) -> None:
    main(["--trace", write_trace(tmp_path, "0,high,t,x,5\n"), "--json", str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--displace"], "--displace needs --queue-bound"),
        (["--superpose"], "--superpose needs --load"),
        (["--load", "-1"], "--load is -1"),
        (["--scheduler", "fcfs", "--in-flight", "2"], "fcfs keeps one step in flight"),
        (["--queue-bound", "8", "--workers", "2"], "--queue-bound needs --workers 1"),
        (["--cost-model", "nowhere"], "nowhere: no such file, and not one of h200-1b, vtc-arena"),
        (["--split", "20/80"], "3 shares such as 20/30/50 are needed"),
        (["--policy", "missing.json"], "missing.json"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert said in refusal(capsys, "--trace", write_trace(tmp_path), *options)


def test_a_policy_that_is_not_json_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = write_policy(tmp_path, "broken", "{\n  nonsense")
    assert "broken.json:2: not JSON" in refusal(capsys, "--trace", write_trace(tmp_path), "--policy", broken)
