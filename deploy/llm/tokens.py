"""The greedy tokens of transformers for some prompts, and the rule by which a server's tokens are judged against them.

Owns the reference and the rule. The reference is computed in float64, in a child, since it needs torch. Two best tokens
whose logits lie closer together than rounding in the served dtype can tell apart may change places: that is a tie,
and what follows it is another text and not compared.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploy.errors import MissingError
from deploy.evidence import Judgement
from deploy.llm.model import LlmCheckpoint
from deploy.llm.records import Continuation, Prompt, Reference

if TYPE_CHECKING:
    import torch

TOKENS = 12
# As many times transformers' own error as parity allows an artifact, and the floor of parity: 8 epsilons of the scale.
_TIE_MULTIPLE = 10.0
_FLOOR_EPSILONS = 8.0
_LEAST_SHARE = 0.5


def require_transformers() -> None:
    """Raises MissingError without transformers or, for adapters, PEFT; imports neither."""
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        raise MissingError(
            "transformers is not installed, which generates the tokens to compare with",
            fix='pip install "deployctl[transformers]", or go without that proof: `deployctl package --no-serve-check`',
        )


def make_reference(checkpoint: LlmCheckpoint, prompts: Sequence[str], *, dtype: str) -> Reference:
    """What transformers continues each prompt with, of the base model and of each adapter. Called in a child."""
    from deploy.checkpoint.vision import import_torchvision

    # transformers imports torchvision where it is installed, which beside a CPU torch needs our help.
    import_torchvision()
    import torch
    import transformers

    torch.set_grad_enabled(False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)
    asked = [(text, None) for text in prompts] + [
        (text, one.name) for one in checkpoint.adapters for text in prompts[:2]
    ]
    found, error, scale = [], 0.0, 0.0
    for adapter in dict.fromkeys(name for _, name in asked):
        exact, served = (_load(checkpoint, adapter, dtype=kind) for kind in ("float64", dtype))
        for text in (text for text, name in asked if name == adapter):
            ids = tokenizer(text, return_tensors="pt").input_ids
            prompt, logits, sequence = _continue(exact, ids, text=text, adapter=adapter)
            again = served(sequence).logits[0, ids.shape[1] - 1 : -1].double()
            error = max(error, float((again - logits).abs().max()))
            scale = max(scale, float(logits.abs().max()))
            found.append(prompt)
    floor = _FLOOR_EPSILONS * torch.finfo(getattr(torch, dtype)).eps * scale
    return Reference(
        prompts=tuple(found),
        dtype=dtype,
        error=error,
        # Both logits of a pair may be off, each by so much.
        tie=2 * (_TIE_MULTIPLE * error + floor),
        transformers=transformers.__version__,
    )


def _load(checkpoint: LlmCheckpoint, adapter: str | None, *, dtype: str) -> Any:
    import torch
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint.path, dtype=getattr(torch, dtype), local_files_only=True, attn_implementation="eager"
    )
    if adapter is not None:
        try:
            from peft import PeftModel
        except ImportError as error:
            raise MissingError(
                "PEFT is not installed, which applies the adapters", fix='pip install "deployctl[peft]"'
            ) from error
        place = next(one.path for one in checkpoint.adapters if one.name == adapter)
        model = PeftModel.from_pretrained(model, place, autocast_adapter_dtype=False)
    return model.to(getattr(torch, dtype)).eval()


def _continue(
    model: Any, ids: "torch.Tensor", *, text: str, adapter: str | None
) -> "tuple[Prompt, torch.Tensor, torch.Tensor]":
    """The greedy continuation, the logits that each token was chosen by, and the whole sequence."""
    import torch

    steps, sequence, margins = [], ids, []
    for _ in range(TOKENS):
        logits = model(sequence).logits[0, -1].double()
        best = torch.topk(logits, 2)
        margins.append(float(best.values[0] - best.values[1]))
        steps.append(logits)
        sequence = torch.cat([sequence, best.indices[:1].reshape(1, 1)], dim=1)
    tokens = tuple(int(token) for token in sequence[0, ids.shape[1] :])
    prompt = Prompt(text=text, adapter=adapter, tokens=tokens, margins=tuple(margins))
    return prompt, torch.stack(steps), sequence


def compare(reference: Reference, number: int, tokens: Sequence[int]) -> Continuation:
    """How far a server's tokens follow the reference's for prompt `number`."""
    prompt = reference.prompts[number]
    pairs = zip(prompt.tokens, tokens, strict=False)
    parted = next((place for place, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
    if parted is None and len(tokens) < len(prompt.tokens):
        parted = len(tokens)
    tie = parted is not None and parted < len(tokens) and prompt.margins[parted] <= reference.tie
    return Continuation(
        prompt=number,
        tokens=tuple(tokens),
        compared=len(prompt.tokens) if parted is None else parted,
        parted_at=parted,
        tie=tie,
    )


def judge_tokens(reference: Reference, continuations: Sequence[Continuation]) -> Judgement:
    """Pass where every token agreed up to a tie, and enough of them could be compared to tell models apart."""
    wrong = next((one for one in continuations if one.parted_at is not None and not one.tie), None)
    if wrong is not None:
        prompt, place = reference.prompts[wrong.prompt], wrong.parted_at or 0
        found = wrong.tokens[place] if place < len(wrong.tokens) else "nothing"
        whose = f" of adapter {prompt.adapter}" if prompt.adapter else ""
        return Judgement.no(
            f"prompt {wrong.prompt}{whose}: token {place} is {found} and not {prompt.tokens[place]}, "
            f"which leads by {prompt.margins[place]:.3g} where {reference.tie:.3g} is a tie"
        )
    asked, compared = (
        sum(len(prompt.tokens) for prompt in reference.prompts),
        sum(one.compared for one in continuations),
    )
    ties = sum(one.tie for one in continuations)
    if compared < _LEAST_SHARE * asked:
        reason = f"only {compared} of {asked} tokens could be compared before a tie"
        return Judgement.undecided(reason)
    if len({prompt.tokens for prompt in reference.prompts}) < min(2, len(reference.prompts)):
        reason = "every prompt is continued with the same tokens, which proves nothing"
        return Judgement.undecided(reason)
    return Judgement.yes(
        f"{compared} of {asked} greedy tokens compared and equal to transformers'"
        + (f", {ties} of {len(continuations)} prompts end in a tie" if ties else "")
    )
