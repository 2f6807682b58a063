"""A sentence-transformers folder: what its modules.json makes of tokens' embeddings, and which class gives those.

Owns the reading of modules.json and of what it names, and what is refused of it. Loads no weights, imports no torch.
Called by pretrained.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from deploy.checkpoint.pretrained_folder import PretrainedFolder
from deploy.checkpoint.sniff import WEIGHTS
from deploy.errors import UsageError

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")

_OWN = "give the module of the whole chain as --factory, with the weights of all its parts in one file"
_SETTINGS, _OWN_CONFIG = "sentence_bert_config.json", "config_sentence_transformers.json"
# A chain of this one part is a CrossEncoder's: its class is the one that config.json names.
_CROSS_ENCODER = ["Transformer"]
# Of these kinds sentence-transformers takes the encoder alone; of others what AutoModel takes.
_ENCODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A linear layer behind the pooling, its weights in `file`, and one of `ACTIVATIONS`."""

    file: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorm:
    """A layer normalisation behind the pooling, its weights in `file`."""

    file: Path
    size: int


Part = Dense | LayerNorm | None
"""What follows the pooling; None divides by the Euclidean norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """How tokens are pooled (several ways are concatenated), and what follows in this order.

    Of what comes of that the first `kept` elements are the embedding, all of them where it is None.
    """

    modes: tuple[str, ...]
    then: tuple[Part, ...] = ()
    kept: int | None = None

    def __str__(self) -> str:
        follows = map(_said, self.then)
        cut = () if self.kept is None else (f"cut to its first {self.kept} elements",)
        return ", then ".join((" and ".join(self.modes), *follows, *cut))


def read_pooling(folder: PretrainedFolder) -> Pooling | None:
    """The pooling of a sentence-transformers folder; None where it is none. Raises UsageError for other parts."""
    modules = folder.read("modules.json")
    if modules is None:
        return None
    kinds = [str(part.get("type", "")).rpartition(".")[2] for part in modules]
    paths = [str(part.get("path", "")) for part in modules]
    if kinds == _CROSS_ENCODER and _task(folder) == "sequence-classification":
        return None
    if kinds[:2] != ["Transformer", "Pooling"] or {*kinds[2:]} - {*_PARTS, _DROPOUT} or paths[0] not in ("", "."):
        raise UsageError(
            f"{folder.path / 'modules.json'} is a chain of {', '.join(kinds)}",
            expected=f"Transformer (in the folder itself), Pooling and, where wanted, {', '.join((*_PARTS, _DROPOUT))}",
            fix=_OWN,
        )
    config = _settings(folder, paths[1], "how tokens are pooled")
    if config.get("include_prompt") is False:
        raise UsageError(
            f"{folder.path}: the pooling leaves out the tokens of a prompt (include_prompt is false)",
            expected="a pooling over all tokens of a text: a request does not say where its prompt ends",
            fix='where texts are embedded without a prompt, write "include_prompt": true; else ' + _OWN,
        )
    follows = [(kind, path) for kind, path in zip(kinds, paths, strict=True) if kind != _DROPOUT][2:]
    then = tuple(_PARTS[kind](folder, path) for kind, path in follows)
    return Pooling(modes=_modes(folder, config), then=then, kept=_kept(folder))


def with_token_class(transformers: ModuleType, folder: PretrainedFolder) -> PretrainedFolder:
    """The folder with the class that sentence-transformers takes: by the kind of network, whatever config.json names.

    Folders of embeddings often name the class that the network was pretrained as, whose head they do not hold.
    """
    if read_pooling(folder) is None:
        return folder
    kind, named = str(folder.config.get("model_type")), folder.config.get("architectures")
    name = _ENCODERS.get(kind)
    if name is None and kind in transformers.CONFIG_MAPPING:
        config_class = transformers.CONFIG_MAPPING[kind]
        known = config_class in transformers.MODEL_MAPPING
        found = transformers.MODEL_MAPPING[config_class] if known else ()
        classes = [cls.__name__ for cls in (found if isinstance(found, tuple) else (found,))]
        name = next((cls for cls in classes if [cls] == named), classes[0] if classes else None)
    return folder if name is None else replace(folder, config={**folder.config, "architectures": [name]})


def longest_text(folder: PretrainedFolder) -> int | None:
    """The tokens at which sentence-transformers cuts a text off; None where the folder does not say."""
    config = folder.read(_SETTINGS)
    return config.get("max_seq_length") if isinstance(config, dict) else None


def score_activation(folder: PretrainedFolder, *, classes: int | None) -> str | None:
    """What a CrossEncoder makes of the network's scores, such as `Sigmoid`; None for nothing, or where it is none."""
    said = folder.config.get("sentence_transformers")
    said = said.get("activation_fn") if isinstance(said, Mapping) else None
    said = said or folder.config.get("sbert_ce_default_activation_function")
    if said is None and classes == 1 and folder.read("modules.json") is not None:
        said = "Sigmoid"  # what a CrossEncoder takes of itself
    name = str(said).rpartition(".")[2]
    return None if said is None or name == "Identity" else name


def _task(folder: PretrainedFolder) -> object:
    config = folder.read(_SETTINGS)
    return config.get("transformer_task") if isinstance(config, dict) else None


def _settings(folder: PretrainedFolder, path: str, what: str) -> dict[str, Any]:
    config = folder.read(f"{path}/config.json")
    if not isinstance(config, dict):
        raise UsageError(f"{folder.path} lacks {path}/config.json, which says {what}")
    return config


def _dense(folder: PretrainedFolder, path: str) -> Dense:
    config, where = _settings(folder, path, "what the dense layer is"), folder.path / path
    activation = str(config.get("activation_function", "torch.nn.Tanh")).rpartition(".")[2]
    ends = {config.get(name) or "sentence_embedding" for name in ("module_input_name", "module_output_name")}
    wrong = (
        f"the activation {activation}"
        if activation not in ACTIVATIONS
        else "a residual connection"
        if config.get("use_residual")
        else f"the inputs or outputs {', '.join(sorted(ends))}"
        if ends != {"sentence_embedding"}
        else None
    )
    if wrong:
        raise UsageError(
            f"{where} is a dense layer with {wrong}",
            expected=f"one from embedding to embedding, its activation one of {', '.join(ACTIVATIONS)}",
            fix=_OWN,
        )
    return Dense(
        file=_weights(where, "dense layer"),
        inputs=int(config["in_features"]),
        outputs=int(config["out_features"]),
        bias=bool(config.get("bias", True)),
        activation=activation,
    )


def _layer_norm(folder: PretrainedFolder, path: str) -> LayerNorm:
    config = _settings(folder, path, "what the normalisation is")
    return LayerNorm(file=_weights(folder.path / path, "normalisation"), size=int(config["dimension"]))


def _weights(where: Path, what: str) -> Path:
    if not (where / WEIGHTS).is_file():
        raise UsageError(
            f"{where} holds no {WEIGHTS}",
            expected=f"the weights of the {what} as safetensors",
            fix="load it where it was trained and write it again: SentenceTransformer(folder).save(other)",
        )
    return where / WEIGHTS


def _said(part: Part) -> str:
    if isinstance(part, Dense):
        return f"dense to {part.outputs}"
    return "normalised" if part is None else "layer-normalised"


_DROPOUT = "Dropout"  # which does nothing where nothing is trained
_PARTS: dict[str, Callable[[PretrainedFolder, str], Part]] = {
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": lambda _folder, _path: None,
}


def _kept(folder: PretrainedFolder) -> int | None:
    """The elements that sentence-transformers keeps of an embedding, behind all parts; None for all."""
    kept = (folder.read(_OWN_CONFIG) or {}).get("truncate_dim")
    if kept is not None and (not isinstance(kept, int) or kept < 1):
        raise UsageError(f"{folder.path / _OWN_CONFIG} has the truncate_dim {kept!r}", expected="a number of elements")
    return kept


def _modes(folder: PretrainedFolder, config: Mapping[str, object]) -> tuple[str, ...]:
    given = config.get("pooling_mode")
    if given is None:
        modes = [mode for mode, key in _KEYS.items() if config.get(key)] or ["mean"]
    else:
        modes = [given] if isinstance(given, str) else [str(mode) for mode in given] if isinstance(given, list) else []
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise UsageError(
            f"{folder.path}: tokens are pooled by {', '.join(unknown) or 'nothing'}",
            expected=f"one or more of {', '.join(MODES)}",
            fix=_OWN,
        )
    return tuple(modes)


# How earlier releases of sentence-transformers wrote them, in the order in which they are concatenated.
_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
