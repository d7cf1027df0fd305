"""`load_model`: one name in, one door out.

A path that exists is a folder or a GGUF file; `http://…` is an endpoint; `memory:…` is a memory-based model; a name of the registry is
fetched on first use; anything else of the form `owner/name` is looked for on the hub, in the local cache first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from safetensors import SafetensorError

from palimpsest.cluster import require_engine
from palimpsest.errors import InputError, ModelNotFoundError
from palimpsest.models.base import LanguageModel
from palimpsest.models.endpoint import EndpointModel
from palimpsest.models.gguf import gguf_folder
from palimpsest.models.hf import HFModel
from palimpsest.models.memory_door import MemoryModel
from palimpsest.models.memory_files import is_memory
from palimpsest.models.quiet import quiet
from palimpsest.models.registry import KNOWN, fetch
from palimpsest.tokenizer import Tokenizer

AnyPath = str | os.PathLike[str]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
MEMORY = "memory:"
HUB_TIMEOUT = 5.0  # seconds that one question to the hub may take


def load_model(
    spec: AnyPath,
    *,
    tokenizer: Tokenizer | AnyPath | None = None,
    batch_tokens: int | None = None,
    bos: str = "auto",
    timeout: float = 60.0,
    concurrency: int = 4,
    progress: Callable[[str], None] | None = None,
    engine: str = "local",
    share: float = 1.0,
) -> LanguageModel:
    """Opens the door to a causal language model.

    Args:
        spec: a known name ("smollm2-135m", fetched on first use), a folder written by `save_pretrained`, a `.gguf` file, a hub id
            ("owner/name"), an OpenAI-compatible endpoint ("http://host:port/v1#name"), or the folder of a memory-based model
            ("memory:folder", see `MemoryModel`).
        tokenizer: a `Tokenizer`, a `tokenizer.json`, a folder or a known name; by default the model's own. An endpoint has
            none, so there it must be given.
        batch_tokens: see `HFModel`; an endpoint takes one row at a time and ignores it, and so does a memory-based model.
        bos: whether BOS stands before every sequence: "auto" (as the tokenizer does), "always" or "never".
        timeout, concurrency: of an endpoint: seconds that one answer may take, and requests under way at once.
        progress: called with a few words at every stage of fetching and converting.
        engine, share: "ray" loads copies of the model into actors of a Ray cluster, see `RayModel`.

    Raises:
        ModelNotFoundError: nothing of that name; the message lists the names that exist.
        InputError: a folder that holds no causal language model, or no tokenizer where one is needed.
        EndpointError: an endpoint that is down or refuses.
        MissingDependencyError, ClusterError: engine "ray" without ray or without a cluster.

    Example:
        >>> model = load_model("smollm2-135m")                                    # doctest: +SKIP
        >>> model = load_model("http://localhost:8000/v1#my-model", tokenizer="tokenizer.json")   # doctest: +SKIP
    """
    require_engine(engine)
    if engine == "ray":
        from palimpsest.models.ray_model import RayModel

        return RayModel(spec, share=share, tokenizer=tokenizer, batch_tokens=batch_tokens, bos=bos)
    text = os.fspath(spec)
    if text.startswith(("http://", "https://")):
        if tokenizer is None:
            raise InputError(
                f"The endpoint {text} was given without a tokenizer.",
                "Give its own (--tokenizer, in Python tokenizer=): a tokenizer.json, a folder or a known name; tokens are counted here.",
            )
        return EndpointModel.from_url(text, read_tokenizer(tokenizer), bos=bos, timeout=timeout, concurrency=concurrency)
    if text.startswith(MEMORY):
        if not is_memory(Path(text.removeprefix(MEMORY)).expanduser()):
            raise ModelNotFoundError(f"There is no model {text!r}: no memory-based model stands there.", _what_there_is())
        own = read_tokenizer(tokenizer) if tokenizer is not None else None
        return MemoryModel.open(Path(text.removeprefix(MEMORY)).expanduser(), own, bos=bos)
    path = Path(text).expanduser()
    options: dict[str, Any] = {"tokenizer": tokenizer, "batch_tokens": batch_tokens, "bos": bos}
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise InputError(f"{path} is a file, but not a .gguf.", "Give the folder that save_pretrained() wrote, or a .gguf file.")
        return _load(gguf_folder(path, progress), name=path.stem, door="gguf", **options)
    if path.is_dir():
        return _load(path, name=path.resolve().name, **options)
    if text in KNOWN:
        return _load(fetch(text, progress=progress), name=text, door="gguf", **options)
    if not HUB_ID.fullmatch(text):
        raise ModelNotFoundError(f"There is no model {text!r}: no such folder, and not a name.", _what_there_is())
    try:
        return _load(text, name=text, **options)
    except ModelNotFoundError:
        _require_on_hub(text)
        return _load(text, name=text, local_files_only=False, **options)


def read_tokenizer(source: Tokenizer | AnyPath, *, local_files_only: bool = True) -> Tokenizer:
    """A `Tokenizer` from itself, a `tokenizer.json`, a known model's name, or a folder or hub id that transformers can open.

    Raises:
        ModelNotFoundError: there is nothing of that name.
        InputError: a tokenizer without a `tokenizer.json` form.
    """
    if isinstance(source, Tokenizer):
        return source
    text = os.fspath(source)
    path = Path(text).expanduser()
    if path.is_file():
        return Tokenizer.from_file(path)
    if not path.is_dir() and text in KNOWN:
        path = fetch(text)
    place: AnyPath = path if path.is_dir() else text
    with quiet():
        try:
            fast: Any = transformers.AutoTokenizer.from_pretrained(place, local_files_only=local_files_only)
        except OSError as error:
            raise ModelNotFoundError(f"No tokenizer can be read from {text!r}.", "Give tokenizer=, the model's tokenizer.json.") from error
        except (ImportError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"The tokenizer of {text!r} cannot be read: {error}.", "Give tokenizer=, the model's tokenizer.json."
            ) from error
    backend = getattr(fast, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"The tokenizer of {text!r} has no tokenizer.json form.", "Convert it to a fast tokenizer and save that.")
    bos_id = fast.bos_token_id
    # The tokenizer's own post-processor decides whether the model expects BOS.
    adds_bos = bos_id is not None and backend.encode("a", add_special_tokens=True).ids[:1] == [bos_id]
    return Tokenizer(backend, bos_id=bos_id, eos_id=fast.eos_token_id, pad_id=fast.pad_token_id, adds_bos=adds_bos)


def _load(
    place: AnyPath,
    *,
    name: str,
    tokenizer: Tokenizer | AnyPath | None,
    batch_tokens: int | None,
    bos: str,
    door: str = "hf",
    local_files_only: bool = True,
) -> HFModel:
    """Loads weights in float32 on a processor (where half precision is slow and coarse), in their own type on a GPU."""
    if isinstance(place, Path) and not (place / "config.json").is_file():
        raise ModelNotFoundError(f"The folder {place} holds no config.json.", "Give a folder that save_pretrained() wrote.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with quiet():
        try:
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                place, local_files_only=local_files_only, dtype=torch.float32 if device.type == "cpu" else "auto", output_loading_info=True
            )
        except OSError as error:
            raise ModelNotFoundError(f"No weights can be read from {os.fspath(place)!r}: {_first_line(error)}", _what_there_is()) from error
        except (ImportError, KeyError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
            raise InputError(
                f"{os.fspath(place)!r} holds no causal language model that transformers can load: {_first_line(error)}",
                "Save it again with save_pretrained(), or fetch it again if a file is damaged.",
            ) from error
    model, found = loaded
    if found["missing_keys"]:
        # transformers would fill them with random numbers, and every measurement would be of those.
        missing = sorted(found["missing_keys"])
        raise InputError(
            f"{os.fspath(place)!r} lacks {len(missing)} of the model's parameters, {missing[0]!r} among them.", "Give the whole checkpoint."
        )
    own = read_tokenizer(tokenizer if tokenizer is not None else place, local_files_only=local_files_only)
    return HFModel(model.to(device), own, name=name, batch_tokens=batch_tokens, bos=bos, door=door)


def _require_on_hub(name: str) -> None:
    """Asks the hub once: transformers itself would try for half a minute before it gives up."""
    try:
        huggingface_hub.HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except Exception as error:  # the client's exceptions come from several libraries; all mean that the model is not to be had
        raise ModelNotFoundError(
            f"There is no model {name!r}: no known name, no folder, not in the local hub cache, and the hub says: {_first_line(error)}",
            _what_there_is(),
        ) from error


def _what_there_is() -> str:
    return f"Known names: {', '.join(sorted(KNOWN))}. Or give a folder, a .gguf file, a hub id, http://host:port/v1#name or memory:folder."


def _first_line(error: BaseException) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if line.endswith(".") else line + "."
