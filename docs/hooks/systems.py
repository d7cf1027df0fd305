"""Pages that are generated when the site is built: one for every system, their table, and the root's CONTRIBUTING and CHANGELOG.

A system's page is its card from the catalogue and, once `palimpsest reproduce` has been run, the outcome of its claim check with
the figures. Nothing about a state is written by hand; `python docs/hooks/systems.py` writes the README's status table anew.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from palimpsest.catalogue import FAMILIES, SEEDS, SYSTEMS, State, System, claim_result, experiment_file, missing, state

ROOT = Path(__file__).parents[2]
FAMILY_NAMES = {
    "audit-extraction": "What is in the weights: extraction and tracing",
    "audit-probes": "What is in the weights: probes, evaluation, governance",
    "context": "Longer context for frozen models, serving",
    "continual": "Continual learning",
    "latent": "Learned memory around a backbone",
    "mixers": "Recurrent, state-space and memory-augmented layers",
    "recall-ranking": "External memory, retrieval and ranking",
    "training": "Training over long sequences",
}
MARKS = {State.PLANNED: "·", State.IMPLEMENTED: "◐", State.CLAIM_SHOWN: "●", State.CLAIM_FAILED: "○"}
STATUS = re.compile(r"(<!-- status -->\n).*?(<!-- /status -->)", re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: adds the generated pages and figures."""
    from mkdocs.structure.files import File

    pages = {"systems/index.md": table_page(), "recipes.md": recipes_page(), "contributing.md": root_page("CONTRIBUTING.md")}
    pages["changelog.md"] = root_page("CHANGELOG.md")
    for system in SYSTEMS:
        pages[f"systems/{system.slug}.md"] = system_page(system)
        pages |= figures(system)
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def root_page(name: str) -> str:
    """A file of the repository's root as a page; its links to files of the repository become plain text."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)[^)]+\)", r"\1", text)


def recipes_page() -> str:
    """The README's section of recipes."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Recipes\n", 1)[1].split("\n## ", 1)[0]
    return "# Recipes\n" + re.sub(r"\]\(docs/", "](", text).replace("\n### ", "\n## ")


def table_page() -> str:
    """All systems, by family, with their states."""
    counts = Counter(state(system) for system in SYSTEMS)
    lines = ["# Systems", "", f"{len(SYSTEMS)} published systems: {', '.join(f'{counts[s]} {s}' for s in State if counts[s])}.", ""]
    lines += ["The states are derived from the source files and from the committed results of the claim checks.", ""]
    for family in FAMILIES:
        lines += [f"## {FAMILY_NAMES[family]}", "", "| no. | system | state | memory | paper |", "| --- | --- | --- | --- | --- |"]
        for system in SYSTEMS:
            if system.family == family:
                link = f"[{system.slug}]({system.slug}.md)"
                cells = (
                    f"{system.number:03d}",
                    link,
                    f"{MARKS[state(system)]} {state(system)}",
                    system.memory_kind.value,
                    escape(system.title),
                )
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def system_page(system: System) -> str:
    """The card of a system and the outcome of its claim check."""
    memory, control = system.memory, system.memory.controllability
    granted = [name.replace("_", " ") for name, value in vars(control).items() if value is True]
    absent = set(missing(system))
    homes = "<br>".join(f"`{entry}`" + (" (not there yet)" if entry in absent else "") for entry in system.lives_in)
    source = f"[{system.source}]({system.url})" if system.url else system.source
    rows = {
        "source": source,
        "kind": ", ".join(system.kinds),
        "memory": system.memory_kind.value,
        "location": words(memory.location),
        "persistence": words(memory.persistence),
        "write path": words(memory.write_path),
        "access path": words(memory.access_path),
        "control": f"{', '.join(granted) or 'none'}; revert: {control.revert.value}",
        "stages": " → ".join(stage.value for stage in system.stages),
        "lives in": homes,
    }
    lines = [f"# {system.slug}", "", f"*{escape(system.title)}*", "", f"> {system.claim}", ""]
    lines += [f"| state | {mark(system)} |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    if experiment_file(system.slug).is_file():
        lines += ["", "```bash", f"palimpsest reproduce {system.slug}", "```"]
    return "\n".join(lines + result_section(system)) + "\n"


def result_section(system: System) -> list[str]:
    """What the claim check found: every figure of every seed, the notes, the figures, the machine."""
    result = claim_result(system)
    if result is None:
        return ["", "## What was found", "", "The claim has not been checked yet."]
    held = sum(run["passed"] for run in result.runs)
    decided = len(result.runs) >= SEEDS or not result.passed
    verdict = "The claim **fails**" if not result.passed else "The claim holds" if decided else f"Not decided yet (by {SEEDS} seeds)"
    lines = ["", "## What was found", "", escape(result.statement), ""]
    lines += [f"{verdict} at `{result.scale}` scale: it passed for {held} of {len(result.runs)} seeds.", ""]
    seeds = [f"seed {run['seed']}" for run in result.runs]
    lines += [f"| check | asked | {' | '.join(seeds)} |", "| --- | --- |" + " ---: |" * len(seeds)]
    for what in dict.fromkeys(check["what"] for run in result.runs for check in run["checks"]):
        checks = [next((check for check in run["checks"] if check["what"] == what), None) for run in result.runs]
        first = next(check for check in checks if check is not None)
        asked = "reported" if first["threshold"] is None else f"{first['relation']} {figure(first['threshold'])}"
        unit = f" ({first['unit']})" if first["unit"] else ""
        lines.append(f"| {escape(what)}{unit} | {asked} | {' | '.join(cell(check) for check in checks)} |")
    notes = list(dict.fromkeys(note for run in result.runs for note in run["notes"]))
    lines += ["", *(f"- {escape(note)}" for note in notes)]
    for curve in result.runs[0]["curves"]:
        caption = f"{curve['caption']} " if curve["caption"] else ""
        lines += ["", f"### {escape(curve['title'])}", ""]
        lines += [f"![{escape(curve['title'])}]({system.slug}-{curve['id']}-{shade}.svg#only-{shade})" for shade in ("light", "dark")]
        lines += ["", f"{escape(caption)}Seed {result.runs[0]['seed']}."]
    environment, seconds = result.runs[0]["environment"], sum(run["seconds"] for run in result.runs)
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    lines += ["", f"Measured in {seconds:,.0f} s on {environment.get('processor')}, {environment.get('cores')} cores, with {packages}."]
    return lines


def figures(system: System) -> dict[str, str]:
    """The figures of a system's result as SVG, in light and dark."""
    result = claim_result(system)
    if result is None:
        return {}
    from palimpsest.measurement import Curve
    from palimpsest.plot import DARK, LIGHT, svg

    drawn = {}
    for data in result.runs[0]["curves"]:
        curve = Curve.from_dict(data)
        for shade, colours in (("light", LIGHT), ("dark", DARK)):
            drawn[f"systems/{system.slug}-{curve.id}-{shade}.svg"] = svg(curve, colours=colours, title=False)
    return drawn


def cell(check: dict[str, Any] | None) -> str:
    """One figure of the table; what failed is set in bold."""
    if check is None:
        return "not measured"
    text = figure(check["ours"]) + ("" if check["baseline"] is None else f" vs {figure(check['baseline'])}")
    return text if check["passed"] else f"**{text}**"


def figure(value: float | None) -> str:
    """A figure with four significant digits."""
    return "none" if value is None else f"{value:.4g}"


def mark(system: System) -> str:
    """A system's state with its sign, not to be broken over lines."""
    return f"{MARKS[state(system)]} {state(system)}".replace(" ", "\u00a0")


def words(name: str) -> str:
    """An enum's value as words."""
    return name.replace("_", " ")


def escape(text: str) -> str:
    """Text that Markdown leaves as it is, also inside a table."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", text)


def status_table() -> str:
    """The README's table: the systems that are there, with what was found."""
    rows = ["| no. | system | paper | state |", "| --- | --- | --- | --- |"]
    for system in SYSTEMS:
        if state(system) is not State.PLANNED:
            title = f"[{escape(system.title)}]({system.url})" if system.url else escape(system.title)
            rows.append(f"| {system.number:03d} | `{system.slug}` | {title} | {mark(system)} |")
    counts = Counter(state(system) for system in SYSTEMS)
    summary = ", ".join(f"{counts[name]} {name}" for name in State if counts[name])
    return "\n".join([*rows, "", f"Of {len(SYSTEMS)} systems: {summary}.", ""])


def with_status(readme: str) -> str:
    """The README's text with its status table written anew."""
    return STATUS.sub(lambda match: match[1] + status_table() + match[2], readme)


if __name__ == "__main__":
    from palimpsest.files import write_text

    write_text(ROOT / "README.md", with_status((ROOT / "README.md").read_text(encoding="utf-8")))
