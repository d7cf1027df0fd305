"""The door to GGUF files, the format of llama.cpp: converted once to float32 safetensors, then an ordinary folder.

transformers reads the weights and most of the tokenizer. What it leaves out is put right here: several byte-level vocabularies
were trained on text whose digits stand alone (`tokenizer.ggml.pre` says which), and cut otherwise the model would see tokens
that it never saw in training.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from safetensors.torch import save_model
from tokenizers import pre_tokenizers

from palimpsest.errors import InputError, StorageError
from palimpsest.files import cache_dir, require_space, sha256_file, storage_errors, write_json
from palimpsest.models.quiet import quiet

FORMAT = "palimpsest-model/1"
MANIFEST = "manifest.json"

# Names that `tokenizer.ggml.pre` gives to GPT-2's rule with every digit on its own, and to GPT-2's rule as it is.
LONE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
PLAIN_GPT2 = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "roberta-bpe"})


def convert_gguf(source: Path, folder: Path, origin: dict[str, Any] | None = None) -> None:
    """Writes model, tokenizer, configuration and a manifest with the hash of every file into `folder`, which must be empty.

    Args:
        source: a `.gguf` file.
        folder: where to write; not atomic, see `cached_folder`.
        origin: further facts for the manifest (where the file came from).

    Raises:
        InputError: not a GGUF file, or of an architecture or tokenizer that cannot be read.
        StorageError: no space or no permission.
    """
    header = read_header(source)
    # redirect_stderr: the reader's progress bar knows no other switch
    with storage_errors(folder), quiet(), contextlib.redirect_stderr(io.StringIO()):
        try:
            fast: Any = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source.parent, gguf_file=source.name, local_files_only=True, dtype=torch.float32
            )
        except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
            raise InputError(
                f"{source} cannot be read as a causal language model: {error}.", "Convert it to a transformers folder."
            ) from error
        _split_as_trained(fast.backend_tokenizer, header.get("tokenizer.ggml.pre"), source)
        # The weights are plain float32 now; a configuration that still says "gguf" would be read as quantised.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        fast.save_pretrained(folder)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in sorted(folder.iterdir())}
    about = {"architecture": header.get("general.architecture"), "name": header.get("general.name")}
    write_json(folder / MANIFEST, {"format": FORMAT, "gguf_sha256": sha256_file(source), **about, **(origin or {}), "files": files})


def read_header(source: Path) -> dict[str, Any]:
    """The short facts of a GGUF file's header: architecture, name, kind of tokenizer.

    Raises:
        InputError: not a GGUF file, or a truncated one.
    """
    from gguf import GGUFReader

    try:
        fields = GGUFReader(source).fields
        wanted = ("general.architecture", "general.name", "tokenizer.ggml.model", "tokenizer.ggml.pre")
        return {key: fields[key].contents() for key in wanted if key in fields}
    except (IndexError, KeyError, ValueError) as error:
        raise InputError(f"{source} is not a whole GGUF file: {error}.", "Fetch it again.") from error


def gguf_folder(source: Path, progress: Callable[[str], None] | None = None) -> Path:
    """The converted twin of a `.gguf` file in the user's cache; made on the first call, found by the file's hash afterwards."""
    digest = sha256_file(source)

    def make(folder: Path) -> None:
        if progress:
            progress(f"converting {source.name}")
        convert_gguf(source, folder)

    return cached_folder(f"gguf-{digest[:16]}", 8 * source.stat().st_size, make)


def cached_folder(name: str, needed: int, make: Callable[[Path], None], *, verify: bool = False) -> Path:
    """The folder `name` in the cache of models, made by `make` when it is not there or not whole.

    One process makes it, others wait; it appears under its name only when it is finished.

    Args:
        name: folder name.
        needed: bytes of disk that making it takes.
        make: fills an empty folder and leaves a manifest in it.
        verify: whether to compare the hash of every file (half a second a gigabyte) and not only its size.

    Raises:
        StorageError: no space or no permission.
    """
    folder = cache_dir("models", name)
    if is_whole(folder, verify=verify):
        return folder
    with _locked(folder):
        if is_whole(folder, verify=verify):  # made by another process while this one waited
            return folder
        for rest in folder.parent.glob(f".{name}.*.part"):
            shutil.rmtree(rest, ignore_errors=True)  # left by a run that was killed
        require_space(folder.parent, needed)
        with storage_errors(folder):
            part = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".part", dir=folder.parent))
            try:
                make(part)
                part.chmod(0o755)  # a temporary folder and safetensors are closed to everyone else; a shared cache is not
                for path in part.iterdir():
                    path.chmod(0o644)
                if folder.exists():
                    shutil.rmtree(folder)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


def is_whole(folder: Path, *, verify: bool = False) -> bool:
    """Whether `folder` holds every file of its manifest, in the right size and, with `verify`, with the right hash."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return False
        for name, facts in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != facts["bytes"] or (verify and sha256_file(path) != facts["sha256"]):
                return False
    except (FileNotFoundError, NotADirectoryError, KeyError, TypeError, ValueError):
        return False
    except PermissionError as error:
        raise StorageError(f"Cannot read {folder}: {error.strerror}.", "Change its permissions, or set PALIMPSEST_CACHE.") from error
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _split_as_trained(backend: Any, rule: str | None, source: Path) -> None:
    """Gives a byte-level tokenizer the pre-tokenizer that the GGUF file names."""
    if rule in LONE_DIGITS:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        return
    current = json.loads(backend.to_str())["pre_tokenizer"] or {}
    untouched = current.get("type") == "ByteLevel" and current.get("use_regex", True)
    if untouched and rule is not None and rule not in PLAIN_GPT2:
        raise InputError(
            f"{source} names the tokenizer rule {rule!r}, which is not known here.",
            "Save the model as a transformers folder with its own tokenizer.json and load that.",
        )
