"""Building: whatever happens in between, the index is whole, the same to the byte, or not there."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from palimpsest.corpus import CorpusIndex, Document, build, memory, staging
from palimpsest.errors import CorpusError, InputError, StorageError
from palimpsest.tokenizer import Tokenizer

WORDS = "in the beginning god created heaven and earth without form void darkness was upon face of deep".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(["<unk>", *WORDS])}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return Tokenizer(backend, bos_id=None, eos_id=0)


def texts(count: int, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    return [Document(f"doc-{i}", " ".join(rng.choice(WORDS, rng.integers(0, 30))), metadata={"number": i}) for i in range(count)]


def rows(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 50, rng.integers(0, 30)).tolist() for _ in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lose(path: Path, damage: str) -> None:
    """What a disk may do to a file; its other names keep what they have."""
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    if damage != "gone":
        path.write_bytes(data[:-1] if damage == "cut" else data)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_BATCH_DOCUMENTS", 5)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the documents that are tokenized from here on."""
    names: list[str] = []
    encode = staging.encode_documents

    def spy(batch, *rest):
        names.extend(doc.id for doc in batch)
        return encode(batch, *rest)

    monkeypatch.setattr(staging, "encode_documents", spy)
    return names


def killed(work: Callable[[], object]) -> bool:
    """Runs `work` in a forked child; whether SIGKILL ended it. Any other end but success fails the test."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


class TestKilled:
    @pytest.mark.parametrize(("builder", "shards", "step"), [("auto", 2, 1), ("auto", 1, 11), ("external", 2, 11)])
    def test_at_every_touch_of_the_file_system(
        self, tmp_path: Path, small_batches: None, monkeypatch: pytest.MonkeyPatch, builder: str, shards: int, step: int
    ) -> None:
        """Kill −9 before the k-th operation on a file, for every k, over an older index and with two shards.

        Also, for every eleventh, with one shard, which is the staged tokens, and with shards that are sorted in three blocks.
        """
        monkeypatch.setattr(os, "fsync", lambda handle: None)  # what was written outlives the process; only a power cut needs more
        monkeypatch.setattr(memory, "count_blocks", lambda *shard: 3)
        docs, older = rows(12), rows(4, seed=9)
        CorpusIndex.build(older, None, tmp_path / "older")
        expected = tmp_path / "expected" / "index"
        asked = {"shards": shards, "builder": builder, "token_dtype": "u16"}
        CorpusIndex.build(docs, None, expected, **asked)
        whole = contents(expected)

        for k in range(0, 1000, step):
            out = tmp_path / f"kill-{k}" / "index"
            if k % 2:
                shutil.copytree(tmp_path / "older", out)

            def work(k: int = k, out: Path = out) -> None:
                left = k

                def on_event(event: str, arguments: tuple) -> None:
                    nonlocal left
                    if event in ("open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "shutil.rmtree"):
                        if left == 0:
                            os.kill(os.getpid(), signal.SIGKILL)
                        left -= 1

                sys.addaudithook(on_event)
                CorpusIndex.build(iter(docs) if k % 2 == 0 else docs, None, out, **asked)

            was_killed = killed(work)
            if out.exists():  # nothing half-written is ever at the target
                assert CorpusIndex.open(out, verify=True).n_documents in (len(docs), len(older))
            CorpusIndex.build(docs, None, out, **asked)
            assert contents(out) == whole, f"killed before operation {k}"
            assert [path.name for path in out.parent.iterdir()] == ["index"], f"killed before operation {k}"
            if not was_killed:
                break
        assert 60 < k < 1000

    def test_at_random_times_with_a_tokenizer(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        """A process of its own, killed again and again until it gets through, gives what an undisturbed one gives."""
        tokenizer.save(tmp_path / "tokenizer.json")
        script = textwrap.dedent(f"""
            import sys, time
            from palimpsest.corpus import CorpusIndex, Document, staging
            from palimpsest.tokenizer import Tokenizer
            staging._BATCH_DOCUMENTS = 8
            words = {WORDS!r}
            docs = [Document(str(i), " ".join(words[(i * j) % 17] for j in range(i % 40))) for i in range(400)]
            tokenizer = Tokenizer.from_file({str(tmp_path / "tokenizer.json")!r})
            print("ready", flush=True)
            CorpusIndex.build(docs, tokenizer, sys.argv[1], progress=lambda stage, done, total: time.sleep(0.01))
        """)
        command = [sys.executable, "-c", script]
        subprocess.run([*command, str(tmp_path / "undisturbed")], check=True, capture_output=True)
        rng = np.random.default_rng(0)
        kills = 0
        while True:
            process = subprocess.Popen([*command, str(tmp_path / "index")], stdout=subprocess.PIPE)
            assert process.stdout is not None
            process.stdout.readline()
            if kills < 3:
                time.sleep(rng.uniform(0.05, 0.4))
                process.kill()
            process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL
            kills += 1
        assert kills >= 1
        assert contents(tmp_path / "index") == contents(tmp_path / "undisturbed")


class Interrupted(Exception):
    pass


def until(documents: list, count: int) -> Iterator:
    yield from documents[:count]
    raise Interrupted


class TestContinuing:
    def test_finished_batches_are_not_tokenized_again(
        self, tmp_path: Path, tokenizer: Tokenizer, small_batches: None, encoded: list[str]
    ) -> None:
        docs = texts(23)
        with pytest.raises(Interrupted):
            CorpusIndex.build(until(docs, 18), tokenizer, tmp_path / "index")
        assert encoded == [f"doc-{i}" for i in range(15)]  # three whole batches
        assert not (tmp_path / "index").exists()
        index = CorpusIndex.build(iter(docs), tokenizer, tmp_path / "index")
        assert encoded == [f"doc-{i}" for i in range(23)]
        CorpusIndex.build(docs, tokenizer, tmp_path / "straight")
        assert contents(index.path) == contents(tmp_path / "straight")

    def test_sorted_shards_are_not_sorted_again(
        self, tmp_path: Path, small_batches: None, encoded: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        docs = rows(23)
        sort = build.suffix_array
        sizes: list[int] = []

        def interrupted(tokens: np.ndarray, *rest) -> np.ndarray:
            if len(sizes) == 2:
                raise Interrupted
            sizes.append(tokens.size)
            return sort(tokens, *rest)

        monkeypatch.setattr(build, "suffix_array", interrupted)
        with pytest.raises(Interrupted):
            CorpusIndex.build(docs, None, tmp_path / "index", shards=3)
        assert len(encoded) == 23
        monkeypatch.setattr(build, "suffix_array", lambda tokens, *rest: sizes.append(tokens.size) or sort(tokens, *rest))
        index = CorpusIndex.build(docs, None, tmp_path / "index", shards=3)
        assert (len(encoded), len(sizes)) == (23, 3)
        assert sum(sizes) == index.n_tokens + index.n_documents

    @pytest.mark.parametrize("change", ["first", "middle", "shorter", "longer", "metadata"])
    def test_another_corpus_does_not_inherit(
        self, tmp_path: Path, tokenizer: Tokenizer, small_batches: None, encoded: list[str], caplog: pytest.LogCaptureFixture, change: str
    ) -> None:
        docs = texts(23)
        with pytest.raises(Interrupted):
            CorpusIndex.build(until(docs, 20), tokenizer, tmp_path / "index")
        encoded.clear()
        other = list(docs)
        match change:
            case "first":
                other[0] = Document("doc-0", "another beginning", metadata={"number": 0})
            case "middle":
                other[7] = Document("doc-7", "darkness", metadata={"number": 7})
            case "shorter":
                del other[12:]
            case "longer":
                other += texts(4, seed=1)
            case "metadata":
                other[14] = Document("doc-14", docs[14].text, metadata={"number": 15})
        index = CorpusIndex.build(iter(other), tokenizer, tmp_path / "index")
        CorpusIndex.build(other, tokenizer, tmp_path / "straight")
        assert contents(index.path) == contents(tmp_path / "straight")
        kept = {"first": 0, "middle": 5, "shorter": 10, "longer": 15, "metadata": 10}[change]
        assert encoded[0] == f"doc-{kept}"
        assert ("keeping" in caplog.text) == (change != "longer")

    def test_another_tokenizer_or_type_starts_anew_with_a_notice(
        self, tmp_path: Path, small_batches: None, encoded: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        docs = rows(23)
        with pytest.raises(Interrupted):
            CorpusIndex.build(until(docs, 20), None, tmp_path / "index", token_dtype="u16")
        encoded.clear()
        index = CorpusIndex.build(docs, None, tmp_path / "index", token_dtype="u8")
        assert len(encoded) == 23
        assert "Discarding" in caplog.text
        assert index.manifest["token_dtype"] == "u8"

    def test_other_shards_sort_anew_but_keep_the_tokens(
        self, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        docs = rows(23)
        with monkeypatch.context() as patch:
            patch.setattr(build, "_describe", lambda *arguments: (_ for _ in ()).throw(Interrupted))
            with pytest.raises(Interrupted):
                CorpusIndex.build(docs, None, tmp_path / "index", shards=3)
        encoded.clear()
        CorpusIndex.build(docs, None, tmp_path / "index", shards=2)
        assert encoded == []
        assert "anew" in caplog.text
        CorpusIndex.build(docs, None, tmp_path / "straight", shards=2)
        assert contents(tmp_path / "index") == contents(tmp_path / "straight")

    @pytest.mark.parametrize("links", [True, False])
    def test_one_shard_of_the_staged_tokens_themselves(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
        """A corpus that has grown, or shrunk, since its only shard was cut; and a file system without links."""
        docs = rows(23)
        if not links:
            monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(PermissionError(1, "no links here")))
        for count in (30, 12, 23):
            with monkeypatch.context() as patch:
                patch.setattr(build, "_describe", lambda *arguments: (_ for _ in ()).throw(Interrupted))
                with pytest.raises(Interrupted):
                    CorpusIndex.build(docs, None, tmp_path / "index", token_dtype="u16")
            work = tmp_path / "index.partial"
            assert (work / "index" / "tokens.0").samefile(work / "tokens.staged") == links
            docs = rows(40)[:count]
        CorpusIndex.build(docs, None, tmp_path / "index", token_dtype="u16")
        CorpusIndex.build(docs, None, tmp_path / "straight", token_dtype="u16", resume=False)
        assert contents(tmp_path / "index") == contents(tmp_path / "straight")
        assert (tmp_path / "index" / "tokens.0").stat().st_nlink == 1

    def test_staged_bytes_that_the_disk_lost_are_written_again(self, tmp_path: Path, small_batches: None, encoded: list[str]) -> None:
        docs = rows(23)
        with pytest.raises(Interrupted):
            CorpusIndex.build(until(docs, 20), None, tmp_path / "index")
        staged = tmp_path / "index.partial" / "tokens.staged"
        data = bytearray(staged.read_bytes())
        data[len(data) // 2] ^= 1
        staged.write_bytes(data)
        encoded.clear()
        CorpusIndex.build(docs, None, tmp_path / "index")
        assert 10 < len(encoded) < 23
        CorpusIndex.build(docs, None, tmp_path / "straight")
        assert contents(tmp_path / "index") == contents(tmp_path / "straight")

    @pytest.mark.parametrize("name", ["tokens.0", "sa.0", "docs.1", "buckets.1"])
    @pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
    def test_finished_files_that_the_disk_lost_are_made_again(
        self, tmp_path: Path, encoded: list[str], caplog: pytest.LogCaptureFixture, name: str, damage: str
    ) -> None:
        docs = rows(23)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "_describe", lambda *arguments: (_ for _ in ()).throw(Interrupted))
            with pytest.raises(Interrupted):
                CorpusIndex.build(docs, None, tmp_path / "index", shards=2)
        encoded.clear()
        lose(tmp_path / "index.partial" / "index" / name, damage)
        index = CorpusIndex.build(docs, None, tmp_path / "index", shards=2)
        assert encoded == []
        assert name in caplog.text
        index.verify()
        CorpusIndex.build(docs, None, tmp_path / "straight", shards=2)
        assert contents(tmp_path / "index") == contents(tmp_path / "straight")

    def test_a_power_cut_does_not_lose_that_the_index_is_in_its_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Or the next build would write into the staged tokens, which are those of the index."""
        sync, rename = os.fsync, os.rename
        synced: set[tuple[int, int]] = set()
        known: list[bool] = []

        def watched(source: Path, target: Path) -> None:
            journal = (tmp_path / "index.partial" / "journal").stat()
            known.append((journal.st_ino, journal.st_size) in synced)
            rename(source, target)

        monkeypatch.setattr(os, "fsync", lambda handle: synced.add((os.fstat(handle).st_ino, os.fstat(handle).st_size)) or sync(handle))
        monkeypatch.setattr(os, "rename", watched)
        CorpusIndex.build(rows(23), None, tmp_path / "index", token_dtype="u16")
        assert known == [True]

    @pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
    def test_the_tokens_of_a_workspace_that_was_copied(self, tmp_path: Path, damage: str) -> None:
        """They are the staged ones no more, and nothing says what they have to be."""
        docs = rows(23)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "_describe", lambda *arguments: (_ for _ in ()).throw(Interrupted))
            with pytest.raises(Interrupted):
                CorpusIndex.build(docs, None, tmp_path / "first", token_dtype="u16")
        shutil.copytree(tmp_path / "first.partial", tmp_path / "index.partial")
        lose(tmp_path / "index.partial" / "index" / "tokens.0", damage)
        CorpusIndex.build(docs, None, tmp_path / "index", token_dtype="u16")
        CorpusIndex.build(docs, None, tmp_path / "straight", token_dtype="u16")
        assert contents(tmp_path / "index") == contents(tmp_path / "straight")

    def test_without_resume_everything_is_done_again(self, tmp_path: Path, small_batches: None, encoded: list[str]) -> None:
        docs = rows(23)
        with pytest.raises(Interrupted):
            CorpusIndex.build(until(docs, 20), None, tmp_path / "index")
        encoded.clear()
        CorpusIndex.build(docs, None, tmp_path / "index", resume=False)
        CorpusIndex.build(docs, None, tmp_path / "index", resume=False)
        assert len(encoded) == 46


class TestTarget:
    def test_the_index_of_the_same_corpus_is_only_opened(self, tmp_path: Path, encoded: list[str]) -> None:
        first = CorpusIndex.build(rows(9), None, tmp_path / "index")
        second = CorpusIndex.build(rows(9), None, tmp_path / "index")
        assert (len(encoded), second.fingerprint) == (9, first.fingerprint)

    def test_the_index_of_another_corpus_is_replaced(self, tmp_path: Path) -> None:
        first = CorpusIndex.build(rows(9), None, tmp_path / "index")
        second = CorpusIndex.build(rows(9, seed=1), None, tmp_path / "index")
        assert first.fingerprint != second.fingerprint
        assert first.document_ids(0).tolist() == rows(9)[0]  # who has it open keeps it

    def test_other_special_tokens_are_another_index(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        CorpusIndex.build(["god"], tokenizer, tmp_path / "index")
        again = CorpusIndex.build(["god"], Tokenizer(tokenizer.backend, bos_id=3), tmp_path / "index")
        assert again.tokenizer is not None
        assert (again.tokenizer.bos_id, again.tokenizer.eos_id) == (3, None)

    def test_a_damaged_index_is_replaced_with_a_notice(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        whole = contents(CorpusIndex.build(rows(9), None, tmp_path / "index").path)
        with open(tmp_path / "index" / "sa.0", "r+b") as stream:
            stream.write(bytes([whole["sa.0"][0] ^ 1]))
        CorpusIndex.build(rows(9), None, tmp_path / "index")
        assert "damaged" in caplog.text
        assert contents(tmp_path / "index") == whole

    @pytest.mark.parametrize("what", ["file", "folder", "manifest of something else", "partial"])
    def test_what_is_not_an_index_is_never_overwritten(self, tmp_path: Path, what: str) -> None:
        out = tmp_path / "index"
        if what == "file":
            out.write_text("precious")
        else:
            folder = tmp_path / "index.partial" if what == "partial" else out
            folder.mkdir()
            (folder / ("manifest.json" if "manifest" in what else "notes.txt")).write_text("{}")
        before = contents(tmp_path) | ({"index": b"precious"} if what == "file" else {})
        with pytest.raises(StorageError, match="not an"):
            CorpusIndex.build(rows(9), None, out)
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("target", ["nowhere", "empty"])
    def test_a_link_that_leads_to_no_index_is_refused_before_anything_is_written(self, tmp_path: Path, target: str) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "index").symlink_to(target)
        with pytest.raises(StorageError, match="leads to no index"):
            CorpusIndex.build(rows(9), None, tmp_path / "index")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "index"]
        assert (tmp_path / "index").is_symlink()

    def test_an_empty_folder_may_be_filled(self, tmp_path: Path) -> None:
        (tmp_path / "index").mkdir()
        assert CorpusIndex.build(rows(9), None, tmp_path / "index").n_documents == 9

    def test_two_builders_do_not_meet(self, tmp_path: Path) -> None:
        (tmp_path / "index.partial").mkdir()
        handle = os.open(tmp_path / "index.partial", os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="Another process"):
            CorpusIndex.build(rows(9), None, tmp_path / "index")
        os.close(handle)
        CorpusIndex.build(rows(9), None, tmp_path / "index")


@pytest.mark.parametrize(("top", "kinds"), [(200, "B H I Q h i q"), (60_000, "H I Q i q"), (70_000, "I Q i q"), (1 << 40, "Q q")])
def test_what_was_read_is_known_by_its_ids_whatever_their_type(top: int, kinds: str) -> None:
    ids = [3, top, 0, 258 % top]
    digests = {staging._digest([Document("a", ids=np.array(ids, kind))], [b""]) for kind in kinds.split()}
    others = ([3, top, 0], [3, top - 1, 0, 258 % top], [3 + (1 << 16), top, 0, 258 % top], [-3, top, 0, 258 % top])
    assert len(digests) == 1
    assert len(digests | {staging._digest([Document("a", ids=np.array(other))], [b""]) for other in others}) == 5


def unread() -> Iterator[list[int]]:
    """Documents that nobody is to read."""
    pytest.fail("the documents were read")
    yield [1]


class TestRefused:
    @pytest.mark.parametrize("docs", [[], [[], []], iter([])])
    def test_an_empty_corpus(self, tmp_path: Path, docs) -> None:
        with pytest.raises(CorpusError, match="empty"):
            CorpusIndex.build(docs, None, tmp_path / "index")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("docs", "options", "says"),
        [
            (["text"], {}, "no tokenizer"),
            ([[1], [2, -3]], {}, "'1' has the id -3"),
            ([[1], [], [7, 255]], {"token_dtype": "u8"}, "'2' has the id 255"),
            ([[1 << 32]], {}, "wider"),
            ([[1], [2]], {"shards": 3}, "cannot fill 3"),
            ([[1]], {"shards": 0}, "at least 1"),
            ([[1]], {"builder": "magic"}, "magic"),
            (unread(), {"builder": "external", "engine": "ray"}, "one machine"),
            ([[1]], {"token_dtype": "u64"}, "u64"),
            ([Document("d", ids=np.array([1]), metadata={("a",): 1})], {}, "JSON"),
            ([[0.5]], {}, "integer"),
        ],
    )
    def test_impossible_requests(self, tmp_path: Path, docs, options: dict, says: str) -> None:
        with pytest.raises(InputError, match=says):
            CorpusIndex.build(docs, None, tmp_path / "index", **options)
        assert not (tmp_path / "index").exists()

    def test_a_type_too_narrow_for_the_tokenizer(self, tmp_path: Path) -> None:
        wide = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(300)}, unk_token="w0")))
        with pytest.raises(InputError, match="299"):
            CorpusIndex.build(["w1"], wide, tmp_path / "index", token_dtype="u8")
        assert CorpusIndex.build(["w1"], wide, tmp_path / "index").manifest["token_dtype"] == "u16"

    def test_text_that_is_not_unicode(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        with pytest.raises(CorpusError, match="surrogate"):
            CorpusIndex.build(["fine", "not \ud800 fine"], tokenizer, tmp_path / "index")

    def test_no_space_left(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_batches: None, encoded: list[str]) -> None:
        """The write that fails leaves a build that continues once there is space."""
        docs = rows(23)
        append = build.Journal.append

        def full(journal: build.Journal, entry: dict) -> None:
            if len(journal.entries) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            append(journal, entry)

        with monkeypatch.context() as patch:
            patch.setattr(build.Journal, "append", full)
            with pytest.raises(StorageError, match="No space left") as caught:
                CorpusIndex.build(docs, None, tmp_path / "index")
            assert "run the same command again" in caught.value.remedy
        encoded.clear()
        CorpusIndex.build(docs, None, tmp_path / "index")
        assert len(encoded) == 13
        CorpusIndex.build(docs, None, tmp_path / "straight")
        assert contents(tmp_path / "index") == contents(tmp_path / "straight")

    def test_no_room_for_the_suffix_array(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
        with pytest.raises(StorageError, match="MB free"):
            CorpusIndex.build(rows(9), None, tmp_path / "index")

    def test_no_permission(self, tmp_path: Path) -> None:
        (tmp_path / "closed").mkdir()
        (tmp_path / "closed").chmod(0o555)
        tmp_path.chmod(0o755)
        CorpusIndex.build(rows(2), None, tmp_path / "warm")  # compiled code is loaded while we may still read it

        def work() -> None:
            if os.geteuid() == 0:
                os.seteuid(65534)  # root may write anywhere
            with pytest.raises(StorageError, match="Permission denied"):
                CorpusIndex.build(rows(9), None, tmp_path / "closed" / "index")

        for parent in tmp_path.parents[:2]:
            parent.chmod(0o755)
        assert not killed(work)

    def test_a_file_where_a_folder_is_needed(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(StorageError, match="Cannot write"):
            CorpusIndex.build(rows(9), None, tmp_path / "file" / "index")


class TestResult:
    def test_text_ids_and_metadata_come_back(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        docs = texts(40)
        index = CorpusIndex.build(docs, tokenizer, tmp_path / "index", shards=3)
        assert index.tokenizer is not None
        assert index.tokenizer_fingerprint == tokenizer.fingerprint == index.tokenizer.fingerprint
        assert index.tokenizer.eos_id == 0
        for i, doc in enumerate(docs):
            assert index.document(i) == (doc.id, doc.metadata)
            assert index.document_ids(i).tolist() == tokenizer.encode(doc.text or "")

    def test_a_tokenizer_made_to_cut_and_pad_does_neither(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        cutting = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        cutting.enable_truncation(4)
        cutting.enable_padding(length=8)
        index = CorpusIndex.build(["god " * 50, "earth"], Tokenizer(cutting, eos_id=0), tmp_path / "index")
        assert [index.document_ids(i).size for i in range(2)] == [50, 1]
        assert index.tokenizer_fingerprint == tokenizer.fingerprint
        assert cutting.truncation is not None  # the caller's own object is left as it was

    def test_text_and_ids_may_be_mixed(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        docs = ["god created", [3, 4], Document("both", "void", np.array([1])), "", "earth"]
        index = CorpusIndex.build(docs, tokenizer, tmp_path / "index")
        assert [index.document_ids(i).tolist() for i in range(5)] == [
            tokenizer.encode("god created"),
            [3, 4],
            [1],
            [],
            tokenizer.encode("earth"),
        ]

    def test_the_fingerprint_is_that_of_the_content(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        docs = rows(30)

        def fingerprint(docs, tokenizer=None, **options) -> str:
            return CorpusIndex.build(docs, tokenizer, tmp_path / "index", **options).fingerprint

        first = fingerprint(docs)
        assert fingerprint(docs, token_dtype="u32") == fingerprint(docs, shards=4) == fingerprint(docs, builder="sais") == first
        assert fingerprint([*docs[:-1], [*docs[-1], 1]]) != first
        assert fingerprint([docs[0] + docs[1], *docs[2:]]) != first
        assert fingerprint([[t % 17 for t in doc] for doc in docs]) != fingerprint([[t % 17 for t in doc] for doc in docs], tokenizer)

    def test_both_builders_give_the_same_files(self, tmp_path: Path) -> None:
        files = []
        for builder in ("divsufsort", "sais"):
            CorpusIndex.build(rows(50), None, tmp_path / builder, builder=builder, shards=2)
            files.append({name: data for name, data in contents(tmp_path / builder).items() if name != "manifest.json"})
        assert files[0] == files[1]

    @pytest.mark.parametrize("shards", [1, 2, 5, 9])
    def test_shards_are_balanced_and_lose_nothing(self, tmp_path: Path, shards: int) -> None:
        docs = [[1] * 500, *rows(7), [2] * 100]
        index = CorpusIndex.build(docs, None, tmp_path / "index", shards=shards)
        cards = index.manifest["shards"]
        assert len(cards) == shards
        assert all(card["documents"] >= 1 for card in cards)
        assert sum(card["length"] - card["documents"] for card in cards) == sum(map(len, docs))
        assert [index.document_ids(i).tolist() for i in range(len(docs))] == docs
        assert max(card["length"] for card in cards) <= sum(map(len, docs)) / shards + 510

    def test_strips_and_batches_leave_no_seam(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        docs = rows(60)
        whole = contents(CorpusIndex.build(docs, None, tmp_path / "a", shards=2).path)
        monkeypatch.setattr("palimpsest.corpus.sharding._STRIP", 7)
        monkeypatch.setattr(staging, "_STRIP", 11)
        monkeypatch.setattr("palimpsest.corpus.suffix_array._STRIP", 5)
        assert contents(CorpusIndex.build(docs, None, tmp_path / "b", shards=2).path) == whole
        monkeypatch.setattr(staging, "_BATCH_SIZE", 50)
        manifest = {"manifest.json": b""}
        assert contents(CorpusIndex.build(docs, None, tmp_path / "c", shards=2).path) | manifest == whole | manifest

    def test_shards_are_sorted_one_by_one_where_memory_is_short(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = contents(CorpusIndex.build(rows(60), None, tmp_path / "a", shards=4).path)
        at_once: list[int] = []
        choose = build._at_once
        monkeypatch.setattr(build, "_at_once", lambda *given: at_once.append(choose(*given)) or at_once[-1])
        monkeypatch.setattr(os, "cpu_count", lambda: 3)
        CorpusIndex.build(rows(60), None, tmp_path / "b", shards=4)
        monkeypatch.setattr(os, "sysconf", lambda name: 1)
        CorpusIndex.build(rows(60), None, tmp_path / "c", shards=4)
        assert at_once == [3, 1]
        assert contents(tmp_path / "b") == contents(tmp_path / "c") == whole

    def test_progress_is_told(self, tmp_path: Path, small_batches: None) -> None:
        calls: list[tuple] = []
        CorpusIndex.build(rows(12), None, tmp_path / "index", shards=2, progress=lambda *call: calls.append(call))
        assert calls == [("documents", 5, None), ("documents", 10, None), ("documents", 12, None), ("sort", 1, 2), ("sort", 2, 2)]
