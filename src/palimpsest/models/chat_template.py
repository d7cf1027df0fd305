"""Where a model's chat template is: in the folder that its weights come from, as transformers finds it."""

from __future__ import annotations

import os
from pathlib import Path

from transformers import AutoTokenizer

from palimpsest.models import gguf
from palimpsest.models.quiet import quiet
from palimpsest.models.registry import KNOWN, fetch


def find_chat_template(model: str) -> str | None:
    """The Jinja chat template of a model, or None when it has none.

    Args:
        model: a known name, a folder, a `.gguf` file or a hub id that is in the local cache.

    Example:
        >>> find_chat_template("smollm2-135m") is not None      # doctest: +SKIP
        True
    """
    place: str | os.PathLike[str] = fetch(model) if model in KNOWN and not Path(model).exists() else model
    if Path(model).suffix.lower() == ".gguf" and Path(model).is_file():
        place = gguf.gguf_folder(Path(model))  # where it was converted to when it was loaded
    with quiet():
        try:
            found = AutoTokenizer.from_pretrained(place, local_files_only=True).chat_template
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return found if isinstance(found, str) else None
