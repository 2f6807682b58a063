"""Asks vLLM's own AsyncEngineArgs about engine arguments: JSON on stdin, one line of JSON on stdout.

Owns no rule. Run by `deploy.serve.vllm` in the environment that holds vLLM; imports nothing of deploy.
"""

import json
import os
import sys


def main() -> None:
    """Print what vLLM makes of the arguments, or why it refuses them."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    arguments = json.loads(sys.stdin.read())
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs

        made = AsyncEngineArgs(**arguments)
        model = made.create_model_config()
        if made.enable_lora:
            from vllm.config import LoRAConfig

            LoRAConfig(max_lora_rank=made.max_lora_rank, max_loras=made.max_loras)
        answer = {
            "architecture": model.architecture,
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": model.max_model_len,
        }
    except Exception as error:  # noqa: BLE001 - whatever vLLM raises is its answer
        answer = {"refused": " ".join(f"{type(error).__name__}: {error}".split())[:1000]}
    lines.write(json.dumps(answer) + "\n")
    lines.flush()


if __name__ == "__main__":
    main()
