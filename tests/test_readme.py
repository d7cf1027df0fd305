"""The README and the site: recipes run, commands parse, names exist, the status table is the derived one."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import re
import shlex
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from palimpsest.catalogue import SYSTEMS, State, state
from palimpsest.cli import VERBS, load_verb

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def recipes() -> dict[str, str]:
    """Python recipes by their heading."""
    parts = [part.split("\n", 1) for part in README.split("\n### ")[1:]]
    return {title: code for title, text in parts for code in blocks(text, "python")}


def hook(name: str) -> ModuleType:
    """A hook of the site, as mkdocs loads it."""
    spec = importlib.util.spec_from_file_location(f"hook_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch, tiny_model, tiny_tokenizer) -> Path:
    """A folder with what the recipes name: texts of two kinds, packed sequences, a tokenizer, and a tiny model in the place of SmolLM2."""
    for folder in ("my-texts", "seen", "unseen"):
        (tmp_path / folder).mkdir()
        for i in range(24):
            (tmp_path / folder / f"{i}.txt").write_text(" ".join(f"{folder[0]}{i * 37 % 101} the page shows {i + j}" for j in range(40)))
    text = " ".join(str(n) for n in range(20_000))
    np.save(tmp_path / "sequences.npy", np.array(tiny_tokenizer.encode(text)[: 400 * 64]).reshape(400, 64))
    tiny_tokenizer.save(tmp_path / "tokenizer.json")
    tiny_model.model.save_pretrained(tmp_path / "model")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    wrapped.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_seven_recipes_three_of_them_for_the_shell():
    section = README.split("## Recipes\n", 1)[1].split("\n## ", 1)[0]
    assert section.count("\n### ") == 7
    assert len(recipes()) == 4


@pytest.mark.filterwarnings("ignore::palimpsest.audit.membership.BiasedSplitWarning")
@pytest.mark.parametrize("title", recipes())
def test_a_recipe_runs(workplace: Path, title):
    """As it stands there; only the model is a tiny one."""
    code = recipes()[title].replace('"smollm2-135m"', '"model"').replace('"HuggingFaceTB/SmolLM2-135M"', '"model"')
    assert "SmolLM2" not in code
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, title, "exec"), {"__name__": "recipe"})
    if "print(" in code:
        assert said.getvalue().strip() not in ("", "None", "None None")
    else:
        assert np.load("planted.npy").shape == (400, 64)
        assert not np.array_equal(np.load("planted.npy"), np.load("sequences.npy"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_a_page_compiles(page: Path):
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        ast.parse(code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_on_a_page_has_the_options_that_it_names(page: Path):
    """Every `palimpsest …` line is parsed by the real command, without being run; every `make` target exists."""
    lines = [line.split("#")[0].strip() for block in blocks(page.read_text(encoding="utf-8"), "bash") for line in block.splitlines()]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in lines:
        words = shlex.split(line.split("<")[0])
        if words[:1] == ["make"]:
            assert words[1] in targets, line
        elif words[:1] == ["palimpsest"]:
            command, name, rest = load_verb(words[1]), words[1], words[2:]
            while hasattr(command, "commands"):
                name, command, rest = rest[0], command.commands[rest[0]], rest[1:]
            if "--help" not in rest:
                command.make_context(name, [word.replace("MODEL", "model").replace("CORPUS", "corpus") for word in rest])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_words_set_as_code_name_things_that_exist(page: Path):
    """Of `palimpsest VERB` the verb, of `src/…`, `docs/…` and the like the file."""
    for word in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        if match := re.fullmatch(r"palimpsest ([a-z]+)\b.*", word):
            assert match[1] in VERBS, word
        if re.fullmatch(r"(src|tests|docs|benchmarks)/[\w/.]*", word) and "my_system" not in word:
            assert (ROOT / word).exists(), word


def test_local_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).is_file(), target


def test_the_status_table_is_the_derived_one():
    """`make status` writes it anew."""
    assert hook("systems").with_status(README) == README
    listed = re.findall(r"^\| \d{3} \| `([a-z0-9-]+)`", README, re.MULTILINE)
    assert listed == [system.slug for system in SYSTEMS if state(system) is not State.PLANNED]


def test_every_system_has_a_page_with_its_claim():
    systems = hook("systems")
    table = systems.table_page()
    for system in SYSTEMS:
        assert f"]({system.slug}.md)" in table
        assert system.claim in systems.system_page(system)


def test_the_page_of_a_result_shows_every_figure(tmp_path: Path, monkeypatch):
    """On a result of two seeds: what failed is bold, a missing figure is said, curves are drawn in both colours."""
    systems = hook("systems")
    check = {"what": "share | x", "ours": 0.25, "relation": "<=", "threshold": 0.5, "baseline": 0.75, "unit": "share", "passed": True}
    curve = {"id": "c", "title": "A curve", "x_label": "x", "y_label": "y", "caption": "Look.", "y_domain": None}
    curve |= {"series": [{"name": "s", "style": "line", "points": [{"x": 0, "y": 1}, {"x": 1, "y": 2}]}]}
    run = {
        "passed": True,
        "checks": [check],
        "notes": ["n <b>"],
        "curves": [curve],
        "environment": {"processor": "P", "cores": 2},
        "seconds": 1,
    }
    runs = [{"seed": 0, **run}, {"seed": 1, **run, "passed": False, "checks": [{**check, "ours": None, "passed": False}]}]
    from palimpsest.catalogue import ClaimResult

    monkeypatch.setattr(systems, "claim_result", lambda system: ClaimResult(tmp_path, "cpu", "It holds.", runs))
    page = "\n".join(systems.result_section(SYSTEMS[0]))
    assert "The claim **fails** at `cpu` scale: it passed for 1 of 2 seeds." in page
    assert "| share \\| x (share) | <= 0.5 | 0.25 vs 0.75 | **none vs 0.75** |" in page
    assert "n \\<b\\>" in page
    drawn = systems.figures(SYSTEMS[0])
    assert set(drawn) == {f"systems/memfree-c-{shade}.svg" for shade in ("light", "dark")}
    assert all(figure.startswith("<svg") for figure in drawn.values())
    assert drawn["systems/memfree-c-light.svg"] != drawn["systems/memfree-c-dark.svg"]


def test_the_reference_holds_packages_in_packages():
    assert "mcnemar" in hook("reference").page("stats")
    assert "## palimpsest.evaluation.layers.contextual" in hook("reference").page("evaluation")


def test_the_reference_holds_every_public_measurement():
    page = hook("reference").page("audit")
    for name in ("measure_extraction", "measure_probabilistic", "measure_membership"):
        assert f"### {name}" in page
    assert page.count("```") % 2 == 0


def test_docstrings_become_markdown():
    text = "One line <x>.\n\n    code here\n\nArgs:\n    a, b: what\n        they are.\n    c: `<d>` less < more\n"
    text += "\nReturns:\n    A thing.\n\nExample:\n    >>> 1\n    1\n"
    assert "\n".join(hook("reference").docstring(text)) == (
        "One line &lt;x>.\n\n\n```python\ncode here\n```\n\n\n**Args**\n\n- `a, b`: what\n  they are.\n- `c`: `<d>` less &lt; more\n"
        "\n**Returns**\n\nA thing.\n\n**Example**\n\n```python\n>>> 1\n1\n```"
    )


def test_the_makefile_and_the_pinned_versions_belong_together():
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"#.*|[a-z0-9_-]+==[\w.]+", line) for line in pinned), "no paths, hosts or local builds"
    assert sum(line.startswith("torch==") for line in pinned) == 1
    assert shutil.which("bash") is None or (ROOT / ".ci" / "run").stat().st_mode & 0o111
