"""Memory-based models on the disk: what is read is what was written, and damage is noticed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from palimpsest.corpus import Document
from palimpsest.errors import IndexCorruptError, IndexVersionError, InputError, ModelNotFoundError
from palimpsest.files import sha256_json
from palimpsest.models import memory_files
from palimpsest.models.memory_based import MemoryBasedLM
from palimpsest.models.memory_files import fingerprint

CONTEXTS = [[1, 2], [2, 3], [9], [], [7, 7, 7]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    return MemoryBasedLM(2, "tribl2", k=2, decay="linear").fit(
        [Document(f"doc {i}", ids=rng.integers(0, 9, 40)) for i in range(5)], vocab_size=12
    )


@pytest.mark.parametrize("mode", ["mmap", "ram"])
def test_what_is_read_is_what_was_written(model, tmp_path, mode):
    model.save(tmp_path / "model")
    read = MemoryBasedLM.load(tmp_path / "model", mode)
    assert read.settings == model.settings
    np.testing.assert_array_equal(read.probabilities(CONTEXTS), model.probabilities(CONTEXTS))
    assert [read.explain(context) for context in CONTEXTS] == [model.explain(context) for context in CONTEXTS]
    assert fingerprint(read) == fingerprint(model) == json.loads((tmp_path / "model" / "manifest.json").read_text())["fingerprint"]
    backed = [isinstance(array.base, np.memmap) for array in read.memory.parts[0].arrays().values() if array.size]
    assert all(backed) if mode == "mmap" else not any(backed)


def test_a_tokenizer_comes_along(tiny_tokenizer, tmp_path):
    MemoryBasedLM(2).fit(["the quick brown fox", "the lazy dog"], tiny_tokenizer).save(tmp_path / "model")
    read = MemoryBasedLM.load(tmp_path / "model")
    assert read.tokenizer.fingerprint == tiny_tokenizer.fingerprint
    assert (read.tokenizer.eos_id, read.vocab_size) == (1, tiny_tokenizer.vocab_size)
    assert read.evaluate(["the quick brown fox"])["accuracy"] > 0.8


def test_what_was_learnt_in_pieces_is_written_as_one(model, tmp_path):
    more = [[3, 4, 3, 4, 20], [5]]
    model.save(tmp_path / "model")
    read = MemoryBasedLM.load(tmp_path / "model").partial_fit(more)
    assert len(read.memory.parts) == 2
    read.save(tmp_path / "model")  # over the files that it has mapped
    again = MemoryBasedLM.load(tmp_path / "model")
    assert len(again.memory.parts) == 1
    model.partial_fit(more)
    np.testing.assert_allclose(again.probabilities(CONTEXTS), model.probabilities(CONTEXTS), atol=1e-12)
    assert again.memory.sources == model.memory.sources
    named = json.loads((tmp_path / "model" / "manifest.json").read_text())["files"]
    assert {path.name for path in (tmp_path / "model").iterdir()} == {*named, "manifest.json"}


def test_equal_content_has_equal_fingerprints():
    docs = [[1, 2, 3], [2, 3, 4]]
    whole = fingerprint(MemoryBasedLM(2).fit(docs))
    assert fingerprint(MemoryBasedLM(2).fit(docs[:1]).partial_fit(docs[1:])) == whole
    others = [
        MemoryBasedLM(2).fit([[1, 2], [3, 2, 3, 4]]),
        MemoryBasedLM(2).fit([[2, 3, 4], [3, 4, 5]]),
        MemoryBasedLM(3).fit(docs),
        MemoryBasedLM(2).fit(docs, vocab_size=99),
    ]
    assert len({whole, *map(fingerprint, others)}) == 5


def test_a_save_that_is_killed_leaves_the_old_model(model, tmp_path, monkeypatch):
    model.save(tmp_path / "model")
    before = model.probabilities(CONTEXTS)
    model.partial_fit([[1, 1, 1, 1, 1, 1, 1]])
    with monkeypatch.context() as patch:
        patch.setattr(memory_files, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model.save(tmp_path / "model")
    np.testing.assert_array_equal(MemoryBasedLM.load(tmp_path / "model", verify=True).probabilities(CONTEXTS), before)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(MemoryBasedLM.load(tmp_path / "model").probabilities(CONTEXTS), model.probabilities(CONTEXTS))


def damaged(folder, name):
    return next(path for path in folder.iterdir() if path.name.startswith(name + "."))


@pytest.mark.parametrize("name", ["tokens", "order", "node_top", "ids", "sources"])
def test_damage_is_named(model, tmp_path, name):
    folder = tmp_path / "model"
    model.save(folder)
    path = damaged(folder, name)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(IndexCorruptError, match=rf"{name}\.\w+ is damaged: it has {len(whole) - 1} bytes"):
        MemoryBasedLM.load(folder)
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(IndexCorruptError, match=rf"{name}\.\w+ is damaged: its content") as caught:
        MemoryBasedLM.load(folder)
    assert "train it again" in caught.value.remedy
    path.unlink()
    with pytest.raises(IndexCorruptError, match=rf"{name}\.\w+ of the model is missing"):
        MemoryBasedLM.load(folder)
    path.write_bytes(whole)
    MemoryBasedLM.load(folder, verify=True)


def test_damaged_and_foreign_manifests(model, tmp_path):
    folder = tmp_path / "model"
    model.save(folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())

    def write(change):
        body = {key: value for key, value in {**manifest, **change}.items() if key != "checksum"}
        path.write_text(json.dumps({**body, "checksum": sha256_json(body)}))

    path.write_text(json.dumps({**manifest, "vocab_size": 13}))
    with pytest.raises(IndexCorruptError, match="checksum"):
        MemoryBasedLM.load(folder)
    path.write_text("{" + memory_files.FORMAT)
    with pytest.raises(IndexCorruptError, match="not a manifest"):
        MemoryBasedLM.load(folder)
    write({"version": 99})
    with pytest.raises(IndexVersionError, match="version 99"):
        MemoryBasedLM.load(folder)
    write({"format": "palimpsest-index"})
    with pytest.raises(ModelNotFoundError, match="palimpsest-index, not a memory-based model"):
        MemoryBasedLM.load(folder)
    with pytest.raises(ModelNotFoundError, match="no memory-based model"):
        MemoryBasedLM.load(tmp_path / "nowhere")
    write({})
    with pytest.raises(InputError, match="mode 'disk'"):
        MemoryBasedLM.load(folder, "disk")


def test_nothing_else_is_overwritten(model, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "tokens.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no memory-based model"):
        model.save(tmp_path / "notes")
    assert (tmp_path / "notes" / "tokens.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="holds no memory-based model"):
        model.save(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    model.save(tmp_path / "empty")
    (tmp_path / "empty" / "README.md").write_text("mine")
    model.save(tmp_path / "empty")
    assert (tmp_path / "empty" / "README.md").read_text() == "mine"
    with pytest.raises(InputError, match="learnt nothing"):
        MemoryBasedLM().save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
