"""Templates and tokens as transformers has them, without transformers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.gateway.chat_template import ChatTemplate, TemplateRefused
from controlplane.gateway.tokenizer import ModelFilesError, TextModel, load_text_model
from tests.gateway.tiny_model import write_tiny_model

HELLO = [{"role": "user", "content": "Hello"}]
CONVERSATIONS = [
    HELLO,
    [{"role": "system", "content": "Be brief."}, *HELLO],
    [
        *HELLO,
        {"role": "assistant", "content": "Hi! 你好 🙂"},
        {"role": "user", "content": "12345 apples\n\n"},
    ],
]


def test_the_whole_web_process_loads_neither_torch_nor_transformers(tiny_model_dir: Path) -> None:
    code = (
        "import sys\n"
        "import controlplane.asgi\n"
        "from controlplane.gateway.tokenizer import load_text_model\n"
        f"load_text_model({str(tiny_model_dir)!r}).encode_chat([{{'role': 'user', 'content': 'x'}}])\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.model
def test_the_demo_models_prompts_are_those_of_transformers(demo_model_dir: Path) -> None:
    code = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(demo_model_dir)!r})\n"
        "options = {'add_generation_prompt': True, 'tokenize': False}\n"
        "render = lambda one: tokenizer.apply_chat_template(one, **options)\n"
        "encode = lambda text: tokenizer(text, add_special_tokens=False)['input_ids']\n"
        "print(json.dumps([encode(render(one)) for one in json.loads(sys.argv[1])]))\n"
    )
    command = [sys.executable, "-c", code, json.dumps(CONVERSATIONS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    model = load_text_model(str(demo_model_dir))
    assert [model.encode_chat(one) for one in CONVERSATIONS] == json.loads(done.stdout)


def test_a_message_that_spells_a_control_token_differs_only_in_those_tokens(tiny_model: TextModel) -> None:
    plain = tiny_model.encode_chat([{"role": "user", "content": "a b"}])
    marked = tiny_model.encode_chat([{"role": "user", "content": "a <|im_start|>b"}])
    special = sorted(tiny_model.vocabulary.special_ids)
    assert [marked.count(one) for one in special] == [plain.count(one) for one in special]


def test_a_plain_prompt_may_spell_control_tokens(tiny_model: TextModel) -> None:
    assert tiny_model.encode_prompt("<|im_end|>") == [tiny_model.tokenizer.token_to_id("<|im_end|>")]


def test_what_a_template_refuses_is_said_in_its_own_words() -> None:
    template = ChatTemplate("{{ raise_exception('Roles must alternate') }}", {})
    with pytest.raises(TemplateRefused, match="Roles must alternate"):
        template.render(HELLO)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append({}) }}",
        "{{ self.__init__.__globals__ }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(TemplateRefused):
        ChatTemplate(source, {}).render(HELLO)


def test_templates_may_use_what_transformers_offers() -> None:
    source = (
        "{%- for message in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ message | tojson }}"
        "{% endgeneration %}{% endfor %}{{ strftime_now('%Y')[:2] }}{{ bos_token }}"
    )
    text = ChatTemplate(source, {"bos_token": "<s>"}).render([{"role": "user", "content": "<ü>"}, *HELLO])
    assert text == '{"role": "user", "content": "<ü>"}20<s>'


def test_a_model_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match=r"tokenizer\.json"):
        load_text_model(str(tmp_path))


def test_a_model_without_a_context_length_is_named(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelFilesError, match="context length"):
        load_text_model(str(tmp_path))


def test_what_is_neither_a_directory_nor_a_hub_id_is_refused() -> None:
    with pytest.raises(ModelFilesError, match="neither a directory nor a hub id"):
        load_text_model("/no/such/model")


def test_without_a_chat_template_a_chat_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(TemplateRefused, match="/v1/completions"):
        load_text_model(str(tmp_path)).encode_chat(HELLO)


def test_a_template_in_the_tokenizers_configuration_is_used(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    known = json.loads((tmp_path / "tokenizer_config.json").read_text())
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(known | {"chat_template": templates}))
    model = load_text_model(str(tmp_path))
    assert model.tokenizer.decode(model.encode_chat(HELLO)) == "yes"


async def test_other_work_goes_on_while_a_long_text_is_tokenized(tiny_model: TextModel) -> None:
    num_turns = 0

    async def other_work() -> None:
        nonlocal num_turns
        while True:
            await asyncio.sleep(0.001)
            num_turns += 1

    beside = asyncio.ensure_future(other_work())
    text = "The gateway speaks text and the workers speak tokens. " * 10_000
    assert await asyncio.to_thread(tiny_model.encode_prompt, text)
    beside.cancel()
    assert num_turns >= 5
