"""The reference: one page a package, from the signatures and docstrings of the source, read without importing it."""

from __future__ import annotations

import ast
import itertools
import re
import textwrap
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "src" / "palimpsest"
PAGES = {
    "audit": "Measurements of what is in the weights.",
    "corpus": "Reading, indexing and searching a corpus.",
    "guard": "Filters of what may come out.",
    "models": "Doors to language models.",
    "training": "The training loop.",
    "evaluation": "The audit and its steps; the protocol of three settings, the four layers of memory, and the evaluation card.",
    "experiments": "Claim checks and the planted-corpus laboratory.",
    "report": "From an audit to a page.",
    "plot": "Figures.",
    "stats": "Intervals, tests, corrections, agreement, sequential tests and sample sizes.",
    "core": "What all packages share: measurements, the catalogue, the tokenizer, files and errors.",
}
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields|Example):$")


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: adds the pages of the reference."""
    from mkdocs.structure.files import File

    pages = {f"reference/{name}.md": page(name) for name in PAGES}
    listed = "\n".join(f"- [`{name}`]({name}.md): {line}" for name, line in PAGES.items())
    pages["reference/index.md"] = (
        f"# Reference\n\nEverything public, package by package; the command line explains itself with `--help`.\n\n{listed}\n"
    )
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def page(package: str) -> str:
    """The reference of one package."""
    folder = PACKAGE if package == "core" else PACKAGE / package
    lines = [f"# {'palimpsest' if package == 'core' else f'palimpsest.{package}'}", "", PAGES[package], ""]
    for file in sorted(folder.glob("*.py") if package == "core" else folder.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        public = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")]
        if file.name == "__init__.py" or not public:
            continue
        module = ".".join(("palimpsest", *file.relative_to(PACKAGE).with_suffix("").parts))
        lines += [f"## {module}", "", *docstring(ast.get_docstring(tree) or ""), ""]
        for node in public:
            lines += [*describe(node, 3), ""]
    return "\n".join(lines)


def describe(node: ast.ClassDef | ast.FunctionDef, level: int) -> list[str]:
    """A function, or a class with its public methods."""
    kind = "class " if isinstance(node, ast.ClassDef) else ""
    lines = [f"{'#' * level} {kind}{node.name}", "", "```python", signature(node), "```", "", *docstring(ast.get_docstring(node) or "")]
    if isinstance(node, ast.ClassDef):
        for member in node.body:
            if isinstance(member, ast.FunctionDef) and not member.name.startswith("_") and ast.get_docstring(member):
                lines += ["", *describe(member, level + 1)]
    return lines


def signature(node: ast.ClassDef | ast.FunctionDef) -> str:
    """How the object is called, as in the source; of a class, its constructor or its fields."""
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return wrap(f"{node.name}(", [text for text in ast.unparse(node.args).split(", ") if text], f"){returns}")
    bases = f"({', '.join(ast.unparse(base) for base in node.bases)})" if node.bases else ""
    constructor = next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None)
    if constructor is not None:
        parameters = ast.unparse(constructor.args).removeprefix("self").removeprefix(", ").split(", ")
        return wrap(f"{node.name}(", [text for text in parameters if text], ")")
    fields = [ast.unparse(member) for member in node.body if isinstance(member, ast.AnnAssign)]
    return "\n    ".join([f"class {node.name}{bases}:", *(fields or ["..."])])


def wrap(head: str, parts: list[str], tail: str) -> str:
    """A call in one line where it fits, else with every parameter on its own."""
    line = head + ", ".join(parts) + tail
    return line if len(line) <= 100 else head + "\n    " + ", ".join(parts).replace(", ", ",\n    ") + "\n" + tail


def docstring(text: str) -> list[str]:
    """A docstring as Markdown: sections as bold headings, their entries as lists, examples as code."""
    lines: list[str] = []
    for name, body in sections(text):
        if name:
            lines += ["", f"**{name}**", ""]
        if name == "Example":
            lines += ["```python", *body, "```"]
        elif name in ("", "Returns", "Yields"):
            lines += prose(body)
        else:
            lines += ["  " + plain(line.strip()) if line.startswith(" ") else entry(line) for line in body]
    return lines


def sections(text: str) -> list[tuple[str, list[str]]]:
    """The parts of a docstring, each with its heading ("" for prose) and its lines, dedented."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines():
        if match := SECTION.match(line):
            parts.append((match[1], []))
        else:
            if parts[-1][0] and line and not line.startswith(" "):
                parts.append(("", []))
            parts[-1][1].append(line)
    return [(name, textwrap.dedent("\n".join(body)).strip("\n").split("\n")) for name, body in parts]


def prose(lines: list[str]) -> list[str]:
    """Paragraphs; indented lines and doctests become code."""
    result: list[str] = []
    for code, group in itertools.groupby(lines, key=lambda line: line.startswith(("    ", ">>>"))):
        block = list(group)
        result += ["", "```python", *textwrap.dedent("\n".join(block)).split("\n"), "```", ""] if code else [plain(line) for line in block]
    return result


def entry(line: str) -> str:
    """One entry of a section as a list item."""
    name, colon, rest = line.partition(": ")
    return f"- `{name}`: {plain(rest)}" if colon else f"- {plain(line)}" if line else ""


def plain(text: str) -> str:
    """Text in which only what stands between backticks is code, and nothing is HTML."""
    return "`".join(
        part if code else part.replace("<", "&lt;") for code, part in zip(itertools.cycle((False, True)), text.split("`"), strict=False)
    )
