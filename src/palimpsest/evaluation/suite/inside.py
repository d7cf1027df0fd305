"""What is asked of a model's inside: how long a text one input vector holds (002), and which tokens its features are active at (097)."""

from __future__ import annotations

from typing import Any

from palimpsest.audit.function_activation import measure_function_tokens, text_rows
from palimpsest.audit.sae import SAEConfig
from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import percent
from palimpsest.evaluation.plan import AuditPlan
from palimpsest.evaluation.record import AuditRecord
from palimpsest.evaluation.reversible import measure_reversible
from palimpsest.evaluation.steps import Job, StepProgress
from palimpsest.evaluation.suite.detector import Detector, Headline, Need, Shown, Task, some_passages
from palimpsest.evaluation.suite.texts import long_documents
from palimpsest.measurement import Measurement
from palimpsest.models import HFModel, LanguageModel
from palimpsest.stats import Interval

TEXTS, LENGTHS, STEPS = 6, (8, 16), 250
DOCUMENTS, TOKENS, ROW, EXPANSION, EPOCHS = 20, 8_000, 128, 4, 3


def _elsewhere(model: LanguageModel) -> str:
    return f"It works on the weights in this process, and {model.name} is behind the door {model.door!r}."


def memory_token_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task] | str:
    """The beginnings of passages and random tokens, each trained into one vector."""
    if not isinstance(model, HFModel):
        return _elsewhere(model)
    texts: list[str] = []
    for sample in some_passages(plan, 8 * TEXTS):
        text = model.tokenizer.decode(sample.ids).strip()
        if len(model.tokenizer.encode(text)) >= max(LENGTHS) and len(texts) < TEXTS:
            texts.append(text)
    if len(texts) < 2 or max(LENGTHS) + 2 > model.room:
        return f"It takes 2 passages of {max(LENGTHS)} tokens and room for them; there are {len(texts)}, and room for {model.room} tokens."

    def run(progress: StepProgress) -> Measurement:
        return measure_reversible(model, texts, LENGTHS, random=TEXTS // 2, seed=plan.settings.seed, max_steps=STEPS, progress=progress)

    read = 3 * STEPS * sum(LENGTHS) * (len(texts) + TEXTS // 2)  # a step back costs about two forward; most stop before the last
    return [Task("memory-tokens", "texts in one vector", run, read, key={"texts": len(texts), "lengths": LENGTHS, "steps": STEPS})]


def show_memory_tokens(record: AuditRecord) -> Shown:
    """How many texts come back, by length, beside random tokens and untrained vectors."""
    levels = record.result("memory-tokens", record.largest).summary["levels"]
    rows = [{"kind": row["kind"], "length": row["length"], "n": row["n"], "exact": _interval(row["exact"]), "bits": row["bits"],
             "untrained": row["untrained"], "swapped": row["swapped"]} for row in levels]  # fmt: skip
    columns = [("kind", "Kind", "text"), ("length", "Tokens", "int"), ("n", "Asked", "int"), ("exact", "Come back", "interval"),
               ("bits", "Bits to carry", "float"), ("untrained", "From the vector before training", "int"),
               ("swapped", "From another text's", "int")]  # fmt: skip
    caption = f"One input vector a text, trained for {STEPS} steps at most; a short training shows a lower bound."
    texts = [row for row in levels if row["kind"] == "text"]
    longest = max(texts, key=lambda row: row["length"])
    control = next((row["exact"]["estimate"] for row in levels if row["kind"] != "text" and row["length"] == longest["length"]), None)
    value = Interval(*_interval(longest["exact"]))
    answer = f"One input vector brings back {percent(value.estimate)} of the beginnings of {longest['length']} tokens to the letter" + (
        f", and {percent(control)} of as many random tokens." if control is not None else "."
    )
    made = [blocks.table("memory-tokens", "Texts written into one input vector", columns, rows, caption)]
    return Shown(answer, made, Headline(value, "percent", f"of {longest['length']} tokens held by a vector", control, "of random tokens"))


def function_token_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task] | str:
    """A sparse autoencoder of the middle layer's states, and one of the same architecture with random weights."""
    if not isinstance(model, HFModel):
        return _elsewhere(model)
    length = min(ROW, model.room)
    rows = text_rows(model.tokenizer, list(long_documents(plan, DOCUMENTS, TOKENS).values()), length, TOKENS)
    tokens = sum(map(len, rows))
    layer = max(1, int(model.model.config.get_text_config().num_hidden_layers) // 2)
    config = SAEConfig(expansion=EXPANSION, epochs=EPOCHS)

    def run(progress: StepProgress) -> Measurement:
        return measure_function_tokens(model, rows, (layer,), sae=config, seed=plan.settings.seed, progress=progress)

    key = {"tokens": tokens, "layer": layer, "expansion": EXPANSION, "epochs": EPOCHS}
    return [Task("function-tokens", "features by token", run, read=4 * tokens, key=key)]


def show_function_tokens(record: AuditRecord) -> Shown:
    """What the most frequent tokens cover, in the model and in its untrained twin."""
    result = record.result("function-tokens", record.largest)
    rows = [{"model": f"{row['model']}, layer {row['layer']}", "features": row["features"], "explained": row["explained_variance"],
             "ten": row["coverage_10"], "lot": row["coverage_random_10"], "ratio": _interval(row["control"])}
            for row in result.summary["layers"]]  # fmt: skip
    columns = [("model", "Weights", "text"), ("features", "Features", "int"), ("explained", "Variance explained", "percent"),
               ("ten", "Features at the ten commonest tokens", "percent"), ("lot", "at ten by lot", "percent"),
               ("ratio", "Function over content, at equal counts", "float")]  # fmt: skip
    caption = (
        "Frequent tokens have more occurrences to be active at; the last column compares equally many, and above 1 there is more to it."
    )
    first, *others = result.summary["layers"]
    value = Interval(*_interval(first["control"]))
    twin = next((row["control"]["estimate"] for row in others if row["model"] != "trained"), None)
    answer = (
        f"The ten commonest tokens activate {percent(first['coverage_10'])} of the features of layer {first['layer']}; at equally "
        f"many occurrences a function token activates {value.estimate:.2f} times as many as a content token ({value.low:.2f} to "
        f"{value.high:.2f})" + ("." if twin is None else f", with random weights {twin:.2f} times.")
    )
    made = [blocks.table("function-tokens", "Which tokens the features are active at", columns, rows, caption)]
    headline = Headline(value, "float", "times the features of content tokens", twin, "with random weights")
    return Shown(answer, made, headline)


def _interval(figures: dict[str, Any]) -> list[float]:
    return [figures[key] for key in ("estimate", "low", "high")]


MEMORY_TOKENS = Detector(
    "memory-tokens", "Texts in one input vector", "context", "full", (2,), (Need.GRADIENTS, Need.INDEX),
    f"at most {STEPS} training steps of one vector", memory_token_tasks, show_memory_tokens, command="palimpsest memory-tokens",
    needs_for="Training an input vector",
)  # fmt: skip
FUNCTION_TOKENS = Detector(
    "function-tokens", "Which tokens activate it", "knowledge", "full", (97,), (Need.HIDDEN_STATES, Need.GRADIENTS, Need.INDEX),
    "its share of two sparse autoencoders", function_token_tasks, show_function_tokens, command="palimpsest function-tokens",
    needs_for="Reading hidden states",
)  # fmt: skip
