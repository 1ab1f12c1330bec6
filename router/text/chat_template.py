"""Chat messages to one prompt text, through the model's own jinja template in a sandbox.

Called by `tokenizer.py`. Sees what the Hugging Face renderer gives a template: `messages`, `tools`,
`raise_exception`, `strftime_now`, `tojson`, loop controls, the special tokens' texts. Knows no token ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.parser
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from protocol.errors import InvalidRequest, UnsupportedModel

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")

Message = dict[str, Any]


class ChatTemplate:
    """Compiled once. `named` holds further templates; `tool_use` is taken when there are tools."""

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str] | None = None,
        named: Mapping[str, str] | None = None,
    ) -> None:
        environment = _environment()
        self._default = _Compiled(environment, source)
        self._named = {name: _Compiled(environment, text) for name, text in (named or {}).items()}
        self._special_tokens = dict(special_tokens or {})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Raises InvalidRequest for whatever the template refuses."""
        compiled = self._named.get("tool_use", self._default) if tools else self._default
        prepared = [compiled.prepare(message) for message in messages]
        known = self._special_tokens | {
            "messages": prepared,
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        text = compiled.render({**(variables or {}), **known, **_documents(variables)})
        return _cut_after_final(text, messages[-1]) if continue_final_message else text


class _Compiled:
    """A template and how it wants a message's content: as a string, or as parts."""

    def __init__(self, environment: ImmutableSandboxedEnvironment, source: str) -> None:
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UnsupportedModel(f"the model's chat template does not compile: {error}") from error
        self._takes_parts = any(map(_is_over_content, tree.find_all(nodes.For)))
        self._takes_strings = not self._takes_parts or any(
            test.name == "string" for test in tree.find_all(nodes.Test)
        )

    def prepare(self, message: Mapping[str, Any]) -> Message:
        """The message with its content in the form that the template reads."""
        content = message.get("content")
        if isinstance(content, str) and not self._takes_strings:
            return {**message, "content": [{"type": "text", "text": content}]}
        if not isinstance(content, str) and isinstance(content, Sequence) and not self._takes_parts:
            return {**message, "content": "\n".join(_part_text(part) for part in content)}
        return dict(message)

    def render(self, variables: Mapping[str, Any]) -> str:
        try:
            return self._template.render(variables)
        except InvalidRequest:
            raise
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
        ) as error:
            raise InvalidRequest(
                f"the model's chat template cannot take these messages: {error}", param="messages"
            ) from error


def read_chat_template(directory: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    """From `chat_template.jinja`, else from tokenizer_config.json (a string, or a list of named ones)."""
    entry = config.get("chat_template")
    named = _named_templates(entry) if isinstance(entry, list) else {}
    file = directory / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else named.pop("default", entry)
    if not isinstance(source, str):
        return None
    return ChatTemplate(source, special_tokens=_special_tokens(config), named=named)


def _named_templates(entries: Sequence[Any]) -> dict[str, str]:
    return {entry["name"]: entry["template"] for entry in entries if isinstance(entry, dict)}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    entries = {name: config.get(name) for name in _SPECIAL_TOKENS}
    texts = {
        name: entry.get("content") if isinstance(entry, dict) else entry for name, entry in entries.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _documents(variables: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"documents": variables["documents"]} if variables and "documents" in variables else {}


def _part_text(part: Any) -> str:
    """Text of one content part; other kinds are refused where the request is parsed."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise InvalidRequest("only text can be part of a message's content", param="messages")


def _cut_after_final(text: str, final: Mapping[str, Any]) -> str:
    """Everything that the template put behind the last message's content goes away."""
    content = final.get("content")
    wanted = content if isinstance(content, str) else _part_text(content[-1]) if content else ""
    start = text.rfind(wanted.strip())
    if not wanted.strip() or start < 0:
        raise InvalidRequest(
            "continue_final_message needs a last message whose content the chat template shows as it is",
            param="continue_final_message",
        )
    kept = wanted.lstrip() if text.startswith(wanted.lstrip(), start) else wanted.strip()
    return text[: start + len(kept)]


def _is_over_content(loop: nodes.For) -> bool:
    """Whether `{% for … in message.content %}`, in any of its spellings, is what this loop does."""
    over = loop.iter
    if isinstance(over, nodes.Name):
        return over.name == "content"
    if isinstance(over, nodes.Getattr):
        return over.attr == "content"
    return (
        isinstance(over, nodes.Getitem) and isinstance(over.arg, nodes.Const) and over.arg.value == "content"
    )


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks what a model wrote, for training; here it is only text."""

    tags: set[str] = {"generation"}  # noqa: RUF012 (jinja's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja's own, leaves HTML's characters alone: this is a prompt."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise InvalidRequest(str(message), param="messages")


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
