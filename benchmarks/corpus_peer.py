"""infini-gram on the tokens of `benchmarks/corpus.py`, and whether it says the same as our engine, query by query.

Four things about infini-gram 2.6.0 must be known to compare:

* The end of a document is a token to it. It counts in the total, and a suffix that stands only at ends is the longest that it knows,
  with nothing but an end after it. Ours is then shorter, and is compared with its n-gram of that length.
* A context that ends both the last document and another one is followed by nothing but ends, it says: first and last token of the
  stretch are the same end, and what lies between is taken for that too. So an empty document stands last in every corpus here.
* It prefetches what lies before the table when a context comes first of all, and may crash there. So the answers are asked with the
  prefetching off; it changes none of them.
* Its indexer sorts wrongly, without a word, what is smaller than the 100,000 bytes by which its parts overlap.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.corpus import CorpusIndex

END = 65_500  # what it calls the end of a document; stands nowhere in the corpora
SETTINGS: dict[str, Any] = {"eos_token_id": END, "vocab_size": 65_535, "token_dtype": "u16"}
MODES: dict[str, dict[str, int]] = {
    "as it comes": {},
    "prefetching off": dict.fromkeys((f"{part}_prefetch_depth" for part in ("ds", "sa", "od")), 0),
}
_THREADS = 200  # distinct tokens of a distribution that is asked: infini-gram starts a thread or two for each


def build_peer(docs: list[np.ndarray], folder: Path) -> dict[str, float]:
    """Writes the documents in its layout and has it sort them: seconds, tokens per second, bytes per token."""
    folder.mkdir()
    np.concatenate([np.concatenate([[65_535], doc]) for doc in docs]).astype("<u2").tofile(folder / "tokenized.0")
    np.cumsum([0] + [2 * (doc.size + 1) for doc in docs[:-1]]).astype("<u8").tofile(folder / "offset.0")
    (folder / "texts").mkdir()  # the tokens are there already
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    options = {"data_dir": folder / "texts", "save_dir": folder, "token_dtype": "u16", "cpus": os.cpu_count(), "mem": 8, "ulimit": limit}
    words = (str(part) for name, value in options.items() for part in (f"--{name}", value))
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "infini_gram.indexing", *words], check=True, capture_output=True)
    whole = time.perf_counter() - begin
    total = sum(map(len, docs))
    size = sum((folder / name).stat().st_size for name in ("tokenized.0", "table.0"))
    return {"build": whole, "tokens per second": total / whole, "bytes per token": size / (total + len(docs))}


def open_peer(folder: Path, mode: str) -> Any:
    """Its engine on the folder, with what its trace needs."""
    from infini_gram.engine import InfiniGramEngine

    return InfiniGramEngine(index_dir=str(folder), precompute_unigram_logprobs=True, **SETTINGS, **MODES[mode])


def adversarial_corpus(seed: int, documents: int = 20_000) -> list[np.ndarray]:
    """Documents of few ids u16, the first and the last one among them: runs, periods, copies of whole documents, empty ones."""
    rng = np.random.default_rng(seed)
    ids = np.array([0, 1, 255, 256, 65_534], np.uint16)
    docs: list[np.ndarray] = []
    for _ in range(documents):
        unit = rng.choice(ids, rng.integers(1, 5))
        kinds = [
            lambda unit=unit: np.tile(unit, rng.integers(1, 60)),
            lambda: rng.choice(ids, rng.integers(1, 40)),
            lambda: np.empty(0, np.uint16),
            lambda: rng.choice(ids, 1),
            lambda: docs[rng.integers(len(docs))].copy() if docs else rng.choice(ids, 3),
            lambda: np.concatenate([docs[rng.integers(len(docs))][-9:], rng.choice(ids, 3)]) if docs else rng.choice(ids, 3),
        ]
        docs.append(kinds[rng.integers(len(kinds))]())
    return [*docs, np.empty(0, np.uint16)]


def adversarial_prompts(docs: list[np.ndarray], number: int, seed: int) -> list[list[int]]:
    """Prompts of 1 to 50 ids: up to the end of a document, across two documents, runs of the first or the last id, broken copies."""
    rng = np.random.default_rng(seed)
    full = [doc for doc in docs if doc.size]
    ids = np.unique(np.concatenate(full))
    prompts = []
    for i in range(number):
        doc, other = full[rng.integers(len(full))], full[rng.integers(len(full))]
        end = int(rng.integers(1, doc.size + 1))
        prompt = [doc, np.concatenate([doc, other[:3]]), doc[:end], np.full(50, rng.choice(ids[[0, -1]])), doc[:end].copy()][i % 5]
        prompt = prompt[-int(rng.integers(1, 51)) :]
        if i % 5 == 4:
            prompt[rng.integers(prompt.size)] = rng.choice(ids)
        prompts.append(prompt.astype(np.int64).tolist())
    return prompts


def random_prompts(text: np.ndarray, number: int, size: int, seed: int) -> list[list[int]]:
    """Passages of `size` ids with one that does not belong, anywhere but at the end: the longest known suffix has any length."""
    rng = np.random.default_rng(seed)
    prompts = []
    for start in rng.integers(0, text.size - size, number):
        prompt = text[start : start + size].astype(np.int64).tolist()
        prompt[int(rng.integers(size - 2))] = int(text[rng.integers(text.size)])
        prompts.append(prompt)
    return prompts


def require_agreement(index: CorpusIndex, peer: Any, prompts: list[list[int]], seed: int) -> dict[str, int]:
    """Counts, ∞-gram probabilities and distributions of all prompts on both sides.

    Args:
        index: ours.
        peer: an `InfiniGramEngine` on the same corpus, its prefetching off.
        prompts: rows of ids, each with at least one.
        seed: of the tokens whose probability is asked.

    Returns:
        how many prompts were compared, and in how many our suffix was the shorter one.

    Raises:
        AssertionError: the two differ; the message is the prompt.
    """
    rng = np.random.default_rng(seed)
    done = {"prompts": len(prompts), "shorter suffix": 0}
    for prompt in prompts:
        assert index.count(prompt[-5:]) == peer.count(prompt[-5:])["count"], prompt
        dist = index.infgram_ntd(prompt)
        token = int(dist.ids[rng.integers(dist.ids.size)]) if rng.random() < 0.5 else int(rng.choice(index.unigrams[0]))
        count, total, suffix_len = index.infgram_prob(prompt, token)
        theirs = peer.infgram_prob(prompt, token)
        suffix = prompt[len(prompt) - suffix_len :]
        if theirs["suffix_len"] != suffix_len:
            known = prompt[len(prompt) - theirs["suffix_len"] :]
            assert theirs["suffix_len"] > suffix_len, prompt
            assert index.ntd(known).total == 0, prompt
            assert index.count(known) == theirs["prompt_cnt"], prompt
            done["shorter suffix"] += 1
            theirs = peer.prob(suffix, token)
        assert (count, total + dist.eod_count) == (theirs["cont_cnt"], theirs["prompt_cnt"]), prompt
        for context, ours in ((suffix, dist), (prompt[-4:], index.ntd(prompt[-4:]))):
            if ours.ids.size <= _THREADS:
                entries = peer.ntd(context, max_support=10**9)["result_by_token_id"]
                counts = {token: entry["cont_cnt"] for token, entry in entries.items()}
                assert counts.pop(END, 0) == ours.eod_count, prompt
                assert counts == dict(zip(ours.ids.tolist(), ours.counts.tolist(), strict=True)), prompt
    return done


def check(index: CorpusIndex, peer: Any, text: np.ndarray, folder: Path, number: int) -> dict[str, dict[str, int]]:
    """`require_agreement` on `number` random prompts of 49 ids, and on as many adversarial ones about a corpus built in `folder`."""
    done = {"random": require_agreement(index, peer, random_prompts(text, number, 49, seed=2), seed=3)}
    docs = adversarial_corpus(seed=4)
    small = CorpusIndex.build(docs, None, folder / "adversarial", token_dtype="u16", shards=3)
    build_peer(docs, folder / "adversarial-peer")
    adversary = open_peer(folder / "adversarial-peer", "prefetching off")
    done["adversarial"] = require_agreement(small, adversary, adversarial_prompts(docs, number, seed=5), seed=6)
    return done
