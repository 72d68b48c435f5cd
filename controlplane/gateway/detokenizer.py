"""Token ids to text, a few at a time: what was emitted never changes, and no character is emitted in halves.

Byte-level and byte-fallback tokenizers (nearly all causal models) are exact: each id is a fixed string of
bytes, and an incremental UTF-8 decoder holds back what is not yet a character. Others decode a window.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any, Final, Protocol

from tokenizers import Tokenizer

REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
MAX_HELD_TOKENS: Final = 8  # a character has at most 4 bytes; what is still unreadable then stays so
_BYTE_TOKEN: Final = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


class Detokenizer(Protocol):
    """One request's decoder."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The characters that these tokens complete."""

    def flush(self) -> str:
        """What was held back; an unfinished character becomes U+FFFD."""


class Vocabulary:
    """What a token is worth as text. Makes the detokenizer that fits the tokenizer.

    Special tokens yield no text. `token_bytes(i)` is a token's exact contribution to the output where the
    tokenizer has such a thing, else its decoding alone.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.size = max([tokenizer.get_vocab_size(), *(token_id + 1 for token_id in added)])
        decoder = json.loads(tokenizer.to_str()).get("decoder")
        self._table, self._strip = _byte_table(tokenizer, decoder, self.size)

    @property
    def is_exact(self) -> bool:
        """Whether every id has fixed bytes."""
        return bool(self._table)

    def detokenizer(self, after: Sequence[int] = ()) -> Detokenizer:
        """A fresh decoder for one output; one that continues a text keeps its leading space."""
        if self._table:
            return ByteDetokenizer(self._table, self.special_ids, 0 if after else self._strip)
        return WindowDetokenizer(self._tokenizer, after[-MAX_HELD_TOKENS:])

    def token_bytes(self, token_id: int) -> bytes:
        """A token's own bytes, special tokens by their name: what logprobs report."""
        if token_id in self.special_ids:
            return (self._tokenizer.id_to_token(token_id) or "").encode()
        if self._table:
            return self._table[token_id] if 0 <= token_id < len(self._table) else b""
        return self._tokenizer.decode([token_id], skip_special_tokens=False).encode()


class ByteDetokenizer:
    """Concatenated bytes through an incremental UTF-8 decoder."""

    def __init__(self, table: Sequence[bytes], special_ids: frozenset[int], strip: int) -> None:
        self._table = table
        self._special_ids = special_ids
        self._strip = strip
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._is_between_characters = True

    def push(self, token_ids: Sequence[int]) -> str:
        table, special = self._table, self._special_ids
        data = b"".join([table[i] for i in token_ids if i not in special and 0 <= i < len(table)])
        if self._strip:
            data = self._without_leading_spaces(data)
        if self._is_between_characters and data.isascii():
            return data.decode("ascii")
        text = self._decoder.decode(data)
        self._is_between_characters = not self._decoder.getstate()[0]
        return text

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)

    def _without_leading_spaces(self, data: bytes) -> bytes:
        if not data:
            return data
        num_stripped = min(len(data) - len(data.lstrip(b" ")), self._strip)
        kept = data[num_stripped:]
        self._strip = 0 if kept else self._strip - num_stripped
        return kept


class WindowDetokenizer:
    """Decodes from a little before the last emitted token: spaces and joins come out as in the whole."""

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(after)
        self._prefix = 0
        self._read = len(self._ids)

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join([self._push_one(token_id) for token_id in token_ids])

    def flush(self) -> str:
        return self._new_text()

    def _push_one(self, token_id: int) -> str:
        self._ids.append(token_id)
        text = self._new_text()
        if not text or (text.endswith(REPLACEMENT) and len(self._ids) - self._read < MAX_HELD_TOKENS):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return text

    def _new_text(self) -> str:
        before = self._decode(self._ids[self._prefix : self._read])
        return self._decode(self._ids[self._prefix :])[len(before) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)


def _byte_table(tokenizer: Tokenizer, decoder: Any, size: int) -> tuple[list[bytes], int]:
    """Bytes by id, and how many leading spaces the decoder strips; no table when ids have no fixed bytes."""
    kinds = _decoder_steps(decoder)
    names = [step.get("type") for step in kinds]
    tokens = [tokenizer.id_to_token(token_id) or "" for token_id in range(size)]
    if names == ["ByteLevel"]:
        alphabet = _byte_level_alphabet()
        return [_byte_level(token, alphabet) for token in tokens], 0
    if names and set(names) <= {"Replace", "ByteFallback", "Fuse", "Strip"} and "ByteFallback" in names:
        return [_byte_fallback(token) for token in tokens], _stripped_spaces(kinds)
    return [], 0


def _decoder_steps(decoder: Any) -> list[dict[str, Any]]:
    if not decoder:
        return []
    return list(decoder["decoders"]) if decoder.get("type") == "Sequence" else [decoder]


def _stripped_spaces(steps: Sequence[dict[str, Any]]) -> int:
    return sum(int(step.get("start", 0)) for step in steps if step.get("type") == "Strip")


def _byte_level(token: str, alphabet: dict[str, int]) -> bytes:
    """A token in GPT-2's printable alphabet; one with other characters (an added token) stands for itself."""
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:
        return token.encode()


def _byte_fallback(token: str) -> bytes:
    match = _BYTE_TOKEN.match(token)
    return bytes([int(match[1], 16)]) if match else token.replace("\u2581", " ").encode()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's mapping: printable Latin-1 bytes are themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    own = {chr(byte): byte for byte in printable}
    return own | {chr(0x100 + index): byte for index, byte in enumerate(others)}
