"""The values of this room: what was asked, what a language model's folder holds, and what came of it.

Owns no reading and no torch. Made by `read` and `package`, printed by the command `package`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.errors import ExitCode
from deploy.evidence import Judgement, ServedEvidence
from deploy.llm.records import Sizing, TokensEvidence
from deploy.records import Record
from deploy.repository.publish import PublishedVersion
from deploy.targets import Target

ServedDtype = Literal["bfloat16", "float16", "float32"]


class Adapter(Record):
    """One LoRA adapter: the name that requests ask for it by, its folder, its rank and its bytes."""

    name: str
    path: Path
    rank: int
    size: int
    parameters: int
    files: tuple[str, ...]


class Geometry(Record):
    """What of a model's `config.json` decides how much memory it takes. Counts of elements or of layers, unless said.

    `latent` is the length of the one vector that a token has per layer with MLA, 0 where it has keys and values per
    head; `index_bytes` what sparse attention keeps besides. `windowed` layers keep the last `window` tokens only.
    `short` is the longest context at which LongRoPE's short factors count, 0 without LongRoPE.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    latent: int = 0
    index_bytes: int = 0
    window: int = 0
    windowed: int = 0
    short: int = 0


class LlmCheckpoint(Record):
    """A folder that was read and found whole: one causal language model, and its adapters.

    `dtype` is that of most of its elements, `stored_bytes` what the weights take on disk. `quantization` is the method
    that its config names, None without. `files` are those that serving needs, relative to `path`.
    """

    path: Path
    digest: str
    name: str
    architecture: str
    dtype: str
    parameters: int
    stored_bytes: int
    geometry: Geometry
    quantization: str | None
    chat_template: bool
    files: tuple[str, ...]
    adapters: tuple[Adapter, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user said about the served model's size; None where it is left to the arithmetic.

    `gpu` is a part's name such as `H100-80GB`; `gpus` the most of them one server has; `memory_share` the share of
    each that vLLM may take; `sequences` how many of full `context` (in tokens) must fit at once.
    """

    gpu: str | None = None
    gpus: int = 8
    memory_share: float = 0.9
    context: int | None = None
    sequences: int = 8
    dtype: ServedDtype | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmRequest:
    """What was asked. `adapters` are names and folders of LoRA adapters beside those found inside the checkpoint.

    `mounted_at` is where the container will see the repository; `prompts` a file with one prompt per line.
    """

    path: Path
    repository: Path
    target: Target
    name: str | None = None
    adapters: tuple[tuple[str, Path], ...] = ()
    wishes: Wishes = Wishes()
    mounted_at: str = "/models"
    prompts: Path | None = None
    serve_check: bool = True
    promote: bool = False
    new_contract: bool = False
    keep_failed: Path | None = None
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmPlan:
    """What would be done: the model as read, its size, and the engine arguments of `model.json`."""

    checkpoint: LlmCheckpoint
    name: str
    number: int
    sizing: Sizing
    arguments: dict[str, object]
    vllm: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmResult:
    """What came of it. `tokens` and `served` are None where vLLM was not run; `published` is None after a no."""

    plan: LlmPlan
    judgements: dict[str, Judgement]
    tokens: TokensEvidence | None
    served: ServedEvidence | None
    published: PublishedVersion | None

    @property
    def exit_code(self) -> ExitCode:
        """0 where a version was published, else 1."""
        return ExitCode.OK if self.published else ExitCode.NO
