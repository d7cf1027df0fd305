"""The tests of tabular memory on doors whose memory is known: one that has read the file, one that has not, and a tiny model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from palimpsest.audit import tabular_completion, tabular_knowledge
from palimpsest.audit.tabular import (
    TESTS,
    TabularAudit,
    compare,
    compat_row_completion,
    compat_tabmemcheck,
    level_of,
)
from palimpsest.audit.tabular_completion import follow, measure_feature_completion, measure_header, measure_row_completion, write_rows
from palimpsest.audit.tabular_controls import dependence, feature_controls, token_controls, token_length
from palimpsest.audit.tabular_likelihood import measure_decoy_rank, measure_order
from palimpsest.audit.tabular_prompts import RowQueries, fitting_rows, is_row, known_tables, read_features, shots
from palimpsest.audit.tabular_table import Table
from palimpsest.errors import CapabilityError, ContextOverflowError, InputError
from palimpsest.models import LanguageModel
from palimpsest.models.base import Scores
from palimpsest.models.shared_prefix import score_choices, score_continuations


class Reader(LanguageModel):
    """A door that has read a text, and goes on with it wherever a prompt ends in some of it; elsewhere it writes `otherwise`.

    Its log-probability of an id is high where it would write it. `context` characters before a place are enough to find it.
    """

    name, door, parameters, prepends_bos = "reader", "test", 1, False

    def __init__(self, tokenizer, text, *, otherwise="0", capabilities=("text", "logprobs"), context_length=1 << 20, context=12):
        self.tokenizer, self.text, self.otherwise, self.context = tokenizer, text, otherwise, context
        self.capabilities, self.context_length = frozenset(capabilities), context_length
        self.calls = 0

    @property
    def fingerprint(self):
        return hashlib.sha256(self.text.encode()).hexdigest()

    def follows(self, before: str) -> str:
        place = self.text.find(before[-self.context :]) if len(before) >= self.context else -1
        return self.text[place + self.context :] if place >= 0 else self.otherwise * 1000

    def score(self, batch_ids, *, start=1, **how):
        self.require("logprobs", "score")
        starts = [start] * len(batch_ids) if isinstance(start, int) else start
        logprobs, hits = [], []
        for row, first in zip(batch_ids, starts, strict=True):
            ids = [int(i) for i in row]
            hit = []
            for at in range(first, len(ids)):
                written = self.tokenizer.decode([ids[at]])
                hit.append(self.follows(self.tokenizer.decode(ids[:at])).startswith(written))
            hits.append(np.array(hit, bool))
            logprobs.append(np.where(hits[-1], -0.01, -3.0).astype(np.float32))
        return Scores(logprobs, hits)

    def generate(self, prefixes, max_new_tokens, *, n=1, **how):
        self.calls += 1
        out = []
        for prefix in prefixes:
            if len(prefix) + max_new_tokens > self.context_length:
                raise ContextOverflowError("too long", "shorten")
            ids = self.tokenizer.encode(self.follows(self.tokenizer.decode(prefix))[: 8 * max_new_tokens])
            out.append([np.array(ids[:max_new_tokens], np.int64)] * n)
        return out


def random_table(n=80, seed=0, name="demo", newline="\n"):
    rng = np.random.default_rng(seed)
    rows = [
        f"{rng.integers(100, 999)},{rng.uniform(0, 9):.2f},{('red', 'green', 'blue')[rng.integers(3)]},{rng.integers(10, 99)}"
        for _ in range(n)
    ]
    return Table.parse(newline.join(["code,weight,colour,age", *rows, ""]), name=name)


@pytest.fixture(scope="module")
def table():
    return random_table()


@pytest.fixture(scope="module")
def knows(tiny_tokenizer, table):
    return Reader(tiny_tokenizer, table.text)


@pytest.fixture(scope="module")
def knows_nothing(tiny_tokenizer):
    return Reader(tiny_tokenizer, random_table(seed=99).text)


def test_who_has_read_the_file_is_found_and_who_has_not_is_not(knows, knows_nothing, table):
    tests = ["header", "row-completion", "nearness", "first-token", "decoy-rank", "order", "twin"]
    audit = TabularAudit(knows, table, n=12, decoys=19)
    found = audit.run(tests)
    assert set(found.summary["found"]) == set(tests)
    assert found.summary["level"] == "high"
    assert audit.results["row-completion"].summary["hits"] == 12
    assert audit.results["header"].summary["agreed"] == 500
    assert audit.results["decoy-rank"].summary["first"] == 12
    other = TabularAudit(knows_nothing, table, n=12, decoys=19).run(tests)
    assert (other.summary["level"], other.summary["found"]) == ("none", [])
    assert other.table.filter(other.table["test"] == "row-completion")["hits"].item() == 0


def test_rows_are_asked_for_once_for_all_tests_and_never_when_they_stand_twice(knows, tiny_tokenizer):
    doubled = random_table(40)
    doubled = Table.parse(doubled.text + doubled.rows[20] + "\n", name="t")
    queries = RowQueries.draw(doubled, 100, 5)
    assert queries.excluded == 2
    assert 20 not in queries.rows
    assert 40 not in queries.rows
    assert set(queries.rows) == set(range(5, 40)) - {20}
    model = Reader(tiny_tokenizer, doubled.text)
    TabularAudit(model, doubled, n=10, shown=5).run(["row-completion", "nearness", "first-token"])
    assert model.calls == 1


def test_a_row_ends_where_the_true_row_ends(tiny_tokenizer, table):
    assert is_row("5.1,3.5\n", "5.1,3.5")
    assert is_row("\r\n5.1,3.5\r\n4", "5.1,3.5")
    assert not is_row("15.1,3.5\n", "5.1,3.5")
    assert not is_row("5.1,3.55\n", "5.1,3.5")
    longer = Reader(tiny_tokenizer, table.text.replace("\n", "7\n"))  # every row is the true one and a digit more
    queries = RowQueries.draw(table, 8, 5)
    answers = [truth + "7\n" for truth in queries.truths]
    assert measure_row_completion(longer, queries, answers).summary["hits"] == 0


def test_following_the_file_is_what_writing_would_give(tiny_model, table, narrow_door):
    prompts = [table.text[:60], table.text[:83]]
    truths = [table.text[60:100], table.text[83:120]]
    written = follow(narrow_door(tiny_model, {"text"}), prompts, truths)
    followed = follow(tiny_model, prompts, truths)
    for long, short in zip(written, followed, strict=True):
        assert min(len(long), len(short)) > 5
        assert long.startswith(short[: len(long)]) or short.startswith(long)


def test_scores_behind_a_shared_prefix_are_those_of_whole_rows(tiny_model, narrow_door):
    rng = np.random.default_rng(0)
    heads = [rng.integers(2, 320, size).tolist() for size in (1, 30)]
    tails = [[rng.integers(2, 320, size).tolist() for size in (1, 2, 9, 9)] for _ in heads]
    short = score_continuations(tiny_model, heads, tails)
    whole = score_continuations(narrow_door(tiny_model, {"logprobs"}), heads, tails)
    for one, other in zip(short, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    alone = [score_continuations(tiny_model, [heads[1]], [[tail]])[0][0] for tail in tails[1]]
    np.testing.assert_allclose(short[1], alone, atol=1e-4)  # what else is in the batch does not count
    with pytest.raises(ContextOverflowError, match="Continuation of prefix 0"):
        score_continuations(tiny_model, [heads[1]], [[[5] * 100]])
    with pytest.raises(CapabilityError, match="logprobs"):
        score_continuations(narrow_door(tiny_model, {"text"}), heads, tails)
    with pytest.raises(InputError, match="1 prefixes and 2"):
        score_continuations(tiny_model, heads[:1], tails)


def test_choices_behind_prompts_that_begin_alike_are_those_of_whole_rows(tiny_model, narrow_door):
    rng = np.random.default_rng(1)
    head = rng.integers(2, 320, 25).tolist()
    groups = [[[*head, *rng.integers(2, 320, size)] for size in (4, 1, 7)], [head, [3, 4]], [head]]  # the second has nothing in common
    choices = [[rng.integers(2, 320, 3).tolist() for _ in group] for group in groups]
    choices[0][2][1] = int(tiny_model.generate([groups[0][2]], 1, stop_at_eos=False)[0][0][0])
    for case in (groups, groups[:1]):
        short = score_choices(tiny_model, case, choices[: len(case)])
        whole = score_choices(narrow_door(tiny_model, {"logprobs"}), case, choices[: len(case)])
        for (logprobs, hits), (expected, likeliest), group in zip(short, whole, case, strict=True):
            assert logprobs.shape == (len(group), 3)
            np.testing.assert_allclose(logprobs, expected, atol=1e-4)
            np.testing.assert_array_equal(hits, likeliest)
        assert short[0][1][2].tolist() == [False, True, False]
    with pytest.raises(ContextOverflowError, match="Prompt 0"):
        score_choices(tiny_model, [[[5] * 200]], [[[1]]])
    with pytest.raises(InputError, match="1 groups of prompts and 2"):
        score_choices(tiny_model, groups[:1], choices[:2])
    with pytest.raises(CapabilityError, match="logprobs"):
        score_choices(narrow_door(tiny_model, {"text"}), groups, choices)


def test_shuffled_files_make_the_order_test_uniform(tiny_model):
    p_values = [
        measure_order(tiny_model, random_table(30, seed), block=4, blocks=2, shuffles=9, seed=seed).summary["p_value"] for seed in range(8)
    ]
    assert 0.2 < np.mean(p_values) < 0.8
    assert min(p_values) >= 0.01


def test_a_file_in_order_has_no_order_test_and_no_first_token(knows):
    rows = [f"{i:03d},{i * 3 % 7},x{i % 5}" for i in range(120)]
    sorted_table = Table.parse("id,b,c\n" + "\n".join(rows) + "\n", name="ids")
    assert dependence(sorted_table, 0) < 0.01
    order = measure_order(knows, sorted_table)
    assert (order.summary["status"], order.summary["p_value"]) == ("not applicable", None)
    first = TabularAudit(knows, sorted_table, n=5).measure("first-token")
    assert first.summary["status"] == "not applicable"
    assert "before a row tell" in first.summary["reason"]
    assert dependence(random_table(200, 4), 0) > 0.01


def test_where_neighbours_resemble_each_other_the_model_must_be_better_than_likeness(tiny_model):
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(90, 2)), axis=0)
    rows = [f"{a:.1f},{b:.1f},{rng.integers(10)}" for a, b in walk * 10]
    table = Table.parse("a,b,c\n" + "\n".join(rows) + "\n", name="walk")
    found = TabularAudit(tiny_model, table, n=20, decoys=15, shown=2).measure("decoy-rank")
    summary, ranks = found.summary, found.table
    assert summary["control_p"] < 0.05  # the shown rows alone tell the true one
    beyond = stats.wilcoxon(ranks["rank"].to_numpy() - ranks["control_rank"].to_numpy(), alternative="less").pvalue
    assert summary["p_value"] == pytest.approx(max(summary["model_p"], beyond))
    assert summary["p_value"] > 0.05
    free = TabularAudit(tiny_model, random_table(90), n=20, decoys=15, shown=2).measure("decoy-rank").summary
    assert free["control_p"] >= 0.05
    assert free["p_value"] == free["model_p"]


def test_decoy_ranks_do_not_depend_on_what_else_is_asked(tiny_model):
    table = random_table(60)
    audit = TabularAudit(tiny_model, table, n=6, decoys=9, shown=2)
    whole = measure_decoy_rank(tiny_model, audit.queries, audit.rivals, 9).table
    again = measure_decoy_rank(tiny_model, audit.queries, audit.rivals, 9).table
    assert whole.equals(again)
    part = RowQueries(table, 2, audit.queries.rows[:2], 0)
    assert measure_decoy_rank(tiny_model, part, audit.rivals, 9).table["rank"].to_list() == whole["rank"].to_list()[:2]
    assert whole["p_value"].min() >= 0.1
    assert whole["p_value"].max() <= 1.0


def test_controls_guess_what_can_be_guessed():
    rng = np.random.default_rng(0)
    rows = [f"{a},{2 * a},{'hot' if a > 50 else 'cold'}" for a in rng.integers(0, 100, 200)]
    table = Table.parse("a,b,c\n" + "\n".join(rows) + "\n", name="t")
    asked = [3, 50, 120]
    guesses = feature_controls(table, 2, asked)
    assert guesses["boosted trees"] == [table.cells[i][2] for i in asked]
    assert feature_controls(table, 1, asked)["5 nearest rows"]
    queries = RowQueries.draw(table, 10)
    assert set(map(len, token_controls(queries, token_length(table)).values())) == {len(queries.rows)}
    with pytest.raises(InputError, match="hardly differ"):
        token_length(Table.parse("a,b\n" + "".join(f"sameness,{i}\n" for i in range(20)), name="t"))


class Parrot(Reader):
    """A door that answers with given texts, one call after the other."""

    def __init__(self, tokenizer, answers: Sequence[Sequence[str]]):
        super().__init__(tokenizer, "", capabilities=("text",))
        self.answers, self.asked = [list(batch) for batch in answers], []

    def generate(self, prefixes, max_new_tokens, *, n=1, **how):
        self.asked.append(([self.tokenizer.decode(prefix) for prefix in prefixes], how))
        batch = self.answers.pop(0)
        texts = [batch[i % len(batch)] for i in range(len(prefixes))]
        return [[np.array(self.tokenizer.encode(text), np.int64)] for text in texts]


def test_feature_completion_shows_no_answer_and_reads_one_cell(tiny_tokenizer, table):
    parrot = Parrot(tiny_tokenizer, [[" 1.00\n\nmore"]])
    result = measure_feature_completion(parrot, table, "weight", n=6)
    prompts = parrot.asked[0][0]
    for prompt, truth in zip(prompts, result.table["truth"], strict=True):
        assert prompt.endswith(", weight =")
        assert f"weight = {truth}\n" not in prompt
        assert prompt.count("weight =") == 6
    assert result.table["answer"].to_list() == ["1.00"] * 6
    assert result.summary["control_hits"] >= result.summary["hits"] == sum(t == "1.00" for t in result.table["truth"])
    with pytest.raises(InputError, match="no column 'size'"):
        measure_feature_completion(parrot, table, "size")


def test_fences_are_taken_off(tiny_tokenizer, table):
    queries = RowQueries.draw(table, 3, 5)
    fenced = Parrot(tiny_tokenizer, [["\n```csv\n" + truth + "\n```" for truth in queries.truths]])
    answers = write_rows(fenced, queries)
    assert measure_row_completion(fenced, queries, answers).summary["hits"] == 3


def test_names_values_and_samples(tiny_tokenizer, table):
    names = Parrot(tiny_tokenizer, [[" weight, color, age\n\n"]])
    found = tabular_knowledge.measure_feature_names(names, table)
    assert (found.summary["hits"], found.summary["n"], found.summary["anywhere"]) == (2, 3, 2)
    real, near = table.cells[7], [*table.cells[9][:3], "777"]
    form = [f" code = {c[0]}, weight = {c[1]}, colour = {c[2]}, age = {c[3]}\n\n" for c in (real, near)]
    values = tabular_knowledge.measure_feature_values(Parrot(tiny_tokenizer, [[form[1], form[0], " nothing"]]), table)
    assert values.table["distance"].to_list() == [len("777") if len(table.cells[9][3]) != 2 else values.table["distance"][0], 0.0]
    assert values.summary["invalid"] == 1
    samples = Parrot(tiny_tokenizer, [[form[0], form[1], " no row at all"]])
    drawn = tabular_knowledge.measure_samples(samples, table, n=6)
    assert samples.asked[0][1]["temperature"] == 0.7
    assert (drawn.summary["hits"], drawn.summary["n"], drawn.summary["invalid"]) == (2, 4, 2)
    assert drawn.summary["p_value"] < 1e-3
    none = tabular_knowledge.measure_samples(Parrot(tiny_tokenizer, [["no"]]), table, n=2)
    assert none.summary["status"] == "not applicable"
    name = tabular_knowledge.measure_dataset_name(Parrot(tiny_tokenizer, [["Demo\n"]]), table)
    assert name.summary["hits"] == 1


def test_the_tested_table_does_not_show_the_form():
    iris = known_tables()[0]
    renamed = Table.of("flowers", ["a", "b", "c", "d", "kind"], [(*row[:4], "z") for row in iris.cells])
    assert "iris" not in [known.name for known in shots(renamed)]
    assert len(shots(random_table())) == len(known_tables())
    assert read_features("mileage = 7, age = 3, sex = a, b", ["age", "sex", "mileage"]) == {"mileage": "7", "age": "3", "sex": "a, b"}


def test_a_text_door_does_what_it_can_and_says_what_it_cannot(tiny_tokenizer, table):
    model = Reader(tiny_tokenizer, table.text, capabilities=("text",))
    audit = TabularAudit(model, table, n=6, decoys=9)
    whole = audit.run()
    status = dict(whole.table.select("test", "status").iter_rows())
    assert list(status) == list(TESTS)
    assert [name for name, said in status.items() if said != "measured"][:2] == ["decoy-rank", "order"]
    reasons = whole.table.filter(whole.table["test"] == "decoy-rank")["reason"].item()
    assert "logprobs" in reasons
    assert audit.results["twin"].summary["difference"] is None
    assert audit.results["twin"].summary["hits"] == 6


def test_prompts_beyond_the_context(tiny_tokenizer, table, tiny_model):
    row = len(tiny_tokenizer.encode(table.rows[0] + "\n"))
    small = Reader(tiny_tokenizer, table.text, context_length=6 * row)
    assert 1 <= fitting_rows(small, table) <= 4
    assert TabularAudit(small, table, n=3).queries.shown == fitting_rows(small, table)
    tiny = Reader(tiny_tokenizer, table.text, context_length=row)
    with pytest.raises(ContextOverflowError, match="sees only"):
        fitting_rows(tiny, table)
    with pytest.raises(InputError, match="No test of demo could be made"):
        TabularAudit(tiny, table).run(["row-completion", "decoy-rank"])
    with pytest.raises(ContextOverflowError):
        measure_header(tiny_model, table, cuts=(20,))


def test_bad_input(knows, table):
    with pytest.raises(InputError, match="no test 'luck'"):
        TabularAudit(knows, table).run("luck")
    with pytest.raises(InputError, match="n is 0"):
        TabularAudit(knows, table, n=0)
    with pytest.raises(InputError, match="0 rows were to be asked"):
        RowQueries.draw(table, 0)
    with pytest.raises(InputError, match="No row"):
        RowQueries.draw(Table.parse("a,b\n" + "1,2\n" * 20, name="t"), 5)
    with pytest.raises(InputError, match="cuts"):
        measure_header(knows, table, cuts=(1,))
    with pytest.raises(InputError, match="0 rows with"):
        measure_feature_completion(knows, table, n=0)


def test_quotes_missing_values_crlf_and_other_scripts_are_asked_for_to_the_letter(tiny_tokenizer):
    rng = np.random.default_rng(1)
    rows = [
        f'"Łódź, {rng.integers(100)}",{"" if i % 5 == 0 else rng.integers(1000)},"say ""{"日本"[i % 2]}"" {rng.integers(99)}"'
        for i in range(60)
    ]
    table = Table.parse("\r\n".join(["city,n,said", *rows, ""]), name="other")
    model = Reader(tiny_tokenizer, table.text, capabilities=("text",), context=40)
    audit = TabularAudit(model, table, n=8, decoys=9)
    whole = audit.run(["header", "row-completion", "nearness", "feature-completion", "twin"])
    assert audit.results["row-completion"].summary["hits"] == 8
    assert audit.results["header"].summary["agreed"] == 500
    assert "row-completion" in whole.summary["found"]


def test_the_level_follows_its_rule(knows, table):
    audit = TabularAudit(knows, table, n=12, decoys=19)
    audit.run(["row-completion", "decoy-rank", "header"])
    assert level_of([], audit.results) == "none"
    assert level_of(["decoy-rank"], audit.results) == "low"
    assert level_of(["decoy-rank", "header"], audit.results) == "moderate"
    assert level_of(["row-completion"], audit.results) == "high"
    again = compare(knows, table, audit.results, 0)
    assert again.summary["adjusted"]["decoy-rank"] >= audit.results["decoy-rank"].summary["p_value"]


def test_the_compatible_mode_asks_as_the_peer_does(tmp_path, knows, table):
    path = tmp_path / "demo.csv"
    path.write_text(table.text)
    truths, answers, matches = compat_row_completion(knows, path, n=10, rng=np.random.default_rng(5))
    lines = table.text.strip().split("\n")
    expected = [lines[i + 10] for i in np.random.default_rng(5).choice(len(lines) - 10, 10, replace=False)]
    assert truths == expected == answers
    assert matches == 10
    door = compat_tabmemcheck(knows)
    assert not door.chat_mode
    assert door.completion("\n".join(lines[5:15]), 0.0, 30).strip("\n").split("\n")[0] == lines[15]
    assert (door.calls, door.tokens) == (1, 30)
    assert repr(door) == "reader"
    with pytest.raises(InputError, match="asked for"):
        compat_row_completion(knows, path, n=1000)


def test_the_peer_counts_the_same(tmp_path, tiny_model):
    peer = pytest.importorskip("tabmemcheck", reason="the peer is not installed")
    table = random_table(40)
    path = tmp_path / "demo.csv"
    path.write_text(table.text)
    truths, answers, _ = compat_row_completion(tiny_model, path, shown=2, n=5, rng=np.random.default_rng(5))
    theirs = peer.row_completion_test(
        str(path), compat_tabmemcheck(tiny_model), num_prefix_rows=2, num_queries=5, print_levenshtein=False, rng=np.random.default_rng(5)
    )
    assert (truths, answers) == (list(theirs[0]), list(theirs[1]))


def test_the_seed_decides(knows, table):
    first, second = (TabularAudit(knows, table, n=6, decoys=9, seed=3).run(["row-completion", "decoy-rank"]) for _ in range(2))
    assert first.table.equals(second.table)
    assert TabularAudit(knows, table, seed=4).queries.rows != TabularAudit(knows, table, seed=3).queries.rows
    assert tabular_completion.CUTS == (2, 4, 6, 8)
