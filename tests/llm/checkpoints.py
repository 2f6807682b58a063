"""A seeded two-layer Llama as `save_pretrained` would write it, and LoRA adapters as PEFT would: made without torch."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.markdown import ROOT

CHAT = "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}\n{% endfor %}"
VOCABULARY = 384


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama:
    """The sizes and the seed. Its weights are large enough that it prefers one token to another."""

    seed: int = 0
    layers: int = 2
    hidden: int = 128
    intermediate: int = 192
    heads: int = 4
    kv_heads: int = 2
    positions: int = 128

    @property
    def config(self) -> dict[str, Any]:
        """Its `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.positions,
            "vocab_size": VOCABULARY,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "dtype": "float32",
        }

    def tensors(self) -> dict[str, np.ndarray]:
        """Its weights by the names that transformers gives them."""
        generator = np.random.default_rng(self.seed)
        width = self.hidden // self.heads

        def weight(rows: int, columns: int, scale: float = 1.5) -> np.ndarray:
            found: np.ndarray = generator.normal(size=(rows, columns)) * scale / np.sqrt(columns)
            return found.astype(np.float32)

        norm = np.ones(self.hidden, np.float32)
        found = {
            "model.embed_tokens.weight": weight(VOCABULARY, self.hidden, 8.0),
            "model.norm.weight": norm,
            "lm_head.weight": weight(VOCABULARY, self.hidden, 4.0),
        }
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            found |= {
                f"{at}.self_attn.q_proj.weight": weight(self.heads * width, self.hidden),
                f"{at}.self_attn.k_proj.weight": weight(self.kv_heads * width, self.hidden),
                f"{at}.self_attn.v_proj.weight": weight(self.kv_heads * width, self.hidden),
                f"{at}.self_attn.o_proj.weight": weight(self.hidden, self.heads * width),
                f"{at}.mlp.gate_proj.weight": weight(self.intermediate, self.hidden),
                f"{at}.mlp.up_proj.weight": weight(self.intermediate, self.hidden),
                f"{at}.mlp.down_proj.weight": weight(self.hidden, self.intermediate),
                f"{at}.input_layernorm.weight": norm,
                f"{at}.post_attention_layernorm.weight": norm,
            }
        return found

    def write(self, folder: Path, *, shards: int = 1, chat: bool = True, **config: Any) -> Path:
        """Save it into `folder`, in one file or in shards with an index; `config` replaces entries of its config."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config | config))
        tensors = self.tensors()
        if shards == 1:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            _write_shards(folder, tensors, shards)
        (folder / "tokenizer.json").write_text(tokenizer_json())
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(about | ({"chat_template": CHAT} if chat else {})))
        return folder


def write_adapter(folder: Path, base: Llama, *, rank: int = 4, seed: int = 7, **config: Any) -> Path:
    """A LoRA adapter of the query and value projections, strong enough to change what is generated."""
    folder.mkdir(parents=True)
    generator, tensors = np.random.default_rng(seed), {}
    for name, tensor in base.tensors().items():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            rows, columns = tensor.shape
            tensors[f"{stem}.lora_A.weight"] = generator.normal(size=(rank, columns)).astype(np.float32)
            tensors[f"{stem}.lora_B.weight"] = generator.normal(size=(rows, rank)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none"}
    said |= {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0, "base_model_name_or_path": "llama"}
    (folder / "adapter_config.json").write_text(json.dumps(said | config))
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Replace entries of a JSON object on disk; None removes one."""
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


@cache
def tokenizer_json() -> str:
    """A byte-level BPE tokenizer trained on this project's README."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(ROOT / "README.md")], trainer)
    text: str = tokenizer.to_str()
    return text


def _write_shards(folder: Path, tensors: dict[str, np.ndarray], shards: int) -> None:
    names, where = sorted(tensors), dict[str, str]()
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
