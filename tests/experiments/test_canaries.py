"""The laboratory: its data, training from and into the cache, and suites on disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from palimpsest.errors import IndexCorruptError, IndexVersionError, InputError, ModelNotFoundError
from palimpsest.experiments import canaries
from palimpsest.experiments.canaries import CanaryConfig, Suite, open_suite, train_suite
from palimpsest.experiments.lab_data import stream
from palimpsest.experiments.suite import save_suite
from palimpsest.training.batch import RowBatches

TINY = CanaryConfig(
    sizes=("s",),
    n_sequences=120,
    seq_len=112,
    batch_size=8,
    domains=("passage", "biography", "password"),
    levels=((0, 3), (1, 2), (5, 2)),
    text_len=64,
    suffix_start=48,
    warmup=5,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def suite(cache: Path) -> Suite:
    return train_suite(TINY, cache=cache)


@pytest.fixture(scope="module")
def saved(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("saved") / "suite"
    save_suite(suite, out)
    return out


def test_a_suite_has_the_twins_asked_for_with_cards(suite):
    assert list(suite.models) == ["standard-s", "perturbed-s"]
    for name, card in suite.cards.items():
        assert card["parameters"] == sum(p.numel() for p in suite.models[name].model.parameters())
        assert card["train"]["steps"] == 15
        assert card["tokens_seen"] == 120 * 112
        losses = suite.models[name].logprobs(list(suite.validation.astype(np.int64)))
        assert card["validation_loss"] == pytest.approx(-np.mean(np.concatenate(losses)), abs=1e-4)
        assert card["data"] == RowBatches(suite.stream.rows[name.split("-")[0]], 8).fingerprint
    assert suite.cards["standard-s"]["validation_loss"] < np.log(1024) - 0.2  # it has learned something


def test_the_twins_start_alike_and_differ_in_the_planted_rows_alone(suite):
    rows = suite.stream.rows
    different = (rows["standard"] != rows["perturbed"]).any(axis=1)
    assert set(np.flatnonzero(different)) == set(suite.stream.planted.insertions["idx"])
    assert different.sum() == suite.ledger["copies"].sum() == 3 * (2 + 10)


def test_training_again_gives_the_same_bytes(suite, tmp_path):
    again = train_suite(replace(TINY, twins=("perturbed",)), cache=tmp_path)
    a, b = (s.folders["perturbed-s"] / "model.safetensors" for s in (suite, again))
    assert a.read_bytes() == b.read_bytes()


def test_another_seed_gives_other_text_and_weights(suite):
    other = stream(replace(TINY, seed=1))
    assert set(other.ledger["text"]).isdisjoint(suite.ledger["text"])
    assert not np.array_equal(other.rows["standard"], suite.stream.rows["standard"])
    first, second = (canaries.build_model(replace(TINY, seed=s), "s").model.embed_tokens.weight for s in (0, 1))
    assert not first.equal(second)


def test_a_trained_model_is_taken_from_the_cache_also_by_a_suite_of_other_sizes(suite, cache, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(canaries, "_train", refuse)
    again = train_suite(replace(TINY, twins=("perturbed",)), cache=cache)
    assert again.folders["perturbed-s"] == suite.folders["perturbed-s"]
    for change in ({"lr": 2e-3}, {"seed": 1}, {"levels": ((0, 3), (1, 2), (4, 2))}, {"sizes": ("m",)}, {"weight_decay": 0.1}):
        with pytest.raises(AssertionError, match="trained again"):
            train_suite(replace(TINY, twins=("perturbed",), **change), cache=cache)


def test_nothing_half_is_left_in_the_cache(suite, cache):
    assert sorted(p.name for p in cache.iterdir()) == sorted(f.name for f in suite.folders.values())


def test_a_longer_run_begins_with_the_sequences_of_a_shorter_one(suite):
    longer = stream(replace(TINY, n_sequences=240))
    assert np.array_equal(longer.rows["standard"][:120], suite.stream.rows["standard"])
    assert longer.ledger["ids"].to_list() == suite.ledger["ids"].to_list()
    assert longer.ledger["copies"].to_list() == suite.ledger["copies"].to_list()


def test_validation_rows_are_held_out(suite):
    grams = {row[i : i + 16].tobytes() for row in stream(replace(TINY, n_sequences=4000)).rows["perturbed"] for i in range(97)}
    assert len(suite.validation) == 256
    assert not [1 for row in suite.validation for i in range(97) if row[i : i + 16].tobytes() in grams]


def test_the_index_finds_every_text_as_often_as_it_was_planted(suite, monkeypatch, tmp_path):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    fresh = Suite(suite.config, suite.folders, suite.load_stream)
    counts = fresh.index.count_batch([np.array(ids) for ids in suite.ledger["ids"].to_list()])
    assert counts.tolist() == suite.ledger["copies"].to_list()
    text = suite.ledger.filter(pl.col("copies") == 5).row(0, named=True)
    places = suite.stream.planted.insertions.filter(pl.col("id") == text["id"])
    hits = fresh.index.documents(np.array(text["ids"]))
    assert sorted(h.doc_id for h in hits) == sorted(f"sequence-{i:05d}" for i in places["idx"])
    assert sorted(h.metadata["step"] for h in hits) == sorted(places["step"])


def test_samples_cut_texts_at_their_suffix(suite):
    samples = suite.samples(20, 16)
    assert len(samples) == len(suite.ledger) == 21
    texts = {row["id"]: row for row in suite.ledger.iter_rows(named=True)}
    for s in samples:
        text = texts[s.meta["id"]]
        assert s.prefix.tolist() == text["ids"][28:48]
        assert s.suffix.tolist() == text["ids"][48:64]
        assert (s.meta["copies"], s.meta["domain"]) == (text["copies"], text["domain"])
    secret = json.loads(texts["password-0000"]["details"])["secret"]
    [password] = [s for s in samples if s.meta["id"] == "password-0000"]
    assert suite.tokenizer.decode(password.suffix).startswith(f" {secret[:6]}")
    assert {s.meta["domain"] for s in suite.samples(8, 8, ["biography"])} == {"biography"}


@pytest.mark.parametrize(("arguments", "message"), [((49, 16), "48 tokens before"), ((48, 17), "17 were asked"), ((0, 4), "0 and 4")])
def test_samples_that_texts_do_not_have_are_refused(suite, arguments, message):
    with pytest.raises(InputError, match=message):
        suite.samples(*arguments)


def test_an_unknown_domain_is_refused(suite):
    with pytest.raises(InputError, match="poem"):
        suite.samples(8, 8, ["poem"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": ("xl",)}, "sizes"),
        ({"sizes": ()}, "sizes"),
        ({"twins": ("evil",)}, "twins"),
        ({"n_sequences": 4}, "n_sequences 4"),
        ({"seq_len": 1}, "seq_len 1"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(TINY, **change)


def test_more_sequences_than_the_novels_have_are_refused():
    with pytest.raises(InputError, match="100000 sequences of 112"):
        stream(replace(TINY, n_sequences=100_000))


def test_a_saved_suite_opens_as_it_was(suite, saved):
    opened = open_suite(saved)
    assert opened.config == suite.config
    for twin in ("standard", "perturbed"):
        assert np.array_equal(opened.stream.rows[twin], suite.stream.rows[twin])
    assert opened.ledger.equals(suite.ledger)
    assert np.array_equal(opened.validation, suite.validation)
    assert opened.models["perturbed-s"].fingerprint == suite.models["perturbed-s"].fingerprint
    assert opened.models["perturbed-s"].fingerprint != opened.models["standard-s"].fingerprint


def test_a_folder_of_a_suite_is_an_ordinary_model_folder(saved, suite):
    from palimpsest.models import load_model

    model = load_model(saved / "perturbed-s")
    assert model.tokenizer.fingerprint == suite.tokenizer.fingerprint
    assert model.fingerprint == suite.models["perturbed-s"].fingerprint
    assert not model.prepends_bos


def test_a_suite_is_not_written_over_something(suite, saved):
    with pytest.raises(InputError, match="there already"):
        save_suite(suite, saved)


@pytest.mark.parametrize("file", ["texts.parquet", "insertions.parquet", "perturbed-s/model.safetensors", "standard-s/tokenizer.json"])
def test_a_damaged_suite_is_refused(saved, tmp_path, file):
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / file).write_bytes(bytes(data))
    with pytest.raises(IndexCorruptError, match=file):
        open_suite(copy)
    (copy / file).unlink()
    with pytest.raises(IndexCorruptError, match=file):
        open_suite(copy)


def test_what_is_no_suite_or_one_of_another_format_is_refused(saved, tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"suite\.json"):
        open_suite(tmp_path)
    (tmp_path / "suite.json").write_text("{")
    with pytest.raises(IndexCorruptError, match="not JSON"):
        open_suite(tmp_path)
    (tmp_path / "suite.json").write_text(json.dumps({"format": "palimpsest-suite/9"}))
    with pytest.raises(IndexVersionError, match="suite/9"):
        open_suite(tmp_path)


def test_a_stream_that_is_not_what_the_models_saw_is_refused(saved, tmp_path):
    """A ledger that was changed together with its recorded hash still does not match the cards."""
    from palimpsest.files import sha256_file

    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    insertions = pl.read_parquet(copy / "insertions.parquet")
    insertions[:-1].write_parquet(copy / "insertions.parquet")
    record = json.loads((copy / "suite.json").read_text())
    record["sha256"]["insertions.parquet"] = sha256_file(copy / "insertions.parquet")
    (copy / "suite.json").write_text(json.dumps(record))
    with pytest.raises(IndexCorruptError, match="replayed data of perturbed-s"):
        open_suite(copy).stream  # noqa: B018


def test_a_cached_model_that_was_damaged_is_refused(suite, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(suite.folders["perturbed-s"], folder)
    with open(folder / "model.safetensors", "r+b") as stream_:
        stream_.seek(5000)
        stream_.write(b"\x00\x01\x02")
    broken = Suite(suite.config, {"perturbed-s": folder}, suite.load_stream)
    with pytest.raises(IndexCorruptError, match="card of perturbed-s"):
        broken.models  # noqa: B018
