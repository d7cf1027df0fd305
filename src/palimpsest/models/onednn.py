"""Linear layers through oneDNN, where that is faster than the library that torch calls.

On a processor torch multiplies float32 matrices with MKL, which on processors that are not Intel's leaves much of them unused: on an AMD
EPYC with AVX-512 oneDNN, which comes with torch too, is 1.4 to 2.5 times as fast for the shapes of a decoder, with the same float32
arithmetic (another order of summation). Its function for linear layers exists for inference alone. Which of the two is faster here is
measured once a process, on the layer that does most of the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import torch
from torch.nn.functional import linear

_ROWS = 16  # tokens of the measurement
_WEIGHT = (1536, 576)
_TURNS = 7


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
        used = onednn_is_faster()
        if used:
            for module in model.modules():
                if type(module) is torch.nn.Linear and _fits(module.weight) and "forward" not in vars(module):
                    undo.callback(vars(module).pop, "forward")
                    module.forward = _forward_of(module)  # type: ignore[method-assign]
        yield used


def _fits(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()


def _forward_of(module: torch.nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(input: torch.Tensor) -> torch.Tensor:
        weight = module.weight
        if torch.is_grad_enabled() or input.dtype != torch.float32 or not _fits(weight) or not input.numel():
            return linear(input, weight, module.bias)
        return _linear(input, weight, module.bias)

    return forward


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN's linear layer is there, says the same as torch's, and takes less time."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((_ROWS, _WEIGHT[1]), _WEIGHT))
    with torch.inference_mode():
        try:
            same = torch.allclose(_linear(x, weight, None), linear(x, weight), rtol=1e-4, atol=1e-3)
        except (RuntimeError, NotImplementedError):  # torch was built without it
            return False
        seconds: dict[Callable[..., torch.Tensor], float] = {}
        for _ in range(_TURNS):
            for function in (linear, _linear):
                began = time.perf_counter()
                function(x, weight, None)
                seconds[function] = min(seconds.get(function, 1.0), time.perf_counter() - began)
    return same and seconds[_linear] < 0.9 * seconds[linear]
