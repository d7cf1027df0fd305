"""GGUF files written by the test itself: the converted model must be the original, the tokenizer must cut as the file says."""

from __future__ import annotations

import json
import multiprocessing

import numpy as np
import pytest
import torch

from palimpsest.errors import InputError, StorageError
from palimpsest.models import HFModel, load_model
from palimpsest.models.gguf import MANIFEST, cached_folder, gguf_folder, is_whole

ROWS = [[5, 80, 300, 7, 120, 44, 9], [200, 201, 17]]


def test_a_float_file_is_the_original(gguf_file, tiny_tokenizer):
    path, original = gguf_file()
    model = load_model(path)
    expected = HFModel(original, tiny_tokenizer).score(ROWS)
    for found, wanted in zip(model.score(ROWS).logprobs, expected.logprobs, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert (model.door, model.name, model.context_length) == ("gguf", "tiny", 64)
    assert (model.tokenizer.bos_id, model.tokenizer.eos_id, model.prepends_bos) == (0, 1, False)
    assert model.fingerprint == HFModel(original, tiny_tokenizer).fingerprint


def test_a_quantised_file_is_unpacked_to_float32(gguf_file, tiny_tokenizer):
    path, original = gguf_file(quantised=True)
    model = load_model(path)
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.float32}
    assert not hasattr(model.model.config, "quantization_config")
    exact = HFModel(original, tiny_tokenizer).score(ROWS).logprobs
    for found, wanted in zip(model.score(ROWS).logprobs, exact, strict=True):
        assert 0 < np.abs(found - wanted).max() < 0.3


def test_the_conversion_is_kept(gguf_file):
    path, _ = gguf_file()
    stages: list[str] = []
    folder = gguf_folder(path, stages.append)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert gguf_folder(path, stages.append) == folder
    assert len(stages) == 1
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert is_whole(folder, verify=True)
    assert not list(folder.parent.glob("*.part"))


def test_digits_stand_alone_where_the_file_says_so(gguf_file, tiny_tokenizer):
    plain = load_model(gguf_file("plain.gguf", pre="gpt-2")[0]).tokenizer
    alone = load_model(gguf_file("alone.gguf", pre="smollm")[0]).tokenizer
    text = "counted 0123456789  42 sheep"
    assert plain.encode(text) == tiny_tokenizer.encode(text)
    assert alone.encode(text) != plain.encode(text)
    assert [piece for piece in alone.pieces(alone.encode(text)) if any(c.isdigit() for c in piece)] == list("012345678942")
    assert alone.decode(alone.encode(text)) == text
    assert alone.fingerprint != plain.fingerprint


def test_an_unknown_rule_is_refused(gguf_file):
    path, _ = gguf_file(pre="of-another-planet")
    with pytest.raises(InputError, match="of-another-planet"):
        load_model(path)


@pytest.mark.parametrize("size", [0, 3, 200, 5000])
def test_a_truncated_file_is_refused(gguf_file, size):
    path, _ = gguf_file()
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"tiny\.gguf"):
        load_model(path)
    assert not [part for part in (path.parent / "cache" / "models").iterdir() if not part.name.endswith(".lock")]


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(InputError, match=r"not a \.gguf"):
        load_model(path)


def fill(folder):
    (folder / "data").write_text("content")
    facts = {"data": {"bytes": 7, "sha256": "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"}}
    (folder / MANIFEST).write_text(json.dumps({"format": "palimpsest-model/1", "files": facts}))


def test_a_damaged_folder_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    folder = cached_folder("some", 10, fill)
    assert is_whole(folder, verify=True)
    (folder / "data").write_text("CONTENT")  # same size, other bytes: only the hash tells
    assert is_whole(folder)
    assert not is_whole(folder, verify=True)
    cached_folder("some", 10, fill, verify=True)
    assert (folder / "data").read_text() == "content"
    (folder / "data").write_text("cut")
    cached_folder("some", 10, fill)
    assert (folder / "data").read_text() == "content"


def test_a_failed_make_leaves_nothing_and_the_next_cleans_up(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))

    def fail(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        cached_folder("some", 10, fail)
    killed = tmp_path / "models" / ".some.abc.part"  # what a kill -9 leaves
    killed.mkdir()
    cached_folder("some", 10, fill)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [".some.lock", "some"]


def make_slowly(cache, counter):
    import os
    import time

    os.environ["PALIMPSEST_CACHE"] = str(cache)

    def slow(folder):
        with counter.get_lock():
            counter.value += 1
        time.sleep(0.3)
        fill(folder)

    assert is_whole(cached_folder("some", 10, slow), verify=True)


def test_two_processes_make_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    counter = context.Value("i", 0)
    workers = [context.Process(target=make_slowly, args=(tmp_path, counter)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert counter.value == 1


def test_no_room_and_no_place(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    with pytest.raises(StorageError, match="MB"):
        cached_folder("some", 1 << 60, fill)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError):
        cached_folder("some", 10, fill)
