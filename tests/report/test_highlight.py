from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from palimpsest.report.highlight import pieces, visible


@st.composite
def marked(draw: Any) -> tuple[str, list[dict[str, int]]]:
    text = draw(st.text(max_size=40))
    ends = st.integers(0, len(text))
    pairs = draw(st.lists(st.tuples(ends, ends), max_size=6)) if text else []
    return text, [{"start": min(pair), "end": max(pair)} for pair in pairs if pair[0] != pair[1]]


@given(marked())
def test_pieces_add_up_and_know_their_spans(case: tuple[str, list[dict[str, int]]]) -> None:
    text, spans = case
    cut = pieces(text, spans)
    assert "".join(piece.text for piece in cut) == text
    covered: list[tuple[int, ...]] = [piece.spans for piece in cut for _ in piece.text]
    expected = [tuple(i for i, span in enumerate(spans) if span["start"] <= at < span["end"]) for at in range(len(text))]
    assert covered == expected
    assert all(piece.text for piece in cut)


@given(st.text(st.characters(), max_size=60))
def test_visible_text_keeps_its_length_and_can_be_written(text: str) -> None:
    shown = visible(text)
    assert len(shown) == len(text)
    shown.encode("utf-8")
    assert not any(ord(character) < 32 and character not in "\t\n\r" for character in shown)


def test_direction_marks_and_controls_are_shown_and_scripts_are_left_alone() -> None:
    assert visible("a\x1b[31m \u202egnp.exe \ud800") == "a␛[31m �gnp.exe �"
    assert visible({"k\x00": ["السلام", 3, None, "你好 🦊\n"]}) == {"k␀": ["السلام", 3, None, "你好 🦊\n"]}
