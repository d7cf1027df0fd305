"""One name in, one door out; and what is said when there is no door."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from palimpsest.errors import EndpointError, InputError, ModelNotFoundError
from palimpsest.models import HFModel, load_model


@pytest.fixture
def folder(tmp_path, tiny_tokenizer, make_model):
    """A folder as save_pretrained leaves it."""
    path = tmp_path / "my-model"
    make_model("llama").save_pretrained(path)
    backend = tokenizers.Tokenizer.from_str(tiny_tokenizer.backend.to_str())
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(path)
    return path


def test_a_folder(folder, tiny_tokenizer, make_model, capfd):
    model = load_model(folder, batch_tokens=77)
    direct = HFModel(make_model("llama"), tiny_tokenizer)
    assert model.fingerprint == direct.fingerprint
    assert model.tokenizer.fingerprint == tiny_tokenizer.fingerprint
    assert (model.name, model.door, model.batch_tokens, model.tokenizer.bos_id, model.tokenizer.eos_id) == ("my-model", "hf", 77, 0, 1)
    np.testing.assert_array_equal(model.score([[5, 6, 7]]).logprobs[0], direct.score([[5, 6, 7]]).logprobs[0])
    about = model.describe()
    assert json.loads(json.dumps(about)) == about
    assert about["capabilities"] == ["logprobs", "text", "weights"]
    assert load_model(str(folder), bos="always").prepends_bos
    assert capfd.readouterr() == ("", "")  # no progress bars, no advice


def test_a_tokenizer_of_ones_own(folder, tiny_tokenizer):
    tiny_tokenizer.save(folder / "other.json")
    for given in (tiny_tokenizer, folder / "other.json", str(folder)):
        assert load_model(folder, tokenizer=given).tokenizer.fingerprint == tiny_tokenizer.fingerprint
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises((InputError, ModelNotFoundError), match="tokenizer"):
        load_model(folder)


def test_transformers_keeps_its_settings(folder):
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity(logging.INFO)
    try:
        load_model(folder).generate([[5, 6]], 1)
        assert transformers_logging.get_verbosity() == logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity_warning()


def test_half_precision_weights_are_scored_in_float32(folder, make_model):
    make_model("llama").to(torch.bfloat16).save_pretrained(folder)
    assert load_model(folder).model.dtype == torch.float32


def test_missing_weights_are_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 of the model's parameters, 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load_model(folder)


def test_damaged_folders(folder, tmp_path):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="No weights"):
        load_model(folder)
    (folder / "config.json").write_text('{"model_type": "of-another-planet"}')
    with pytest.raises(InputError, match="of-another-planet"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises((InputError, ModelNotFoundError)):
        load_model(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        load_model(tmp_path / "empty")


@pytest.mark.parametrize("spec", ["memory:some/index", "ftp://host/model", "./nowhere", "/no/such/folder", "", "a/b/c"])
def test_what_is_no_model_says_what_is(spec):
    if spec == "":
        spec = " "
    with pytest.raises(ModelNotFoundError, match="smollm2-135m") as caught:
        load_model(spec)
    assert spec in str(caught.value)


def test_an_unreachable_hub_is_given_up_at_once(monkeypatch):
    """One question with a short timeout, where transformers itself would try again for half a minute."""
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(ModelNotFoundError, match=r"nobody/nothing.*hub says: no route.*smollm2-135m"):
        load_model("nobody/nothing")


def refuse(self, name, timeout):
    assert timeout <= 10
    raise ConnectionError("no route")


def test_an_endpoint_without_tokenizer():
    with pytest.raises(InputError, match="tokenizer="):
        load_model("http://localhost:1/v1#x")


def test_an_endpoint_that_is_down(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(EndpointError, match="cannot be reached"):
        load_model("http://127.0.0.1:1/v1#x", tokenizer=tiny_tokenizer)
