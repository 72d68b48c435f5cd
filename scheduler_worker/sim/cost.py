"""How long a step takes on the simulated device: the truth that a scheduler's own cost model has to learn."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from random import Random
from typing import Final

from scheduler_worker.core.plan import StepShape


class MalformedCost(ValueError):
    """A cost file that is not one."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds per step: a linear function of its shape. `noise` is the relative standard deviation of a step."""

    base_s: float = 0.0015
    row_s: float = 9e-6
    prefill_token_s: float = 6.5e-6
    kv_token_s: float = 32_768 / 4.2e12
    attention_pair_s: float = 0.0
    swap_block_s: float = 16 * 32_768 / 50e9
    noise: float = 0.0

    def seconds(self, shape: StepShape, num_swapped_blocks: int = 0) -> float:
        """The step's duration without noise."""
        return (
            self.base_s
            + self.row_s * shape.num_decode_rows
            + self.prefill_token_s * shape.num_prefill_tokens
            + self.kv_token_s * shape.num_kv_tokens
            + self.attention_pair_s * shape.num_attention_pairs
            + self.swap_block_s * num_swapped_blocks
        )

    def scaled(self, factor: float) -> StepCost:
        """A device that is `factor` times as slow."""
        return replace(
            self,
            **{one.name: getattr(self, one.name) * factor for one in fields(self) if one.name.endswith("_s")},
        )


H200_1B: Final = StepCost()
VTC_ARENA: Final = StepCost(
    base_s=0.0225, row_s=0.00054, prefill_token_s=0.00021, kv_token_s=0.87e-6, swap_block_s=0.0
)
PRESETS: Final[dict[str, StepCost]] = {"h200-1b": H200_1B, "vtc-arena": VTC_ARENA}


def perturbed(cost: StepCost, share: float, seed: int) -> StepCost:
    """Each coefficient moved by a uniform draw within ± `share`: how much a result hangs on the last digit."""
    draw = Random(f"perturb-{seed}")
    return replace(
        cost,
        **{
            one.name: getattr(cost, one.name) * (1 + draw.uniform(-share, share))
            for one in fields(cost)
            if one.name.endswith("_s")
        },
    )


def read_cost(name_or_path: str) -> StepCost:
    """A preset by name, or a JSON object of the fields above; raises `MalformedCost`."""
    if preset := PRESETS.get(name_or_path):
        return preset
    try:
        values = json.loads(Path(name_or_path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MalformedCost(f"{name_or_path}: no such file, and not one of {', '.join(PRESETS)}") from None
    except json.JSONDecodeError as error:
        raise MalformedCost(f"{name_or_path}:{error.lineno}: not JSON: {error.msg}") from error
    return _from_json(name_or_path, values)


def _from_json(where: str, values: object) -> StepCost:
    known = asdict(H200_1B)
    if not isinstance(values, dict):
        raise MalformedCost(f"{where}: an object is needed, with any of {', '.join(known)}")
    for name, value in values.items():
        if name not in known:
            raise MalformedCost(f"{where}: {name} is not a coefficient; known are {', '.join(known)}")
        if not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise MalformedCost(f"{where}: {name} is {value!r}; a number of 0 or more is needed")
    return StepCost(**dict.fromkeys(known, 0.0) | values)
