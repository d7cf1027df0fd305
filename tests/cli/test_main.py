"""The frame of the command line: verbs load lazily, errors become a message with a remedy, bugs stay visible."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import pytest
import typer
from typer.testing import CliRunner

from palimpsest import __version__
from palimpsest.cli import VERBS, app
from palimpsest.errors import CorpusError

runner = CliRunner()


def use(monkeypatch: pytest.MonkeyPatch, verb) -> None:
    """Mounts `verb` as `palimpsest probe`."""
    module = types.ModuleType("probe_module")
    module.probe = verb
    monkeypatch.setitem(sys.modules, "probe_module", module)
    monkeypatch.setitem(VERBS, "probe", ("probe_module", "probe", "A verb for this test."))


def test_help_lists_every_verb():
    answer = runner.invoke(app, ["--help"])
    assert answer.exit_code == 0
    assert all(f" {verb} " in answer.output for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_exists_and_explains_itself(verb):
    answer = runner.invoke(app, [verb, "--help"], catch_exceptions=False)
    assert answer.exit_code == 0
    assert f"{verb} [OPTIONS]" in answer.output


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys\nfrom palimpsest.cli import main\nsys.argv = ['palimpsest', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'numpy', 'polars', 'transformers', 'numba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_version():
    answer = runner.invoke(app, ["--version"])
    assert (answer.exit_code, answer.stdout) == (0, f"palimpsest {__version__}\n")


def test_the_module_is_the_command():
    shown = subprocess.run([sys.executable, "-m", "palimpsest", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: palimpsest" in shown.stdout


def test_an_error_of_the_library_is_a_message_with_its_remedy_and_code_2(monkeypatch):
    def probe() -> None:
        raise CorpusError("The corpus x.txt is empty.", "Give a file with text.")

    use(monkeypatch, probe)
    answer = runner.invoke(app, ["probe"])
    assert answer.exit_code == 2
    assert answer.stderr == "error: The corpus x.txt is empty. Give a file with text.\n"
    assert answer.stdout == ""


def test_with_json_the_error_is_json_too(monkeypatch):
    def probe(as_json: bool = typer.Option(False, "--json")) -> None:
        raise CorpusError("The corpus x.txt is empty.", "Give a file with text.")

    use(monkeypatch, probe)
    answer = runner.invoke(app, ["probe", "--json"])
    assert answer.exit_code == 2
    expected = {"type": "CorpusError", "problem": "The corpus x.txt is empty.", "remedy": "Give a file with text."}
    assert json.loads(answer.stdout) == {"error": expected}
    assert answer.stderr == "error: The corpus x.txt is empty. Give a file with text.\n"


def test_with_json_a_wrong_option_is_json_too(monkeypatch):
    def probe(count: int = typer.Option(1, min=1), as_json: bool = typer.Option(False, "--json")) -> None:
        raise AssertionError

    use(monkeypatch, probe)
    for wrong in (["--count", "0"], ["--what"]):
        answer = runner.invoke(app, ["probe", *wrong, "--json"])
        assert answer.exit_code == 2
        error = json.loads(answer.stdout)["error"]
        assert error["type"] == "UsageError"
        assert wrong[0] in error["problem"]
        assert "probe --help" in error["remedy"]


def test_what_the_system_refuses_is_a_message(monkeypatch):
    def probe(path: str, as_json: bool = typer.Option(False, "--json")) -> None:
        open(path).close()

    use(monkeypatch, probe)
    answer = runner.invoke(app, ["probe", "x" * 300, "--json"])
    assert answer.exit_code == 2
    error = json.loads(answer.stdout)["error"]
    assert error["type"] == "StorageError"
    assert "xxx cannot be used: File name too long" in error["problem"]


def test_an_interrupt_says_how_to_continue(monkeypatch):
    def probe() -> None:
        raise KeyboardInterrupt

    use(monkeypatch, probe)
    answer = runner.invoke(app, ["probe"])
    assert answer.exit_code == 130
    assert "run the same command again to continue" in answer.stderr


def test_a_bug_is_not_swallowed(monkeypatch):
    def probe() -> None:
        raise ZeroDivisionError("a bug")

    use(monkeypatch, probe)
    with pytest.raises(ZeroDivisionError):
        runner.invoke(app, ["probe"], catch_exceptions=False)


def test_a_group_with_one_command_stays_a_group(monkeypatch):
    group = typer.Typer()

    @group.command("only")
    def only() -> None:
        typer.echo("ran")

    use(monkeypatch, group)
    assert runner.invoke(app, ["probe", "only"]).stdout == "ran\n"
    assert "A verb for this test." in runner.invoke(app, ["probe", "--help"]).output


def test_a_verb_that_does_not_exist_gets_a_suggestion():
    answer = runner.invoke(app, ["system"])
    assert answer.exit_code == 2
    assert "systems" in answer.stderr


def test_a_wrong_option_ends_with_code_2():
    assert runner.invoke(app, ["systems", "--no-such-option"]).exit_code == 2


def test_input_that_is_no_text_is_an_error(monkeypatch):
    def probe(as_json: bool = typer.Option(False, "--json")) -> None:
        typer.get_text_stream("stdin").read()

    use(monkeypatch, probe)
    answer = runner.invoke(app, ["probe", "--json"], input=b"a\xff")
    assert answer.exit_code == 2
    assert "not UTF-8" in json.loads(answer.stdout)["error"]["problem"]
