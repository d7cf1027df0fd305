"""The server against its own schema, by schemathesis: whatever is made from the schema, valid or not, is answered as it promises."""

from __future__ import annotations

from collections import Counter

import hypothesis
import pytest

schemathesis = pytest.importorskip("schemathesis", reason="needs the package schemathesis")

KEY = "a-key-for-the-schema-01"
ROUTES = [
    ("/v1/completions", "POST"),
    ("/v1/chat/completions", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{name}", "GET"),
    ("/v1/trace", "POST"),
    ("/metrics", "GET"),
    ("/healthz", "GET"),
]


@pytest.fixture(scope="module")
def schema(serve, tiny_model, tmp_path_factory):
    from palimpsest.corpus import CorpusIndex
    from palimpsest.serving.auth import KeyRing

    place = tmp_path_factory.mktemp("corpus")
    (place / "text.txt").write_text("In the beginning was the word, and the word was written down.")
    index = CorpusIndex.build(place / "text.txt", tiny_model.tokenizer, place / "index")
    with serve(tiny_model, keys=KeyRing([KEY]), index=index) as started:
        yield schemathesis.openapi.from_asgi("/openapi.json", started.server.config.app)


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_answers_are_those_of_the_schema(schema, path, method, mode):
    operation, answers = schema[path][method], Counter()
    # That a valid request is always taken is not asked: texts can be too long for this model, fields can contradict each other.
    excluded = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]
    body = path.startswith("/v1/c") or path == "/v1/trace"
    if mode == "NEGATIVE" and not body:
        pytest.skip("takes nothing that could be wrong")

    @hypothesis.given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
    @hypothesis.settings(
        max_examples=20,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def check(case):
        if mode == "POSITIVE" and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "tiny-0"
            case.body |= {name: min(case.body[name] or 4, 4) for name in ("max_tokens", "n") if name in case.body}
        answer = case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, excluded_checks=excluded)
        answers[answer.status_code] += 1

    check()
    if mode == "NEGATIVE":
        assert answers[400]  # and never 200 for a wrong body: schemathesis looks
    elif path != "/v1/models/{name}":
        assert answers[200]


def test_every_route_is_asked(schema):
    assert {(found.ok().path, found.ok().method.upper()) for found in schema.get_all_operations()} == {
        (path, method) for path, method in ROUTES
    }


def test_the_schema_says_what_is_needed(schema):
    raw = schema.raw_schema
    for path, method in ROUTES:
        assert ("security" in raw["paths"][path][method.lower()]) == (path != "/healthz")
    assert "422" not in str(raw["paths"])
    request = raw["components"]["schemas"]["ChatRequest"]
    assert request["required"] == ["model", "messages"]
    assert request["additionalProperties"] is False
