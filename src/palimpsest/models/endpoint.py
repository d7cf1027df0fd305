"""The door to a server that speaks the OpenAI completions protocol: text always, log-probs where the server gives them.

Log-probs of a given text need `echo` together with `logprobs`: the server then scores the prompt itself. Whether it does, and
whether it cuts text into the same tokens as the tokenizer given here, is found out with one request when the door is opened:
a sentence goes there as token ids (or, if the server refuses ids, as text), and what comes back must be the same tokens. Else
the capability is absent, and `without_logprobs` says why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from palimpsest.errors import CapabilityError, ContextOverflowError, EndpointError, InputError, NonFiniteError
from palimpsest.models.base import GREEDY, LanguageModel, Progress, Sampler, Scores
from palimpsest.models.batching import check_rows, check_starts
from palimpsest.models.echo import Echo, read_echo
from palimpsest.models.json_client import JsonClient, RefusedRequestError, key_from_environment, only_model, served_models
from palimpsest.tokenizer import Tokenizer

UNKNOWN_CONTEXT = 1 << 30  # the server alone knows; it says so when a row is too long
PROBE = "In the beginning was the word, and 42 words followed it."
ANY = Sampler(temperature=1.0)  # the model's own distribution: what the server's log-probs are of

Answer = TypeVar("Answer")


class EndpointModel(LanguageModel):
    """A model behind `POST {base_url}/completions`.

    Args:
        base_url: e.g. "http://localhost:8000/v1".
        model: the model's name on the server.
        tokenizer: the model's own tokenizer.
        bos: as for `HFModel`. It decides what is sent where ids can be sent; where only text can, the server decides.
        timeout: seconds that one answer may take.
        retries, backoff: see `JsonClient`.
        concurrency: requests under way at once.
        api_key: by default $PALIMPSEST_API_KEY, else $OPENAI_API_KEY (that one only for https: it must not travel in the clear).

    Attributes:
        without_logprobs: why there are no log-probs, None when there are.

    Raises:
        EndpointError: the server is down, refuses, or has no such model.
        InputError: a BOS policy that cannot be had, concurrency < 1.

    Example:
        >>> model = EndpointModel("http://localhost:8000/v1", "my-model", tokenizer)   # doctest: +SKIP
        >>> model.capabilities                                                        # doctest: +SKIP
        frozenset({'logprobs', 'text'})
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        tokenizer: Tokenizer,
        *,
        bos: str = "auto",
        timeout: float = 60.0,
        retries: int = 4,
        backoff: float = 0.5,
        concurrency: int = 4,
        api_key: str | None = None,
    ) -> None:
        if bos not in ("auto", "always", "never"):
            raise InputError(f"bos is {bos!r}.", "Choose one of auto, always, never.")
        if bos == "always" and tokenizer.bos_id is None:
            raise InputError("bos is 'always', but the tokenizer has no BOS id.", "Give a Tokenizer with bos_id, or bos='never'.")
        if concurrency < 1:
            raise InputError(f"concurrency is {concurrency}.", "Give at least 1.")
        base_url = base_url.rstrip("/")
        self.client = JsonClient(base_url, api_key or key_from_environment(base_url), timeout, retries, backoff)
        self.base_url, self.name, self.door = base_url, model, "endpoint"
        self.tokenizer = tokenizer
        self.concurrency = concurrency
        self.parameters = None
        self.context_length = self._served_context()
        self.prepends_bos = bos == "always" or (bos == "auto" and tokenizer.adds_bos and tokenizer.bos_id is not None)
        self.sends_ids, self.without_logprobs = self._probe(bos)
        self.capabilities = frozenset({"text"} if self.without_logprobs else {"text", "logprobs"})

    @classmethod
    def from_url(cls, url: str, tokenizer: Tokenizer, **options: Any) -> EndpointModel:
        """Opens "http://host:port/v1#name"; without `#name` the server's only model.

        Raises:
            InputError: no name, and the server has several models or does not list them.
            EndpointError: as for the class.
        """
        base_url, _, name = url.partition("#")
        return cls(base_url, name or only_model(base_url), tokenizer, **options)

    @property
    def room(self) -> int:
        """As the base class says, less the token that the server writes after what it scores."""
        return super().room - 1

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """SHA-256 of address and model name: a server's weights cannot be seen."""
        return hashlib.sha256(f"{self.base_url}#{self.name}".encode()).hexdigest()

    def lacks(self, capability: str, need: str) -> CapabilityError:
        """As the base class says, with the reason that the probe found."""
        error = super().lacks(capability, need)
        if capability == "logprobs" and self.without_logprobs:
            return CapabilityError(f"{error.problem} {self.without_logprobs}", error.remedy)
        return error

    def score(
        self,
        batch_ids: Sequence[Sequence[int] | np.ndarray],
        *,
        start: int | Sequence[int] = 1,
        moments: bool = False,
        samplers: Sequence[Sampler] = (),
        progress: Progress | None = None,
    ) -> Scores:
        """See `LanguageModel.score`. Moments and cut samplers need the whole distribution, which no server sends.

        A greedy hit is an id whose log-prob is the greatest at its position; an exact tie cannot be told apart.
        """
        self.require("logprobs", "scoring a given text")
        if moments:
            raise self.lacks("weights", "mean and variance under the softmax")
        for sampler in samplers:
            if sampler not in (GREEDY, ANY):
                raise self.lacks("weights", f"the log-probability under {sampler}")
        rows = check_rows(batch_ids, self.tokenizer.vocab_size, self.context_length, self.context_length - self.room)
        starts = check_starts(start, rows)
        found = self._each(lambda index: self._score_row(index, rows[index]), len(rows), progress)
        logprobs = [values[first - 1 :] for (values, _), first in zip(found, starts, strict=True)]
        hits = [values[first - 1 :] for (_, values), first in zip(found, starts, strict=True)]
        sampled = {
            sampler: [
                np.where(hit, 0.0, -np.inf) if sampler == GREEDY else lp.astype(np.float64) for lp, hit in zip(logprobs, hits, strict=True)
            ]
            for sampler in samplers
        }
        return Scores(logprobs, hits, sampled=sampled)

    def generate(
        self,
        prefixes: Sequence[Sequence[int] | np.ndarray],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        n: int = 1,
        num_beams: int = 1,
        seed: int = 0,
        stop_at_eos: bool = True,
        processors: Sequence[Any] = (),
        progress: Progress | None = None,
    ) -> list[list[np.ndarray]]:
        """See `LanguageModel.generate`. The text that comes back is cut into tokens here, behind its prefix.

        `top_k` is sent as the extension that most servers know; one that does not will refuse the request.
        """
        if processors:
            raise self.lacks("weights", "a logits processor (a guard, say)")
        if num_beams != 1:
            raise self.lacks("weights", "beam search")
        if not stop_at_eos:
            raise self.lacks("weights", "writing on behind EOS")
        Sampler(temperature, top_k, top_p)  # refuses numbers out of range
        for label, value in (("max_new_tokens", max_new_tokens), ("n", n)):
            if value < 1:
                raise InputError(f"{label} is {value}.", "Give at least 1.")
        rows = check_rows(prefixes, self.tokenizer.vocab_size, self.context_length, max_new_tokens + int(self.prepends_bos), "Prefix")
        body: dict[str, Any] = {"max_tokens": int(max_new_tokens), "temperature": float(temperature)}
        body |= {} if top_p is None else {"top_p": float(top_p)}
        body |= {} if top_k is None else {"top_k": int(top_k)}
        copies = n if temperature > 0 else 1  # greedy continuations are all equal: asked for once

        def ask(index: int) -> np.ndarray:
            row, copy = divmod(index, copies)
            own_seed = int(np.random.SeedSequence((seed, row, copy)).generate_state(1)[0] >> 1)
            choice, _ = self._complete(rows[row], {**body, "seed": own_seed}, as_ids=self.sends_ids)
            if not isinstance(choice.get("text"), str):
                raise EndpointError(
                    f"{self.base_url} answered with a choice without text.", "Check that it speaks the completions protocol."
                )
            return self._new_ids(rows[row], choice["text"])[:max_new_tokens]

        def report(done: int, total: int) -> None:
            if progress:
                progress(done // copies, total // copies)

        found = self._each(ask, len(rows) * copies, report)
        return [[found[row * copies + copy % copies].copy() for copy in range(n)] for row in range(len(rows))]

    def _new_ids(self, prefix: np.ndarray, text: str) -> np.ndarray:
        """The ids of `text` where it stands, behind `prefix`; alone if prefix and text do not part at a token."""
        whole = self.tokenizer.encode(self.tokenizer.decode(prefix.tolist()) + text)
        ids = whole[len(prefix) :] if whole[: len(prefix)] == prefix.tolist() else self.tokenizer.encode(text)
        return np.asarray(ids, dtype=np.int64)

    def _score_row(self, index: int, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-probs and greedy hits of all ids of a row but the first."""
        echo = self._echo(row, self.sends_ids)
        bos = int(self.prepends_bos)
        if len(echo.tokens) != len(row) + bos:
            raise InputError(
                f"Row {index} has {len(row) + bos} tokens here, but the server cuts its text into {len(echo.tokens)}.",
                "Give rows whose text becomes the same tokens again (cut between words), or a server that takes token ids.",
            )
        said, meant = echo.behind(bos).text.strip(), self.tokenizer.decode(row.tolist()).strip()
        if said != meant and "\ufffd" not in said + meant:  # a character cut in two is shown differently by every server
            raise EndpointError(
                f"{self.base_url} reads row {index} as other text than the tokenizer given here: {said[:60]!r} instead of {meant[:60]!r}.",
                "Give the tokenizer that belongs to the served model.",
            )
        scored = echo.behind(bos + 1)  # the first id is not scored
        if scored.holes.any():
            position = 1 + int(scored.holes.argmax())
            raise NonFiniteError(f"{self.base_url} gave no log-prob for row {index}, position {position}.", "Check the server's weights.")
        return scored.logprobs.astype(np.float32), scored.logprobs >= scored.best

    def _echo(self, row: np.ndarray, as_ids: bool) -> Echo:
        """A row as the server sees it. One token is written and dropped: several servers refuse `max_tokens` 0."""
        body = {"max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
        choice, usage = self._complete(row, body, as_ids=as_ids)
        return read_echo(self.base_url, choice, usage)

    def _complete(self, row: np.ndarray, body: dict[str, Any], *, as_ids: bool) -> tuple[dict[str, Any], Any]:
        """The only choice of the server's answer, and the answer's `usage`."""
        ids = row.tolist()
        if as_ids:
            prompt: str | list[int] = [self.tokenizer.bos_id, *ids] if self.prepends_bos else ids  # type: ignore[list-item]
        else:
            prompt = self.tokenizer.decode(ids)
        answer = self.client.request("POST", "/completions", {"model": self.name, "prompt": prompt, "n": 1, **body})
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise EndpointError(f"{self.base_url} answered without a list of one choice.", "Check that it speaks the completions protocol.")
        return choices[0], answer.get("usage")

    def _each(self, work: Callable[[int], Answer], count: int, progress: Progress | None) -> list[Answer]:
        """`work(0 … count-1)`, at most `concurrency` at once; the first error stops what has not begun."""
        out: list[Any] = [None] * count
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="endpoint") as pool:
            futures = {pool.submit(work, index): index for index in range(count)}
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    out[futures[future]] = future.result()
                    if progress:
                        progress(done, count)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return out

    def _probe(self, bos: str) -> tuple[bool, str | None]:
        """Whether ids may be sent, and why there are no log-probs (None: there are). Sets `prepends_bos` where the server decides."""
        row = np.asarray(self.tokenizer.encode(PROBE), dtype=np.int64)
        text = self.tokenizer.decode(row.tolist())
        reasons = []
        for as_ids in (True, False):
            form = "token ids" if as_ids else "text"
            try:
                echo = self._echo(row, as_ids)
            except (RefusedRequestError, ContextOverflowError) as error:
                reasons.append(f"sent {form}: {error.problem}")
                continue
            extra = len(echo.tokens) - len(row)
            allowed = (int(self.prepends_bos),) if as_ids else (0, 1)
            if extra not in allowed or echo.behind(extra).text != text:
                found = f"{len(echo.tokens)} tokens where the tokenizer given here has {len(row)}, or other ones"
                reasons.append(f"sent {form}: the server reads {found}.")
            elif echo.behind(1).holes.any():
                reasons.append(f"sent {form}: the server gives no log-prob for some tokens of the prompt.")
            elif not as_ids and bos != "auto" and (bos == "always") != bool(extra):
                does = "puts" if extra else "does not put"
                raise InputError(f"bos is {bos!r}, but {self.base_url} takes only text and {does} BOS in front.", "Give bos='auto'.")
            else:
                self.prepends_bos = bool(extra)
                return as_ids, None
        if bos != "auto":
            raise InputError(f"bos is {bos!r}, but {self.base_url} takes only text and decides for itself.", "Give bos='auto'.")
        self.prepends_bos = False
        return False, " ".join(reasons)

    def _served_context(self) -> int:
        """The context length that the server tells (vLLM and others do), or a number that never stands in the way."""
        for entry in served_models(self.client):
            if entry.get("id") == self.name:
                told = entry.get("max_model_len") or entry.get("context_length")
                if isinstance(told, int) and told > 0:
                    return told
        return UNKNOWN_CONTEXT
