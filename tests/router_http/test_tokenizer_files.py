"""Tokenizers and chat templates as model directories have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from protocol.errors import InvalidRequest, UnsupportedModel
from router.text.chat_template import ChatTemplate, read_chat_template
from router.text.tokenizer import Tokenizer

USER = {"role": "user", "content": "hi"}


def test_the_ends_of_a_sequence_are_those_of_the_generation_config(
    tokenizer_directory: Path, tmp_path: Path
) -> None:
    for file in tokenizer_directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert Tokenizer.from_directory(tmp_path).eos_token_ids == (0,)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    assert Tokenizer.from_directory(tmp_path).eos_token_ids == (3,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    assert Tokenizer.from_directory(tmp_path).eos_token_ids == (1, 2)


def test_bytes_of_tokens_join_to_the_text(tokenizer: Tokenizer, prefix_space_tokenizer: Tokenizer) -> None:
    text = "hello wor猫<|end|>"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))).decode() == text
    ids = prefix_space_tokenizer.encode("hello wor猫", add_special_tokens=False)
    assert b"".join(map(prefix_space_tokenizer.token_bytes, ids)).decode() == " hello wor猫"


def test_the_file_says_whether_a_text_begins_with_a_special_token(prefix_space_tokenizer: Tokenizer) -> None:
    with_bos = prefix_space_tokenizer.encode("hello")
    assert with_bos[0] == prefix_space_tokenizer.bos_token_id
    assert prefix_space_tokenizer.encode("hello", add_special_tokens=False) == with_bos[1:]


def test_a_broken_file_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)


TEMPLATES = [
    "{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}\n{% endfor %}",
    "{{ bos_token }}{% for m in messages %}\n  {% if loop.last %}{% break %}{% endif %}\n{{ m.content }}{% endfor %}",
    "{{ messages | tojson }}{{ {'a': '<é>'} | tojson(indent=2) }}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% if tools %}{{ tools[0] | tojson }}{% endif %}{% if add_generation_prompt %}go{% endif %}{{ flavour }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}",
]


@pytest.mark.parametrize("source", TEMPLATES)
def test_templates_render_as_the_reference_does(tokenizer_directory: Path, source: str) -> None:
    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_directory / "tokenizer.json"), bos_token="<|end|>"
    )
    parts = "p['text']" in source
    content: Any = [{"type": "text", "text": " hey "}] if parts else " hey "
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    options: dict[str, Any] = {"tools": [{"type": "function"}], "add_generation_prompt": True}
    wanted = reference.apply_chat_template(
        messages, chat_template=source, tokenize=False, flavour="mild", **options
    )
    ours = ChatTemplate(source, special_tokens={"bos_token": "<|end|>"})
    assert ours.render(messages, variables={"flavour": "mild"}, **options) == wanted


def test_strings_become_parts_where_a_template_wants_parts() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}"
    )
    assert template.render([USER]) == "[hi]"


def test_parts_become_a_string_where_a_template_wants_a_string() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert ChatTemplate("{{ messages[0].content }}").render([message]) == "a\nb"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(1000000) %}{% endfor %}",
        "{{ messages | nofilter }}",
    ],
)
def test_what_a_template_cannot_do_is_a_refusal(source: str) -> None:
    with pytest.raises((InvalidRequest, UnsupportedModel)):
        ChatTemplate(source).render([USER])


def test_a_template_file_goes_before_the_configuration(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    from_list = read_chat_template(tmp_path, {"chat_template": named})
    assert from_list is not None
    assert from_list.render([USER]) == "plain"
    assert from_list.render([USER], tools=[{"type": "function"}]) == "tools"
    (tmp_path / "chat_template.jinja").write_text("file")
    from_file = read_chat_template(tmp_path, {"chat_template": "configured"})
    assert from_file is not None
    assert from_file.render([USER]) == "file"
    assert read_chat_template(tmp_path / "none", {}) is None


def test_a_client_cannot_replace_what_the_server_gives_a_template() -> None:
    template = ChatTemplate("{{ bos_token }}{{ messages | length }}", special_tokens={"bos_token": "<s>"})
    assert template.render([USER], variables={"bos_token": "x", "messages": []}) == "<s>1"
