"""Beam search over anything that gives the next token's log-probabilities, many rows at once.

At every step each of a row's `beam` hypotheses is continued by every token; the `beam` best continuations by summed log-probability are
looked at, those of them that end are finished, and the best that do not end go on. A finished hypothesis y, its end counted, has the score

    log p(y | x) / |y|^power

(power 0: the sum, which favours short outputs; power 1: the mean a token). A row is done when `beam` hypotheses have finished, or when
none that goes on can still win, its sum divided by max_len^power being no better than the best score: a sum can only fall. The finished
hypothesis of the best score is returned; where none has finished in `max_len` tokens, the best that goes on, cut. With beam 1 this is
greedy decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from palimpsest.errors import InputError

State = tuple[torch.Tensor, ...]  # whatever the model carries, one row a hypothesis
Step = Callable[[torch.Tensor, State], tuple[torch.Tensor, State]]


@dataclass(frozen=True)
class Hypothesis:
    """What a search found for one row.

    Attributes:
        ids: without begin and end.
        logprob: the sum, with the end where there is one.
        score: by the length rule.
        finished: whether it came to its end within the length allowed.
    """

    ids: list[int]
    logprob: float
    score: float
    finished: bool


@torch.no_grad()
def beam_search(
    step: Step, state: State, rows: int, *, bos: int, eos: int, beam: int = 5, max_len: int = 100, power: float = 1.0
) -> list[Hypothesis]:
    """Finds the best continuation of `bos` for every row.

    Args:
        step: takes the last tokens (rows · beam,) and the state, and gives log-probabilities (rows · beam, vocabulary) and the next state.
        state: of the rows at the start, (rows · beam, …) each: the hypotheses of a row stand together.
        rows: how many.
        bos, eos: the ids that begin and end a sequence.
        beam: hypotheses a row.
        max_len: the most tokens, the end counted.
        power: of the length in the score, from 0 on.

    Raises:
        InputError: beam or max_len below 1, or a negative power.

    Example:
        >>> logprobs = torch.tensor([[-9.0, -9.0, -9.0], [-9.0, -2.0, -0.2], [-0.1, -3.0, -9.0]])  # after 0, 1, 2
        >>> [found] = beam_search(lambda last, state: (logprobs[last], state), (), 1, bos=1, eos=0, beam=2, max_len=5)
        >>> found.ids, round(found.logprob, 1), found.finished
        ([2], -0.3, True)
    """
    if beam < 1 or max_len < 1 or not power >= 0:
        raise InputError(f"beam is {beam}, max_len {max_len}, power {power}.", "Give 1 or more of the first two, 0 or more for power.")
    best: list[Hypothesis | None] = [None] * rows
    ended = [0] * rows
    done = [False] * rows
    for t in range(max_len):
        if t == 0:
            logprobs, state = step(torch.full((rows * beam,), bos), state)
            device = logprobs.device
            sums = torch.full((rows, beam), -torch.inf, device=device)
            sums[:, 0] = 0.0  # all hypotheses of a row are the same at first: only one of them counts
            ids = torch.empty((rows, beam, 0), dtype=torch.int64, device=device)
        else:
            logprobs, state = step(ids[:, :, -1].flatten(), state)
        size = logprobs.shape[-1]
        totals = sums[:, :, None] + logprobs.view(rows, beam, size)
        values, places = totals.flatten(1).topk(min(2 * beam, beam * size))  # at most `beam` of them end
        parents, tokens = places // size, places % size
        ending = tokens == eos
        for row, rank in (ending[:, :beam] & (values[:, :beam] > -torch.inf)).nonzero().tolist():
            if done[row]:
                continue
            ended[row] += 1
            total = float(values[row, rank])
            found = Hypothesis(ids[row, parents[row, rank]].tolist(), total, total / (t + 1) ** power, True)
            held = best[row]
            if held is None or found.score > held.score:
                best[row] = found
        values = values.masked_fill(ending, -torch.inf)
        sums, chosen = values.topk(min(beam, values.shape[1]))
        parents, tokens = parents.gather(1, chosen), tokens.gather(1, chosen)
        if sums.shape[1] < beam:  # a vocabulary so small that there are fewer continuations than hypotheses
            short = beam - sums.shape[1]
            sums = torch.nn.functional.pad(sums, (0, short), value=-torch.inf)
            parents, tokens = (torch.nn.functional.pad(part, (0, short)) for part in (parents, tokens))
        flat = (torch.arange(rows, device=device)[:, None] * beam + parents).flatten()
        state = tuple(part[flat] for part in state)
        ids = torch.cat([ids.flatten(0, 1)[flat].view(rows, beam, -1), tokens[:, :, None]], dim=-1)
        hopes = (sums[:, 0] / max_len**power).tolist()
        for row, held in enumerate(best):
            done[row] = done[row] or ended[row] >= beam or (held is not None and held.score >= hopes[row])
        if all(done):
            break
    tops = sums[:, 0].tolist()
    return [held or Hypothesis(ids[row, 0].tolist(), tops[row], tops[row] / max_len**power, False) for row, held in enumerate(best)]
