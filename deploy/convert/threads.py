"""Code for as many threads as the processor has that serves, not as many as the one that compiles.

Owns the setting for it, and what that setting does too much of. Called by aoti, in a child process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DYNAMIC_THREADS = {"cpp.dynamic_threads": True}
"""The compiler's setting, without which a sum over all elements has room for the threads of the machine that compiles.

Torch 2.13 then starts as many threads as there are all the same, and writes beyond that room on a machine with more;
older ones start as many as the compiler had, wherever the code runs.
"""


@contextmanager
def loops_as_large_as_before() -> Iterator[None]:
    """While this lasts, loops with too little work for threads get none, also with `DYNAMIC_THREADS`.

    Torch gives each loop threads then, for the runtime to start fewer; it starts all of them.
    """
    from torch._inductor import config
    from torch._inductor.codegen.cpp import CppKernel

    decide: Callable[..., Any] = CppKernel.decide_parallel_depth

    def decided(self: CppKernel, *arguments: Any, **keywords: Any) -> Any:
        with config.patch({"cpp.dynamic_threads": False}):
            return decide(self, *arguments, **keywords)

    CppKernel.decide_parallel_depth = decided  # type: ignore[method-assign]
    try:
        yield
    finally:
        CppKernel.decide_parallel_depth = decide  # type: ignore[method-assign]
