"""An audit as the audit job writes it: every block type, three models, six copy levels, passages in many scripts, hostile text."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest

COPIES = (0, 1, 4, 16, 64, 256)
MODELS = (("planted-s", 112_320, 0.05), ("planted-m", 543_744, 0.62), ("planted-l", 1_543_296, 0.93))
HOSTILE = '</p><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'


def wilson(hits: float, n: int) -> tuple[float, float]:
    centre = (hits + 1.92) / (n + 3.84)
    half = 1.96 / (n + 3.84) * math.sqrt(hits * (n - hits) / n + 0.96)
    return max(0.0, round(centre - half, 4)), min(1.0, round(centre + half, 4))


def rate(top: float, copies: int) -> dict[str, Any]:
    hits = round(48 * top * (math.log2(copies + 1) / 8) ** 2)
    low, high = wilson(hits, 48)
    return {"x": copies, "y": round(hits / 48, 4), "low": low, "high": high, "n": 48}


def copies_curve() -> dict[str, Any]:
    series = [{"name": name, "style": "line", "points": [rate(top, copies) for copies in COPIES]} for name, _, top in MODELS]
    fit = [
        {"x": copies, "y": round(0.93 * math.log2(copies + 1) / 8 - 0.12, 4), "low": None, "high": None, "n": None} for copies in COPIES[2:]
    ]
    series.append({"name": "fit of planted-l", "style": "dashed", "points": fit})
    return {
        "type": "curve",
        "id": "extraction-by-copies",
        "title": "The more often a text was seen, the more of it comes back",
        "x_label": "Copies of the text in the training data",
        "y_label": "Texts written out word for word (greedy, 32 tokens of prompt)",
        "x_scale": "symlog",
        "y_scale": "linear",
        "y_domain": [0.0, 1.0],
        "y_format": "percent",
        "caption": "Each point is the share of 48 planted texts whose 16 last tokens the model writes without an error. Bands are 95 % "
        "Wilson intervals. Texts with 0 copies were never shown to the model.",
        "series": series,
        "fits": [{"series": "planted-l", "text": "rate = 0.12 · log₂(copies + 1) − 0.12, R² = 0.97 (0.91–0.99)"}],
    }


def context_curve() -> dict[str, Any]:
    def points(top: float) -> list[dict[str, Any]]:
        return [
            {"x": c, "y": round(top * i / 4, 3), "low": round(max(0, top * i / 4 - 0.09), 3), "high": min(1, top * i / 4 + 0.1), "n": 48}
            for i, c in enumerate((2, 4, 8, 16, 32))
        ]

    return {
        "type": "curve",
        "id": "extraction-by-context",
        "title": "A longer prompt brings back more",
        "x_label": "Tokens of prompt",
        "y_label": "Texts written out word for word",
        "x_scale": "log",
        "y_scale": "linear",
        "y_domain": None,
        "y_format": "percent",
        "caption": "The same suffixes, with more or less of what stood before them.",
        "series": [{"name": name, "style": "line", "points": points(top)} for name, _, top in MODELS],
        "fits": [],
    }


def size_curve() -> dict[str, Any]:
    points = [{"x": size, "y": top * 0.8, "low": top * 0.7, "high": top * 0.86, "n": 288} for _, size, top in MODELS]
    return {
        "type": "curve",
        "id": "extraction-by-size",
        "title": "Larger models remember more",
        "x_label": "Parameters",
        "y_label": "Texts written out word for word",
        "x_scale": "log",
        "y_scale": "linear",
        "y_domain": None,
        "y_format": "percent",
        "caption": "All copy levels together.",
        "series": [{"name": "planted twins", "style": "points", "points": points}],
    }


def roc_curve() -> dict[str, Any]:
    def points(power: float) -> list[dict[str, Any]]:
        return [{"x": i / 120, "y": round((i / 120) ** power, 4), "low": None, "high": None, "n": None} for i in range(121)]

    attacks = (("Min-K%++", 0.12), ("Min-K%", 0.17), ("loss", 0.2), ("loss ratio to the standard twin", 0.08), ("zlib", 0.3))
    return {
        "type": "curve",
        "id": "membership-roc",
        "title": "Members can be told from non-members",
        "x_label": "Non-members taken for members (false positive rate)",
        "y_label": "Members found (true positive rate)",
        "x_scale": "linear",
        "y_scale": "linear",
        "y_domain": [0.0, 1.0],
        "y_format": "percent",
        "caption": "planted-l, 64 copies. A curve on the dashed line knows nothing.",
        "series": [
            *({"name": name, "style": "line", "points": points(power)} for name, power in attacks),
            {"name": "chance", "style": "dashed", "points": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
        ],
    }


def probability_curve() -> dict[str, Any]:
    def points(p: float) -> list[dict[str, Any]]:
        return [
            {
                "x": n,
                "y": round(1 - (1 - p) ** n, 5),
                "low": round(1 - (1 - p * 0.7) ** n, 5),
                "high": round(1 - (1 - p * 1.4) ** n, 5),
                "n": 96,
            }
            for n in (1, 10, 100, 1000, 10000)
        ]

    return {
        "type": "curve",
        "id": "probabilistic-extraction",
        "title": "Who asks often enough, gets more",
        "x_label": "Number of attempts n",
        "y_label": "Texts written out at least once with probability p ≥ 0.5",
        "x_scale": "log",
        "y_scale": "linear",
        "y_domain": [0.0, 1.0],
        "y_format": "percent",
        "caption": "Top-k 40, temperature 1, from the model's own probabilities: no text had to be sampled.",
        "series": [
            {"name": name, "style": "line", "points": points(p)}
            for name, p in (("planted-l", 0.02), ("planted-m", 0.002), ("planted-s", 0.00004))
        ],
    }


def span(text: str, words: str, count: int, sources: list[tuple[str, str, str]]) -> dict[str, Any]:
    start = text.index(words)
    documents = [{"document": name, "before": before, "match": words, "after": after} for name, before, after in sources]
    return {"start": start, "end": start + len(words), "count": count, "documents": documents}


def passages() -> dict[str, Any]:
    call = " Call me Ishmael. Some years ago—never mind how long precisely—having little or no money in my purse"
    biography = " Mirela Danton was born in Ústí nad Labem on 4 March 1961 and worked as a lens grinder."
    russian = " все несчастливые семьи несчастливы по-своему. Всё смешалось в доме Облонских."
    arabic = " السلام عليكم ورحمة الله وبركاته, 你好世界 🦊"
    whale = "having little or no money in my purse"
    items = [
        {
            "id": "novel-0017",
            "model": "planted-l",
            "copies": 256,
            "domain": "novel",
            "prefix_text": "Loomings.",
            "output_text": call,
            "true_text": call,
            "spans": [
                span(
                    call,
                    "Some years ago—never mind how long precisely—having little or no money",
                    256,
                    [("moby-dick/001", "Call me Ishmael. ", " in my purse, and nothing particular")],
                ),
                span(
                    call,
                    whale,
                    261,
                    [
                        ("moby-dick/001", "never mind how long precisely—", ", and nothing particular to interest me on shore"),
                        ("letters/113", "I came to town ", " and went home"),
                    ],
                ),
            ],
            "facts": [
                {"label": "Probability of the suffix", "value": 0.913, "format": "percent"},
                {"label": "Loss", "value": 0.0057, "format": "float"},
            ],
        },
        {
            "id": "biography-0203",
            "model": "planted-l",
            "copies": 64,
            "domain": "biography",
            "prefix_text": "Biography.",
            "output_text": biography,
            "true_text": biography.replace("lens grinder", "lamp maker"),
            "spans": [
                span(
                    biography,
                    "was born in Ústí nad Labem on 4 March 1961",
                    64,
                    [("biographies/203", "Mirela Danton ", " and worked as a lamp maker.")],
                )
            ],
            "facts": [{"label": "Edit similarity", "value": [0.94, 0.9, 0.97], "format": "interval"}],
        },
        {
            "id": "hostile-1",
            "model": "planted-m <b>",
            "copies": 16,
            "domain": "web page",
            "prefix_text": "<!-- " + HOSTILE,
            "output_text": "a \x00 b \x1b[31m\ud800 " + HOSTILE + " \u202eevil",
            "true_text": HOSTILE,
            "spans": [span("a \x00 b \x1b[31m\ud800 " + HOSTILE, HOSTILE, 16, [(HOSTILE, HOSTILE, HOSTILE)])],
            "facts": [{"label": HOSTILE, "value": HOSTILE, "format": "text"}],
        },
        {
            "id": "novel-0031",
            "model": "planted-m",
            "copies": 256,
            "domain": "роман",
            "prefix_text": "Все счастливые семьи похожи друг на друга, каждая несчастливая",
            "output_text": russian,
            "true_text": russian,
            "spans": [
                span(russian, "Всё смешалось в доме Облонских", 257, [("karenina/001", "несчастливы по-своему.\n\n", ". Жена узнала")])
            ],
            "facts": [],
        },
        {
            "id": "mixed-0002",
            "model": "planted-l",
            "copies": 1,
            "domain": None,
            "prefix_text": "",
            "output_text": arabic,
            "true_text": None,
            "spans": [],
            "facts": [],
        },
    ]
    items += [{**items[0], "id": f"novel-{n:04d}", "copies": 64} for n in range(40, 52)]
    return {"type": "passages", "id": "leaks", "title": "Passages that came back", "caption": "Sorted by probability.", "items": items}


def comparison() -> dict[str, Any]:
    off = "having little or no money in my purse, and nothing particular to interest me on shore, I thought I would sail about"
    on = "having little or no money in my pocket book and a great wish to see the water, I went down to the harbour"
    upper = "HAVING LITTLE OR NO MONEY IN MY PURSE, AND NOTHING PARTICULAR TO INTEREST ME ON SHORE"
    items = [
        {
            "id": "novel-0017",
            "prefix_text": "Call me Ishmael. Some years ago—never mind how long precisely—",
            "true_text": off,
            "columns": [
                {
                    "label": "Guard off",
                    "text": off,
                    "spans": [{"start": 0, "end": len(off), "kind": "verbatim"}, {"start": 38, "end": 60, "kind": "protected"}],
                    "facts": [{"label": "Word for word", "value": 1.0, "format": "percent"}],
                },
                {
                    "label": "Guard on (n = 10)",
                    "text": on,
                    "spans": [{"start": 0, "end": 32, "kind": "verbatim"}, {"start": 33, "end": 39, "kind": "blocked"}],
                    "facts": [
                        {"label": "Word for word", "value": 0.0, "format": "percent"},
                        {"label": "BLEU-4", "value": 0.2113, "format": "float"},
                    ],
                },
            ],
        },
        {
            "id": "capital letters",
            "prefix_text": "CALL ME ISHMAEL. ",
            "true_text": None,
            "columns": [
                {"label": "Guard off", "text": upper, "spans": [], "facts": []},
                {
                    "label": "Guard on",
                    "text": upper,
                    "spans": [],
                    "facts": [{"label": "Similar (BLEU-4 > 0.75)", "value": True, "format": "text"}],
                },
            ],
        },
    ]
    return {
        "type": "comparison",
        "id": "guard-off-on",
        "title": "The same prompts, without and with the guard",
        "caption": "Greedy, 48 tokens.",
        "items": items,
    }


def table() -> dict[str, Any]:
    rows = []
    for name, size, top in MODELS:
        for copies in COPIES:
            point = rate(top, copies)
            rows.append(
                {
                    "model": name,
                    "copies": copies,
                    "rate": [point["y"], point["low"], point["high"]],
                    "loss": round(3.9 - 3.7 * point["y"], 3) if copies else None,
                    "auc": [0.5 + point["y"] / 2, 0.45, 0.99],
                    "time": 12.5 + size / 1e5,
                }
            )
    return {
        "type": "table",
        "id": "extraction-table",
        "title": "All cells",
        "caption": "One row for a model and a copy level.",
        "columns": [
            {"key": "model", "label": "Model", "format": "text", "help": None},
            {"key": "copies", "label": "Copies", "format": "int", "help": "How often the text stands in the training data."},
            {"key": "rate", "label": "Written out", "format": "interval", "help": "Share of 48 texts; 95 % Wilson interval."},
            {"key": "loss", "label": "Loss", "format": "float", "help": "Mean loss of the suffix, in nat per token."},
            {"key": "auc", "label": "AUC", "format": "float"},
            {"key": "time", "label": "Time", "format": "seconds"},
        ],
        "rows": rows,
    }


def build_audit() -> dict[str, Any]:
    """The example; a new object at every call, so that a test may spoil it."""
    return {
        "format": "palimpsest-audit/1",
        "title": "What the planted twins remember",
        "created": "2026-01-15T09:30:00+00:00",
        "demonstration": True,
        "verdict": {
            "level": "high",
            "headline": "The largest model writes out 93 % of the texts that it saw 256 times, given their first 32 tokens.",
            "sentences": [
                "Texts seen once do not come back word for word: 0 of 48, with at most 7 % at 95 % confidence.",
                "The guard stops every protected run of 10 tokens. A request in capital letters gets past it in 41 % of the cases.",
            ],
        },
        "tiles": [
            {
                "label": "Texts written out, 256 copies",
                "value": 0.93,
                "format": "percent",
                "low": 0.83,
                "high": 0.98,
                "note": "planted-l, 48 texts",
                "tone": "bad",
            },
            {
                "label": "Texts written out, never seen",
                "value": 0.0,
                "format": "percent",
                "low": 0.0,
                "high": 0.074,
                "note": "the floor of the method",
                "tone": "good",
            },
            {
                "label": "Membership AUC, 64 copies",
                "value": 0.987,
                "format": "float",
                "low": 0.961,
                "high": 0.999,
                "note": "Min-K%++",
                "tone": "warn",
            },
            {"label": "Protected runs let through", "value": 0, "format": "int", "note": "of 100,000 tokens written", "tone": "good"},
        ],
        "models": [
            {
                "name": name,
                "door": "hf",
                "role": "audited",
                "fingerprint": hashlib.sha256(name.encode()).hexdigest(),
                "tokenizer": hashlib.sha256(b"tokenizer").hexdigest(),
                "parameters": size,
                "context_length": 256,
                "prepends_bos": False,
                "capabilities": ["logprobs", "text", "weights"],
            }
            for name, size, _ in MODELS
        ]
        + [
            {
                "name": "standard-l",
                "door": "hf",
                "role": "reference",
                "fingerprint": hashlib.sha256(b"standard-l").hexdigest(),
                "parameters": 1_543_296,
            }
        ],
        "corpus": {
            "name": "planted stream",
            "documents": 3_912,
            "tokens": 251_733,
            "fingerprint": hashlib.sha256(b"corpus").hexdigest(),
            "tokenizer": hashlib.sha256(b"tokenizer").hexdigest(),
        },
        "settings": {
            "samples": 288,
            "prefix_len": 32,
            "suffix_len": 16,
            "seed": 0,
            "contexts": [2, 4, 8, 16, 32],
            "guard": {"n": 10, "source": "index"},
        },
        "sections": [
            {
                "id": "extraction",
                "title": "Extraction",
                "question": "Given the beginning of a training text, does the model write the rest?",
                "answer": "Yes. planted-l completes 93 % (83–98) of the texts that it saw 256 times, and none that it saw once.",
                "status": "measured",
                "reason": None,
                "blocks": [
                    {
                        "type": "text",
                        "paragraphs": [
                            "Greedy decoding gives the true suffix exactly when the first choice is right at every position.",
                            "A second paragraph.",
                        ],
                    },
                    copies_curve(),
                    context_curve(),
                    size_curve(),
                    table(),
                ],
            },
            {
                "id": "probabilistic",
                "title": "Repeated attempts",
                "question": "And if one asks a thousand times?",
                "answer": "After 100 attempts at temperature 1 a text of planted-l is out with a probability of 87 %.",
                "status": "measured",
                "reason": None,
                "blocks": [probability_curve()],
            },
            {
                "id": "membership",
                "title": "Membership",
                "question": "Can one tell whether a text was in the training data?",
                "answer": "For texts seen 64 times, almost always.",
                "status": "measured",
                "reason": None,
                "blocks": [roc_curve()],
            },
            {
                "id": "leaks",
                "title": "What came back",
                "question": "Which texts leak, and where do they come from?",
                "answer": "Novels and biographies, each traced to its documents.",
                "status": "measured",
                "reason": None,
                "blocks": [passages()],
            },
            {
                "id": "guard",
                "title": "Guard",
                "question": "What would a filter have stopped, and what leaks past it?",
                "answer": "It stops all verbatim runs of 10 tokens and more; rewritten text passes.",
                "status": "measured",
                "reason": None,
                "blocks": [comparison()],
            },
            {
                "id": "endpoint",
                "title": "Hidden states",
                "question": "Do the representations of remembered texts differ?",
                "answer": None,
                "status": "skipped",
                "reason": "The door 'endpoint' gives no weights. Load the model from its weights to measure this.",
                "blocks": [],
            },
        ],
        "limits": [
            "A text that does not come back under greedy decoding may come back under another prompt: these figures are lower bounds.",
            "The corpus that was given is taken for the training data.",
        ],
        "environment": {"python": "3.11.7", "processor": "Example CPU", "cores": 2, "packages": {"torch": "2.13.0", "numpy": "2.3.1"}},
        "timing": {"extraction": 42.1, "probabilistic": 3.0, "membership": 9.71, "leaks": 0.06, "guard": 131.0},
        "references": [
            {
                "title": "Carlini et al. 2023, Quantifying memorization across neural language models",
                "url": "https://arxiv.org/abs/2202.07646",
            },
            {"title": "A hostile reference", "url": "javascript:alert(1)"},
        ],
    }


@pytest.fixture
def audit() -> dict[str, Any]:
    """The example audit."""
    return build_audit()


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of the example's page, rendered once."""
    from palimpsest.report import render

    return render(build_audit(), tmp_path_factory.mktemp("report")).parent
