"""An index after deletions and appends against one that is built from what is left."""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palimpsest.corpus import CorpusIndex, Document, InfiniGramFolder, changes
from palimpsest.corpus import manifest as layout
from palimpsest.corpus.external import block_memory
from palimpsest.corpus.memory import SortPlan
from palimpsest.errors import CorpusError, IndexCorruptError, InputError, StorageError

pytestmark = pytest.mark.usefixtures("unsynced")
oracle = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
rows = st.lists(st.integers(0, 2), max_size=10)
change = st.one_of(
    st.tuples(st.just("delete"), st.lists(st.integers(0, 99), min_size=1, max_size=4)),
    st.tuples(st.just("append"), st.lists(rows, min_size=1, max_size=3).filter(any)),
)


def named(docs: list[list[int]], first: int = 0) -> list[Document]:
    return [Document(f"d{first + i}", ids=np.array(doc, np.int64), metadata={"n": first + i}) for i, doc in enumerate(docs)]


def assert_same_answers(index: CorpusIndex, other: CorpusIndex) -> None:
    """Every query on both; `other` was built from the documents themselves."""
    assert (index.n_tokens, index.n_documents, index.fingerprint) == (other.n_tokens, other.n_documents, other.fingerprint)
    assert index.longest_document == other.longest_document
    for number in range(other.n_documents):
        assert index.document_ids(number).tolist() == other.document_ids(number).tolist()
        assert index.document(number) == other.document(number)
    with pytest.raises(InputError, match="There is no document"):
        index.document(other.n_documents)
    for mine, theirs in zip(index.unigrams, other.unigrams, strict=True):
        assert mine.tolist() == theirs.tolist()
    grams = [[a, b, c][:n] for n in (1, 2, 3) for a in range(3) for b in range(3) for c in range(3)]
    assert index.count_batch(grams).tolist() == other.count_batch(grams).tolist()
    text = np.array([0, 1, 2, 2, 1, 0, 0, 0, 1, 1, 2, 0, 2])
    assert index.matching_statistics(text).tolist() == other.matching_statistics(text).tolist()
    contexts = np.array(grams[9:18])
    assert [a.tolist() for a in index.next_tokens_batch(contexts)] == [a.tolist() for a in other.next_tokens_batch(contexts)]
    for gram in grams[::4]:
        assert index.count(gram) == other.count(gram) == sum(r.count for r in index.find(gram))
        assert [a.tolist() for a in index.next_tokens(gram)] == [a.tolist() for a in other.next_tokens(gram)]
        for mine, theirs in zip(index.documents(gram, 9), other.documents(gram, 9), strict=True):
            assert (mine.index, mine.offset, mine.doc_id, mine.metadata) == (theirs.index, theirs.offset, theirs.doc_id, theirs.metadata)
            assert [mine.before.tolist(), mine.after.tolist()] == [theirs.before.tolist(), theirs.after.tolist()]
        assert len(index.locate(gram)) == other.count(gram)
    mine, theirs = (sorted((m.distance, m.hit.index, m.hit.offset) for m in i.near(text[:4], 2, limit=999).matches) for i in (index, other))
    assert mine == theirs
    for mine, theirs in zip(index.sequence_infgram(text), other.sequence_infgram(text), strict=True):
        assert mine.tolist() == theirs.tolist()
    for prompt in (text[:6], text[3:9], np.array([1, 1, 1])):
        for mine, theirs in ((index.ntd(prompt[-2:]), other.ntd(prompt[-2:])), (index.infgram_ntd(prompt), other.infgram_ntd(prompt))):
            assert (mine.ids.tolist(), mine.counts.tolist()) == (theirs.ids.tolist(), theirs.counts.tolist())
            assert (mine.total, mine.suffix_len, mine.eod_count) == (theirs.total, theirs.suffix_len, theirs.eod_count)
    for n in (1, 2, 4):
        assert index.duplicates(n).ranges.tolist() == other.duplicates(n).ranges.tolist()
    assert index.near_duplicates(0.3, shingle=2).links.tolist() == other.near_duplicates(0.3, shingle=2).links.tolist()


@given(st.lists(rows, min_size=3, max_size=7).filter(any), st.lists(change, min_size=1, max_size=4), st.integers(1, 3))
@oracle
def test_any_changes_give_the_answers_of_an_index_of_what_is_left(docs, operations, shards):
    with tempfile.TemporaryDirectory() as folder:
        left = named(docs)
        names = len(left)
        index = CorpusIndex.build(left, None, Path(folder) / "index", shards=shards)
        for what, value in operations:
            if what == "append":
                more = named(value, names)
                names += len(more)
                left = left + more
                index = index.append(more)
                continue
            chosen = sorted({number % len(left) for number in value})
            rest = [doc for number, doc in enumerate(left) if number not in chosen]
            if not any(doc.ids.size for doc in rest):
                with pytest.raises(InputError, match="Nothing would be left"):
                    index.delete(chosen)
                continue
            left = rest
            index = index.delete(chosen)
        built = CorpusIndex.build(left, None, Path(folder) / "other")
        assert_same_answers(index, built)
        index.verify()
        assert_same_answers(CorpusIndex.open(index.path, mode="ram", verify=True), built)
        elsewhere = index.compact(Path(folder) / "compact")
        assert_same_answers(elsewhere, built)
        assert [elsewhere.manifest[key] for key in ("shards", "content", "source")] == [
            built.manifest[key] for key in ("shards", "content", "source")
        ]


@pytest.fixture
def index(tmp_path: Path) -> CorpusIndex:
    docs = [[1, 2, 3, 4, 5], [7, 7], [], [1, 2, 3, 9], [1, 2]]
    return CorpusIndex.build(
        [Document("same" if i in (0, 3) else f"d{i}", ids=doc) for i, doc in enumerate(docs)], None, tmp_path / "index"
    )


def test_a_name_stands_for_all_documents_that_have_it(index: CorpusIndex):
    left = index.delete(["same", 1])
    assert [left.document(i)[0] for i in range(left.n_documents)] == ["d2", "d4"]
    assert (left.count([1, 2]), left.count([7]), left.n_tokens) == (1, 0, 2)


def test_who_has_the_index_open_is_not_disturbed(index: CorpusIndex):
    other = CorpusIndex.open(index.path)
    left = index.delete([0]).append([[1, 2, 8]]).delete([0])
    assert (index.count([1, 2]), other.count([1, 2]), left.count([1, 2])) == (3, 3, 3)
    assert (other.count([3, 4]), other.document(0)[0], other.n_documents) == (1, "same", 5)
    assert (left.count([3, 4]), left.count([7]), left.count([2, 8]), left.n_documents) == (0, 0, 1, 4)


def test_the_files_of_the_manifest_before_stay_and_older_ones_go(index: CorpusIndex):
    first = set(index.manifest["files"])
    second = index.delete([0])
    assert {path.name for path in index.path.iterdir()} == first | set(second.manifest["files"]) | {"manifest.json"}
    third = second.delete([0])
    assert {path.name for path in index.path.iterdir()} == set(second.manifest["files"]) | set(third.manifest["files"]) | {"manifest.json"}
    assert "sa.0" not in {path.name for path in index.path.iterdir()}


def test_compaction_in_place_leaves_nothing_of_the_deleted(index: CorpusIndex):
    left = index.delete(["d1"])
    assert 7 in np.fromfile(left.path / "tokens.0", "u1")  # until then the tokens are on the disk
    compact = left.compact(left.path, shards=2)
    assert compact.fingerprint == left.fingerprint
    assert all(7 not in np.fromfile(compact.path / f"tokens.{shard}", "u1") for shard in (0, 1))
    assert {path.name for path in compact.path.iterdir()} == {*compact.manifest["files"], "manifest.json"}
    assert left.count([1, 2]) == compact.count([1, 2]) == 3


def test_append_and_compact_keep_to_the_memory_that_they_are_given(index: CorpusIndex, tmp_path: Path, monkeypatch):
    bounds = []

    def planned(builder: str, length: int, top: int, itemsize: int, bound: int | None, begun: int) -> SortPlan:
        bounds.append(bound)
        return SortPlan("external", 2, block_memory(-(-length // 2), top))

    monkeypatch.setattr("palimpsest.corpus.build.plan_sort", planned)
    whole = index.append([[1, 2, 8], [1, 2]], memory="1GB").compact(tmp_path / "compact", memory="2GB")
    assert bounds == [10**9, 2 * 10**9]
    assert (whole.manifest["memory"], whole.manifest["shards"][0]["blocks"]) == (2 * 10**9, 2)
    assert (whole.count([1, 2]), whole.n_documents) == (index.count([1, 2]) + 2, index.n_documents + 2)
    for refused in (lambda i: i.append([[1]], memory="1MB"), lambda i: i.compact(i.path, memory="1MB")):
        with pytest.raises(InputError, match="within 1 MB is not possible"):
            refused(whole)
    assert CorpusIndex.open(whole.path, verify=True).fingerprint == whole.fingerprint


def test_an_index_that_changed_since_is_not_changed_again(index: CorpusIndex):
    stale = CorpusIndex.open(index.path)
    index.delete([0])
    for refused in (lambda: stale.delete([1]), lambda: stale.append([[1]]), lambda: stale.compact(stale.path)):
        with pytest.raises(StorageError, match="changed since"):
            refused()
    assert CorpusIndex.open(index.path).n_documents == 4


def test_a_change_that_is_killed_leaves_the_old_index_and_can_be_made_again(index: CorpusIndex, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(changes, "_publish", killed)
        for interrupted in (lambda: index.delete([0]), lambda: index.append([[1, 2, 8]])):
            with pytest.raises(KeyboardInterrupt):
                interrupted()
    again = CorpusIndex.open(index.path, verify=True)
    assert (again.fingerprint, again.count([1, 2])) == (index.fingerprint, 3)
    left = index.delete([0]).append([[1, 2, 8]])
    left.verify()
    assert (left.count([1, 2]), left.n_documents) == (3, 5)
    assert not index.path.with_name("index.append").exists()


def test_building_the_corpus_again_brings_the_deleted_back(tmp_path: Path):
    docs = [[1, 2], [1, 2, 3]]
    index = CorpusIndex.build(docs, None, tmp_path / "index")
    index.delete([0])
    assert CorpusIndex.build(docs, None, tmp_path / "index").fingerprint == index.fingerprint


def test_damage_to_the_files_of_a_change_is_named(index: CorpusIndex):
    left = index.delete([0])
    path = left.path / "live.0.1"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(IndexCorruptError, match=r"live\.0\.1"):
        CorpusIndex.open(left.path, verify=True)


@pytest.mark.parametrize("change", ["append", "delete"])
def test_a_change_does_not_declare_old_files_whole(index: CorpusIndex, monkeypatch, change: str):
    """Those that were damaged since the index was opened; a change that takes longer than a tick of the clock notes what it made."""
    time.sleep(0.05)
    index = CorpusIndex.open(index.path)
    monkeypatch.setattr(layout, "_CLOCK_TICK", 0)
    data = (index.path / "meta.0").read_bytes()
    (index.path / "meta.0").write_bytes(data.replace(b"same", b"sane"))
    with pytest.raises(IndexCorruptError, match=r"meta\.0"):
        index.append([[1, 2]]) if change == "append" else index.delete([0])
    with pytest.raises(IndexCorruptError, match=r"meta\.0"):
        CorpusIndex.open(index.path)


@pytest.mark.parametrize("change", ["append", "delete"])
def test_after_a_change_an_index_that_was_whole_is_not_hashed_again(index: CorpusIndex, monkeypatch, change: str):
    time.sleep(0.05)
    index = CorpusIndex.open(index.path)
    monkeypatch.setattr(layout, "_CLOCK_TICK", 0)
    monkeypatch.setattr(layout, "verify_files", lambda *given: pytest.fail("hashed again"))
    assert (index.append([[1, 2]]) if change == "append" else index.delete([0])).n_tokens


def test_text_is_appended_with_the_tokenizer_of_the_index(tmp_path: Path, tiny_tokenizer):
    index = CorpusIndex.build(["the quick brown fox"], tiny_tokenizer, tmp_path / "index").append(["over the fox"])
    assert index.count(tiny_tokenizer.encode(" fox")) == 2
    assert index.tokenizer_fingerprint == tiny_tokenizer.fingerprint
    assert index.fingerprint == CorpusIndex.build(["the quick brown fox", "over the fox"], tiny_tokenizer, tmp_path / "other").fingerprint


@pytest.mark.parametrize("dtype", ["u8", "u16"])
def test_an_export_holds_only_what_is_left(tmp_path: Path, dtype: str):
    docs = [[1, 2, 3], [7], [], [1, 2], [7, 7], [3, 1, 2]]
    index = CorpusIndex.build(docs, None, tmp_path / "index", shards=3, token_dtype=dtype)
    left = index.delete([0, 1, 4])
    assert 0 in [card["documents"] for card in left.manifest["shards"]]  # one of the shards has lost everything
    left.export_infini_gram(tmp_path / "out")
    built = CorpusIndex.build([[], [1, 2], [3, 1, 2]], None, tmp_path / "built", token_dtype=dtype)
    again = InfiniGramFolder(tmp_path / "out", dtype)
    assert CorpusIndex.build(again, None, tmp_path / "again", token_dtype=dtype).fingerprint == built.fingerprint == left.fingerprint
    for shard in range(again.shards):
        tokens = np.fromfile(tmp_path / "out" / f"tokenized.{shard}", dtype.replace("u8", "u1").replace("u16", "<u2"))
        assert 7 not in tokens
        assert (tmp_path / "out" / f"table.{shard}").stat().st_size % tokens.size == 0


def test_what_cannot_be_deleted_or_appended(index: CorpusIndex):
    for wrong, problem in [
        ([], "no list"),
        ("same", "no list"),
        ([5], "no document 5"),
        ([-1], "no document -1"),
        ([0.5], "something else"),
    ]:
        with pytest.raises(InputError, match=problem):
            index.delete(wrong)
    with pytest.raises(InputError, match="No document is named 'nobody'"):
        index.delete([0, "nobody"])
    with pytest.raises(InputError, match="Nothing would be left"):
        index.delete(range(5))
    with pytest.raises(InputError, match=r"the id 300.* Build the index of all documents anew"):
        index.append([[1, 300]])  # the index has one byte a token
    with pytest.raises(InputError, match="no tokenizer"):
        index.append(["text"])
    with pytest.raises(CorpusError):
        index.append([])
    assert CorpusIndex.open(index.path, verify=True).fingerprint == index.fingerprint


READER = """
import sys
from pathlib import Path
from palimpsest.corpus import CorpusIndex
path, stop = Path(sys.argv[1]), Path(sys.argv[2])
seen, opened = set(), 0
kept = CorpusIndex.open(path)
first = (kept.n_documents, kept.n_tokens, kept.count([1, 2]))
print("ready", flush=True)
while not stop.exists():
    index = CorpusIndex.open(path)
    opened += 1
    count = index.count([1, 2])
    assert count == len(index.locate([1, 2])) == sum(index.document_ids(d).tolist() == [1, 2] for d in range(index.n_documents))
    assert first == (kept.n_documents, kept.n_tokens, kept.count([1, 2]))  # who has it open is not disturbed
    seen.add((index.n_documents, index.n_tokens, count))
print(opened, sorted(seen))
"""


def test_who_reads_while_it_changes_finds_the_old_or_the_new(tmp_path: Path):
    """A process that opens the index again and again, while documents come and go and the folder is replaced."""
    index = CorpusIndex.build([[1, 2], [3, 3, 3]], None, tmp_path / "index")
    states = [(2, 5, 1)]
    command = [sys.executable, "-c", READER, str(index.path), str(tmp_path / "stop")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        for step in range(24):
            if step % 3 == 0:
                index = index.append([[1, 2]] * (step + 1) + [[7] * 9])
            elif step % 3 == 1:
                index = index.delete([1])
            else:
                index = index.compact(index.path)
            states.append((index.n_documents, index.n_tokens, index.count([1, 2])))
            time.sleep(0.02)  # for the reader, which is alone on no machine
        (tmp_path / "stop").touch()
        out, errors = reader.communicate()
    assert reader.returncode == 0, errors
    opened, seen = out.split(" ", 1)
    assert int(opened) > 10
    assert len(set(states)) > 10
    assert set(ast.literal_eval(seen)) <= set(states)
    assert len(ast.literal_eval(seen)) > 2


def test_a_compaction_that_ends_while_the_index_is_opened_is_noticed_though_its_bytes_are_the_same(index: CorpusIndex, monkeypatch):
    index = index.compact(index.path)
    inside = []
    read = layout.verify_if_changed

    def exchanged_meanwhile(folder: Path, manifest: dict) -> None:
        if not inside:
            inside.append(True)
            index.compact(index.path)
            raise FileNotFoundError(2, "gone", str(folder / "sa.0"))
        read(folder, manifest)

    monkeypatch.setattr(layout, "verify_if_changed", exchanged_meanwhile)
    assert CorpusIndex.open(index.path).fingerprint == index.fingerprint


def test_a_file_that_stays_away_is_an_error_of_the_index(index: CorpusIndex, monkeypatch):
    calls = []

    def gone(folder: Path, manifest: dict) -> None:
        calls.append(folder)
        raise FileNotFoundError(2, "gone", str(folder / "sa.0"))

    monkeypatch.setattr(layout, "verify_if_changed", gone)
    with pytest.raises(IndexCorruptError, match=r"sa\.0 of the index is missing"):
        CorpusIndex.open(index.path)
    assert 1 < len(calls) < 20


def test_a_folder_that_was_exchanged_for_one_of_the_same_bytes_has_another_state(index: CorpusIndex):
    index = index.compact(index.path)
    before = layout.folder_state(index.path)
    assert layout.folder_state(index.path) == before
    index.compact(index.path)
    after = layout.folder_state(index.path)
    assert after[2] == before[2]
    assert after != before


@pytest.mark.parametrize("left", ["all", "only the note"])
def test_an_append_that_was_interrupted_after_all_was_done_is_not_done_twice(index: CorpusIndex, monkeypatch, left: str):
    docs, part = [[1, 2, 8]], index.path.with_name("index.append")

    def killed(folder: Path) -> None:
        if left == "only the note":
            for path in folder.iterdir():
                if path.name != changes._NOTE:
                    path.unlink()
        raise KeyboardInterrupt

    def interrupted(docs: list) -> CorpusIndex:
        opened = CorpusIndex.open(index.path)
        with monkeypatch.context() as patch:
            patch.setattr(changes, "_remove_part", killed)
            with pytest.raises(KeyboardInterrupt):
                opened.append(docs)
        return CorpusIndex.open(index.path, verify=True)

    once = interrupted(docs)
    assert (once.n_documents, once.count([1, 2, 8])) == (6, 1)
    again = once.append(docs)
    assert (again.n_documents, again.fingerprint) == (6, once.fingerprint)
    assert not part.exists()
    assert again.append(docs).count([1, 2, 8]) == 2  # asked for once more, they are appended once more
    thrice = interrupted(docs)
    assert thrice.append([[1, 2, 8, 8]]).count([1, 2, 8]) == 4  # other documents are not taken for those
    assert not part.exists()


def test_an_append_that_was_interrupted_before_its_manifest_is_made_though_the_same_was_appended_before(index: CorpusIndex, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    index = index.append([[1, 2, 8]])
    with monkeypatch.context() as patch:
        patch.setattr(changes, "_publish", killed)
        with pytest.raises(KeyboardInterrupt):
            index.append([[1, 2, 8]])
    assert CorpusIndex.open(index.path).append([[1, 2, 8]]).count([1, 2, 8]) == 2
