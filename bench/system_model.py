"""A model folder that the whole system can serve: random weights of a named shape, and a tokenizer that fits.

    python -m bench.system_model --shape 1b --device cuda --out FOLDER

Every token id is a word of its own, so that every token of an answer reaches the client as text at once.
"""

from __future__ import annotations

import argparse
import json
import string
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' ' + message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)
SPACE = "Ġ"  # how byte-level vocabularies write it


def word(number: int) -> str:
    """The word of a token id: letters only, preceded by a space."""
    letters = ""
    while True:
        number, digit = divmod(number, 26)
        letters = string.ascii_lowercase[digit] + letters
        if not number:
            return SPACE + letters


def write_text_side(folder: Path, vocab_size: int) -> None:
    """Tokenizer and chat template of `vocab_size` words."""
    vocabulary = {word(number): number for number in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1 << 30}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def main() -> None:
    from bench.engine import SHAPES, build_model
    from scheduler_worker.engine.loading import resolve_device

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", required=True, choices=SHAPES)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    shape, device = SHAPES[options.shape], resolve_device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    build_model(shape, device, "bfloat16" if device.type == "cuda" else "float32").save_pretrained(options.out)
    write_text_side(options.out, shape["vocab_size"])


if __name__ == "__main__":
    main()
