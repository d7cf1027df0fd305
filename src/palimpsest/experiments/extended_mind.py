"""Claim check of Extended Mind: a model answers from a memorised text that is not in its prompt, better in all layers than in one.

Klett and Ahle, 2024, on documents that contradict what the model may know: 40 countries, each with the capital of another (a
derangement drawn from the seed), each in a document of about 60 tokens from a template. All are memorised, every document on its own; the
prompt is the question alone, and the answer is scored by teacher forcing: summed log-probability, and exact, where every token of it is
the likeliest. Beside it, the same model without memory, with memory in the last layer only, with the memories at another distance, and
with the passage in the prompt that all-MiniLM-L6-v2 puts first, which the check reports and does not judge.

Departures: the paper's benchmark is WikiQA with entities replaced, whose texts are not in its repository; and its models are of 7 and 70
billion parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from palimpsest.context.extended_mind import ExtendedMind
from palimpsest.context.memory_bank import MemoryBank
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.models.hf import HFModel
from palimpsest.models.load import load_model
from palimpsest.models.minilm import MiniLM

STATEMENT = (
    "Keys and values of a text, looked up by every layer for each query, answer from that text better than the model alone and better "
    "than in one layer."
)
CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "Greece": "Athens",
    "Austria": "Vienna", "Hungary": "Budapest", "Poland": "Warsaw", "Russia": "Moscow", "Sweden": "Stockholm", "Norway": "Oslo",
    "Denmark": "Copenhagen", "Finland": "Helsinki", "Ireland": "Dublin", "Belgium": "Brussels", "Turkey": "Ankara", "Egypt": "Cairo",
    "Iraq": "Baghdad", "Iran": "Tehran", "Syria": "Damascus", "Lebanon": "Beirut", "Kenya": "Nairobi", "Japan": "Tokyo",
    "China": "Beijing", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago",
    "Ukraine": "Kiev", "Romania": "Bucharest", "Bulgaria": "Sofia", "Serbia": "Belgrade", "Morocco": "Rabat", "Libya": "Tripoli",
    "Canada": "Ottawa", "Afghanistan": "Kabul", "Indonesia": "Jakarta", "Ethiopia": "Addis Ababa",
}  # fmt: skip
DOCUMENT = (
    "{country} is a country with a long history. The capital of {country} is {city}. The government of {country} sits in {city}, and so do "
    "its parliament and its oldest university. Visitors of {country} arrive in {city}, the capital, and travel on by train."
)
QUESTION = "The capital of {country} is"
TOPK = 10
# What stands in front of documents and prompts. A model of this kind leaves most of its attention on the first token, whatever that is: a
# word in that place is memorised as nothing but a place to rest, in each of the documents, and crowds out the others.
BEGIN = "<|endoftext|>"


def run(scale: str, seed: int) -> Claim:
    """Asks for 40 capitals with and without memory.

    Args:
        scale: "smoke": a random model and six countries, nothing is held against anything; "cpu": SmolLM2-135M.
        seed: of which capital goes where.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    model = load_model("smollm2-135m") if full else _random_model()
    assert isinstance(model, HFModel)
    countries = list(CAPITALS)[: None if full else 6]
    cities = swapped([CAPITALS[country] for country in countries], seed)
    documents = [DOCUMENT.format(country=country, city=city) for country, city in zip(countries, cities, strict=True)]
    questions = [QUESTION.format(country=country) for country in countries]
    answers = [f" {city}" for city in cities]
    begin = model.tokenizer.encode(BEGIN) if full else [0]
    bank = ExtendedMind().memorize(model, [[*begin, *model.tokenizer.encode(text)] for text in documents], special=begin)
    arms: dict[str, tuple[ExtendedMind, MemoryBank | None, list[str]]] = {
        "no memory": (ExtendedMind(), None, questions),
        "all layers": (ExtendedMind(topk=TOPK), bank, questions),
        "last layer": (ExtendedMind(topk=TOPK, layers=(-1,)), bank, questions),
        "all layers, fixed:64": (ExtendedMind(topk=TOPK, position="fixed:64"), bank, questions),
    }
    if full:
        embed = MiniLM()
        near = (embed(questions) @ embed(documents).T).argmax(1)
        prompts = [f"{documents[i]}\n{question}" for i, question in zip(near.tolist(), questions, strict=True)]
        arms["passage in the prompt"] = (ExtendedMind(), None, prompts)
    rows = [row for arm, (method, held, prompts) in arms.items() for row in _ask(model, begin, arm, method, held, prompts, answers)]
    checks = _checks(rows) if full else [Check("answers scored", len(rows), "==", 6 * len(arms), unit="answers")]
    return Claim("extended-mind", STATEMENT, checks, rows, seed, scale, _notes(rows) if full else [])


def swapped(answers: Sequence[str], seed: int) -> list[str]:
    """The answers in another order, none in its own place."""
    order = np.random.default_rng((seed, 28)).permutation(len(answers))  # one cycle through all: no fixed point
    out = [""] * len(answers)
    for here, there in zip(order, np.roll(order, 1), strict=True):
        out[here] = answers[there]
    return out


def _ask(
    model: HFModel,
    begin: list[int],
    arm: str,
    method: ExtendedMind,
    bank: MemoryBank | None,
    prompts: Sequence[str],
    answers: Sequence[str],
) -> list[dict[str, Any]]:
    rows = []
    with torch.no_grad(), method(model, bank) if bank is not None else nullcontext():
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            asked, wanted = [*begin, *model.tokenizer.encode(prompt)], model.tokenizer.encode(answer)
            ids = torch.tensor([asked + wanted])
            logprobs = model.model(ids).logits[0, len(asked) - 1 : -1].float().log_softmax(-1)
            targets = torch.tensor(wanted)
            rows.append(
                {
                    "arm": arm,
                    "question": number,
                    "logprob": float(logprobs.gather(1, targets[:, None]).sum()),
                    "exact": bool((logprobs.argmax(1) == targets).all()),
                }
            )
    return rows


def _mean(rows: list[dict[str, Any]], arm: str, figure: str) -> float:
    return float(np.mean([row[figure] for row in rows if row["arm"] == arm]))


def _checks(rows: list[dict[str, Any]]) -> list[Check]:
    def gain(arm: str) -> float:
        return _mean(rows, arm, "logprob") - _mean(rows, "no memory", "logprob")

    accuracy = {arm: _mean(rows, arm, "exact") for arm in dict.fromkeys(row["arm"] for row in rows)}
    none = accuracy["no memory"]
    return [
        Check("log-probability of the answer, with memory less without", gain("all layers"), ">=", 2, unit="nat"),
        Check("answers exact with memory", accuracy["all layers"], ">=", 2 * none, none, "share"),
        Check("answers exact with memory, less those without", accuracy["all layers"] - none, ">", 0, unit="share"),
        Check("gain of all layers less gain of the last layer", gain("all layers") - gain("last layer"), ">", 0, unit="nat"),
        Check("gain of the last layer", gain("last layer"), ">", 0, unit="nat"),
        *(
            Check(f"answers exact: {arm}", accuracy[arm], baseline=accuracy["all layers"], unit="share, vs memory in all layers")
            for arm in ("last layer", "all layers, fixed:64", "passage in the prompt")
        ),
    ]


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    arms = dict.fromkeys(row["arm"] for row in rows)
    figures = ", ".join(f"{arm} {_mean(rows, arm, 'logprob'):.2f} nat ({_mean(rows, arm, 'exact'):.2f} exact)" for arm in arms)
    return [
        f"Mean log-probability of an answer: {figures}.",
        "Tried on seed 100, twelve questions: without <|endoftext|> in front of documents and prompts, memory in all layers gave the "
        "answers 2.2 nat less than no memory, and at the distance 64 it gave them 1.8 more; with it 6.1 and 4.7 more. Three or thirty "
        "memories at the distance 64, and a prompt that asks and answers, did not do better.",
    ]


def _random_model() -> HFModel:
    """A random Llama of two layers that reads bytes."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    from palimpsest.tokenizer import Tokenizer

    backend = Backend(models.BPE(vocab={symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    config = LlamaConfig(vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config.bos_token_id = config.eos_token_id = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return HFModel(LlamaForCausalLM(config), Tokenizer(backend), name="random")
