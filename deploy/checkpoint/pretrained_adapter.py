"""A LoRA adapter of PEFT on a transformers folder: which class the two make together, and its weights merged.

Owns reading that from the adapter; the arithmetic is in `adapters`. Called by pretrained.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from deploy.checkpoint.adapters import Adapter, merge
from deploy.checkpoint.pretrained_folder import PretrainedFolder
from deploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

# What PEFT calls a task, and the class of transformers that it wraps for it.
_TASKS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
    "CAUSAL_LM": "AutoModelForCausalLM",
}
# A head's last layer, by the names that transformers has for it. Attention has an `out_proj` too.
_HEAD = re.compile(
    r"(.*\.)?(classifier|(classifier|classification_head)\.out_proj|score|logits_proj|qa_outputs|classifier\.[13])\.weight"
)
_TRANSPOSED = "Conv1D"  # GPT-2's linear layer, whose weight is [inputs, outputs]


def adapted_folder(transformers: ModuleType, folder: PretrainedFolder, adapter: Adapter) -> PretrainedFolder:
    """The base's folder as the adapter makes it: its class, its tokenizer, and as many classes as its own head has.

    Names of classes are not among what PEFT saves: the base's own are kept only where its head is. Raises UsageError
    if the adapter's task fits no class of the base's kind.
    """
    config = {**folder.config, "architectures": _class_names(transformers, folder, adapter)}
    if (classes := head_rows(adapter)) is not None:
        config |= {"id2label": {str(index): f"LABEL_{index}" for index in range(classes)}, "num_labels": classes}
    return replace(folder.with_tokenizer_of(adapter.folder), config=config)


def head_rows(adapter: Adapter) -> int | None:
    """The number of classes of the head that the adapter brings; None where it brings none."""
    rows = [tensor.shape[0] for name, tensor in adapter.whole.items() if _HEAD.fullmatch(name) and tensor.dim() == 2]
    return rows[-1] if rows else None


def merge_into(module: "nn.Module", adapter: Adapter) -> None:
    """The adapter's change put into the module's weights. Raises UsageError if a part of it is not the module's."""
    state = module.state_dict()
    conv1d = {name for name, part in module.named_modules() if type(part).__name__ == _TRANSPOSED}
    merged = merge(state, adapter, transposed=conv1d)
    wrong = sorted(
        f"{name} {list(tensor.shape)}"
        for name, tensor in merged.items()
        if name not in state or state[name].shape != tensor.shape
    )
    if wrong:
        raise UsageError(
            f"the adapter {adapter.folder} brings what its base has not, or of another shape: {', '.join(wrong[:3])}",
            expected="the base that it was trained on",
            fix="give that one as --base",
        )
    _untie(module, state, merged)
    module.load_state_dict({name: tensor.to(state[name].dtype) for name, tensor in merged.items()})


def _untie(module: "nn.Module", state: Mapping[str, "Tensor"], merged: Mapping[str, "Tensor"]) -> None:
    """Weights that are one tensor in the base become several where the adapter changes only some of them, as in PEFT.

    Written into the one tensor, the last of them by name would stand for all: the others' change would be lost.
    """
    from torch import nn

    tied: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        tied.setdefault(parameter, []).append(name)
    for parameter, names in tied.items():
        if any(merged[name] is not state[name] for name in names):
            for name in names:  # a state_dict shares memory with what it is of: none is written while it is read
                owner, _, leaf = name.rpartition(".")
                module.get_submodule(owner).register_parameter(leaf, nn.Parameter(parameter.detach().clone()))


def _class_names(transformers: ModuleType, folder: PretrainedFolder, adapter: Adapter) -> Any:
    """The `architectures` of a config.json for base and adapter together."""
    task, mapped = adapter.config.get("task_type"), adapter.config.get("auto_mapping")
    if task is None:
        wrapped = mapped.get("base_model_class") if isinstance(mapped, Mapping) else None
        return [wrapped] if isinstance(wrapped, str) else folder.config.get("architectures")
    auto, kind = getattr(transformers, _TASKS.get(str(task), ""), None), folder.config.get("model_type")
    if auto is not None and kind in transformers.CONFIG_MAPPING:
        config_class = transformers.CONFIG_MAPPING[kind]
        if config_class in auto._model_mapping:  # by its key: going through all of them imports every network there is
            cls = auto._model_mapping[config_class]
            return [(cls[0] if isinstance(cls, tuple) else cls).__name__]
    raise UsageError(
        f"the adapter {adapter.folder} is for the task {task}, and its base is of the kind {kind}",
        expected=f"a task of {', '.join(_TASKS)} that transformers has for that kind",
        fix="merge it where it was trained: model.merge_and_unload().save_pretrained('merged')",
    )
