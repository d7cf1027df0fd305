"""Longer pieces of the corpus as text: what works are compared with, contexts are filled with, and trials are drawn from."""

from __future__ import annotations

import numpy as np

from palimpsest.evaluation.plan import AuditPlan

_LOOKED_AT = 2_000  # documents whose length is looked at


def long_documents(plan: AuditPlan, n: int, tokens: int) -> dict[str, str]:
    """The `n` longest documents, of at most 2,000 looked at, by name: their first `tokens` tokens as text.

    Where no document is long, as in a corpus of training sequences, neighbours are not joined: they need not belong together.
    """
    index = plan.index
    places = np.linspace(0, index.n_documents - 1, min(_LOOKED_AT, index.n_documents)).astype(int)
    lengths = np.array([len(index.document_ids(int(place))) for place in places])
    longest = places[np.argsort(-lengths, kind="stable")[:n]]
    decode = plan.models[0].tokenizer.decode
    return {str(index.document(int(place))[0]): decode(index.document_ids(int(place), 0, tokens)) for place in longest}
