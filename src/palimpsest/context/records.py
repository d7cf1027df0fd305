"""The table of context methods: one `Method` for each, read by `catalogue.py`. A new method adds one entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Count = Callable[[int, int], float]


@dataclass(frozen=True)
class Method:
    """What a user has to know of a context method to choose it.

    Attributes:
        name: for `make`; `title` for people.
        source: where it was published.
        phase: "inference", "finetune" or "pretrain".
        family: "position: …", "attention: …", "cache: …" or "input: …", after the survey.
        entry_point: "module:Class".
        exact: whether the result is that of full attention.
        needs_question: whether what it keeps depends on a question at the end of the text.
        positions: where keys stand: "original", "compact" (in the cache) or "scaled".
        has_budget: whether it takes a `budget`, in entries per key-value head; `smallest` that it can do with.
        read: keys that one decoded token attends to in a head, from length T and budget B.
        held: entries that a head keeps, from T and B.
        state: bytes besides these entries, whatever the length, from the model's configuration.
        beyond_trained: whether it is meant for texts longer than the model was trained on.
        needs_training: whether it does little without training.
        standing: a prior for `recommend` among methods of one kind; higher is better.
        needs: options that have a default, but without which it does nothing.
        suggest: options for `make`, from length, trained length and budget.
    """

    name: str
    title: str
    source: str
    family: str
    entry_point: str
    positions: str = "original"
    phase: str = "inference"
    exact: bool = False
    needs_question: bool = False
    has_budget: bool = False
    smallest: int = 1
    read: Count = lambda length, budget: length
    held: Count = lambda length, budget: length
    state: Callable[[Any], int] = lambda config: 0
    beyond_trained: bool = False
    needs_training: bool = False
    standing: float = 0.0
    needs: tuple[str, ...] = ()
    suggest: Callable[[int, int, int], dict[str, Any]] = lambda length, trained, budget: {}


def _factor(length: int, trained: int, budget: int) -> dict[str, Any]:
    return {"factor": float(max(1, -(-length // trained)))}


def _query_moments(config: Any) -> int:
    """Count, sum and outer products of the queries of every head, in float32."""
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(4 * config.num_hidden_layers * (1 + config.num_attention_heads * (dim + dim * dim)))


def _budget(length: int, trained: int, budget: int) -> dict[str, Any]:
    return {"budget": budget}


def _window(share: int) -> Callable[[int, int, int], dict[str, Any]]:
    return lambda length, trained, budget: {"budget": budget, "window": max(1, min(64, budget // share))}


def _self_extend(length: int, trained: int, budget: int) -> dict[str, Any]:
    neighbours = max(1, trained // 2)
    return {"neighbours": neighbours, "group": max(1, -(-max(0, length - neighbours) // max(1, trained - neighbours)))}


def _lm_infinite(length: int, trained: int, budget: int) -> dict[str, Any]:
    return {"n_local": max(1, min(4096, trained // 2))}


def _infllm(length: int, trained: int, budget: int) -> dict[str, Any]:
    n_local, block = max(1, min(4096, trained // 2)), max(4, min(128, trained // 64))
    return {"n_init": min(128, trained // 8), "n_local": n_local, "block": block, "exec_block": min(512, n_local)}


def _scaler(name: str, title: str, source: str, standing: float, **options: Any) -> Method:
    return Method(
        name,
        title,
        source,
        "position: interpolation",
        f"palimpsest.context.scalers:{title.split(' ')[0]}",
        positions="scaled",
        beyond_trained=True,
        standing=standing,
        suggest=options.pop("suggest", _factor),
        **options,
    )


def _evicting(name: str, title: str, source: str, place: str, standing: float, **options: Any) -> Method:
    return Method(
        name,
        title,
        source,
        options.pop("family", "cache: token eviction"),
        f"palimpsest.context.{place}",
        has_budget=True,
        read=min,
        held=min,
        standing=standing,
        suggest=options.pop("suggest", _budget),
        **options,
    )


METHODS: tuple[Method, ...] = (
    Method("full", "Full attention", "Vaswani et al. 2017", "attention: full", "palimpsest.context.windows:Full", exact=True),
    _scaler("pi", "PI (position interpolation)", "arXiv 2306.15595", 0.0),
    _scaler("ntk", "NTKAware scaling", "bloc97 2023", 1.0),
    _scaler("dynamic-ntk", "DynamicNTK scaling", "emozilla 2023", 2.0, suggest=lambda length, trained, budget: {"factor": 1.0}),
    _scaler("yarn", "YaRN", "arXiv 2309.00071", 3.0),
    _scaler(
        "abf",
        "ABF (adjusted base frequency)",
        "arXiv 2309.16039",
        2.0,
        phase="finetune",
        needs_training=True,
        suggest=lambda length, trained, budget: {"base": 500_000.0},
    ),
    Method(
        "self-extend",
        "Self-Extend",
        "arXiv 2401.01325",
        "position: interpolation",
        "palimpsest.context.self_extend:SelfExtend",
        positions="scaled",
        beyond_trained=True,
        standing=2.5,
        suggest=_self_extend,
    ),
    _evicting("sliding-window", "Sliding window", "Beltagy et al. 2020", "windows:SlidingWindow", -6.0, family="attention: window"),
    _evicting(
        "streaming-llm",
        "StreamingLLM",
        "arXiv 2309.17453",
        "windows:StreamingLLM",
        1.0,
        family="attention: sink",
        positions="compact",
        smallest=5,
        beyond_trained=True,
    ),
    _evicting("h2o", "H2O (heavy hitters)", "arXiv 2306.14048", "h2o:H2O", 3.0, smallest=2),
    _evicting("tova", "TOVA", "arXiv 2401.06104", "tova:TOVA", 3.0),
    _evicting("snapkv", "SnapKV", "arXiv 2404.14469", "snapkv:SnapKV", 4.0, needs_question=True, smallest=2, suggest=_window(4)),
    _evicting("knorm", "Knorm (smallest norms)", "arXiv 2406.11430", "key_scores:Knorm", 1.0),
    _evicting("keydiff", "KeyDiff", "arXiv 2504.15364", "key_scores:KeyDiff", 2.0),
    _evicting(
        "attendre",
        "Attendre's eviction by attention (LFA, LRA, FIFO)",
        "arXiv 2401.04881",
        "attention_eviction:AttentionEviction",
        2.0,
        smallest=2,
        suggest=lambda length, trained, budget: {"budget": budget, "chunk": max(1, min(64, budget // 4))},
    ),
    Method(
        "citrus",
        "CItruS (instruction-aware eviction)",
        "arXiv 2406.12018",
        "cache: token eviction",
        "palimpsest.context.citrus:CItruS",
        positions="compact",
        needs_question=True,
        read=lambda length, budget: min(length, 768),
        held=lambda length, budget: 2 * min(length, 1024),  # two caches of k + chunk, as in the release
        beyond_trained=True,
        standing=3.0,
    ),
    Method(
        "think",
        "ThinK (thinner keys)",
        "arXiv 2407.21018",
        "cache: channel pruning",
        "palimpsest.context.think:ThinK",
        held=lambda length, budget: 0.8 * length,  # 0.4 of the key channels go
        standing=1.0,
    ),
    _evicting(
        "pyramidkv",
        "PyramidKV",
        "arXiv 2406.02069",
        "layer_budgets:PyramidKV",
        3.0,
        needs_question=True,
        smallest=2,
        suggest=_window(4),
    ),
    _evicting("chunkkv", "ChunkKV", "arXiv 2502.00299", "layer_budgets:ChunkKV", 3.0, needs_question=True, smallest=2, suggest=_window(4)),
    _evicting("adakv", "AdaKV", "arXiv 2407.11550", "ada_kv:AdaKV", 3.5, needs_question=True, smallest=2, suggest=_window(4)),
    _evicting(
        "expected-attention",
        "Expected Attention",
        "arXiv 2510.00636",
        "expected_attention:ExpectedAttention",
        2.5,
        smallest=5,
        state=_query_moments,
    ),
    _evicting("random", "Random", "a baseline", "key_scores:Random", -8.0),
    Method(
        "lm-infinite",
        "LM-Infinite (window, first tokens, a ceiling of distances)",
        "arXiv 2308.16137",
        "attention: sink",
        "palimpsest.context.lm_infinite:LMInfinite",
        read=lambda length, budget: min(length, 4096 + 10),
        held=lambda length, budget: min(length, 4096 + 10),
        beyond_trained=True,
        standing=1.2,
        suggest=_lm_infinite,
    ),
    Method(
        "infllm",
        "InfLLM (window and looked-up blocks)",
        "arXiv 2402.04617",
        "attention: retrieval-memory",
        "palimpsest.context.infllm:InfLLM",
        read=lambda length, budget: min(length, 128 + 4096 + (16 + 1) * 128),
        beyond_trained=True,
        standing=2.6,
        suggest=_infllm,
    ),
    Method(
        "extended-mind",
        "Extended Mind (a memorised text beside the context)",
        "arXiv 2406.02332",
        "attention: retrieval-memory",
        "palimpsest.context.extended_mind:ExtendedMind",
        needs=("bank",),
        standing=-8.0,  # without a memory bank it does nothing
    ),
)
