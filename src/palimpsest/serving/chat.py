"""A conversation as the text that a chat model was trained on, by the model's own Jinja template, as transformers renders it.

The template runs in transformers' sandbox. The ids are those of the rendered text, without special tokens being added: the template
has written them. One BOS at the beginning is taken off again when the engine prepends one itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.errors import InputError
from palimpsest.serving.openai_schema import ChatMessage
from palimpsest.tokenizer import Tokenizer


@dataclass(frozen=True)
class ChatPrompt:
    """Messages to token ids.

    Args:
        template: the model's Jinja template.
        tokenizer: the model's tokenizer.
        prepends_bos: whether BOS is put before every prompt later on.

    Example:
        >>> chat = ChatPrompt("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>", tokenizer)  # doctest: +SKIP
        >>> chat.text([ChatMessage(role="user", content="Hello")])                                                    # doctest: +SKIP
        '<user>Hello<assistant>'
    """

    template: str
    tokenizer: Tokenizer
    prepends_bos: bool = False

    def text(self, messages: Sequence[ChatMessage]) -> str:
        """The rendered conversation, ending where the assistant begins.

        Raises:
            InputError: the template refuses the conversation, for example because two users follow each other.
        """
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        chat = [{"role": _role(message.role), "content": plain(message)} for message in messages]
        special = {name: self._token(getattr(self.tokenizer, f"{name}_id")) for name in ("bos", "eos", "pad")}
        names: Any = {f"{name}_token": token for name, token in special.items() if token is not None}
        try:
            rendered: Any = render_jinja_template([chat], chat_template=self.template, add_generation_prompt=True, **names)
        except (TemplateError, TypeError, ValueError) as error:
            raise InputError(
                f"The model's chat template refuses these messages: {error}.", "Look at the order of the roles, or use /v1/completions."
            ) from error
        return rendered[0][0]

    def ids(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The token ids of the rendered conversation."""
        ids = self.tokenizer.encode(self.text(messages))
        return ids[1:] if self.prepends_bos and ids[:1] == [self.tokenizer.bos_id] else ids

    def _token(self, token: int | None) -> str | None:
        return None if token is None else self.tokenizer.backend.id_to_token(token)


def plain(message: ChatMessage) -> str:
    """The text of a message; parts stand on lines of their own.

    Example:
        >>> plain(ChatMessage(role="user", content=[{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]))
        'one\\ntwo'
    """
    return message.content if isinstance(message.content, str) else "\n".join(part.text for part in message.content)


def _role(role: str) -> str:
    """The role that templates know: OpenAI renamed the system's to developer."""
    return "system" if role == "developer" else role
