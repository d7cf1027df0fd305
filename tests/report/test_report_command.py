import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app


@pytest.fixture
def small(audit: dict[str, Any], tmp_path: Path) -> Path:
    audit["sections"] = audit["sections"][1:2]
    (tmp_path / "audit.json").write_text(json.dumps(audit), encoding="utf-8")
    return tmp_path


def test_report_renders_the_audit_of_a_folder_again(small: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(small)])
    assert result.exit_code == 0
    assert "index.html" in result.output
    assert "1 figure" in result.output
    assert "Who asks often enough, gets more" in (small / "index.html").read_text(encoding="utf-8")


def test_report_as_json(small: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(small), "--json"])
    answer = json.loads(result.stdout)
    assert answer["bytes"] == Path(answer["page"]).stat().st_size
    assert [Path(path).name for path in answer["figures"]] == ["probabilistic-extraction.png", "probabilistic-extraction.svg"]


@pytest.mark.parametrize(
    ("content", "words"), [(None, "There is no"), ("{", "is not JSON"), ("\xff", "is not JSON"), ("{}", "format: None")]
)
def test_what_is_no_audit_ends_with_2_and_a_remedy(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "audit.json").write_bytes(content.encode("latin-1"))
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--json"])
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "InputError"
    assert words in error["problem"]
    assert error["remedy"]
    assert not (tmp_path / "index.html").exists()
