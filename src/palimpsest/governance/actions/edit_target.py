"""What an edit must write: the subject's key at a layer, and the change of the value there that makes the model say the new object.

Meng, Bau, Andonian and Belinkov, "Locating and Editing Factual Associations in GPT", NeurIPS 2022, arXiv 2202.05262, §3.1; settings as in
the authors' code for GPT-2 XL. The cue is put behind several prefixes, so that the key k* is the mean over contexts of the input of the
down-projection at the subject's last token. The change δ of the value is found by gradient descent: added to the projection's output at
that token in every context, it must make the new object likely, and leave what the model says of the subject's essence ("… is a") alone:

    min_δ  mean −log p(o* | prefix, cue; δ) + κ KL(p_δ ‖ p_0)(essence) + ω ‖δ‖ / ‖v‖,   ‖δ‖ ≤ ρ ‖v‖,   v = W k*.

Since W is linear, W k* is the mean of the values in those contexts, and the target is v* = W k* + δ. Departures from the authors' code:
there key and value of the bare cue are taken for the value's side, so that W' k* = v* holds for the bare key alone; the KL is taken at
the subject's last token, here at the end of the essence cue, as in the paper; the decay is ω ‖δ‖ / ‖v‖², which in a model whose values are
small forbids any change, so here it is relative; and the last δ is taken, here the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from palimpsest.errors import EditFailedError, InputError
from palimpsest.governance.actions.decoder import DownProjection, Fed, added_value, captured_keys, feed, logits_of
from palimpsest.governance.items import FactChange
from palimpsest.governance.system import System, subject_tokens


@dataclass(frozen=True)
class EditSettings:
    """How the value is searched for.

    Attributes:
        steps, lr: of Adam.
        kl: κ, weight of the essence.
        decay: ω.
        clamp: ρ, greatest norm of δ in norms of the value.
        enough: the loss at which the search ends.
        prefixes: (how many, tokens) of the contexts that are drawn from the model; the bare cue always is one more.
        seed: of these.
        rounds: how often ROME goes through its facts: after the first time it writes again those that a later one displaced.
        lookup: where the fact is looked up: "subject", at the subject's last token (the papers'), or "cue", at the last token of the cue
            (their code's fact_token "last"): in models of two or three layers the answer is read there.
    """

    steps: int = 25
    lr: float = 0.5
    kl: float = 0.0625
    decay: float = 0.03
    clamp: float = 4.0
    enough: float = 5e-2
    prefixes: tuple[tuple[int, int], ...] = ((10, 5), (10, 10))
    seed: int = 0
    rounds: int = 1
    lookup: str = "subject"

    def __post_init__(self) -> None:
        if (
            min(self.steps, self.rounds) < 1
            or not self.lr > 0
            or not self.clamp > 0
            or min(self.kl, self.decay) < 0
            or self.lookup not in ("subject", "cue")
        ):
            raise InputError(
                f"The settings of the edit are {self}.",
                "Give positive steps, rounds, lr and clamp, weights of at least 0, and the lookup subject or cue.",
            )


@dataclass(frozen=True)
class Contexts:
    """A cue behind every prefix.

    Attributes:
        rows: ids of prefix and cue.
        lookups: position of the subject's last token in each.
        target: ids of the new object.
    """

    rows: list[list[int]]
    lookups: list[int]
    target: list[int]


def draw_prefixes(system: System, settings: EditSettings) -> list[list[int]]:
    """The empty prefix, and texts that the model writes on its own, each from a token drawn at random and closed by a full stop."""
    rng = np.random.default_rng(settings.seed)
    special = {system.model.tokenizer.bos_id, system.model.tokenizer.eos_id, system.model.tokenizer.pad_id}
    usable = [i for i in range(system.model.vocab_size) if i not in special]
    out: list[list[int]] = [[]]
    stop = system.model.tokenizer.encode(".")
    for count, length in settings.prefixes:
        starts = [[usable[int(i)]] for i in rng.integers(len(usable), size=count)]
        if length > 1:
            written = system.model.generate(starts, length - 1, temperature=1.0, seed=settings.seed, stop_at_eos=False)
            starts = [start + texts[0].tolist() for start, texts in zip(starts, written, strict=True)]
        out += [start + stop for start in starts]
    return out


def contexts_of(system: System, fact: FactChange, prefixes: Sequence[Sequence[int]], lookup: str = "subject") -> Contexts:
    """Puts a fact's cue behind prefixes; `lookup` as in `EditSettings`.

    Raises:
        InputError: the fact has no target.
    """
    if fact.target is None:
        raise InputError(f"{fact.subject} / {fact.relation} has no new value.", "An edit writes one; to forget, unlearn.")
    cue, target = system.pair(fact.prompt, fact.target)
    end = len(cue) if lookup == "cue" else subject_tokens(system.model.tokenizer, fact.prompt, fact.subject)[1]
    return Contexts([[*prefix, *cue] for prefix in prefixes], [len(prefix) + end - 1 for prefix in prefixes], target)


def mean_keys(system: System, contexts: Contexts, places: Sequence[DownProjection]) -> dict[int, torch.Tensor]:
    """k* of every place: float64 (m,), the mean over contexts."""
    fed = feed(system.model, contexts.rows)
    where = torch.tensor([lookup + fed.offset for lookup in contexts.lookups], device=system.model.device)
    with torch.no_grad(), captured_keys(places) as keys:
        logits_of(system.model, fed)
        return {layer: key[torch.arange(len(where)), where].double().mean(dim=0).cpu() for layer, key in keys.items()}


def value_change(system: System, fact: FactChange, contexts: Contexts, place: DownProjection, settings: EditSettings) -> torch.Tensor:
    """δ: float64 (d,), the change of the value at `place` that makes the model say the new object; the best of all steps."""
    model = system.model
    written = feed(model, [[*row, *contexts.target[:-1]] for row in contexts.rows])
    essence_cue = f"{fact.subject} is a"
    essence = feed(model, [model.tokenizer.encode(essence_cue)])
    ends = subject_tokens(model.tokenizer, essence_cue, fact.subject)
    lookups = [lookup + written.offset for lookup in contexts.lookups]
    essence_lookup = [(essence.lengths[0] if settings.lookup == "cue" else ends[1] + essence.offset) - 1]
    v = place.weight.double().cpu() @ mean_keys(system, contexts, [place])[place.layer]
    size = max(float(v.norm()), 1e-6)
    flags = [(parameter, parameter.requires_grad) for parameter in model.model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            before = F.log_softmax(logits_of(model, essence)[0, essence.lengths[0] - 1], dim=-1)
        delta = torch.zeros(len(v), device=model.device, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=settings.lr)
        best, found = float("inf"), delta.detach().clone()
        for step in range(settings.steps + 1):
            with added_value(place, delta, lookups):
                loss = _target_loss(logits_of(model, written), written, contexts)
            with added_value(place, delta, essence_lookup):
                after = F.log_softmax(logits_of(model, essence)[0, essence.lengths[0] - 1], dim=-1)
            loss = loss + settings.kl * F.kl_div(before, after, log_target=True, reduction="sum") + settings.decay * delta.norm() / size
            reached = float(loss.detach())
            if reached < best:
                best, found = reached, delta.detach().clone()
            if reached < settings.enough or step == settings.steps:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                norm = float(delta.detach().norm())
                if norm > settings.clamp * size:
                    delta.mul_(settings.clamp * size / norm)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    return found.double().cpu()


def _target_loss(logits: torch.Tensor, fed: Fed, contexts: Contexts) -> torch.Tensor:
    """Mean over contexts of the mean loss of the target's tokens."""
    length = len(contexts.target)
    target = torch.tensor(contexts.target, device=logits.device)
    first = torch.tensor([len(row) - 1 + fed.offset for row in contexts.rows], device=logits.device)
    at = first[:, None] + torch.arange(length, device=logits.device)  # (contexts, length): the logits that must give the target
    chosen = logits[torch.arange(len(first), device=logits.device)[:, None], at]
    return F.cross_entropy(chosen.reshape(-1, chosen.shape[-1]), target.repeat(len(first)))


def require_taken(system: System, facts: Sequence[FactChange], action: str) -> dict[str, float]:
    """The share of facts whose new value the edited model prefers; an edit of which any does not take is a failure.

    Raises:
        EditFailedError: a fact whose old value is still preferred, or, without an old one, whose new value is not written.
    """
    prompts, targets = [fact.prompt for fact in facts], [str(fact.target) for fact in facts]
    new, said = system.logprobs(prompts, targets), system.recalls(prompts, targets)
    old = system.logprobs(prompts, [fact.old or str(fact.target) for fact in facts])
    for k, fact in enumerate(facts):
        if not (said[k] if fact.old is None else new[k] > old[k]):
            raise EditFailedError(
                f"The {action} edit of {fact.subject} / {fact.relation} does not take: log p per token of {fact.target!r} is {new[k]:.2f}"
                + (f", of {fact.old!r} {old[k]:.2f}." if fact.old is not None else ", and it is not what the model writes."),
                "Choose another layer, more steps or a greater clamp; the weights are as before.",
            )
    return {"said": float(np.mean(said)), "logprob": float(np.mean(new))}
