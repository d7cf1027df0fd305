"""The catalogue: complete rows, a total classification, and states that follow from the files and from nothing else."""

from __future__ import annotations

import csv
import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from palimpsest.catalogue import FAMILIES, KINDS, SYSTEMS, State, claim_result, find, missing, results_dir, state
from palimpsest.errors import InputError
from palimpsest.taxonomy import (
    AccessPath,
    Controllability,
    Location,
    MemoryKind,
    Persistence,
    Quadruple,
    Revert,
    Stage,
    WritePath,
    classify,
)

LIST = Path(__file__).parents[2] / "shared" / "systems.csv"


def test_the_rows_are_numbered_1_to_119_with_distinct_slugs_and_titles():
    assert [system.number for system in SYSTEMS] == list(range(1, 120))
    assert len({system.slug for system in SYSTEMS}) == 119
    assert len({system.title for system in SYSTEMS}) == 119


@pytest.mark.skipif(not LIST.is_file(), reason="the list of systems is not beside this checkout")
def test_the_rows_are_those_of_the_list():
    with LIST.open(encoding="utf-8") as stream:
        listed = [(int(row["number"]), row["slug"], row["title"], row["spec"].removesuffix(".md")) for row in csv.DictReader(stream)]
    assert [(system.number, system.slug, system.title, system.family) for system in SYSTEMS] == listed


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.slug)
def test_a_row_is_complete(system):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", system.slug)
    assert system.family in FAMILIES
    assert system.kinds
    assert set(system.kinds) <= set(KINDS)
    assert system.stages == tuple(stage for stage in (Stage.WRITE, Stage.READ, Stage.INHIBIT, Stage.UPDATE) if stage in system.stages) != ()
    assert system.arxiv is None or re.fullmatch(r"\d{4}\.\d{4,5}", system.arxiv)
    assert system.venue or system.arxiv, "a system without any source"
    assert all(getattr(system, field) for field in system.unchecked), "a field that is empty cannot be unchecked"
    assert system.lives_in
    assert all(re.fullmatch(r"palimpsest(\.[a-z0-9_]+)+(:[A-Za-z_0-9]+)?", entry) for entry in system.lives_in)
    assert system.claim.endswith(".")
    assert 40 <= len(system.claim) <= 300
    assert ". " not in system.claim, "one sentence"
    assert system.claim != system.title


def test_no_two_systems_live_in_exactly_the_same_place():
    homes = [system.lives_in for system in SYSTEMS]
    assert len(set(homes)) == len(homes)


def test_all_four_kinds_of_memory_occur():
    assert {system.memory_kind for system in SYSTEMS} == set(MemoryKind)


def test_every_memory_has_exactly_one_kind():
    """Against an oracle that asks each rule by itself: at most one of the last three applies, and the first overrides them."""
    for location, persistence, write, access in itertools.product(Location, Persistence, WritePath, AccessPath):
        episodic = write == "reflection" or access == "replay" or (location == "tool_log" and persistence == "cross_session")
        external = location.startswith("store_")
        parametric = location in ("weights", "adapter") or (location, persistence) == ("soft_token", "permanent")
        assert not (external and parametric)
        expected = "procedural/episodic" if episodic else "external" if external else "parametric" if parametric else "contextual"
        assert classify(Quadruple(location, persistence, write, access)) == expected


def test_persistence_is_ordered_and_a_half_life_does_not_decide_the_kind():
    order = [Persistence.TOKEN, Persistence.REQUEST, Persistence.SESSION, Persistence.CROSS_SESSION, Persistence.PERMANENT]
    assert all(one.outlasts(two) == (i > j) for i, one in enumerate(order) for j, two in enumerate(order))
    memory = Quadruple(Location.WEIGHTS, Persistence.PERMANENT, WritePath.FINETUNE, AccessPath.FORWARD)
    assert classify(replace(memory, half_life=30.0)) is classify(memory)


def test_control_does_not_decide_the_kind():
    memory = Quadruple(Location.STORE_GRAPH, Persistence.PERMANENT, WritePath.EDIT, AccessPath.TOOL_CALL)
    free = replace(memory, controllability=Controllability(True, True, True, True, True, Revert.EXACT))
    assert classify(memory) is classify(free) is MemoryKind.EXTERNAL


@pytest.mark.parametrize(("query", "number"), [("memfree", 1), ("1", 1), ("001", 1), ("mac", 119), ("119", 119)])
def test_find_takes_slugs_and_numbers(query, number):
    assert find(query).number == number


@pytest.mark.parametrize("query", ["memfreee", "0", "120", "", "MEMFREE"])
def test_find_refuses_what_is_not_there(query):
    with pytest.raises(InputError, match="palimpsest systems"):
        find(query)


def test_find_suggests_the_nearest_slug():
    with pytest.raises(InputError, match="Did you mean memfree"):
        find("memfreee")


# --- derived states -----------------------------------------------------------------------------------------------------------------

SYSTEM = replace(find("memfree"), lives_in=("palimpsest.guard.memfree:MemFreeProcessor", "palimpsest.audit.approximate:LIMIT"))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A source tree in which SYSTEM is implemented."""
    package = tmp_path / "palimpsest"
    (package / "guard").mkdir(parents=True)
    (package / "guard" / "memfree.py").write_text("import no_such_module\n\nclass MemFreeProcessor: ...\n")
    (package / "audit" / "approximate").mkdir(parents=True)
    (package / "audit" / "approximate" / "__init__.py").write_text("LIMIT: float = 0.75\n")
    return package


def result(passed: bool = True, **changes) -> dict:
    runs = [{"seed": seed, "passed": passed or seed != 1, "checks": []} for seed in range(3)]
    return {"slug": "memfree", "scale": "cpu", "statement": "It holds.", "passed": passed, "runs": runs} | changes


def write(folder: Path, value: dict, scale: str = "cpu") -> Path:
    path = folder / f"memfree.{scale}.json"
    path.write_text(json.dumps(value))
    return path


def test_implemented_means_that_every_named_object_is_defined_without_importing_it(package, tmp_path):
    assert missing(SYSTEM, package) == []
    assert state(SYSTEM, tmp_path, package) is State.IMPLEMENTED


def test_a_missing_file_or_object_means_planned(package, tmp_path):
    assert missing(replace(SYSTEM, lives_in=("palimpsest.guard.other",)), package) == ["palimpsest.guard.other"]
    unnamed = replace(SYSTEM, lives_in=("palimpsest.guard.memfree:Other", *SYSTEM.lives_in))
    assert missing(unnamed, package) == ["palimpsest.guard.memfree:Other"]
    write(tmp_path, result())
    assert state(unnamed, tmp_path, package) is State.PLANNED


@pytest.mark.parametrize(
    "source",
    [
        "from elsewhere import MemFreeProcessor\n",
        "def make():\n    class MemFreeProcessor: ...\n",
        "# class MemFreeProcessor: ...\n",
        "MemFreeProcessor.x = 1\n",
    ],
)
def test_a_name_that_is_only_mentioned_is_not_defined(package, source):
    (package / "guard" / "elsewhere.py").write_text(source)
    entry = "palimpsest.guard.elsewhere:MemFreeProcessor"
    assert missing(replace(SYSTEM, lives_in=(entry,)), package) == [entry]


def test_the_result_decides_between_shown_and_failed(package, tmp_path):
    write(tmp_path, result(passed=True))
    assert state(SYSTEM, tmp_path, package) is State.CLAIM_SHOWN
    write(tmp_path, result(passed=False))
    assert state(SYSTEM, tmp_path, package) is State.CLAIM_FAILED


def test_a_claim_is_not_shown_by_two_seeds(package, tmp_path):
    write(tmp_path, result(runs=[{"seed": seed, "passed": True, "checks": []} for seed in (0, 1)]))
    assert state(SYSTEM, tmp_path, package) is State.IMPLEMENTED


def test_a_smoke_result_decides_nothing_and_cpu_goes_before_gpu(package, tmp_path):
    write(tmp_path, result(scale="smoke"), "smoke")
    assert state(SYSTEM, tmp_path, package) is State.IMPLEMENTED
    write(tmp_path, result(passed=False, scale="gpu"), "gpu")
    assert state(SYSTEM, tmp_path, package) is State.CLAIM_FAILED
    write(tmp_path, result(passed=True))
    assert state(SYSTEM, tmp_path, package) is State.CLAIM_SHOWN


@pytest.mark.parametrize(
    "changes",
    [
        {"slug": "rome"},
        {"scale": "gpu"},
        {"runs": []},
        {"runs": [{"seed": 0, "passed": False}]},
        {"passed": "yes"},
        {"runs": [{}]},
        {"runs": 3},
    ],
    ids=["another slug", "another scale", "no runs", "a verdict that the runs deny", "no boolean", "a run without verdict", "no list"],
)
def test_a_result_that_contradicts_itself_is_refused(package, tmp_path, changes):
    path = write(tmp_path, result(**changes))
    with pytest.raises(InputError, match=re.escape(str(path))):
        state(SYSTEM, tmp_path, package)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"slug": "memfree"}'])
def test_a_broken_result_file_is_refused(package, tmp_path, text):
    (tmp_path / "memfree.cpu.json").write_text(text)
    with pytest.raises(InputError, match="palimpsest reproduce memfree"):
        claim_result(SYSTEM, tmp_path)


def test_the_catalogue_is_read_without_the_heavy_libraries():
    code = (
        "import sys\nfrom palimpsest.catalogue import SYSTEMS, state\nassert len([state(s) for s in SYSTEMS]) == 119\n"
        "assert not {'torch', 'numpy', 'polars', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the committed results ----------------------------------------------------------------------------------------------------------

COMPARE = {
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    ">": lambda a, b: a > b,
    "==": lambda a, b: a == b,
}


def test_committed_results_follow_from_their_own_figures():
    """No verdict is typed in: each follows from the figure, the relation and the threshold that stand beside it."""
    files = sorted(results_dir().glob("*.json"))
    for file in files:
        slug, scale = file.name.removesuffix(".json").rsplit(".", 1)
        value = json.loads(file.read_text(encoding="utf-8"))
        assert (value["slug"], value["scale"]) == (find(slug).slug, scale)
        assert value["runs"], file.name
        for run in value["runs"]:
            for check in run["checks"]:
                asked = check["threshold"]
                held = asked is None or (check["ours"] is not None and COMPARE[check["relation"]](check["ours"], asked))
                assert check["passed"] is held, f"{file.name} seed {run['seed']}: {check['what']}"
            assert any(check["threshold"] is not None for check in run["checks"]), f"{file.name}: nothing is asked of it"
            assert run["passed"] is all(check["passed"] for check in run["checks"])
        assert value["passed"] is all(run["passed"] for run in value["runs"])
        if scale == "cpu":
            assert len({run["seed"] for run in value["runs"]}) >= 3, f"{file.name}: a claim is decided on three seeds"
        assert not missing(find(slug)), f"{file.name} stands for a system that is not there"
