"""What is kept of a language model's packaging: how it was sized, and whether vLLM generates its tokens.

Owns the records that lie in a version's `evidence/`. Filled by `sizing`, `tokens` and `served`.
"""

from deploy.evidence import Judgement
from deploy.records import Record

SIZING_FILE = "sizing.json"
TOKENS_FILE = "tokens.json"


class Term(Record):
    """One line of the arithmetic: what it is, how it was got, and its bytes on each device."""

    name: str
    how: str
    bytes: float


class Sizing(Record):
    """How much memory the served model takes on each device, and what is left for the KV cache.

    `terms` are what stands before the cache; `budget` is what vLLM may take on each device. All are bytes.
    `kv_bytes_per_sequence` is what one of `context` tokens takes, in whole blocks; None in records of before it was.
    `sequences` is how many sequences of full `context` tokens the cache holds at once, `wanted` how many must fit.
    """

    device: str
    memory: float
    memory_share: float
    budget: float
    tensor_parallel: int
    dtype: str
    context: int
    terms: tuple[Term, ...]
    kv_bytes_per_token: float
    kv_bytes_per_sequence: float | None = None
    kv_how: str
    kv_cache: float
    sequences: float
    wanted: int

    @property
    def per_sequence(self) -> float:
        """The bytes of the cache that one sequence of full length takes on each device."""
        whole = self.kv_bytes_per_sequence
        return self.kv_bytes_per_token * self.context if whole is None else whole

    @property
    def fits(self) -> bool:
        """Whether as many sequences as are wanted fit at once, in full length."""
        return self.sequences >= self.wanted

    def lines(self) -> tuple[str, ...]:
        """The arithmetic for people, one line per term, in GB of 10^9 bytes."""
        per = f"on each of {self.tensor_parallel}" if self.tensor_parallel > 1 else "on one"
        found = [f"{self.device}, {per}: {self.memory_share:.0%} of {_gb(self.memory)} = {_gb(self.budget)}"]
        found += [f"  - {term.name}: {_gb(term.bytes)} ({term.how})" for term in self.terms]
        found.append(f"  = KV cache: {_gb(self.kv_cache)}")
        found.append(f"  / {_gb(self.per_sequence)} per sequence of {self.context:,} tokens ({self.kv_how})")
        found.append(f"  = {self.sequences:.1f} sequences of full length at once; {self.wanted} are wanted")
        return tuple(found)


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if abs(size) >= 1e7 else f"{size / 1e6:,.2f} MB"


class Prompt(Record):
    """A prompt and what transformers continues it with, greedily, in float64.

    `margins` holds, per generated token, by how much its logit leads the next best one's. `adapter` is the LoRA adapter
    it was asked of, None for the base model.
    """

    text: str
    adapter: str | None = None
    tokens: tuple[int, ...]
    margins: tuple[float, ...]


class Reference(Record):
    """Greedy continuations to compare a server's with, and how far apart two logits may be to be taken for a tie.

    `error` is the largest error of a logit that transformers itself makes in the served dtype; `tie` is the margin up
    to which the two best tokens may change places.
    """

    prompts: tuple[Prompt, ...]
    dtype: str
    error: float
    tie: float
    transformers: str


class Continuation(Record):
    """What the server continued a prompt with. `compared` tokens were judged, all of which agreed.

    `parted_at` is where the two went apart, None where they did not; `tie` says whether the margin there is a tie's.
    """

    prompt: int
    tokens: tuple[int, ...]
    compared: int
    parted_at: int | None = None
    tie: bool = False


class TokensEvidence(Record):
    """Greedy tokens of the served model against transformers'."""

    judgement: Judgement
    reference: Reference
    continuations: tuple[Continuation, ...]
    vllm: str
