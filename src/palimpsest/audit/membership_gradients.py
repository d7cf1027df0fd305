"""How steep a model's loss is at a text: the gradient score of membership.

    gradnorm = −‖∇_θ mean_t(−lp_t)‖₂,   over all parameters θ together.

Training went down the loss of its members, so there it is flatter (Wang, Wang, Li and Neel, "Pandora's White-Box", 2024, arXiv
2402.17012, who try it as a baseline of white-box attacks). The norm is that of the whole gradient: of one vector, not a mean over the
norms of the weight matrices, which would count a bias of ten numbers as much as an embedding.

A text takes a forward and a backward pass of its own, about three times what its score takes: it is measured only when it is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from palimpsest.errors import CapabilityError, NonFiniteError
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.models.hf import HFModel
from palimpsest.models.score_cache import ScoreCache


def gradient_norms(model: LanguageModel, rows: Sequence[np.ndarray], progress: Progress | None = None) -> np.ndarray:
    """The Euclidean norm of the gradient of every row's mean loss, float64 (rows,).

    Args:
        model: a door to a transformers model; the gradients and the switches of its parameters are left as they were.
        rows: ids, each of at least 2; the first is not scored, as in `LanguageModel.score`.
        progress: called with (rows done, rows in all).

    Raises:
        CapabilityError: the door gives no gradients.
        NonFiniteError: a gradient is NaN or infinite.

    Example:
        >>> gradient_norms(model, [np.array([5, 6, 7])])       # doctest: +SKIP
    """
    door = model.behind if isinstance(model, ScoreCache) else model
    door.require("weights", "The gradient score of membership")
    if not isinstance(door, HFModel):
        raise CapabilityError(f"The door {door.door!r} gives no gradients.", "Load the model from its weights.")
    out = np.empty(len(rows))
    with _tracked(door.model) as parameters:
        for number, row in enumerate(rows):
            head = [door.tokenizer.bos_id] if door.prepends_bos else []
            ids = torch.tensor([[*head, *row.tolist()]], device=door.device)
            with torch.enable_grad():
                logits = door.model(input_ids=ids, use_cache=False, return_dict=True).logits[0, len(head) : -1]
                loss = torch.nn.functional.cross_entropy(logits.float(), ids[0, len(head) + 1 :])
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            out[number] = np.sqrt(sum(float(g.double().square().sum()) for g in gradients if g is not None))
            if not np.isfinite(out[number]):
                raise NonFiniteError(f"The gradient of {model.name} at text {number} is not finite.", "Load the model in float32.")
            if progress:
                progress(number + 1, len(rows))
    return out


@contextmanager
def _tracked(model: torch.nn.Module) -> Iterator[list[torch.nn.Parameter]]:
    """All parameters, switched to be differentiated by, and back."""
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield parameters
    finally:
        for parameter, switch in zip(parameters, before, strict=True):
            parameter.requires_grad_(switch)
