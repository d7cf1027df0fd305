"""The engine "ray" on a cluster of two nodes on this machine, of which processes and a whole node are killed: the answers stay right."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.corpus import CorpusIndex, Document, build
from palimpsest.corpus.cluster_shards import ShardGroup
from palimpsest.corpus.ray_build import sort_on_cluster
from palimpsest.corpus.workspace import Journal
from palimpsest.errors import ClusterError, IndexCorruptError, InputError, MissingDependencyError, NonFiniteError, StorageError
from palimpsest.models import RayModel, Sampler, load_model
from palimpsest.ray_stream import ask_a_free_one, lists, nested, nested_numbers, numbers, stream, table

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'palimpsest-lm[ray]'")
psutil = pytest.importorskip("psutil", reason="psutil, which finds the processes to be killed, is not installed")

pytestmark = pytest.mark.xdist_group("ray")  # with --dist loadgroup one cluster, not one in every test process

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200, "health_check_timeout_ms": 500}  # a lost node is soon missed


class Nodes:
    """A head and a second node, in processes of their own."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "_system_config": QUICK})
        self.folder = Path(self.cluster.head_node.get_session_dir_path())
        self.second = self.cluster.add_node(**NODE)
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")

    @property
    def address(self) -> str:
        return self.cluster.address

    def lose_one(self) -> None:
        """The second node dies at once, with everything on it."""
        self.cluster.remove_node(self.second, allow_graceful=False)

    def replace(self) -> None:
        self.second = self.cluster.add_node(**NODE)

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.delenv("RAY_ADDRESS", raising=False)
    made = Nodes()
    yield made
    made.close()
    patch.undo()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))


def workers(what: str) -> list[Any]:
    """The processes of the cluster that are at `what` now."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{what}"):
                found.append(process)
        except psutil.Error:
            continue
    return found


class Killer:
    """Kills the first process that is seen at each of the given pieces of work."""

    def __init__(self, *work: str) -> None:
        self.killed: list[str] = []
        self._work, self._over = list(work), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while self._work and not self._over.is_set():
            for process in workers(self._work[0])[:1]:
                process.kill()
                self.killed.append(self._work.pop(0))
            time.sleep(0.002)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def texts(count: int, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    words = "in the beginning was the word and it was written down scraped off and written again 0 1 2 3 4".split()  # noqa: SIM905
    return [Document(f"doc-{i}", " ".join(rng.choice(words, rng.integers(0, 60))), metadata={"number": i}) for i in range(count)]


def rows(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 30, rng.integers(0, 60)).tolist() for _ in range(count)]


def test_a_build_survives_the_death_of_workers_and_of_a_node(nodes, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("palimpsest.corpus.staging._BATCH_DOCUMENTS", 20)
    monkeypatch.setattr("palimpsest.corpus.staging._BATCH_SIZE", 220)  # some documents are longer: they are tokenized here, in pieces
    docs = texts(120)
    alone = CorpusIndex.build(docs, tiny_tokenizer, tmp_path / "alone", shards=8)
    seen = []

    def progress(stage: str, done: int, total: int | None) -> None:
        seen.append((stage, done))
        if (stage, done) == ("sort", 3):
            nodes.lose_one()

    with Killer("_encode", "_sort_elsewhere") as killer:
        index = CorpusIndex.build(docs, tiny_tokenizer, tmp_path / "cluster", shards=8, engine="ray", progress=progress)
    nodes.replace()
    assert killer.killed == ["_encode", "_sort_elsewhere"]
    assert [done for stage, done in seen if stage == "sort"] == list(range(1, 9))
    assert index.fingerprint == alone.fingerprint
    assert contents(tmp_path / "cluster") == contents(tmp_path / "alone")
    assert not (tmp_path / "cluster.partial").exists()


def test_a_driver_that_is_killed_continues(nodes, tmp_path):
    CorpusIndex.build(rows(300), None, tmp_path / "alone", shards=6)
    script = f"""
    import os, signal
    import numpy as np
    from palimpsest.corpus import CorpusIndex
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 30, rng.integers(0, 60)).tolist() for _ in range(300)]
    def progress(stage, done, total):
        if (stage, done) == ("sort", 2):
            os.kill(os.getpid(), signal.SIGKILL)
    CorpusIndex.build(rows, None, {str(tmp_path / "index")!r}, shards=6, engine="ray", progress=progress)
    """
    environment = {**os.environ, "RAY_ADDRESS": nodes.address, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "index").exists()
    sorted_now: list[int] = []
    CorpusIndex.build(
        rows(300),
        None,
        tmp_path / "index",
        shards=6,
        engine="ray",
        progress=lambda stage, n, _: sorted_now.append(n) if stage == "sort" else None,
    )
    assert sorted_now == [3, 4, 5, 6]
    assert contents(tmp_path / "index") == contents(tmp_path / "alone")


def test_the_command_line_builds_on_the_cluster(nodes, tiny_tokenizer, tmp_path):
    tiny_tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "texts").mkdir()
    for document in texts(20):
        (tmp_path / "texts" / f"{document.id}.txt").write_text(f"{document.text}.")
    for engine in ("local", "ray"):
        command = [
            "index",
            "build",
            str(tmp_path / "texts"),
            "--tokenizer",
            str(tmp_path / "tokenizer.json"),
            "--shards",
            "3",
            "--json",
            "--engine",
            engine,
        ]
        done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / engine)])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["documents"] == 20
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_two_attempts_at_one_shard_leave_one_whole_shard(tmp_path):
    CorpusIndex.build(rows(100), None, tmp_path / "alone")
    whole = contents(tmp_path / "alone")
    (tmp_path / "made").mkdir()
    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(build.sort_shard, tmp_path / "alone", tmp_path / "made", 0, np.dtype("<u1"), 29, "sais") for _ in range(12)]
    entries = [task.result() for task in tasks]
    assert all(entry == entries[0] for entry in entries)
    assert contents(tmp_path / "made") == {name: whole[name] for name in ("sa.0", "buckets.0")}
    with pytest.raises(StorageError, match="is gone"):  # one that comes when the run is over
        build.sort_shard(tmp_path / "alone", tmp_path / "over", 0, np.dtype("<u1"), 29, "sais")
    assert not (tmp_path / "over").exists()


def test_a_machine_that_does_not_see_the_files_is_named(nodes, tmp_path):
    (tmp_path / "work" / "index").mkdir(parents=True)
    journal = Journal.create(tmp_path / "work" / "journal", {})
    journal.append({"stage": "shard", "shard": 0, "length": 10})
    with pytest.raises(StorageError, match=r"does not see .*tokens\.0.*shared file system"):
        list(sort_on_cluster(tmp_path / "work" / "index", journal, [0], np.dtype("<u2"), 3, ["sais"]))
    assert [path.name for path in (tmp_path / "work").iterdir() if path.is_dir()] == ["index"]
    journal.entries[0]["length"] = 1 << 40
    with pytest.raises(InputError, match=r"Sorting shard 0 takes .* times as many shards"):
        list(sort_on_cluster(tmp_path / "work" / "index", journal, [0], np.dtype("<u2"), 3, ["sais"]))


def test_an_error_of_the_work_itself_arrives_as_it_is(nodes, tiny_tokenizer, tmp_path):
    with pytest.raises(InputError, match="has the id 65535"):
        CorpusIndex.build([Document("a", "text"), Document("b", ids=np.array([65535]))], tiny_tokenizer, tmp_path / "index", engine="ray")
    assert not (tmp_path / "index").exists()


ASK: dict[str, Callable[[CorpusIndex, list[int]], Any]] = {
    "count": lambda index, q: index.count(q[:3]),
    "count_batch": lambda index, q: index.count_batch([q[i : i + 3] for i in range(len(q) - 3)]),
    "find": lambda index, q: index.find(q[:2]),
    "locate": lambda index, q: index.locate(q[:2]),
    "locate, sampled": lambda index, q: index.locate(q[:1], limit=7, seed=3),
    "locate, some ranges": lambda index, q: index.locate(index.find(q[:1])[3:0:-1]),
    "documents": lambda index, q: index.documents(q[:2], limit=4, context=3),
    "document": lambda index, q: [index.document(i) for i in (0, 57, index.n_documents - 1)],
    "document_ids": lambda index, q: [index.document_ids(i, 1, 9) for i in (0, 57, index.n_documents - 1)],
    "longest_document": lambda index, q: index.longest_document,
    "longest_match": lambda index, q: index.longest_match(q, 2),
    "matching_statistics": lambda index, q: index.matching_statistics(q),
    "trace": lambda index, q: index.trace(q, min_len=2),
    "unigrams": lambda index, q: index.unigrams,
    "ntd": lambda index, q: index.ntd(q[:2]),
    "ntd, sampled": lambda index, q: index.ntd(q[:1], max_support=20, seed=1),
    "infgram_ntd": lambda index, q: index.infgram_ntd(q, min_count=3),
    "infgram_prob": lambda index, q: index.infgram_prob(q[:-1], q[-1]),
    "sequence_infgram": lambda index, q: index.sequence_infgram(q),
    "next_tokens_batch": lambda index, q: index.next_tokens_batch(np.array([q[:2], q[1:3], [-1, 2]])),
}


def same(one: Any, other: Any) -> bool:
    """Equal, arrays by their values and types."""
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "__dataclass_fields__"):
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)
    return one == other


def test_queries_answer_as_they_do_locally_while_actors_and_a_node_die(nodes, tmp_path):
    index = CorpusIndex.build(rows(200), None, tmp_path / "index", shards=5)
    far = CorpusIndex.open(tmp_path / "index", engine="ray")
    queries = [row for row in rows(200, seed=0) if len(row) > 12][:6] + [row for row in rows(20, seed=1) if len(row) > 12][:3]
    assert len(workers("ShardGroup")) == 2
    for turn, (name, ask) in enumerate(ASK.items()):
        if turn == 3:
            workers("ShardGroup")[0].kill()
        if turn == 12:
            nodes.lose_one()
        for query in queries:
            assert same(ask(index, query), ask(far, query)), name
    nodes.replace()
    batch = np.random.default_rng(2).integers(0, 30, (20_000, 2))  # so large that it is laid down in the object store
    assert np.array_equal(far.count_batch(batch), index.count_batch(batch))
    with pytest.raises(InputError, match="255 is the separator"):
        far.count([255])
    with pytest.raises(InputError, match="not for an index that is open on a cluster"):
        far.near([1, 2, 3, 4], 1)


def test_an_actor_that_finds_another_index_after_a_restart_says_so(nodes, tmp_path):
    index = CorpusIndex.build(rows(60), None, tmp_path / "index", shards=2)
    far = CorpusIndex.open(tmp_path / "index", engine="ray", actors=1)
    assert far.count([3]) == index.count([3]) > 0
    (tmp_path / "index" / "sa.1").unlink()
    workers("ShardGroup")[0].kill()
    with pytest.raises(IndexCorruptError, match=r"sa\.1 of the index is missing"):
        far.count([3])
    CorpusIndex.build(rows(60)[::-1], None, tmp_path / "index", shards=2)
    with pytest.raises(IndexCorruptError, match="was changed since it was opened"):
        far.count([3])


def test_what_is_wrong_with_the_request(nodes, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="'spark' is unknown"):
        CorpusIndex.build([[1]], None, tmp_path / "index", engine="spark")
    CorpusIndex.build([[1]], None, tmp_path / "index")
    with pytest.raises(InputError, match="'spark' is unknown"):
        CorpusIndex.open(tmp_path / "index", engine="spark")
    with pytest.raises(InputError, match="0 actors"):
        CorpusIndex.open(tmp_path / "index", engine="ray", actors=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"palimpsest-lm\[ray\]"):
        CorpusIndex.open(tmp_path / "index", engine="ray")


def test_no_cluster_at_the_address(tmp_path):
    script = "from palimpsest.cluster import connect; connect()"
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert ClusterError.__name__ in done.stderr
    assert "No Ray cluster can be reached at 127.0.0.1:1" in done.stderr


@pytest.fixture(scope="module")
def model_folder(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model.model.save_pretrained(folder)
    own = PreTrainedTokenizerFast(tokenizer_object=tiny_model.tokenizer.backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    own.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def far(nodes, model_folder) -> Iterator[RayModel]:
    """Two copies of the model; released before the cluster goes."""
    held = [load_model(model_folder, batch_tokens=256, engine="ray")]
    assert isinstance(held[0], RayModel)
    yield held[0]
    held[0]._actors.clear()


def test_copies_score_and_write_as_one_model_does_while_one_of_them_dies(far, model_folder):
    here = load_model(model_folder, batch_tokens=256)
    rng = np.random.default_rng(0)
    batch = [rng.integers(2, 300, rng.integers(2, 60)) for _ in range(60)]
    starts = [int(rng.integers(1, len(row) + 1)) for row in batch]
    top = Sampler(top_k=5)
    told: list[tuple[int, int]] = []
    with Killer("Copy.score", "MapBatches") as killer:  # a copy at work, and a task that waits for one
        found = far.score(batch, start=starts, moments=True, samplers=[top], progress=lambda done, of: told.append((done, of)))
    assert killer.killed == ["Copy.score", "MapBatches"]
    assert len(told) > 4
    assert told[-1] == (60, 60)
    assert far.describe() == here.describe()
    expected = here.score(batch, start=starts, moments=True, samplers=[top])
    assert all(map(np.array_equal, found.greedy_hits, expected.greedy_hits))
    for name in ("logprobs", "mean", "var"):
        for ours, theirs in zip(getattr(found, name), getattr(expected, name), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
    for ours, theirs in zip(found.sampled[top], expected.sampled[top], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    for how in ({}, {"num_beams": 3, "n": 2}, {"temperature": 1.0, "top_k": 9, "n": 2, "seed": 5}):
        assert same(far.generate(batch[:40], 6, **how), here.generate(batch[:40], 6, **how)), how
    with pytest.raises(InputError, match="Row 1 is empty"):
        far.score([[3], []])


def test_a_row_that_is_no_number_is_counted_from_the_beginning(far, monkeypatch):
    begins: list[int] = []

    def broken(_ray: Any, _actors: Any, method: str, _arguments: Any, batches: list[Any]) -> Iterator[Any]:
        assert method == "score"
        begins.append(len(batches[0]))
        zeros = lists([np.zeros(len(row) - 1, np.float32) for row in numbers(batches[0]["row"])])
        yield table({"logprobs": zeros, "hits": zeros})
        raise NonFiniteError("Row 2 is NaN.", "Look at the weights.")

    monkeypatch.setattr("palimpsest.models.ray_model.stream", broken)
    with pytest.raises(NonFiniteError, match=r"Row 2 is NaN\. Rows are counted from row \d+ here") as caught:
        far.score([[3] * 50] * 60)
    assert 0 < begins[0] < 60
    assert f"from row {begins[0]} here" in caught.value.problem


def test_arrays_come_back_from_arrow_also_from_a_piece_of_a_table():
    rng = np.random.default_rng(3)
    for dtype in (np.float32, np.bool_, np.int64):
        rows = [rng.integers(0, 2, rng.integers(0, 5)).astype(dtype) for _ in range(9)]
        deep = [rows[begin : begin + 2] for begin in range(8)] + [[]]
        whole = table({"row": lists(rows), "deep": nested(lists([row for some in deep for row in some]), [len(some) for some in deep])})
        for piece, part in ((whole, slice(0, 9)), (whole.slice(2, 5), slice(2, 7)), (whole.slice(8), slice(8, 9))):
            assert same(numbers(piece["row"]), rows[part])
            assert same(nested_numbers(piece["deep"]), deep[part])


class Doubler:
    """An actor for `stream`: it doubles numbers, and fails at negative ones."""

    def __init__(self, name: str) -> None:
        self.name = name

    def free(self) -> None: ...

    def hold(self, until: Path) -> None:
        while not until.exists():
            time.sleep(0.01)

    def double(self, factor: int, batch: Any) -> Any:
        found = numbers(batch["row"])
        if found[0][0] == -1:
            raise InputError("Minus one is negative.", "Give a positive one.")
        if found[0][0] < -1:
            raise ValueError("not ours")
        twice = nested(lists([factor * row for row in found for _ in range(2)]), [2] * len(found))
        return table({"twice": twice, "name": [self.name] * len(found)})


@pytest.fixture
def doublers(nodes) -> list[Any]:
    kind = type("Doubler", (), {**vars(Doubler), "__module__": "__main__"})  # workers cannot import this file
    return [ray.remote(num_cpus=0)(kind).remote(name) for name in ("a", "b")]


def test_batches_come_back_in_order_and_errors_as_they_are(doublers, tmp_path):
    rng = np.random.default_rng(0)
    parts = [[rng.integers(0, 99, rng.integers(1, 6)) for _ in range(rng.integers(1, 5))] for _ in range(9)]
    answers = list(stream(ray, doublers, "double", (2,), [table({"row": lists(part)}) for part in parts]))
    assert [len(answer) for answer in answers] == [len(part) for part in parts]
    for answer, part in zip(answers, parts, strict=True):
        assert same(nested_numbers(answer["twice"]), [[2 * row, 2 * row] for row in part])
    good = table({"row": lists([np.array([1])])})
    bad, worse = (table({"row": lists([np.array([value])])}) for value in (-1, -2))
    read = stream(ray, doublers, "double", (2,), [good, bad, worse])
    assert nested_numbers(next(read)["twice"])[0][0].tolist() == [2]
    with pytest.raises(InputError, match="Minus one is negative"):
        next(read)
    with pytest.raises(ClusterError, match="not ours"):
        list(stream(ray, doublers, "double", (2,), [worse]))
    doublers[0].hold.remote(tmp_path / "go on")
    answer = ask_a_free_one(good.append_column("part", [[0]]), doublers, "double", (2,))
    assert answer["name"].to_pylist() == ["b"]
    (tmp_path / "go on").touch()


def small(card: Any) -> Any:
    """A card as nested lists, floats rounded to what padding cannot change."""
    if isinstance(card, dict):
        return [[key, small(value)] for key, value in sorted(card.items()) if key not in ("created", "timing")]
    if isinstance(card, list):
        return [small(value) for value in card]
    return pytest.approx(card, abs=1e-4) if isinstance(card, float) else card


def test_an_audit_on_the_cluster_finds_what_it_finds_here(far, model_folder, tmp_path, monkeypatch):
    corpus = tmp_path / "words.txt"
    corpus.write_text("In the beginning was the word, and the word was written down, and what was written down was scraped off.\n" * 40)
    options = ["--samples", "8", "--context", "4,8", "--suffix", "6", "--guard-n", "3", "--json"]
    asked: list[Any] = []

    def opened(name: str, **how: Any) -> Any:
        if "engine" in how:
            asked.append((how["engine"], how["share"]))
        return far if how.get("engine") == "ray" else load_model(name, **how)  # the copies are there already

    monkeypatch.setattr("palimpsest.models.load.load_model", opened)
    cards = {}
    for engine in ("local", "ray"):
        done = CliRunner().invoke(
            app, ["audit", str(model_folder), str(corpus), "--out", str(tmp_path / engine), "--engine", engine, *options]
        )
        assert done.exit_code == 0, done.output
        cards[engine] = json.loads(done.stdout)
    assert asked == [("local", 1.0), ("ray", 1.0)]
    assert small(cards["ray"]) == small(cards["local"])
    assert contents(tmp_path / "ray" / "index") == contents(tmp_path / "local" / "index")


def test_what_a_cluster_cannot_load(nodes, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="not a model that a cluster can load"):
        load_model("http://localhost:1/v1#name", engine="ray")
    with pytest.raises(InputError, match="0 actors"):
        RayModel("smollm2-135m", actors=0)
    refused = CliRunner().invoke(app, ["audit", "--engine", "ray", "--out", str(tmp_path / "out")])
    assert refused.exit_code == 2
    assert "runs on one machine" in " ".join(refused.output.split())
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(MissingDependencyError, match=r"needs pyarrow and pandas.*palimpsest-lm\[ray\]"):
        RayModel("smollm2-135m")


def test_an_actor_that_opens_damaged_files_of_the_right_size_says_so(tmp_path):
    index = CorpusIndex.build([[1, 2, 4, 5, 1, 2], [3, 3, 1, 2, 3, 3]], None, tmp_path / "index", shards=2)
    tokens = tmp_path / "index" / "tokens.1"

    def group(shard: int, verify: bool = True) -> ShardGroup:
        """What an actor is after a restart."""
        return ShardGroup(index.path, index.manifest, "mmap", range(shard, shard + 1), verify)

    assert group(1).each(_length, (), None) == [7]
    tokens.write_bytes((tmp_path / "index" / "tokens.0").read_bytes())
    assert group(0).each(_length, (), None) == [7]
    assert group(1, verify=False).each(_length, (), None) == [7]
    with pytest.raises(IndexCorruptError, match=r"tokens\.1 is damaged"):
        group(1).each(_length, (), None)


def _length(shard) -> int:
    return shard.arrays[0].size
