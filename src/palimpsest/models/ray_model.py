"""A model of transformers in many copies on a Ray cluster: rows are scored and prefixes continued by whichever copy is free.

One actor holds one copy: one for every GPU of the cluster, or one for every machine where there are none. The rows of a call are cut
into parts of neighbouring ones, which are the batches of a Ray dataset and go through its `map_batches` to the copies as these become
free, and come back in order; see `ray_stream`. The actors live as long as the door, so that a whole audit loads each copy once. An
actor that dies is started again and its part done again.

A batch has one line a row, `row` list<int64> and `start` int64; an answer has one line a row too, what the copy says of it: lists of
numbers, or lists of lists of ids.

Log-probabilities differ from those of one process by what padding does to a sum in float32 (below 1e-4); greedy and sampled text is
the same. Sampled text is written by one actor, because a row's random numbers belong to its place in the batch. What needs the weights
themselves (a guard inside decoding, hidden states, gradients) is done by a copy in this process, loaded when it is first asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from palimpsest.cluster import RETRIES, cluster_errors, connect, machines
from palimpsest.errors import InputError, NonFiniteError
from palimpsest.models.base import Progress, Sampler, Scores
from palimpsest.models.batching import check_rows, check_starts
from palimpsest.models.decoding import Decoding
from palimpsest.models.hf import HFModel
from palimpsest.ray_stream import lists, nested, nested_numbers, numbers, require_data, stream, table

_TOLD = (
    "name", "door", "tokenizer", "capabilities", "context_length", "parameters", "prepends_bos", "vocab_size", "batch_tokens",
    "fingerprint", "length_free", "stop_ids",
)  # fmt: skip

_PARTS = 4  # of a large batch, for every actor: the last ones wait for less
Rows = Sequence[Sequence[int] | np.ndarray]


class RayModel(HFModel):
    """The door to a model whose copies live in the actors of a Ray cluster; `load_model(…, engine="ray")` opens it.

    Args:
        spec: as for `load_model`: a folder or file that all machines see under the same path, a known name, or a hub id.
        actors: copies; by default one for every GPU, or for every machine of a cluster without any.
        share: the part of a GPU that one copy reserves, 1/k when k models are to be loaded side by side. No copy reserves a core:
            tasks that need one would wait for the models, and the models' owner for the tasks.
        options: what else `load_model` takes.

    Raises:
        InputError: fewer than 1 actor, a share outside (0, 1], or a door that is no model of transformers.
        MissingDependencyError, ClusterError: there is no ray, no cluster, or it lost a copy for good.

    Example:
        >>> model = RayModel("smollm2-135m")                                       # doctest: +SKIP
        >>> model.score([model.tokenizer.encode("In the beginning")]).logprobs[0]   # doctest: +SKIP
    """

    in_process = False

    def __init__(self, spec: str | os.PathLike[str], *, actors: int | None = None, share: float = 1.0, **options: Any) -> None:
        if (actors is not None and actors < 1) or not 0 < share <= 1:
            raise InputError(f"There are {actors} actors with a share of {share}.", "Give at least 1, and a share above 0 and up to 1.")
        text = os.fspath(spec)
        if text.startswith(("http://", "https://", "memory:")):
            raise InputError(f"{text} is not a model that a cluster can load in copies.", "Use the engine 'local' for it.")
        path = Path(text).expanduser()
        self._spec = str(path.absolute()) if path.exists() else text
        self._options = options
        ray = connect()
        require_data()
        offered = machines(ray)
        gpus = int(sum(machine.get("GPU", 0) for machine in offered))
        resources = {"num_cpus": 0, "num_gpus": share if gpus else 0}
        threads = None if gpus else int(min(machine["CPU"] for machine in offered))
        actor = ray.remote(max_restarts=-1, max_task_retries=RETRIES, scheduling_strategy="SPREAD", **resources)(Copy)
        self._actors = [actor.remote(self._spec, options, threads) for _ in range(actors or gpus or len(offered))]
        with cluster_errors(ray):
            self.__dict__ |= ray.get(self._actors[0].tell.remote())

    def score(
        self,
        batch_ids: Rows,
        *,
        start: int | Sequence[int] = 1,
        moments: bool = False,
        samplers: Sequence[Sampler] = (),
        progress: Progress | None = None,
    ) -> Scores:
        """See `LanguageModel.score`."""
        rows = self._check(batch_ids)
        starts = check_starts(start, rows)
        parts = self._parts([len(row) for row in rows])
        options = {"moments": moments, "samplers": tuple(samplers)}
        scores = Scores([], [], [] if moments else None, [] if moments else None, {sampler: [] for sampler in samplers})
        for answer in self._answers("score", options, rows, starts, parts, progress):
            scores.logprobs.extend(numbers(answer["logprobs"]))
            scores.greedy_hits.extend(numbers(answer["hits"]))
            for name, wanted in (("mean", scores.mean), ("var", scores.var)):
                if wanted is not None:
                    wanted.extend(numbers(answer[name]))
            for i, sampler in enumerate(samplers):
                scores.sampled[sampler].extend(numbers(answer[_sampled(i)]))
        return scores

    def generate(
        self,
        prefixes: Rows,
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
        """See `LanguageModel.generate`."""
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "n": n, "num_beams": num_beams}
        options |= {"seed": seed, "stop_at_eos": stop_at_eos}
        if processors:  # they count what they do: here, not in another process
            return self._here.generate(prefixes, max_new_tokens, processors=processors, progress=progress, **options)
        sampler = Decoding(Sampler(temperature, top_k, top_p), max_new_tokens, n, num_beams, seed).sampler
        rows = check_rows(prefixes, self.vocab_size, self.context_length, max_new_tokens + int(self.prepends_bos), "Prefix")
        parts = self._parts([(len(row) + max_new_tokens) * max(n, num_beams) for row in rows]) if sampler.greedy else [slice(0, len(rows))]
        options["max_new_tokens"] = max_new_tokens
        answers = self._answers("generate", options, rows, [1] * len(rows), parts, progress)
        return [row for answer in answers for row in nested_numbers(answer["written"])]

    def hidden_states(self, batch_ids: Rows, layers: Sequence[int]) -> list[dict[int, np.ndarray]]:
        """See `LanguageModel.hidden_states`."""
        return self._here.hidden_states(batch_ids, layers)

    @cached_property
    def model(self) -> PreTrainedModel:  # type: ignore[override]
        """The weights, in this process."""
        return self._here.model

    @cached_property
    def _here(self) -> HFModel:
        return _load(self._spec, self._options, self.fingerprint)

    def _parts(self, sizes: Sequence[int]) -> list[slice]:
        """Neighbouring rows of at least a batch, and so large that every actor has some parts."""
        least = max(self.batch_tokens, sum(sizes) // (_PARTS * len(self._actors)))
        parts, first, size = [], 0, 0
        for row, more in enumerate(sizes):
            size += more
            if size >= least or row == len(sizes) - 1:
                parts.append(slice(first, row + 1))
                first, size = row + 1, 0
        return parts

    def _answers(
        self,
        method: str,
        options: dict[str, Any],
        rows: list[np.ndarray],
        starts: list[int],
        parts: list[slice],
        progress: Progress | None,
    ) -> Iterator[Any]:
        """What the copies answer to the parts, in order."""
        batches = [table({"row": lists(rows[part]), "start": starts[part]}) for part in parts]
        done = 0
        try:
            for answer in stream(connect(), self._actors, method, (self.fingerprint, options), batches):
                yield answer
                done += len(answer)
                if progress:
                    progress(done, len(rows))
        except NonFiniteError as error:
            raise NonFiniteError(f"{error.problem} Rows are counted from row {done} here.", error.remedy) from error


class Copy:
    """The actor: a copy of the model in a process of its own, loaded when it is first asked."""

    def __init__(self, spec: str, options: dict[str, Any], threads: int | None) -> None:
        self._spec, self._options, self._threads = spec, options, threads
        self._model: HFModel | None = None

    def free(self) -> None:
        """Answers when the copy has done what it was asked before."""

    def tell(self) -> dict[str, Any]:
        """What the door says of the model."""
        model = self._open(None)
        return {name: getattr(model, name) for name in _TOLD}

    def score(self, fingerprint: str, options: dict[str, Any], batch: Any) -> Any:
        """The scores of a batch as columns: logprobs, hits, mean and var with `moments`, and "sampled i" for sampler i."""
        model = self._open(fingerprint)
        found = model.score(numbers(batch["row"]), start=batch["start"].to_pylist(), **options)
        columns = {"logprobs": found.logprobs, "hits": found.greedy_hits, "mean": found.mean, "var": found.var}
        columns |= {_sampled(i): found.sampled[sampler] for i, sampler in enumerate(options["samplers"])}
        return table({name: lists(rows) for name, rows in columns.items() if rows is not None})

    def generate(self, fingerprint: str, options: dict[str, Any], batch: Any) -> Any:
        """The continuations of every row of a batch, some lists of ids for each."""
        written = self._open(fingerprint).generate(numbers(batch["row"]), **options)
        flat = lists([ids for row in written for ids in row])
        return table({"written": nested(flat, [len(row) for row in written])})

    def _open(self, fingerprint: str | None) -> HFModel:
        if self._model is None:
            if self._threads:
                torch.set_num_threads(self._threads)
            self._model = _load(self._spec, self._options, fingerprint)
        return self._model


def _load(spec: str, options: dict[str, Any], fingerprint: str | None) -> HFModel:
    """The model in this process; `fingerprint` is that of the copies that there are already.

    Raises:
        InputError: a door that is no model of transformers, or another model than the copies are.
    """
    from palimpsest.models.load import load_model

    model = load_model(spec, **options)
    if not isinstance(model, HFModel):
        raise InputError(f"{spec} is not a model that a cluster can load in copies.", "Use the engine 'local' for it.")
    if fingerprint is not None and model.fingerprint != fingerprint:
        raise InputError(
            f"{spec} is another model now: its fingerprint is {model.fingerprint[:12]}, that of the other copies {fingerprint[:12]}.",
            "Put the same weights on every machine; where some have a GPU, run this on one that has one (elsewhere weights are float32).",
        )
    return model


def _sampled(number: int) -> str:
    """The column with the log-probabilities under sampler `number` of those that were asked for."""
    return f"sampled {number}"
