"""What the engine keeps of a sequence: its tokens, where its blocks are, and the hashes of its full
blocks."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from scheduler_worker.executor import SequenceInput
from scheduler_worker.protocol import hashing
from scheduler_worker.protocol.messages import SamplingParams


@dataclass(slots=True, eq=False)
class EngineSequence:
    """`tokens` holds prompt and output; `blocks` is the block table, in order; `slot` is None while it has
    none.

    `num_pending` counts tokens that launched steps will yield and that the host has not seen. `error` says
    why the sequence cannot be computed at all; its rows then fail alone.
    """

    seq_id: str
    tokens: array[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    seed: int
    stop_ids: frozenset[int]
    error: str | None = None
    slot: int | None = None
    blocks: list[int] = field(default_factory=list)
    num_pending: int = 0
    _digests: list[bytes] = field(default_factory=list)

    def block_hash(self, index: int, block_size: int) -> int:
        """The hash of the full block at `index`, chained over all tokens before it; O(new tokens)."""
        digests = self._digests
        while len(digests) <= index:
            parent = digests[-1] if digests else hashing.root()
            begin = len(digests) * block_size
            digests.append(hashing.chain(parent, self.tokens[begin : begin + block_size]))
        return hashing.as_int(digests[index])


def new_sequence(
    given: SequenceInput, seed: int, eos_token_ids: frozenset[int], error: str | None
) -> EngineSequence:
    """A sequence without slot or blocks. With an `error` its tokens are not even looked at."""
    sampling = given.sampling
    stop_ids = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else eos_token_ids)
    return EngineSequence(
        seq_id=given.seq_id,
        tokens=array("I", () if error else given.token_ids),
        num_prompt_tokens=given.num_prompt_tokens,
        sampling=sampling,
        seed=seed,
        stop_ids=stop_ids,
        error=error,
    )
