"""How many GPUs a model needs and how much of each: the arithmetic of weights, KV cache and context, term by term.

Owns the formulas. What is exact (weights, KV cache) and what is an estimate (activations, CUDA's own) is said in each
term. vLLM measures for itself at start; this says beforehand whether that can succeed. Called by `package`.
"""

from dataclasses import dataclass

from deploy.errors import UsageError
from deploy.llm.adapters import RANKS
from deploy.llm.cache import CacheUse, cache_use
from deploy.llm.gpus import find_part
from deploy.llm.model import Geometry, LlmCheckpoint, Wishes
from deploy.llm.records import Sizing, Term
from deploy.targets import Target

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# vLLM profiles with so many tokens in one step; its own default on large GPUs, and not exceeded elsewhere.
BATCHED_TOKENS = 8192
# The CUDA context, its libraries, NCCL and captured graphs: 1 to 2 GB in practice.
_CUDA_BYTES = 2_000_000_000
_LEAST_CONTEXT = 16
# With asynchronous scheduling, vLLM's default, the next step is under way before the last one has freed anything.
_STEPS_UNDER_WAY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Device:
    """What one device gives: its name, its memory in bytes, and whether CUDA takes a part of it."""

    name: str
    memory: int
    share: float
    cuda: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    """One way to serve a model: in which dtype, with how many tokens of context, split over how many devices."""

    dtype: str
    context: int
    devices: int


def size_model(checkpoint: LlmCheckpoint, target: Target, wishes: Wishes, *, dtype: str) -> Sizing:
    """The smallest number of GPUs on which the wanted sequences fit at once, with the arithmetic.

    Raises UsageError, with the arithmetic of the best try, if they fit on none that the server has.
    """
    context, device = _context(checkpoint, wishes), _device(target, wishes)
    tries = [
        _size(checkpoint, device, wishes, _Try(dtype=dtype, context=context, devices=devices))
        for devices in _splits(checkpoint, wishes, target)
    ]
    fitting = next((found for found in tries if found.fits), None)
    if fitting is not None:
        return fitting
    best = tries[-1]
    shorter = _longest(checkpoint.geometry, best)
    ways = ["fewer --sequences", "a --gpu with more memory"]
    if shorter >= _LEAST_CONTEXT:
        ways.insert(0, f"--context {shorter} or less")
    able = ", ".join(str(found.tensor_parallel) for found in tries)
    raise UsageError(
        "the model does not fit:\n" + "\n".join(f"    {line}" for line in best.lines()),
        expected=f"room for {best.wanted} sequences of {context:,} tokens on at most {wishes.gpus} devices "
        f"({checkpoint.geometry.heads} heads, {checkpoint.geometry.kv_heads} of keys and values, split over {able})",
        fix=", or ".join(ways),
    )


def lora_rank(checkpoint: LlmCheckpoint) -> int:
    """The rank that vLLM makes room for: the smallest it offers that holds every adapter's."""
    largest = max(adapter.rank for adapter in checkpoint.adapters)
    return next(rank for rank in RANKS if rank >= largest)


def _context(checkpoint: LlmCheckpoint, wishes: Wishes) -> int:
    most = checkpoint.geometry.positions
    if wishes.context is not None and not _LEAST_CONTEXT <= wishes.context <= most:
        raise UsageError(
            f"--context is {wishes.context}",
            expected=f"{_LEAST_CONTEXT} to {most}, the positions that the model was trained with",
        )
    # With more, vLLM would answer short prompts otherwise than the model was trained to.
    return wishes.context or min(checkpoint.geometry.short or most, most)


def _device(target: Target, wishes: Wishes) -> _Device:
    if target.device == "cuda":
        part = find_part(target, wishes.gpu)
        return _Device(name=part.name, memory=part.memory, share=wishes.memory_share, cuda=True)
    if wishes.gpu is not None:
        raise UsageError(f"--gpu was given and {target.name} has none", expected="a GPU target", fix="change --target")
    import psutil

    return _Device(
        name="this machine's memory", memory=psutil.virtual_memory().total, share=wishes.memory_share, cuda=False
    )


def _splits(checkpoint: LlmCheckpoint, wishes: Wishes, target: Target) -> list[int]:
    """The numbers of devices to try: powers of two over which vLLM splits the model's heads; one on CPU."""
    most = wishes.gpus if target.device == "cuda" else 1
    return [tp for tp in (1, 2, 4, 8, 16) if tp <= most and _splits_heads(checkpoint.geometry, tp)]


def _splits_heads(geometry: Geometry, devices: int) -> bool:
    """Whether vLLM can: each device has as many heads, and as many of keys and values, or one that several repeat.

    vLLM's own assertions, of `LlamaAttention` and its like, and of `ColumnParallelLinear` for what lies between the
    layers of an MLP; a latent vector (MLA) is whole on each device.
    """
    kept = geometry.kv_heads
    whole = geometry.latent or (kept % devices == 0 if kept >= devices else devices % kept == 0)
    return geometry.heads % devices == 0 and geometry.intermediate % devices == 0 and bool(whole)


def _size(checkpoint: LlmCheckpoint, device: _Device, wishes: Wishes, way: _Try) -> Sizing:
    terms = tuple(_terms(checkpoint, device, wishes, way))
    budget = device.memory * device.share
    use = _cache_use(checkpoint.geometry, way)
    cache = budget - sum(term.bytes for term in terms)
    return Sizing(
        device=device.name,
        memory=device.memory,
        memory_share=device.share,
        budget=budget,
        tensor_parallel=way.devices,
        dtype=way.dtype,
        context=way.context,
        terms=terms,
        kv_bytes_per_token=use.per_token,
        kv_bytes_per_sequence=use.per_sequence,
        kv_how=use.how,
        kv_cache=cache,
        sequences=max(0.0, cache) / use.per_sequence,
        wanted=wishes.sequences,
    )


def _cache_use(geometry: Geometry, way: _Try) -> CacheUse:
    under_way = _STEPS_UNDER_WAY * BATCHED_TOKENS
    return cache_use(geometry, width=BYTES[way.dtype], devices=way.devices, context=way.context, in_flight=under_way)


def _longest(geometry: Geometry, tried: Sizing) -> int:
    """The longest context that the cache of a try holds for as many sequences as are wanted; 0 if there is none."""
    fits, too_long = 0, tried.context
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        use = _cache_use(geometry, _Try(dtype=tried.dtype, context=middle, devices=tried.tensor_parallel))
        fits, too_long = (middle, too_long) if use.per_sequence * tried.wanted <= tried.kv_cache else (fits, middle)
    return fits


def _terms(checkpoint: LlmCheckpoint, device: _Device, wishes: Wishes, way: _Try) -> list[Term]:
    geometry, width, tp = checkpoint.geometry, BYTES[way.dtype], way.devices
    if checkpoint.quantization:
        weights, how = checkpoint.stored_bytes, f"as stored, {checkpoint.quantization}"
    else:
        weights, how = checkpoint.parameters * width, f"{checkpoint.parameters:,} x {width} B"
    tokens = min(BATCHED_TOKENS, way.context * wishes.sequences)
    wide = 2 * -(-geometry.intermediate // tp) + 4 * geometry.hidden
    activations = tokens * wide * width + wishes.sequences * geometry.vocabulary * 8
    terms = [
        Term(name="weights", how=f"{how} / {tp}" if tp > 1 else how, bytes=weights / tp),
        Term(name="activations", how=f"estimate: {tokens:,} tokens in one step, and logits", bytes=activations),
    ]
    if checkpoint.adapters:
        rank = lora_rank(checkpoint)
        sizes = [adapter.parameters * width * rank / adapter.rank for adapter in checkpoint.adapters]
        how = f"room for {len(sizes)} of rank {rank}, not split"
        terms.append(Term(name="LoRA adapters", how=how, bytes=len(sizes) * max(sizes)))
    if device.cuda:
        terms.append(Term(name="CUDA", how="estimate: context, libraries, NCCL, captured graphs", bytes=_CUDA_BYTES))
    return terms
