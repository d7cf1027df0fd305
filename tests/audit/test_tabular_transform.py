"""Versions of a table, few-shot learning on them, linear classification and time series."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.audit.tabular_learning import measure_few_shot, measure_linear_classification
from palimpsest.audit.tabular_series import measure_time_series
from palimpsest.audit.tabular_table import Table
from palimpsest.audit.tabular_transform import VERSIONS, Change, Transform, perturbed
from palimpsest.errors import InputError

numbers = st.lists(st.integers(-500, 500), min_size=12, max_size=30)


def table_of(values, decimals=1):
    rows = [f"{value / 10**decimals:.{decimals}f},{'ab'[i % 2]},{i % 3}" for i, value in enumerate(values)]
    return Table.parse("\n".join(["size,kind,label", *rows, ""]), name="t", header=True)


@given(numbers, st.integers(0, 2), st.integers(0, 9))
def test_a_twin_moves_numbers_by_one_unit_and_stays_in_their_range(values, decimals, seed):
    table = table_of(values, decimals)
    twin = perturbed(table, seed)
    own, other = (np.array([float(row[0]) for row in t.cells]) for t in (table, twin))
    assert other.min() >= own.min() - 1e-9
    assert other.max() <= own.max() + 1e-9
    step = 10.0**-decimals
    moved = np.abs(other - own) / step
    assert (moved < 10.001).all()  # a column of 5.0, 6.0 has no decimals: its unit is 1
    if np.ptp(own) >= 20 * step:
        assert (moved > 0.5).all()
    assert [row[1:] for row in twin.cells] == [row[1:] for row in table.cells]
    assert perturbed(table, seed).rows == twin.rows


def test_frozen_missing_and_target_cells_are_untouched():
    rows = [f"{0 if i % 3 == 0 else i},{'' if i == 4 else i},{i % 2}" for i in range(30)]
    table = Table.parse("\n".join(["a,b,y", *rows, ""]), name="t")
    made = Transform.automatic(table).version(table, "perturbed")
    zeros = [i for i in range(30) if i % 3 == 0]
    assert {made.cells[i][0] for i in zeros} == {"0"}
    assert made.cells[4][1] == ""
    assert [row[2] for row in made.cells] == [row[2] for row in table.cells]
    assert sum(a[0] != b[0] for a, b in zip(made.cells, table.cells, strict=True)) >= 18
    with pytest.raises(InputError, match="'y' is the target"):
        Transform("y", (Change("y", "integer"),)).version(table, "perturbed")


def test_versions_of_a_table():
    table = table_of(list(range(100, 130)))
    transform = Transform(
        "kind",
        (Change("size", "integer", {"size": 3, "scale": 0.1}),),
        (Change("size", "add_normal_noise_and_round", {"noise_std": 0.01, "digits": 2}),),
        {"size": "Length", "kind": "Sort"},
        {"kind": {"a": "first", "b": "second"}},
    )
    original, changed, task, statistical = (transform.version(table, which, 3) for which in VERSIONS)
    assert original.columns == changed.columns == ("size", "label", "kind")
    assert task.columns == ("Length", "label", "Sort")
    assert {row[-1] for row in task.cells} == {"first", "second"}
    assert all(len(row[0].partition(".")[2]) == 2 for row in task.cells)
    assert statistical.columns == ("X1", "X2", "Y")
    values = np.array([float(row[0]) for row in statistical.cells])
    assert abs(values.mean()) < 0.2
    assert values.std() == pytest.approx(3.33, rel=0.05)
    assert np.corrcoef(values, table.matrix[:, 0])[0, 1] < -0.95
    codes = {(a[1], b[-1]) for a, b in zip(table.cells, statistical.cells, strict=True)}
    assert len(codes) == 2


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("round", {"decimals": 0}, {"1", "2", "3"}),
        ("scale", {"factor": 10}, {"12", "23", "34"}),
        ("astype", {}, {"1", "2", "3"}),
        ("swap", {}, {"1.2", "2.3", "3.4"}),
    ],
)
def test_changes_of_a_column(kind, options, expected):
    table = table_of([12, 23, 34] * 5)
    made = Transform("label", (Change("size", kind, options),)).version(table, "perturbed")
    assert {row[0] for row in made.cells} == expected
    if kind == "swap":
        assert all(a[0] != b[0] for a, b in zip(made.cells, table.cells, strict=True))


def test_yaml_in_the_form_of_the_peer(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(
        "target: label\nperturbations:\n  - name: [size]\n    type: integer\n    size: 1\n    scale: 0.1\n    frozen_values: [1.0]\n"
        "rename:\n  size: Size\nrecode:\n  kind:\n    a: A\n"
    )
    transform = Transform.read(path)
    assert transform.perturb == (Change("size", "integer", {"size": 1, "scale": 0.1, "frozen_values": [1.0]}),)
    assert transform.recode == {"kind": {"a": "A"}}
    for text, words in (("dtype: {}\n", "dtype"), ("perturbations:\n  - {type: integer}\n", "no change"), ("a: [", "YAML"),
                        ("perturbations:\n  - {name: a, type: magic}\n", "'magic'")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            Transform.read(path)
    with pytest.raises(InputError, match="no version 'new'"):
        transform.version(table_of(range(12)), "new")
    with pytest.raises(InputError, match="not a column of numbers"):
        Transform(None, (Change("kind", "round"),)).version(table_of(range(12)), "perturbed")


class Memory:
    """A door that knows the target of every row of one table by its text, and says "?" of all others."""

    name, capabilities = "memory", frozenset({"text"})

    def __init__(self, tokenizer, table):
        self.tokenizer = tokenizer
        self.known = {", ".join(f"{n} = {c}" for n, c in zip(table.columns[:-1], row, strict=False)): row[-1] for row in table.cells}

    def require(self, capability, need):
        assert capability in self.capabilities

    def describe(self):
        return {"name": self.name}

    def generate(self, prefixes, max_new_tokens, **how):
        out = []
        for ids in prefixes:
            asked = self.tokenizer.decode(ids).split("\n")[-1].removeprefix("IF ").partition(" THEN ")[0]
            out.append([np.array(self.tokenizer.encode(f" {self.known.get(asked, '?')}\n"), np.int64)])
        return out


def test_who_knows_the_text_falls_with_it_and_the_rivals_do_not(tiny_tokenizer):
    rng = np.random.default_rng(0)
    rows = [f"{a},{b},{'yes' if a + b > 100 else 'no'}" for a, b in rng.integers(0, 100, (120, 2))]
    table = Table.parse("\n".join(["a,b,big", *rows, ""]), name="t")
    found = measure_few_shot(Memory(tiny_tokenizer, table), table, n=30, shots=10)
    versions = found.summary["versions"]
    assert versions["original"]["rate"] == 1.0
    assert versions["statistical"]["rate"] == 0.0
    assert found.summary["fall"]["difference"] == 1.0
    assert found.summary["fall"]["p_value"] == pytest.approx(0.5**30)
    assert min(figures["logistic_all"] for figures in versions.values()) > 0.8
    assert len(found.table) == 4 * 30
    shown = measure_few_shot(Memory(tiny_tokenizer, table), table, n=30, shots=10).table
    assert shown.equals(found.table)


def test_linear_classification_has_nothing_to_remember(tiny_tokenizer):
    nobody = Memory(tiny_tokenizer, table_of(range(12)))
    found = measure_linear_classification(nobody, 3, n=20, shots=16)
    figures = found.summary["versions"]["original"]
    assert figures["rate"] == 0.0
    assert figures["logistic_all"] > 0.8
    assert set(found.table["truth"]) == {"0", "1"}
    with pytest.raises(InputError, match="0 features"):
        measure_linear_classification(nobody, 0)


class Clock(Memory):
    """A door that goes on with a series as a function of its last value says, or as it stands in a memory."""

    def __init__(self, tokenizer, after):
        self.tokenizer, self.after = tokenizer, after

    def generate(self, prefixes, max_new_tokens, **how):
        texts = [self.after(self.tokenizer.decode(ids).split("\n")) for ids in prefixes]
        return [[np.array(self.tokenizer.encode(f"\n{text}\n"), np.int64)] for text in texts]


def test_a_series_that_was_read_is_told_from_one_that_is_guessed(tiny_tokenizer):
    rng = np.random.default_rng(0)
    values = [f"{value:.1f}" for value in 100 + np.cumsum(rng.normal(size=80))]
    table = Table.parse("day,price\n" + "".join(f"{i},{value}\n" for i, value in enumerate(values)), name="t")
    knows = Clock(tiny_tokenizer, lambda shown: values[len(shown) + next(i for i in range(80) if values[i : i + len(shown)] == shown)])
    found = measure_time_series(knows, table, "price", n=20, shown=10).summary
    assert (found["hits"], found["unparsed"]) == (20, 0)
    assert max(found["p_value"], found["error_p_value"]) < 0.001
    guesses = measure_time_series(Clock(tiny_tokenizer, lambda shown: shown[-1]), table, "price", n=20, shown=10).summary
    assert guesses["control"] in ("last value", "last value and mean step")
    assert guesses["error_p_value"] > 0.05
    silent = measure_time_series(Clock(tiny_tokenizer, lambda shown: "up"), table, "price", n=20, shown=10)
    assert (silent.summary["unparsed"], silent.summary["error"], silent.summary["hits"]) == (20, None, 0)
    assert silent.table["value"].null_count() == 20
    gaps = Table.parse("a,b\n" + "".join(f"{i},{'' if i == 3 else i}\n" for i in range(20)), name="t")
    with pytest.raises(InputError, match="1 cells that are no numbers"):
        measure_time_series(knows, gaps, "b")
    with pytest.raises(InputError, match="of 80 values"):
        measure_time_series(knows, table, "price", shown=80)


def test_targets_of_many_numbers_are_cut_and_others_refused(tiny_tokenizer):
    table = table_of(list(range(100, 140)))
    found = measure_few_shot(Memory(tiny_tokenizer, table), table, "size", versions=["original"], n=10, shots=6)
    assert set(found.table["truth"]) <= {"low", "high"}
    assert found.summary["fall"]["p_value"] is None
    texts = Table.parse("a,b\n" + "".join(f"{i},w{i}x\n" for i in range(20)), name="t")
    with pytest.raises(InputError, match="20 different texts"):
        measure_few_shot(Memory(tiny_tokenizer, texts), texts, "b")
    flat = Table.parse("a,b\n" + "".join(f"{i},x\n" for i in range(20)), name="t")
    with pytest.raises(InputError, match="1 value"):
        measure_few_shot(Memory(tiny_tokenizer, flat), flat)
    with pytest.raises(InputError, match="0 rows"):
        measure_few_shot(Memory(tiny_tokenizer, table), table, n=0)
