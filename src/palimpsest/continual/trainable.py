"""Which parameters of a model are trained on: all, some layers, some modules, or an adapter beside them.

The straightforward remedies that Li & Lee, 2024, arXiv 2401.03129, compare: the first or the last ten layers frozen, attention or MLPs
frozen, LoRA (Hu et al., 2022, arXiv 2106.09685) and (IA)³ (Liu et al., 2022, arXiv 2205.05638), both by peft. Each is used in the same way:

    trained = FreezeLayers(first=10).prepare(model)     # what the training loop gets
    …
    model = FreezeLayers(first=10).merged(trained)      # an ordinary model again

Frozen parameters require no gradient, so that no optimizer holds them. `prepare` works on the model that it is given, in place;
`trained_on` does all of it with a copy.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from palimpsest.errors import InputError, MissingDependencyError
from palimpsest.models.hf import HFModel
from palimpsest.training.batch import BatchSource
from palimpsest.training.loop import TrainConfig, Trainer

_MODULES = {"attention": ("self_attn", "attn", "attention"), "mlp": ("mlp", "feed_forward", "ffn")}


class Trainable(Protocol):
    """Chooses what is trained of a model."""

    def prepare(self, model: nn.Module) -> nn.Module: ...

    def merged(self, model: nn.Module) -> nn.Module: ...


def trained_on(model: HFModel, data: BatchSource, config: TrainConfig, how: Trainable, name: str | None = None) -> HFModel:
    """A copy of a model that was trained on.

    Args:
        model: stays as it is.
        data: batches.
        config: how, and for how many steps.
        how: what of it is trained.
        name: of the copy; by default the model's.

    Raises:
        InputError: a choice that the model does not allow.
        NonFiniteError: training diverged.

    Example:
        >>> german = trained_on(chat, RowBatches(rows, 8), TrainConfig(300, lr=1e-4), Lora(rank=8))      # doctest: +SKIP
    """
    other = copy.copy(model)
    vars(other).pop("fingerprint", None)  # it is of the weights
    other.name = name or model.name
    trained = how.prepare(copy.deepcopy(model.model))
    Trainer(trained, config).fit(data)
    other.model = how.merged(trained).eval()
    return other


class _InPlace:
    """What is trained is the model itself."""

    def merged(self, model: nn.Module) -> nn.Module:
        """The model with all its parameters trainable again."""
        return model.requires_grad_(True)


@dataclass(frozen=True)
class Full(_InPlace):
    """Everything is trained."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model, all of it trainable."""
        return model.requires_grad_(True)


@dataclass(frozen=True)
class FreezeLayers(_InPlace):
    """The first or the last layers stay as they are.

    Args:
        first, last: how many; embeddings and output are trained.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> shape = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1)
        >>> model = FreezeLayers(first=1).prepare(LlamaForCausalLM(shape))
        >>> [any(p.requires_grad for p in layer.parameters()) for layer in model.model.layers]
        [False, True]
    """

    first: int = 0
    last: int = 0

    def __post_init__(self) -> None:
        if min(self.first, self.last) < 0 or not self.first + self.last:
            raise InputError(f"first is {self.first}, last is {self.last}.", "Give a positive number of layers to freeze.")

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model with those layers frozen.

        Raises:
            InputError: as many layers as the model has, or more.
        """
        layers = _layers(model)
        if self.first + self.last >= len(layers):
            raise InputError(f"{self.first + self.last} of {len(layers)} layers would be frozen.", "Leave at least one.")
        model.requires_grad_(True)
        for layer in [*layers[: self.first], *layers[len(layers) - self.last :]]:
            layer.requires_grad_(False)
        return model


@dataclass(frozen=True)
class FreezeModules(_InPlace):
    """Attention or MLPs stay as they are, in every layer.

    Args:
        kind: "attention" or "mlp".
    """

    kind: str

    def __post_init__(self) -> None:
        if self.kind not in _MODULES:
            raise InputError(f"kind is {self.kind!r}.", f"Choose one of {', '.join(_MODULES)}.")

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model with those modules frozen.

        Raises:
            InputError: a layer without such a module.
        """
        model.requires_grad_(True)
        for number, layer in enumerate(_layers(model)):
            found = [module for name, module in layer.named_children() if name in _MODULES[self.kind]]
            if not found:
                raise InputError(f"Layer {number} has no module that is known as {self.kind}.", "Freeze whole layers instead.")
            for module in found:
                module.requires_grad_(False)
        return model


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters beside all linear maps of the layers; everything else stays as it is.

    Args:
        rank, alpha, dropout: of the adapters; their product is scaled by alpha / rank.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise InputError(f"rank is {self.rank}, alpha {self.alpha}, dropout {self.dropout}.", "Give a rank ≥ 1 and alpha > 0.")

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model with fresh adapters, which change nothing yet.

        Raises:
            MissingDependencyError: peft is not installed.
        """
        peft = _peft()
        return peft.get_peft_model(
            model, peft.LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules="all-linear")
        )

    def merged(self, model: nn.Module) -> nn.Module:
        """The model with the adapters added to its weights."""
        return _unloaded(model)


@dataclass(frozen=True)
class IA3:
    """(IA)³: learnt factors on keys, values and the inner units of the MLPs, for models whose modules have Llama's names."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model with factors of 1, which change nothing yet.

        Raises:
            MissingDependencyError: peft is not installed.
            InputError: other names of modules.
        """
        peft = _peft()
        config = peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
        try:
            return peft.get_peft_model(model, config)
        except ValueError as error:
            raise InputError(
                f"The model has no k_proj, v_proj and down_proj: {error}", "Take Lora, which takes all linear maps."
            ) from error

    def merged(self, model: nn.Module) -> nn.Module:
        """The model with the factors multiplied into its weights."""
        return _unloaded(model)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model of transformers: its longest list of modules of one class."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len({type(m) for m in module}) == 1]
    if not lists:
        raise InputError(f"{type(model).__name__} has no list of layers.", "Give a model of transformers.")
    return max((list(modules) for modules in lists), key=len)


def _unloaded(model: Any) -> nn.Module:
    """The base model with its adapter merged, all of it trainable."""
    return model.merge_and_unload().requires_grad_(True)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError("Adapters need the package peft.", "pip install 'palimpsest-lm[train]'") from error
    return peft
