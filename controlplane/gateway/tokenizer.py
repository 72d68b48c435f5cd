"""A model's text side: tokenizer, chat template, context length, end-of-sequence ids. Loads neither torch nor
transformers; reads what `save_pretrained` writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from .chat_template import ChatTemplate, TemplateRefused
from .detokenizer import Vocabulary

CONTEXT_KEYS: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
SPECIAL_TOKEN_NAMES: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_MARK: Final = "\uf8ff"  # private use: stands inside a control token's name that a client wrote as plain text


class ModelFilesError(RuntimeError):
    """The model's directory lacks what the gateway needs; the message says what."""


@dataclass(frozen=True)
class TextModel:
    """Text to tokens for one model. `max_context_tokens` counts prompt and answer together."""

    name: str
    tokenizer: Tokenizer
    plain_tokenizer: Tokenizer
    vocabulary: Vocabulary
    template: ChatTemplate | None
    max_context_tokens: int
    eos_ids: frozenset[int]
    control_ids: dict[str, int]
    special_names: re.Pattern[str] | None

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a plain prompt, with what the tokenizer adds itself (such as BOS)."""
        return _ids(self.tokenizer, text, add_special_tokens=True)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation through the chat template; raises `TemplateRefused`.

        Control tokens come from the template only: one that a message spells out is encoded as ordinary text.
        """
        if self.template is None:
            raise TemplateRefused("this model has no chat template; use /v1/completions")
        if self.special_names is None or not any(self._spells_control(message) for message in messages):
            return _ids(self.tokenizer, self.template.render(messages))
        return self._encode_marked(self.template.render([self._mark(message) for message in messages]))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a prompt given as tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _spells_control(self, message: Mapping[str, Any]) -> bool:
        pattern = self.special_names
        return pattern is not None and any(
            isinstance(value, str) and (pattern.search(value) or _MARK in value) for value in message.values()
        )

    def _mark(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self.special_names is not None
        pattern = self.special_names
        return {
            key: pattern.sub(_insert_mark, value.replace(_MARK, "")) if isinstance(value, str) else value
            for key, value in message.items()
        }

    def _encode_marked(self, text: str) -> list[int]:
        """Real control tokens by name, the text between them without any."""
        assert self.special_names is not None
        token_ids: list[int] = []
        at = 0
        for match in self.special_names.finditer(text):
            token_ids += self._encode_plain(text[at : match.start()])
            token_ids.append(self.control_ids[match[0]])
            at = match.end()
        return token_ids + self._encode_plain(text[at:])

    def _encode_plain(self, text: str) -> list[int]:
        plain = text.replace(_MARK, "")
        return _ids(self.plain_tokenizer, plain) if plain else []


def _ids(tokenizer: Tokenizer, text: str, add_special_tokens: bool = False) -> list[int]:
    """A batch of one: unlike `encode` it lets go of the interpreter's lock, and without offsets it is faster."""
    return list(tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)


def _insert_mark(match: re.Match[str]) -> str:
    return match[0][:1] + _MARK + match[0][1:]


def load_text_model(model: str, name: str = "") -> TextModel:
    """The text side of a model's directory, or of a hub id; raises `ModelFilesError`."""
    directory = find_directory(model)
    if not (directory / "tokenizer.json").is_file():
        raise ModelFilesError(f"{directory} has no tokenizer.json; save the model's fast tokenizer there")
    tokenizer, plain = (Tokenizer.from_file(str(directory / "tokenizer.json")) for _ in range(2))
    plain.encode_special_tokens = True
    config, special = _read_json(directory / "config.json"), _special_tokens(directory)
    source = _template_source(directory)
    control_ids = _control_ids(tokenizer)
    return TextModel(
        name=name or directory.name,
        tokenizer=_without_limits(tokenizer),
        plain_tokenizer=_without_limits(plain),
        vocabulary=Vocabulary(tokenizer),
        template=ChatTemplate(source, special) if source else None,
        max_context_tokens=_context_length(directory, config),
        eos_ids=_eos_ids(directory, config, tokenizer, special),
        control_ids=control_ids,
        special_names=_any_of(control_ids),
    )


def find_directory(model: str) -> Path:
    """The directory of a model; a hub id is fetched (only the files for text) into the hub's cache."""
    directory = Path(model).expanduser()
    if directory.is_dir():
        return directory
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise ModelFilesError(f"TIDEGATE_MODEL is {model!r}, which is neither a directory nor a hub id")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=list(TOKENIZER_FILES)))


def _without_limits(tokenizer: Tokenizer) -> Tokenizer:
    """Prompts are measured, never cut or padded."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _special_tokens(directory: Path) -> dict[str, str]:
    """The template's variables: `bos_token` and its like, as text."""
    known = _read_json(directory / "special_tokens_map.json") | _read_json(
        directory / "tokenizer_config.json"
    )
    texts = ((key, _token_text(known.get(key))) for key in SPECIAL_TOKEN_NAMES)
    return {key: text for key, text in texts if text}


def _token_text(value: Any) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _template_source(directory: Path) -> str:
    """The default chat template: a file of its own, else the tokenizer's configuration."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = _read_json(directory / "tokenizer_config.json").get("chat_template") or ""
    if isinstance(found, list):
        return next((str(one["template"]) for one in found if one.get("name") == "default"), "")
    return str(found)


def _context_length(directory: Path, config: Mapping[str, Any]) -> int:
    for section in (config, config.get("text_config") or {}):
        for key in CONTEXT_KEYS:
            if isinstance(section.get(key), int):
                return int(section[key])
    raise ModelFilesError(f"{directory / 'config.json'} says no context length ({', '.join(CONTEXT_KEYS)})")


def _eos_ids(
    directory: Path, config: Mapping[str, Any], tokenizer: Tokenizer, special: Mapping[str, str]
) -> frozenset[int]:
    """Ids that end an output, from the generation's, the model's and the tokenizer's configuration."""
    found: list[Any] = []
    for section in (
        _read_json(directory / "generation_config.json"),
        config,
        config.get("text_config") or {},
    ):
        value = section.get("eos_token_id")
        found += value if isinstance(value, list) else [value]
    found.append(tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None)
    return frozenset(token_id for token_id in found if isinstance(token_id, int))


def _control_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The tokenizer's special tokens by name."""
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: token_id for token_id, token in added.items() if token.special}


def _any_of(names: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any of the names in a text, the longest first."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
