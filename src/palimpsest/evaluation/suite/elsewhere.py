"""Detectors that no audit of a corpus can run: they need material of their own, or the training run. They are listed with their command."""

from __future__ import annotations

from palimpsest.evaluation.suite.detector import Detector, Need

ELSEWHERE = (
    Detector(
        "traps",
        "Copyright traps",
        "membership",
        "standard",
        (7,),
        (Need.LOGPROBS, Need.MATERIAL),
        "one forward of a trap and its siblings",
        reason="It needs sequences that were planted before publication, and the manifest of where.",
        command="palimpsest traps detect",
    ),
    Detector(
        "tables",
        "Has it read this table?",
        "extraction",
        "standard",
        (84,),
        (Need.GENERATION, Need.MATERIAL),
        "up to 16 prompts a row",
        reason="It asks for rows and cells, and this corpus is text.",
        command="palimpsest audit MODEL TABLE.csv",
    ),
    Detector(
        "vocabulary",
        "What a larger vocabulary leaves",
        "drivers",
        "full",
        (66,),
        (Need.TRAINING,),
        "one training a vocabulary",
        reason="It trains models of one size with vocabularies of several.",
        command="palimpsest vocabulary",
    ),
    Detector(
        "checkpoints",
        "Foretold by early checkpoints",
        "drivers",
        "standard",
        (6,),
        (Need.TRAINING, Need.GENERATION),
        "one forward a checkpoint",
        reason="It needs checkpoints of the training run, in order.",
        command="palimpsest forecast",
    ),
    Detector(
        "counterfactual",
        "Counterfactual memorization",
        "drivers",
        "full",
        (20,),
        (Need.TRAINING,),
        "two trainings a split of the corpus",
        reason="It compares models that were trained with a text and without it, which takes the training run; with --reference the audit "
        "has one such pair, and every section names its figure.",
    ),
    Detector(
        "order-effects",
        "What another order would have left",
        "drivers",
        "full",
        (58,),
        (Need.TRAINING, Need.GRADIENTS),
        "second derivatives at every step",
        reason="It expands the training run around its batches.",
        command="palimpsest reproduce order-effects",
    ),
)
