import re
from collections.abc import Callable
from typing import Any

import pytest

from palimpsest.errors import InputError
from palimpsest.report import check


def set_at(*path: Any) -> Callable[[Any, Any], None]:
    def setter(audit: Any, value: Any) -> None:
        for step in path[:-1]:
            audit = audit[step]
        audit[path[-1]] = value

    return setter


def test_the_example_is_a_valid_audit(audit: dict[str, Any]) -> None:
    check(audit)


def test_what_is_optional_may_be_null_or_left_out(audit: dict[str, Any]) -> None:
    for name in ("demonstration", "corpus", "settings", "environment", "timing"):
        del audit[name]
    audit["references"] = None
    del audit["sections"][0]["reason"]
    del audit["sections"][3]["blocks"][0]["items"][0]["facts"]
    audit["something_of_a_later_version"] = {"kept": True}
    check(audit)


WRONG: list[tuple[tuple[Any, ...], Any, str]] = [
    (("format",), "palimpsest-audit/2", "format: 'palimpsest-audit/2'"),
    (("title",), 7, "title: 7"),
    (("verdict", "level"), "awful", "verdict.level: 'awful'"),
    (("verdict", "sentences"), "one", "verdict.sentences: 'one'"),
    (("tiles", 0, "format"), "euro", "tiles[0].format"),
    (("tiles", 0, "value"), "many", "tiles[0].value"),
    (("tiles", 0, "low"), float("nan"), "tiles[0].low"),
    (("tiles", 0, "value"), True, "tiles[0].value"),
    (("models", 1, "parameters"), -1, "models[1].parameters"),
    (("settings", "guard", "n"), float("inf"), "settings.guard.n"),
    (("sections", 0, "status"), "maybe", "sections[0].status"),
    (("sections", 0, "id"), "../up", "sections[0].id"),
    (("sections", 1, "id"), "extraction", "sections: 2 entries have the id 'extraction'"),
    (("sections", 0, "blocks", 1, "type"), "hologram", "sections[0].blocks[1].type: 'hologram'"),
    (("sections", 0, "blocks", 1, "id"), "a/b", "sections[0].blocks[1].id"),
    (("sections", 0, "blocks", 1, "id"), "extraction-by-size", "'extraction-by-size'"),
    (("sections", 0, "blocks", 1, "x_scale"), "cubic", "sections[0].blocks[1].x_scale"),
    (("sections", 0, "blocks", 1, "y_domain"), [0], "sections[0].blocks[1].y_domain"),
    (("sections", 0, "blocks", 1, "series", 0, "points", 2, "x"), None, "sections[0].blocks[1].series[0].points[2].x"),
    (("sections", 0, "blocks", 4, "columns"), [], "sections[0].blocks[4].columns"),
    (("sections", 0, "blocks", 4, "columns", 1, "key"), "model", "sections[0].blocks[4].columns"),
    (("sections", 0, "blocks", 4, "rows", 3, "rate"), [0.1, 0.2], "sections[0].blocks[4].rows[3].rate"),
    (("sections", 0, "blocks", 4, "rows", 3, "loss"), "low", "sections[0].blocks[4].rows[3].loss"),
    (("sections", 3, "blocks", 0, "items", 0, "spans", 0, "end"), 5000, "sections[3].blocks[0].items[0].spans[0]"),
    (("sections", 3, "blocks", 0, "items", 0, "spans", 0, "start"), -1, "sections[3].blocks[0].items[0].spans[0].start"),
    (("sections", 3, "blocks", 0, "items", 0, "copies"), 1.5, "sections[3].blocks[0].items[0].copies"),
    (("sections", 4, "blocks", 0, "items", 0, "columns", 0, "spans", 0, "kind"), "odd", "columns[0].spans[0].kind"),
]


@pytest.mark.parametrize(("path", "value", "words"), WRONG, ids=[words for _, _, words in WRONG])
def test_what_is_wrong_is_named_by_its_place(audit: dict[str, Any], path: tuple[Any, ...], value: Any, words: str) -> None:
    set_at(*path)(audit, value)
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        check(audit)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["title", "created", "verdict", "tiles", "models", "sections", "limits"])
def test_a_missing_field_is_named(audit: dict[str, Any], name: str) -> None:
    del audit[name]
    with pytest.raises(InputError, match=f"{name}: this field is missing"):
        check(audit)


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_no_object_is_no_audit(value: Any) -> None:
    with pytest.raises(InputError, match=r"audit\.json"):
        check(value)
