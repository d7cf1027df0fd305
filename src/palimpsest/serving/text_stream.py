"""The text of an answer while it is being written: whole characters only, and nothing that may turn out to belong to a stop string.

A token of a byte-level vocabulary may be a part of a character; decoded alone it gives U+FFFD. As more bytes come, the replacement
characters at the end of the decoded text are the only ones that may still change, so they are held back: one for each byte that a UTF-8
character may lack, at most three. A text that ends in a proper prefix of a stop string is held back from where that prefix begins.
The tokens before, of which a few are kept as the left context, decide whether a word begins with a space.
"""

from __future__ import annotations

from collections.abc import Sequence

from palimpsest.tokenizer import Tokenizer

_CONTEXT = 6  # tokens of the prompt that are decoded along, for vocabularies whose first word loses its space
_UNFINISHED = 3  # bytes of a UTF-8 character that may be there without the last one
_WINDOW = 32  # tokens that are decoded at once at the most
_LOST = "\ufffd"


class TextStream:
    """Token ids in, text out.

    Args:
        tokenizer: whose ids they are.
        prompt_ids: what stands before the text.
        stop: strings that end the text; the earliest in the text counts, the longest of those that begin there.

    Attributes:
        stopped: whether a stop string came up; nothing may be pushed then.

    Example:
        >>> stream = TextStream(tokenizer, prompt_ids, ["\\n"])       # doctest: +SKIP
        >>> stream.push(17), stream.push(18), stream.finish()         # doctest: +SKIP
        ('The', '', ' end')
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = sorted(stop, key=len, reverse=True)
        self._ids = [int(token) for token in prompt_ids[-_CONTEXT:]]
        if tokenizer.decode(self._ids).endswith(_LOST):  # the prompt ends within a character: the text begins with the rest of it
            self._ids = []
        self._whole = len(self._ids)  # so many of the ids are given out
        self._given = tokenizer.decode(self._ids)  # the text of the ids that is given out, or waits for a stop string to be ruled out
        self._waiting = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that can be given out now that `token` has been written; often empty."""
        self._ids.append(int(token))
        text = self._tokenizer.decode(self._ids)
        lost = len(text) - len(text.rstrip(_LOST))
        stable = text[: len(text) - min(lost, _UNFINISHED)]
        new = ""
        if stable.startswith(self._given):
            new = stable[len(self._given) :]
            self._given = stable
        elif not lost or len(self._ids) > _WINDOW:  # with byte fallback a half character undoes the whole ones in front of it, for a while
            new = stable[len(self._given) :]
        if not lost:  # what was given out before the last tokens is no context any more; they are
            self._ids = self._ids[self._whole :]
            self._whole = len(self._ids)
            self._given = self._tokenizer.decode(self._ids)
        elif len(self._ids) > _WINDOW:  # bytes that are no text at all
            self._ids, self._whole = self._ids[-_WINDOW // 4 :], 0
            text = self._tokenizer.decode(self._ids)
            self._given = text[: len(text) - min(len(text) - len(text.rstrip(_LOST)), _UNFINISHED)]
        return self._release(new)

    def finish(self) -> str:
        """What is left, now that nothing follows: half a character is given out as U+FFFD."""
        text = self._tokenizer.decode(self._ids)
        new, self._given = text[len(self._given) :], text
        return self._release(new) + self._take(len(self._waiting))

    @property
    def waiting(self) -> bool:
        """Whether text or a part of a character is held back."""
        return bool(self._waiting) or self._whole < len(self._ids)

    def _release(self, new: str) -> str:
        """Adds `new` to what waits, and takes out what cannot belong to a stop string."""
        if not self._stop or self.stopped:
            return "" if self.stopped else new
        self._waiting += new
        found = [(at, -len(stop)) for stop in self._stop if (at := self._waiting.find(stop)) >= 0]
        if found:
            self.stopped = True
            ready = self._take(min(found)[0])
            self._waiting = ""
            return ready
        begin = next(
            (at for at in range(max(0, len(self._waiting) - len(self._stop[0]) + 1), len(self._waiting)) if self._may_stop(at)),
            len(self._waiting),
        )
        return self._take(begin)

    def _may_stop(self, at: int) -> bool:
        rest = self._waiting[at:]
        return any(stop.startswith(rest) for stop in self._stop)

    def _take(self, count: int) -> str:
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        return ready
