"""What a completions server says of a prompt that it echoes with log-probs: the `logprobs` object of the protocol, read with care.

`tokens`, `token_logprobs` and `top_logprobs` are parallel lists; the first token has no log-prob (null), and `top_logprobs` holds
for each position a dict token -> log-prob with at least the most probable one. Tokens that the server wrote itself stand behind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from palimpsest.models.json_client import RefusedRequestError

_SPELLED = re.compile(r"bytes:(?:\\x[0-9a-f]{2})+")


@dataclass(frozen=True)
class Echo:
    """The prompt as the server reads it; NaN where it says nothing."""

    tokens: list[str]
    logprobs: np.ndarray  # (tokens,) float64
    best: np.ndarray  # (tokens,) float64, the greatest log-prob at each position

    def behind(self, skip: int) -> Echo:
        """Without the first `skip` tokens."""
        return Echo(self.tokens[skip:], self.logprobs[skip:], self.best[skip:])

    @property
    def text(self) -> str:
        """The tokens, joined; those that OpenAI spells out (`bytes:\\xe2\\x82`), being parts of a character, are characters again."""
        if not any(map(_SPELLED.fullmatch, self.tokens)):
            return "".join(self.tokens)
        raw = (
            bytes.fromhex(token[6:].replace("\\x", "")) if _SPELLED.fullmatch(token) else token.encode("utf-8", "surrogatepass")
            for token in self.tokens
        )
        return b"".join(raw).decode(errors="replace")

    @property
    def holes(self) -> np.ndarray:
        """Where a log-prob is missing: (tokens,) bool."""
        return np.isnan(self.logprobs) | np.isnan(self.best)


def read_echo(server: str, choice: dict[str, Any], usage: Any) -> Echo:
    """Reads the `logprobs` of a choice for which one token was written behind the prompt.

    Args:
        server: whose answer it is, for messages.
        choice: an entry of `choices`.
        usage: the answer's `usage`, which may say how many tokens the prompt has.

    Raises:
        RefusedRequestError: no log-probs, or lists that do not fit together.
    """
    scored = choice.get("logprobs")
    if not isinstance(scored, dict):
        raise RefusedRequestError(
            f"{server} sends no log-probs.", "Measure its text only, or use a server that supports echo and logprobs."
        )
    lists = [scored.get(key) for key in ("tokens", "token_logprobs", "top_logprobs")]
    if not all(isinstance(entries, list) and len(entries) == len(lists[0] or ()) for entries in lists):
        raise RefusedRequestError(f"{server} sends log-probs that are not three lists of one length.", "Use another server.")
    tokens, values, tops = (list(entries or ()) for entries in lists)
    best = [max(top.values(), default=None) if isinstance(top, dict) else None for top in tops]
    try:
        echo = Echo([str(token) for token in tokens], np.asarray(values, np.float64), np.asarray(best, np.float64))
    except (TypeError, ValueError) as error:
        raise RefusedRequestError(f"{server} sends log-probs that are not numbers: {error}.", "Use another server.") from error
    told = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    count = told if isinstance(told, int) else len(tokens) - 1
    return Echo(echo.tokens[:count], echo.logprobs[:count], echo.best[:count])
