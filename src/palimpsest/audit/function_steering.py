"""Does a feature act through function tokens? One coefficient is changed at a position, and the next-token distributions are compared.

After Zhang, Lin and Li, 2025, arXiv 2510.08203 (see `function_tokens`), whose case studies steer features at function tokens. The state x
of a layer has the coefficient z_f of feature f (0 where it is not among the k); set to v, the state becomes x + (v − z_f) d_f / scale with
d_f the feature's direction. The rest of x, also what the autoencoder does not explain, stays. The effect is KL(P ‖ P'), in nat, of the
next-token distribution at that position. The comparison is with as many content positions of the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from palimpsest.audit.sae import SparseAutoencoder
from palimpsest.errors import InputError
from palimpsest.models.hf import HFModel


def decoder_block(model: HFModel, layer: int) -> torch.nn.Module:
    """The block whose output is the state after `layer`, from 1 to the last but one: what comes after the last is normed.

    Raises:
        InputError: no such layer, or a model whose blocks are not found.
    """
    count = int(model.model.config.get_text_config().num_hidden_layers)
    if not 1 <= layer < count:
        raise InputError(f"Layer {layer} of {model.name} cannot be steered.", f"Choose one from 1 to {count - 1}.")
    for _, blocks in model.model.named_modules():
        if isinstance(blocks, torch.nn.ModuleList) and len(blocks) == count:
            return blocks[layer - 1]
    raise InputError(f"{model.name} has no list of {count} blocks.", "Steer a decoder built as a Llama or a GPT-2 is.")


@torch.no_grad()
def steer(
    model: HFModel, sae: SparseAutoencoder, row: np.ndarray, layer: int, feature: int, positions: Sequence[int], value: float = 0.0
) -> np.ndarray:
    """KL(P ‖ P') at positions of a row where a feature's coefficient is set to a value.

    Args:
        model: with its weights.
        sae: of this layer.
        row: ids.
        layer: after which the state is changed.
        feature: whose coefficient.
        positions: where; each alone, in a pass of its own, so that no change sees another.
        value: what it is set to; 0 takes the feature out.

    Returns:
        (positions,) nat.

    Raises:
        InputError: no such layer, feature or position, or a door that prepends BOS.
    """
    ids = np.asarray(row)
    if model.prepends_bos or not 0 <= feature < sae.features or not positions or not 0 <= min(positions) <= max(positions) < len(ids):
        raise InputError(
            f"Feature {feature} at {list(positions)} of {len(ids)} ids, BOS in front: {model.prepends_bos}.",
            "Name a feature of the autoencoder and positions of the row; put BOS into the row and load the model with bos='never'.",
        )
    block, places = decoder_block(model, layer), torch.as_tensor(list(positions))
    each = torch.arange(len(places))

    def change(_: torch.nn.Module, inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        here = hidden[each, places]
        values, numbers = sae.encode(here.float().cpu())
        present = (values * (numbers == feature)).sum(-1, keepdim=True)
        hidden = hidden.clone()
        hidden[each, places] = here + ((value - present) / sae.scale * sae.decoder[feature]).to(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    batch = torch.as_tensor(ids, device=model.device)[None].expand(len(places), -1)
    plain = model.model(input_ids=batch[:1], use_cache=False).logits[0, places].float().log_softmax(-1)
    hook = block.register_forward_hook(change)
    try:
        changed = model.model(input_ids=batch, use_cache=False).logits[each, places].float().log_softmax(-1)
    finally:
        hook.remove()
    return (plain.exp() * (plain - changed)).sum(-1).double().cpu().numpy()


def steering_effect(
    model: HFModel,
    sae: SparseAutoencoder,
    rows: Sequence[np.ndarray],
    layer: int,
    function: np.ndarray,
    *,
    pairs: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Takes the strongest feature out at a function and at a content position of each row, drawn by lot.

    Returns:
        pairs, function and content: mean KL at either, and share: of the rows in which the function position's is larger.

    Raises:
        InputError: no row has both kinds.
    """
    rng = np.random.default_rng(seed)
    found = []
    for number in rng.permutation(len(rows)).tolist():
        row = np.asarray(rows[number])
        kinds = function[row[1:]]
        if kinds.all() or not kinds.any():
            continue
        places = [1 + int(rng.choice(np.flatnonzero(kinds == kind))) for kind in (True, False)]
        states = torch.from_numpy(model.hidden_states([row], [layer])[0][layer][places])
        strongest = sae.encode(states)[1][:, 0].tolist()
        found.append([steer(model, sae, row, layer, feature, [place])[0] for feature, place in zip(strongest, places, strict=True)])
        if len(found) == pairs:
            break
    if not found:
        raise InputError(f"None of {len(rows)} rows has function and content tokens.", "Give longer rows, or another share.")
    effects = np.array(found)
    means = effects.mean(0)
    return {
        "pairs": len(found),
        "function": float(means[0]),
        "content": float(means[1]),
        "share": float((effects[:, 0] > effects[:, 1]).mean()),
    }
