"""The registry: every entry is well formed and resolves to code; the survey's terms too."""

import pytest

from palimpsest.catalogue import find
from palimpsest.cli import VERBS
from palimpsest.errors import InputError
from palimpsest.evaluation.suite.detector import SUITES, Need
from palimpsest.evaluation.suite.landscape import CATALOGUE, KINDS
from palimpsest.evaluation.suite.language import english_share
from palimpsest.evaluation.suite.mitigations import MITIGATIONS, STAGES
from palimpsest.evaluation.suite.registry import DETECTORS, FAMILIES, require_suite


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda detector: detector.name)
def test_an_entry_names_its_family_suite_needs_and_systems(detector):
    assert detector.family in {family.name for family in FAMILIES}
    assert detector.suite in SUITES
    assert detector.needs
    assert all(isinstance(need, Need) for need in detector.needs)
    assert all(find(str(number)).number == number for number in detector.systems)
    assert detector.per_sample
    assert (detector.tasks is None) == (detector.show is None)
    assert detector.tasks is not None or detector.reason  # who cannot be run says why


@pytest.mark.parametrize("entry", [*DETECTORS, *MITIGATIONS], ids=lambda entry: entry.name)
def test_a_command_names_a_verb(entry):
    if entry.command:
        assert entry.command.startswith("palimpsest ")
        assert entry.command.split()[1].strip(",") in VERBS


def test_names_are_unique_and_suites_hold_each_other():
    names = [detector.name for detector in DETECTORS]
    assert len(set(names)) == len(names)
    members = [{detector.name for detector in DETECTORS if detector.within(suite)} for suite in SUITES]
    assert members[0] < members[1] < members[2] == set(names)
    assert {family.name for family in FAMILIES} == {detector.family for detector in DETECTORS}
    with pytest.raises(InputError, match="no suite 'fast'"):
        require_suite("fast")


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_term_resolves_to_code_or_is_out_of_scope_with_a_reason(name):
    entry = CATALOGUE[name]
    assert name == f"{entry.kind}/{entry.name}"
    assert entry.kind in KINDS
    assert entry.meaning
    if entry.code:
        assert callable(entry.resolve())
        assert not entry.out_of_scope
    else:
        assert entry.resolve() is None
        assert entry.out_of_scope


def test_the_catalogue_has_all_kinds_and_every_detector_and_mitigation():
    assert {entry.kind for entry in CATALOGUE.values()} == set(KINDS)
    assert {f"detector/{detector.name}" for detector in DETECTORS} <= set(CATALOGUE)
    assert {f"mitigation/{mitigation.name}" for mitigation in MITIGATIONS} <= set(CATALOGUE)
    assert [mitigation.stage for mitigation in MITIGATIONS] == sorted((m.stage for m in MITIGATIONS), key=STAGES.index)


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("It was the best of times, it was the worst of times, it was the age of wisdom.", True),
        ("Es war die beste aller Zeiten, es war die schlimmste, es war ein Zeitalter der Weisheit.", False),
        ("C'était le meilleur des temps, c'était le pire des temps.", False),
        ("それは最良の時代であり、最悪の時代でもあった。", False),
        ("12 345 --", False),
        ("", False),
    ],
)
def test_english_is_told_by_its_function_words(text, english):
    assert (english_share(text) >= 0.1) is english
