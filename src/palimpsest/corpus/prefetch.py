"""A hint to the processor, inside compiled loops, that an entry of an array will be needed soon.

Induced sorting reads a text of many megabytes in no order, but knows some steps ahead where: with the hint these waits overlap.
The hint changes no result, and an index outside of the array does no harm.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """`prefetch(array, index)` in a compiled function: fetches the cache line of array[index]."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        word = ir.IntType(32)
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        hint = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer.type], ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word])
        )
        builder.call(hint, [pointer, word(0), word(3), word(1)])  # to read, to be kept in all caches, data
        return context.get_dummy_value()

    return types.void(array, index), emit


prefetch: Any = intrinsic(_prefetch)
