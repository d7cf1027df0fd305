"""Conversations as prompts: equal to transformers' own rendering, roles, parts, BOS, and templates that refuse."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from palimpsest.errors import InputError
from palimpsest.serving.chat import ChatPrompt
from palimpsest.serving.openai_schema import ChatMessage

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if loop.index0 and m.role == 'system' %}{{ raise_exception('Only one system.') }}{% endif %}"
    "<{{ m.role }}>{{ m.content | trim }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def messages(*pairs):
    return [ChatMessage(role=role, content=content) for role, content in pairs]


def test_the_prompt_is_that_of_transformers(tiny_tokenizer):
    own = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE)
    chat = [("system", "Be short."), ("user", " The quick € fox "), ("assistant", "jumps"), ("user", "Whom?")]
    theirs = own.apply_chat_template(
        [{"role": role, "content": content} for role, content in chat], add_generation_prompt=True, return_dict=False
    )
    assert ChatPrompt(TEMPLATE, tiny_tokenizer).ids(messages(*chat)) == theirs
    assert theirs[0] == tiny_tokenizer.bos_id
    assert ChatPrompt(TEMPLATE, tiny_tokenizer, prepends_bos=True).ids(messages(*chat)) == theirs[1:]


def test_parts_and_the_developer(tiny_tokenizer):
    prompt = ChatPrompt(TEMPLATE, tiny_tokenizer)
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert prompt.text(messages(("developer", "Be short."), ("user", parts))) == "<s><system>Be short.</s><user>one\ntwo</s><assistant>"


def test_what_a_template_refuses_is_said(tiny_tokenizer):
    with pytest.raises(InputError, match="Only one system"):
        ChatPrompt(TEMPLATE, tiny_tokenizer).text(messages(("user", "a"), ("system", "b")))
    with pytest.raises(InputError, match="refuses these messages"):
        ChatPrompt("{% for %}", tiny_tokenizer).text(messages(("user", "a")))
    with pytest.raises(InputError, match="refuses these messages"):  # the sandbox holds
        ChatPrompt("{{ messages.__class__.__mro__ }}", tiny_tokenizer).text(messages(("user", "a")))
