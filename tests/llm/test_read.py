"""A language model's folder: found whole, or refused with what is missing."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deploy.errors import UsageError
from deploy.llm.read import read_llm
from tests.llm.checkpoints import Llama, edit_json, write_adapter

TINY = Llama()


def test_a_whole_folder_is_read(tmp_path: Path) -> None:
    found = read_llm(TINY.write(tmp_path / "my llama!"))
    assert (found.name, found.architecture, found.dtype) == ("my_llama", "LlamaForCausalLM", "float32")
    assert found.parameters == sum(tensor.size for tensor in TINY.tensors().values())
    assert found.stored_bytes == 4 * found.parameters
    assert (found.geometry.layers, found.geometry.kv_heads, found.geometry.head_dim) == (2, 2, 32)
    assert found.chat_template and not found.adapters and not found.notes
    assert found.files == ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def test_shards_make_the_same_model(tmp_path: Path) -> None:
    whole, parts = read_llm(TINY.write(tmp_path / "a")), read_llm(TINY.write(tmp_path / "b", shards=3))
    assert whole.parameters == parts.parameters
    assert len([name for name in parts.files if name.startswith("model-")]) == 3


def test_the_digest_covers_weights_tokenizer_and_adapters(tmp_path: Path) -> None:
    path = TINY.write(tmp_path / "llama")
    first = read_llm(path).digest
    assert read_llm(path).digest == first
    edit_json(path / "tokenizer_config.json", chat_template="{{ other }}")
    second = read_llm(path).digest
    third = read_llm(path, (("support", write_adapter(tmp_path / "support", TINY)),)).digest
    assert len({first, second, third}) == 3


def test_adapters_inside_the_folder_are_found(tmp_path: Path) -> None:
    path = TINY.write(tmp_path / "llama")
    write_adapter(path / "adapters" / "support", TINY, rank=8)
    (adapter,) = read_llm(path).adapters
    assert (adapter.name, adapter.rank) == ("support", 8)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer"),
        ("model-00002-of-00003.safetensors", "lacks 1 of 3 shards: model-00002-of-00003.safetensors"),
        ("model.safetensors.index.json", "holds no safetensors"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, file: str, said: str) -> None:
    path = TINY.write(tmp_path / "llama", shards=3)
    (path / file).unlink()
    with pytest.raises(UsageError, match=said):
        read_llm(path)


def test_a_shard_that_was_cut_short_is_named(tmp_path: Path) -> None:
    path = TINY.write(tmp_path / "llama", shards=3)
    shard = path / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"model-00002-of-00003.safetensors has .* bytes and its header speaks of"):
        read_llm(path)


def test_a_shard_of_another_save_is_refused(tmp_path: Path) -> None:
    path = TINY.write(tmp_path / "llama", shards=2)
    first, second = (path / f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    second.write_bytes(first.read_bytes())
    with pytest.raises(UsageError, match=r"does not hold .* nor 9 more that the index says it does"):
        read_llm(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 3}, "holds 2 layers, none of them number 2"),
        ({"num_hidden_layers": 1}, "holds 2 layers"),
        ({"hidden_size": 256}, r"embed_tokens.weight is \[384, 128\]"),
        ({"architectures": None}, "names no architecture"),
        ({"vocab_size": None}, "has no vocab_size"),
        ({"vocab_size": 300}, "embed_tokens.weight is"),
        ({"num_key_value_heads": 4}, "keys' weights of .* have 64 rows"),
        ({"head_dim": 64}, "says 2 heads of keys and values, of 64 each"),
        ({"num_key_value_heads": [2, 2]}, r"says that num_key_value_heads is \[2, 2\]"),
        ({"num_hidden_layers": 10**30}, "holds 2 layers, none of them number 2"),
        ({"layer_types": 2}, "says in its config.json that layer_types is 2"),
        ({"sliding_window": 8, "sliding_window_pattern": [1]}, r"that sliding_window_pattern is \[1\]"),
        ({"index_head_dim": "x"}, "that index_head_dim is 'x'"),
        ({"text_config": {"hidden_size": 128}}, "holds a model of several parts, LlamaForCausalLM"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    path = TINY.write(tmp_path / "llama")
    edit_json(path / "config.json", **changes)
    with pytest.raises(UsageError, match=said):
        read_llm(path)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    path = TINY.write(tmp_path / "llama")
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": 384, "content": "<new>"})
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UsageError, match="a token 384 and the model a vocabulary of 384"):
        read_llm(path)


@pytest.mark.parametrize("part", [{"model": "x"}, {"model": {"vocab": 3}}, {"added_tokens": [3]}], ids=str)
def test_a_tokenizer_file_of_other_contents_is_refused(tmp_path: Path, part: dict[str, object]) -> None:
    path = TINY.write(tmp_path / "llama")
    edit_json(path / "tokenizer.json", **part)
    with pytest.raises(UsageError, match=r"tokenizer\.json is no tokenizer"):
        read_llm(path)


def test_gemma_s_token_for_images_beyond_the_vocabulary_of_a_text_model_is_taken(tmp_path: Path) -> None:
    """As google/gemma-3-1b-it has it: https://github.com/huggingface/transformers/issues/37011."""
    path = TINY.write(tmp_path / "llama")
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": 384, "content": "<image_soft_token>", "special": True})
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert read_llm(path).geometry.vocabulary == 384


def test_a_broken_chat_template_is_refused_and_a_missing_one_is_said(tmp_path: Path) -> None:
    path = TINY.write(tmp_path / "llama", chat=False)
    found = read_llm(path)
    assert not found.chat_template
    assert found.notes == ("no chat template: clients must write the prompt's format themselves",)
    (path / "chat_template.jinja").write_text("{% for message in messages %}")
    with pytest.raises(UsageError, match=r"chat template .* cannot be parsed: line 1"):
        read_llm(path)


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{% if messages add_generation_prompt %}a{% endif %}", 1),
        ("{% generation %}\n{% if %}\n{% endif %}{% endgeneration %}", 2),
        ("{% generation %}{{ messages }}", 1),
    ],
    ids=["the prompt's name in the message", "inside the block", "a block without an end"],
)
def test_the_block_that_marks_what_to_train_on_excuses_no_mistake(tmp_path: Path, template: str, line: int) -> None:
    path = TINY.write(tmp_path / "llama", chat=False)
    (path / "chat_template.jinja").write_text("{% generation %}{{ messages[0] }}{% endgeneration %}")
    assert read_llm(path).chat_template
    (path / "chat_template.jinja").write_text(template)
    with pytest.raises(UsageError, match=f"cannot be parsed: line {line}"):
        read_llm(path)


def test_a_chat_template_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    path = TINY.write(tmp_path / "llama", chat=False)
    (path / "chat_template.jinja").write_bytes(b"{{ '\xff' }}")
    with pytest.raises(UsageError, match=r"chat_template.jinja is no UTF-8: invalid start byte at byte 4"):
        read_llm(path)


def test_one_file_goes_before_an_index_of_an_earlier_save_as_in_transformers(tmp_path: Path) -> None:
    """Saved in shards, fine-tuned and saved again as one file: transformers leaves the index, and loads the file."""
    earlier, path = Llama(seed=3).write(tmp_path / "earlier", shards=2), TINY.write(tmp_path / "llama")
    for file in earlier.glob("model*"):
        (path / file.name).write_bytes(file.read_bytes())
    found = read_llm(path)
    assert [name for name in found.files if name.startswith("model")] == ["model.safetensors"]
    assert any("model.safetensors is served, as transformers loads it" in note for note in found.notes)


def test_an_adapter_among_the_model_s_own_files_is_refused(tmp_path: Path) -> None:
    """transformers loads the base with it applied; a version without it would say something else."""
    path, adapter = TINY.write(tmp_path / "llama"), write_adapter(tmp_path / "support", TINY)
    for file in adapter.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UsageError, match=r"holds a model and, beside it, a LoRA adapter") as caught:
        read_llm(path)
    assert "--adapter" in caught.value.fix


def test_the_weights_of_a_wrapped_model_are_refused(tmp_path: Path) -> None:
    path = TINY.write(tmp_path / "llama")
    tensors = TINY.tensors() | {"model.layers.0.self_attn.q_proj.lora_A.default.weight": np.ones((4, 128), np.float32)}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UsageError, match=r"a model that PEFT has wrapped \(model.layers.0.self_attn.q_proj.lora_A"
    ) as one:
        read_llm(path)
    assert "merge_and_unload" in one.value.fix


def test_an_adapter_alone_says_how_to_serve_it(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "support", TINY)
    with pytest.raises(UsageError, match=r"a LoRA adapter of llama, without the base model") as caught:
        read_llm(path)
    assert "--adapter NAME=" in caught.value.fix


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "uses use_dora, which vLLM does not serve"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"alora_invocation_tokens": [5, 6]}, "uses alora_invocation_tokens"),
        ({"layer_replication": [[0, 2]]}, "uses layer_replication"),
        ({"alpha_pattern": {"q_proj": 32}}, "uses alpha_pattern, which vLLM does not serve"),
        ({"init_lora_weights": "pissa"}, "uses init_lora_weights pissa"),
        ({"peft_type": "IA3"}, "is a IA3 adapter"),
        ({"r": 16}, r"lora_A.weight of .* is \[4, 128\]"),
    ],
)
def test_an_adapter_that_vllm_cannot_serve_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    path = TINY.write(tmp_path / "llama")
    adapter = write_adapter(tmp_path / "support", TINY)
    edit_json(adapter / "adapter_config.json", **changes)
    with pytest.raises(UsageError, match=said):
        read_llm(path, (("support", adapter),))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    path = TINY.write(tmp_path / "llama")
    deeper, wider = Llama(layers=3), Llama(hidden=256)
    for number, other in enumerate((deeper, wider)):
        adapter = write_adapter(tmp_path / f"other{number}", other)
        with pytest.raises(UsageError, match=r"which the model does not have|lora_A.weight of"):
            read_llm(path, (("other", adapter),))


def test_two_adapters_of_one_name_are_refused(tmp_path: Path) -> None:
    path, adapter = TINY.write(tmp_path / "llama"), write_adapter(tmp_path / "a", TINY)
    with pytest.raises(UsageError, match="two adapters are called 'a'"):
        read_llm(path, (("a", adapter), ("a", adapter)))
