"""`palimpsest index export`: the index as a folder of infini-gram; `palimpsest index build` reads such folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from palimpsest.cli.index_passage import Folder, open_index
from palimpsest.cli.options import Json


def export(
    index: Folder,
    out: Annotated[Path, typer.Option(help="The folder to write; it must not be there yet.")],
    as_json: Json = False,
) -> None:
    """Write the index as a folder that infini-gram opens."""
    opened = open_index(index)
    opened.export_infini_gram(out)
    if as_json:
        typer.echo(json.dumps({"path": str(out), "shards": len(opened.manifest["shards"]), "token_type": opened.manifest["token_dtype"]}))
    else:
        typer.echo(f"{out}: {len(opened.manifest['shards'])} shard(s) of {opened.manifest['token_dtype']} tokens.")
