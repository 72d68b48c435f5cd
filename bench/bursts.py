"""How many of a burst are refused: `python -m bench.bursts [NUM …]`.

A slow pool (32 slots; a model of 135M parameters on two processor cores) is idle for a minute. Then so many chats of
40 + 50 tokens come at once, a third to each class, each class with a bound of 30 s. Beside what this admission refuses
stand two oracles. `lengths`: the same admission, told every output length beforehand. `all`: one that knows who else
will come: it lets everybody in, sees who starts within the bound on a pool that is slower by the whole margin, and
refuses the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import mean

from scheduler_worker.core.admission import Admitted, Ask
from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.forecast import Forecast
from scheduler_worker.core.plan import Capacity
from scheduler_worker.core.policy import Policy, default_policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import SequenceHeader
from scheduler_worker.sim.admission import SimulatedAdmission
from scheduler_worker.sim.cost import StepCost
from scheduler_worker.sim.run import History, Options, Outcome, Simulation
from scheduler_worker.sim.trace import Request

LAPTOP = StepCost(base_s=0.03, row_s=0.0025, prefill_token_s=0.0012, kv_token_s=1e-7, swap_block_s=1e-4)
"""32 rows decode in 0.11 s, a prompt of 40 tokens takes 0.05 s."""
KNOWN = {"base_s": 0.03, "decode_row_s": 0.0025, "prefill_token_s": 0.0012, "kv_token_s": 1e-7}
CAPACITY = Capacity(num_slots=32, num_blocks=2_000, block_size=16, max_model_len=8_192, num_swap_blocks=2_000)
CLASSES = ("high", "medium", "low")
SIZES = (32, 46, 64, 80, 100, 150, 200, 250, 300, 400)
NUM_OUTPUT = 50
BURST_AT = 60.0
BOUND_S = 30.0
TTFT_S = 14.0


def policy(**low: object) -> Policy:
    """Objectives that a slow pool can keep; everybody is refused by a bound of 30 s unless `low` says otherwise."""
    slow = {"high": (1.2, 0.14), "medium": (2.9, 0.18), "low": (TTFT_S, 0.28)}
    usual = default_policy()
    classes = []
    for one in usual.classes:
        ttft_s, tpot_s = slow[one.id]
        slo = one.slo.model_copy(update={"ttft_s": ttft_s, "tpot_s": tpot_s})
        changes = {"slo": slo, "admit_on": "max_wait", **(low if one.id == "low" else {})}
        classes.append(one.model_copy(update=changes))
    step = usual.step.model_copy(update={"max_num_batched_tokens": 128, "max_chunk_tokens": 128})
    return usual.model_copy(update={"classes": tuple(classes), "step": step})


def burst(num: int, num_before: int = 0) -> list[Request]:
    """Chats of 40 + 50 tokens, one after the other in 4 ms, over the classes in turn, after an idle minute.

    So many came before that, one every 5 s.
    """
    before = [5.0 * index for index in range(num_before)]
    times = [*before, *(BURST_AT + 5.0 * num_before + 0.004 * index for index in range(num))]
    return [Request(at, 40, NUM_OUTPUT, CLASSES[index % 3]) for index, at in enumerate(times)]


class Listening(SimulatedAdmission):
    """Keeps what was predicted, in the order of arrival."""

    def __init__(self, rules: Policy, scheduler: Scheduler) -> None:
        super().__init__(rules, [scheduler], CAPACITY)
        self.predicted_s: list[float] = []
        listener = self

        class Heard(Forecast):
            def decide(self, *arguments: object) -> object:  # type: ignore[override]
                answer = super().decide(*arguments)  # type: ignore[arg-type]
                told = isinstance(answer, Admitted)
                listener.predicted_s.append(answer.wait_s if told else float(answer.numbers["predicted_s"]))  # type: ignore[union-attr]
                return answer

        self._forecast = Heard(0.0)


class KnowsLengths(Listening):
    """Told how long each answer will become, and nothing of who comes later."""

    def ask(self, header: SequenceHeader, class_id: str) -> Ask:
        """The truth in place of the expectation."""
        return Ask(class_id, header.num_prompt_tokens, NUM_OUTPUT)


class Unguarded(SimulatedAdmission):
    """Lets everybody in."""

    def refusal(self, header: SequenceHeader, now: float) -> float | None:
        """Nobody is refused."""
        return None


def run(
    requests: Sequence[Request],
    rules: Policy | None = None,
    kind: type[Listening] = Listening,
    max_tokens: int = NUM_OUTPUT,
) -> tuple[History, list[float]]:
    """What became of them, and the wait that was predicted for each."""
    rules = rules or policy()
    scheduler = Scheduler(rules, CAPACITY, cost_model=CostModel(KNOWN))
    admission = kind(rules, scheduler)
    history = Simulation(requests, [scheduler], [LAPTOP], Options(max_tokens=max_tokens), admission).run()
    return history, admission.predicted_s


def num_an_oracle_refuses(num: int) -> int:
    """Of a burst of this size, with all let in and the whole margin held back: those who start too late."""
    rules = policy()
    scheduler = Scheduler(rules, CAPACITY, cost_model=CostModel(KNOWN))
    admission = Unguarded(rules, [scheduler], CAPACITY)
    slow = LAPTOP.scaled(1.0 / (1.0 - rules.admission.capacity_margin))
    outcomes = Simulation(burst(num), [scheduler], [slow], Options(max_tokens=NUM_OUTPUT), admission).run().outcomes
    return sum((one.wait_s or 0.0) > BOUND_S for one in outcomes)


def refused(history: History) -> list[Outcome]:
    """Who was not let in."""
    return [one for one in history.outcomes if one.refused]


def longest_wait_s(history: History) -> float:
    """Of those let in."""
    return max(one.wait_s or 0.0 for one in history.outcomes if not one.refused)


def _row(num: int, num_before: int, max_tokens: int) -> str:
    requests = burst(num, num_before)
    history, predicted_s = run(requests, max_tokens=max_tokens)
    by_lengths = len(refused(run(requests, kind=KnowsLengths, max_tokens=max_tokens)[0]))
    pairs = [pair for pair in zip(predicted_s, history.outcomes, strict=True) if not pair[1].refused]
    predicted, actual = mean(told_s for told_s, _ in pairs), mean(one.wait_s or 0.0 for _, one in pairs)
    figures = (num, len(refused(history)), by_lengths, num_an_oracle_refuses(num))
    waits = (longest_wait_s(history), predicted, actual)
    return "  ".join((*(f"{one:>9}" for one in figures), *(f"{one:>9.1f}" for one in waits)))


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(prog="python -m bench.bursts", description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES, metavar="NUM")
    parser.add_argument("--max-tokens", type=int, default=NUM_OUTPUT, help="what requests allow; answers stay at 50")
    parser.add_argument("--before", type=int, default=0, help="so many chats before; `all` leaves them out")
    options = parser.parse_args()
    print("  ".join(f"{one:>9}" for one in ("chats", "refused", "lengths", "all", "longest", "predicted", "actual")))
    for num in options.sizes:
        print(_row(num, options.before, options.max_tokens), flush=True)


if __name__ == "__main__":
    main()
