"""Sorting in blocks against the builders that hold everything, whatever the blocks, the strips and the interruptions."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palimpsest.corpus import CorpusIndex, external, memory
from palimpsest.corpus.external import BlockSort, block_memory, count_blocks, least_memory
from palimpsest.corpus.memory import LEAST, RESERVED, SortPlan, parse_memory, plan_sort
from palimpsest.corpus.suffix_array import suffix_array
from palimpsest.corpus.workspace import Journal
from palimpsest.errors import InputError, StorageError

pytestmark = pytest.mark.usefixtures("unsynced")
KINDS = [
    (np.uint8, [0, 1, 254, 255]),
    (np.uint16, [0, 255, 65534, 65535]),
    (np.uint32, [0, 1, 70_000, (1 << 32) - 1]),
    (np.uint32, [0, 1 << 23, (1 << 32) - 2, (1 << 32) - 1]),  # more ids than a table holds
]


def greatest(tokens: np.ndarray) -> int:
    return int(tokens[tokens < np.iinfo(tokens.dtype).max].max(initial=0))


def in_blocks(tokens: np.ndarray, blocks: int) -> np.ndarray:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens.tofile(folder / "tokens")
        journal = Journal.create(folder / "journal", {})
        sort = BlockSort(folder / "tokens", tokens.dtype, tokens.size, greatest(tokens), blocks, folder / "blocks", journal, 0)
        sort.sort_blocks()
        order = np.concatenate(list(sort.merged()))
        assert len(journal.entries) == blocks
        sort.remove()
        assert {path.name for path in folder.iterdir()} == {"tokens", "journal"}
    return order


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=50),
    st.sampled_from(KINDS),
    st.integers(1, 3),
    st.integers(1, 9),
    st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 9)),
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_is_that_of_the_builders_in_memory(symbols, kind, copies, blocks, strips):
    dtype, alphabet = kind
    tokens = np.array([alphabet[s] for s in symbols] * copies, dtype)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("_STRETCHES", "_STRIP", "_MERGED"), strips, strict=True):
            patch.setattr(external, name, value)
        order = in_blocks(tokens, min(blocks, tokens.size))
    assert order.tolist() == suffix_array(tokens, greatest(tokens), "sais").tolist()


@pytest.mark.parametrize("blocks", [2, 5])
def test_repeats_of_every_kind(repeats: Callable[[int], np.ndarray], blocks: int):
    tokens = repeats(30_000)
    assert np.array_equal(in_blocks(tokens, blocks), suffix_array(tokens, greatest(tokens), "divsufsort"))


def test_repeats_cost_no_more_steps(monkeypatch: pytest.MonkeyPatch, repeating):
    """The tail is passed once for every block, whatever the text: the counts in the gaps are as many as its suffixes."""
    passed: list[int] = []
    count = external.count_into_gaps

    def spy(symbols, greater, filled, *rest):
        passed.append(int(filled.sum()))
        count(symbols, greater, filled, *rest)

    monkeypatch.setattr(external, "count_into_gaps", spy)
    for make in (repeating["runs"], repeating["copied_documents"]):
        passed.clear()
        in_blocks(tokens := make(20_000), 4)
        assert sum(passed) == sum(tokens.size - tokens.size * block // 4 for block in (1, 2, 3))


def rows(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 3, rng.integers(0, 30)).tolist() for _ in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def five_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "count_blocks", lambda *rest: 5)


class TestIndex:
    @pytest.mark.parametrize("shards", [1, 3])
    @pytest.mark.parametrize("dtype", ["u8", "u32"])
    def test_the_files_are_the_same(self, tmp_path: Path, five_blocks: None, shards: int, dtype: str):
        docs = [*rows(40), [], *rows(9), [252, 1, 252]]
        files = []
        for builder in ("auto", "external"):
            index = CorpusIndex.build(docs, None, tmp_path / builder, builder=builder, shards=shards, token_dtype=dtype, memory="1GB")
            files.append({name: data for name, data in contents(index.path).items() if name != "manifest.json"})
            assert index.manifest["memory"] == 10**9
            cards = [(card["builder"], card["blocks"]) for card in index.manifest["shards"]]
            assert cards == [("divsufsort", 0) if builder == "auto" else ("external", 5)] * shards
        assert files[0] == files[1]
        assert {path.name for path in tmp_path.iterdir()} - {"cache"} == {"auto", "external"}

    def test_another_bound_opens_what_is_built(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        CorpusIndex.build(rows(9), None, tmp_path / "index", memory="1GB")
        monkeypatch.setattr("palimpsest.corpus.build.stage", None)
        assert CorpusIndex.build(rows(9), None, tmp_path / "index", memory="2GB").manifest["memory"] == 10**9

    def test_finished_blocks_are_not_sorted_again(self, tmp_path: Path, five_blocks: None, monkeypatch: pytest.MonkeyPatch):
        docs = rows(60)
        sort = BlockSort._sort_block
        blocks: list[int] = []

        def interrupted(self: BlockSort, block: int):
            if len(blocks) == 3:
                raise KeyboardInterrupt
            blocks.append(block)
            return sort(self, block)

        with monkeypatch.context() as patch:
            patch.setattr(BlockSort, "_sort_block", interrupted)
            with pytest.raises(KeyboardInterrupt):
                CorpusIndex.build(docs, None, tmp_path / "index", builder="external")
        monkeypatch.setattr(BlockSort, "_sort_block", lambda self, block: blocks.append(block) or sort(self, block))
        CorpusIndex.build(docs, None, tmp_path / "index", builder="external")
        assert blocks == [4, 3, 2, 1, 0]
        CorpusIndex.build(docs, None, tmp_path / "straight", builder="external")
        assert contents(tmp_path / "index") == contents(tmp_path / "straight")

    @pytest.mark.parametrize("damaged", ["order.4", "gaps.2", "greater.2"])
    def test_blocks_that_the_disk_lost_are_sorted_again(
        self, tmp_path: Path, five_blocks: None, monkeypatch: pytest.MonkeyPatch, damaged: str
    ):
        """With all others, for the one file that a block is sorted with is only kept for the next."""
        docs = rows(60)
        sort = BlockSort._sort_block
        blocks: list[int] = []

        def interrupted(self: BlockSort, block: int):
            if block == 1:
                raise KeyboardInterrupt
            return sort(self, block)

        with monkeypatch.context() as patch:
            patch.setattr(BlockSort, "_sort_block", interrupted)
            with pytest.raises(KeyboardInterrupt):
                CorpusIndex.build(docs, None, tmp_path / "index", builder="external")
        path = tmp_path / "index.partial" / "blocks.0" / damaged
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        monkeypatch.setattr(BlockSort, "_sort_block", lambda self, block: blocks.append(block) or sort(self, block))
        CorpusIndex.build(docs, None, tmp_path / "index", builder="external")
        CorpusIndex.build(docs, None, tmp_path / "straight")
        assert blocks == [4, 3, 2, 1, 0]
        for name in ("sa.0", "buckets.0"):
            assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()

    def test_other_blocks_begin_anew(self, tmp_path: Path, repeating):
        tokens = repeating["mixed"](2000)
        tokens.tofile(tmp_path / "tokens")
        journal = Journal.create(tmp_path / "journal", {})
        for blocks in (5, 3, 5, 5):  # the second time the files of the first five have been overwritten
            sort = BlockSort(tmp_path / "tokens", tokens.dtype, tokens.size, 900, blocks, tmp_path / "blocks", journal, 0)
            sort.sort_blocks()
            assert np.array_equal(np.concatenate(list(sort.merged())), suffix_array(tokens, 900, "sais"))
        assert [entry["blocks"] for entry in journal.entries] == [5] * 5 + [3] * 3 + [5] * 5

    def test_blocks_that_were_begun_are_kept_when_the_memory_changes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(memory, "count_blocks", lambda *rest: 5)
        with monkeypatch.context() as patch:
            patch.setattr(BlockSort, "merged", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                CorpusIndex.build(rows(60), None, tmp_path / "index", builder="external")
        monkeypatch.setattr(memory, "count_blocks", lambda *rest: 3)
        monkeypatch.setattr(BlockSort, "_sort_block", None)
        index = CorpusIndex.build(rows(60), None, tmp_path / "index", builder="external", memory="300MB")
        assert index.manifest["shards"][0]["blocks"] == 5

    def test_no_room_for_the_blocks(self, tmp_path: Path, five_blocks: None, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10_000})())
        with pytest.raises(StorageError, match="1 MB, but its disk has 0 MB free"):
            CorpusIndex.build(rows(9), None, tmp_path / "index", builder="external")


class TestBound:
    @pytest.mark.parametrize(
        ("text", "size"),
        [
            (None, None),
            ("2GB", 2 * 10**9),
            ("512 MiB", 512 << 20),
            ("1.5gib", 3 << 29),
            (10**9, 10**9),
            ("1000000000", 10**9),
            ("0.5T", 5 * 10**11),
        ],
    )
    def test_amounts(self, text, size):
        assert parse_memory(text) == size

    @pytest.mark.parametrize("text", ["much", "2 GBs", "-2GB", "", "2ib", True, "nan", "1e9", "9" * 400, "9" * 300 + "TB"])
    def test_what_is_no_amount(self, text, tmp_path: Path):
        with pytest.raises(InputError, match="no amount"):
            CorpusIndex.build(rows(3), None, tmp_path / "index", memory=text)

    def test_too_little_says_what_would_do(self, tmp_path: Path):
        with pytest.raises(InputError, match="within 200 MB is not possible") as caught:
            CorpusIndex.build(rows(3), None, tmp_path / "index", memory="200MB")
        assert f"{LEAST / 1e6:.0f} MB" in caught.value.remedy

    def test_the_memory_decides(self):
        n = 100_000_000
        assert plan_sort("auto", n, 50_000, 2, 3 * 10**9).builder == "two-stage"
        assert plan_sort("auto", n, 50_000, 2, 2 * 10**9).builder == "divsufsort"
        plan = plan_sort("auto", n, 50_000, 2, 10**9)
        assert (plan.builder, plan.blocks) == ("external", 2)
        assert plan.memory <= 10**9 - RESERVED
        assert plan.lean  # two blocks in the order of the quick builder would not fit
        quick = plan_sort("external", n, 50_000, 2, 10**9, begun=5)
        assert (quick.blocks, quick.lean) == (5, False)
        assert plan.memory < quick.memory * 5 // 2
        assert quick.memory <= 10**9 - RESERVED
        with pytest.raises(InputError, match="1,000 MB") as caught:
            plan_sort("sais", n, 50_000, 2, 10**9)
        assert "external" in caught.value.remedy
        assert plan_sort("external", n, 50_000, 2, 4 * 10**9).blocks == 1
        assert [plan_sort(builder, n, 50_000, 2, 3 * 10**9, begun=7).blocks for builder in ("auto", "external", "sais")] == [7, 7, 0]
        assert plan_sort("auto", n, 50_000, 2, 5 * 10**8, begun=2).blocks > 2

    def test_without_a_bound_nothing_is_refused(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(memory, "free_memory", lambda: 1)
        n = 100_000_000
        assert plan_sort("divsufsort", n, 50_000, 2, None).blocks == 0
        assert plan_sort("auto", n, 50_000, 2, None).builder == "external"
        assert plan_sort("auto", 1000, 50_000, 2, None) == SortPlan("divsufsort", 0, 1000 * 12)

    def test_more_ids_than_the_bound_has_room_for(self):
        with pytest.raises(InputError, match="not possible") as caught:
            plan_sort("external", 10**9, 3_000_000, 4, LEAST)
        needed = int(caught.value.remedy.split()[3].replace(",", "")) * 10**6
        assert plan_sort("external", 10**9, 3_000_000, 4, needed + 10**6).blocks > 1

    @pytest.mark.parametrize("top", [200, 50_000, 1 << 20, 1 << 30])
    def test_as_few_blocks_as_fit(self, top: int):
        for length, room in ((4_000_000, 200 << 20), (300_000_000, 1 << 30), (1000, 300 << 20)):
            blocks = count_blocks(length, top, room)
            assert block_memory(-(-length // blocks), top) <= room
            assert blocks == 1 or block_memory(-(-length // (blocks - 1)), top) > room
            assert count_blocks(length, top, least_memory(length, top)) > 0
            assert count_blocks(length, top, least_memory(length, top) - 1) == 0

    @pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a process begin its peak anew")
    def test_the_memory_stays_below_the_bound(self):
        """Measured in a process of its own: four million tokens within 36 MB, with small strips; in memory it takes more."""
        script = textwrap.dedent("""
            import sys, tempfile
            from pathlib import Path
            import numpy as np
            from palimpsest.corpus import external
            from palimpsest.corpus.external import BlockSort, count_blocks
            from palimpsest.corpus.memory import resident_memory
            from palimpsest.corpus.suffix_array import suffix_array
            from palimpsest.corpus.workspace import Journal

            external._AROUND, external._STRIP, external._MERGED = 16 << 20, 1 << 13, 1 << 18

            def sort(tokens, blocks, folder):
                folder.mkdir()
                length = tokens.size
                tokens.tofile(folder / "tokens")
                del tokens
                before = resident_memory()[0]
                journal = Journal.create(folder / "journal", {})
                work = BlockSort(folder / "tokens", np.dtype("<u2"), length, 50_000, blocks, folder / "blocks", journal, 0)
                work.sort_blocks()
                for piece in work.merged():
                    pass
                return resident_memory()[1] - before

            def in_memory(n):
                before = resident_memory()[0]
                suffix_array(text(n), 50_000, "divsufsort")
                return resident_memory()[1] - before

            def text(n):
                half = np.minimum(np.random.default_rng(0).geometric(1e-4, n // 2), 50_000).astype(np.uint16)
                return np.concatenate([half, half])

            with tempfile.TemporaryDirectory() as name:
                sort(text(1000), 3, Path(name) / "warm")
                bound = 36_000_000
                blocks = count_blocks(4_000_000, 50_000, bound)
                suffix_array(text(1000), 50_000, "divsufsort")
                used = []
                for way in (lambda: sort(text(4_000_000), blocks, Path(name) / "work"), lambda: in_memory(4_000_000)):
                    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
                    used.append(way())
                print(blocks, bound, *used)
        """)
        answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        blocks, bound, used, otherwise = map(int, answer.stdout.split())
        assert blocks > 1
        assert used < bound < otherwise
