"""Compiles sliding-window FlexAttention with one thread and runs it with sixteen; in a process of its own.

Started as `python -m tests.convert.threads FOLDER` by test_flex: memory that is written beyond its end may kill it.
"""

import sys
from pathlib import Path

import torch

from deploy.convert.aoti import compile_aoti
from deploy.convert.export import export_program
from deploy.processes import run_alone
from deploy.validate.executables import AotiModel
from tests.attention import TOKENS, SlidingWindow, lively
from tests.convert.helpers import Read, target


def compile_for_one_thread(folder: Path) -> Path:
    torch.set_num_threads(1)
    checkpoint = Read(folder)(SlidingWindow, TOKENS)
    torch.save(lively(SlidingWindow).state_dict(), checkpoint.path)
    program = export_program(checkpoint, max_batch=64, folder=folder)
    artifact = compile_aoti(program, target=target(), folder=folder)
    assert artifact.details["flex_attention"] == "fused kernel"
    return artifact.path


if __name__ == "__main__":
    path = run_alone("compile", compile_for_one_thread, Path(sys.argv[1])).value
    model, module = AotiModel(path, threads=16), lively(SlidingWindow)
    for _ in range(50):
        tokens = torch.randn(64, *TOKENS)
        (found,) = model.run([tokens.numpy()])
        torch.testing.assert_close(torch.from_numpy(found), module(tokens), rtol=1e-5, atol=1e-5)
