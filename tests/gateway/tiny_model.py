"""The text side of a model, made on the spot: a byte-level BPE of a few hundred tokens, a chat template."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = [
    "The gateway speaks text and the workers speak tokens.",
    "A request that was accepted is never lost, and a stream goes on where it stopped.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 你好，世界 🙂🚀",
]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MAX_CONTEXT_TOKENS = 256


def write_tiny_model(directory: Path, context: int = MAX_CONTEXT_TOKENS) -> Path:
    """Write a tokenizer, its configuration and the model's into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    eos_id = tokenizer.token_to_id("<|im_end|>")
    files = {
        "config.json": {"max_position_embeddings": context, "eos_token_id": eos_id},
        "generation_config.json": {"eos_token_id": [eos_id]},
        "tokenizer_config.json": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    }
    for name, body in files.items():
        (directory / name).write_text(json.dumps(body), encoding="utf-8")
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return directory


def byte_level_tokenizer() -> Tokenizer:
    """GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<added word>", special=False)])
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """Llama 2's kind: SentencePiece's space mark, bytes for what is not in the vocabulary."""
    words = ["\u2581Hello", "\u2581", "world", "\u2581world", ",", "!", "ü", "a", "b", "\u2581the"]
    names = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *words]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def word_piece_tokenizer() -> Tokenizer:
    """BERT's kind: ids have no fixed bytes, for a word's begin depends on what came before."""
    words = ["[UNK]", "[CLS]", "hello", "world", "##ly", "##s", "über", "you", "are"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(["[UNK]", "[CLS]"])
    return tokenizer
