"""KV-cache blocks: who holds which, which hold a known prefix, and which to give up first.

A block is held or available; most have one holder, those of a common prefix more. An available block whose content is
known by its hash is *cached*: it can be taken back by a prefix hit, and is given up in least-recently-used order, after
the blocks that hold nothing. Planning works on a `BlockDraft`, which sees the pool and changes nothing.

Of the blocks that hold nothing, the one freed last is taken first: what is known of it is still in the processor's
cache, and booking finds at the front what a plan took from there.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice


class BlockPool:
    """Accounting of `num_blocks` blocks of `block_size` tokens, numbered from 0."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_promised = 0
        self._num_more_holders: dict[int, int] = {}
        self._hash_of: dict[int, int] = {}
        self._block_of: dict[int, int] = {}
        self._empty = deque(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._empty) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Available blocks whose content is known."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - self.num_available

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def match(self, hashes: Sequence[int], max_blocks: int) -> list[int]:
        """The blocks of the longest known prefix, at most `max_blocks`."""
        found: list[int] = []
        for block_hash in hashes[:max_blocks]:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def is_cached(self, block: int) -> bool:
        """Whether nobody holds the block and its content is known."""
        return block in self._cached

    def num_holders(self, block: int) -> int:
        """How many sequences hold the block, which one does at least."""
        return 1 + self._num_more_holders.get(block, 0)

    def hold(self, blocks: Sequence[int], hits: int = 0) -> None:
        """One more holder for each; the first `hits` keep their content, the others are about to be overwritten."""
        for block in blocks[:hits] if hits else ():
            if block in self._cached:
                self._take_cached(block, keep=True)
            else:
                self._num_more_holders[block] = self.num_holders(block)
        empty = self._empty
        for block in blocks[hits:] if hits else blocks:
            if empty and block == empty[0]:
                empty.popleft()
            elif block in self._cached:
                self._take_cached(block, keep=False)
            else:
                empty.remove(block)

    def _take_cached(self, block: int, keep: bool) -> None:
        del self._cached[block]
        if not keep:
            del self._block_of[self._hash_of.pop(block)]

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each; a prefix's last blocks are given up before its first ones."""
        more, known = self._num_more_holders, self._hash_of
        if (not more or more.keys().isdisjoint(blocks)) and (not known or known.keys().isdisjoint(blocks)):
            self._empty.extendleft(reversed(blocks))
        else:
            for block in reversed(blocks):
                self._release(block)

    def _release(self, block: int) -> None:
        num_more = self._num_more_holders.pop(block, 0)
        if num_more > 1:
            self._num_more_holders[block] = num_more - 1
        elif num_more == 0:
            if block in self._hash_of:
                self._cached[block] = None
            else:
                self._empty.appendleft(block)

    def register(self, block: int, block_hash: int) -> None:
        """The held block's content is known by this hash from now on, unless another block has it already."""
        if block_hash not in self._block_of and block not in self._hash_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def forget_contents(self) -> None:
        """Drop every known prefix (the device's memory is not to be trusted)."""
        self._block_of.clear()
        self._hash_of.clear()
        while self._cached:
            self._empty.append(self._cached.popitem(last=False)[0])

    def draft(self) -> BlockDraft:
        """A view to plan with."""
        return BlockDraft(self)

    def available(self) -> Iterator[int]:
        """Available blocks, the first to give up first."""
        return chain(self._empty, self._cached)

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless free + used == total and the holders are exactly the tables of `held`."""
        counts = [0] * self.num_blocks
        for table in held:
            assert len(set(table)) == len(table), f"a block twice in one table: {table}"
            for block in table:
                counts[block] += 1
        more = {block: count - 1 for block, count in enumerate(counts) if count > 1}
        assert more == self._num_more_holders, "reference counts differ from the block tables"
        free = [block for block, count in enumerate(counts) if count == 0]
        assert sorted([*self._empty, *self._cached]) == free, "available blocks are not those without a holder"
        assert {self._block_of[h]: h for h in self._block_of} == self._hash_of, "hashes are not one to one"
        assert all(block in self._hash_of for block in self._cached), "a cached block without a hash"
        assert not any(block in self._hash_of for block in self._empty), "an empty block with a hash"


class BlockDraft:
    """What would be left of the pool while a step is planned. The pool itself stays as it is."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._source = pool.available()
        self._given_back: dict[int, None] = {}
        self._num_dropped: dict[int, int] = {}
        self._overwritten: set[int] = set()
        self._reused: set[int] = set()
        self.num_available = pool.num_available
        self.num_promised = pool.num_promised

    def match(self, hashes: Sequence[int], max_blocks: int) -> list[int]:
        """The longest known prefix whose blocks this step has not given to somebody else."""
        found = self._pool.match(hashes, max_blocks)
        for index, block in enumerate(found):
            if block in self._overwritten:
                return found[:index]
        return found

    def num_idle(self, hits: Iterable[int]) -> int:
        """How many of these hits use up an available block because nobody holds them."""
        return sum(1 for block in hits if self._is_available(block))

    def take(self, num_blocks: int) -> tuple[int, ...]:
        """The next blocks; the caller has checked `num_available`."""
        if not num_blocks:
            return ()
        self.num_available -= num_blocks
        if self._reused or self._given_back:
            return tuple([self._next() for _ in range(num_blocks)])
        taken = tuple(islice(self._source, num_blocks))
        self._overwritten.update(taken)
        return taken

    def take_hits(self, hits: Iterable[int]) -> None:
        """Hold these known blocks, content and all."""
        for block in hits:
            if self._is_available(block):
                self._reused.add(block)
                self.num_available -= 1

    def give_back(self, blocks: Iterable[int]) -> None:
        """A victim's blocks: those that nobody else holds can be taken in this step."""
        for block in blocks:
            dropped = self._num_dropped[block] = self._num_dropped.get(block, 0) + 1
            if block not in self._reused and self._pool.num_holders(block) == dropped:
                self._given_back[block] = None
                self.num_available += 1

    def _next(self) -> int:
        for block in self._source:
            if block not in self._reused:
                self._overwritten.add(block)
                return block
        block = next(block for block in self._given_back if block not in self._reused)
        del self._given_back[block]
        self._overwritten.add(block)
        return block

    def _is_available(self, block: int) -> bool:
        if block in self._overwritten or block in self._reused:
            return False
        return self._pool.is_cached(block) or block in self._given_back
