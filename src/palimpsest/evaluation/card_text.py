"""An evaluation card as Markdown."""

from __future__ import annotations

from palimpsest.evaluation.card import EvaluationCard
from palimpsest.evaluation.settings import Setting
from palimpsest.evaluation.temporal import Freshness
from palimpsest.taxonomy import classify


def render_md(card: EvaluationCard) -> str:
    """The card as Markdown: what a person reads first."""
    lines = [
        f"# {card.identity.name} on {card.data.name}",
        "",
        f"Measured {card.created.isoformat()}; model `{card.identity.fingerprint[:12]}`, tokenizer `{card.identity.tokenizer[:12]}`, "
        f"{card.identity.door}.",
        f"Data `{card.data.hash[:12]}`: {len(card.data.item_ids):,} of {card.data.size:,} items, asked from {card.data.asked[0]} to "
        f"{card.data.asked[1]}; licence: {card.data.licence}; training data until {card.data.cutoff or 'an unknown day'}.",
        "",
        "| memory | persists | written by | read by | kind |",
        "|---|---|---|---|---|",
        *(f"| {m.location} | {m.persistence} | {m.write_path} | {m.access_path} | {classify(m)} |" for m in card.memory),
        "",
        "| setting | run |",
        "|---|---|",
    ]
    for setting in Setting:
        entry = getattr(card.settings, setting)
        lines.append(f"| {setting} | {'yes' if entry.run else f'no: {entry.reason}'} |")
    lines += ["", "| layer | figure | value | 95 % interval | n | test | adjusted p |", "|---|---|---|---|---|---|---|"]
    for r in card.results:
        p = f"{r.p_adjusted:.2g}" if r.p_adjusted is not None else ""
        mark = " (unreliable: raters disagree)" if r.metric in card.unreliable else ""
        value = f"{r.value.estimate:.3f} | {r.value.low:.3f} to {r.value.high:.3f}"
        lines.append(f"| {r.layer} | {r.metric}{mark} | {value} | {r.n} | {r.test or ''} | {p} |")
    if card.temporal:
        lines += ["", f"| setting | {' | '.join(Freshness)} |", f"|---|{'---|' * len(Freshness)}"]
        lines += [
            f"| {setting} | {' | '.join(f'{rates[kind].estimate:.3f}' for kind in Freshness)} |" for setting, rates in card.temporal.items()
        ]
    leaks = ", ".join(f"{count} {kind}" for kind, count in card.leaks.counts.items())
    lines += [
        "",
        f"Leaks: {leaks} (policy: {card.leaks.policy}, {len(card.leaks.excluded)} items left out).",
        f"Decoding: {card.prompting.sampler}; rule: {card.prompting.rule}; budgets: {card.budgets.evidence_tokens} tokens of evidence from "
        f"{card.budgets.k} documents, {card.budgets.answer_tokens} of answer; seeds: {', '.join(map(str, card.seeds))}.",
        f"Governed: {f'ledger `{card.ledger_head[:12]}`' if card.ledger_head else 'no'}.",
        "",
        "Limits:",
        "",
        *(f"- {limit}" for limit in card.limits),
        "",
        "The prompt:",
        "",
        "```",
        card.prompting.template,
        "```",
        "",
    ]
    return "\n".join(lines)
