"""Linear layers through oneDNN, where that is faster than the library that torch calls.

On a processor torch multiplies float32 matrices with MKL, which on processors that are not Intel's leaves much of them unused: on an AMD
EPYC with AVX-512 oneDNN, which comes with torch too, is 1.4 to 2.8 times as fast for 16 and more tokens and the shapes of a decoder of
135 M parameters, with the same float32 arithmetic (another order of summation). Its function for linear layers is for inference alone.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import MethodType

import torch
from torch.nn.functional import linear


@contextmanager
def fast_linear(model: torch.nn.Module) -> Iterator[bool]:
    """Linear layers of `model` that are float32 on a processor use the faster library for the time of a `with` block.

    Nothing is copied, hooks go on working, and calls that need gradients take the ordinary way.

    Yields:
        Whether oneDNN is used.

    Example:
        >>> with fast_linear(model), torch.inference_mode():    # doctest: +SKIP
        ...     model(ids)
    """
    with ExitStack() as undo:
        used = prefers_onednn()
        if used:
            for module in model.modules():
                if type(module) is torch.nn.Linear and _fits(module.weight) and "forward" not in vars(module):
                    undo.callback(vars(module).pop, "forward", None)  # two threads may have come at once
                    module.forward = MethodType(_forward, module)  # type: ignore[method-assign]  # whose copy is one of the module's copy
        yield used


def _fits(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()


def _forward(module: torch.nn.Linear, input: torch.Tensor) -> torch.Tensor:
    weight = module.weight
    if torch.is_grad_enabled() or input.dtype != torch.float32 or not _fits(weight) or not input.numel():
        return linear(input, weight, module.bias)
    return _linear(input, weight, module.bias)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


@cache
def prefers_onednn() -> bool:
    """Whether oneDNN's linear layer is there, says the same as torch's, and MKL does not know this processor.

    The maker of the processor decides, not a measurement: what a model says must not depend on how busy the machine was.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if not torch.backends.mkl.is_available() or _maker() == "GenuineIntel":
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 64, generator=generator), torch.randn(48, 64, generator=generator)
    try:
        with torch.inference_mode():
            return torch.allclose(_linear(x, weight, None), linear(x, weight), rtol=1e-4, atol=1e-3)
    except (RuntimeError, NotImplementedError):  # torch was built without it
        return False


def _maker() -> str:
    """Who made the processor, as Linux has it; elsewhere what the platform says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "GenuineIntel" if "Intel" in platform.processor() else platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), "")
