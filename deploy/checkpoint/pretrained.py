"""A transformers folder becomes a Checkpoint, and that a module: the class that config.json names, with these weights.

Owns which classes are taken, loading them, and what is refused of the result. No code of a folder is ever run, and
nothing is fetched. Called by load.
"""

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from deploy.checkpoint.adapters import Adapter, digest_of, read_adapter
from deploy.checkpoint.finders import FINDERS, Finder, classes_found, found_by
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.checkpoint.pretrained_adapter import adapted_folder, head_rows, merge_into
from deploy.checkpoint.pretrained_answers import answer_notes, class_names, decisions
from deploy.checkpoint.pretrained_folder import CONFIG, OWN_MODULE, PretrainedFolder, has_tokenizer, open_folder
from deploy.checkpoint.pretrained_inputs import pretrained_inputs
from deploy.checkpoint.processors import made_size, read_processor
from deploy.checkpoint.safetensors_folder import SAVED
from deploy.checkpoint.sentence_folder import read_pooling, with_token_class
from deploy.checkpoint.sentences import SentenceEmbedder
from deploy.checkpoint.tensors import check_finite, check_usable, main_dtype
from deploy.checkpoint.two_parts import EndClassifier, check_two_parts, classified_at_end, is_two_parts
from deploy.checkpoint.vision import import_torchvision
from deploy.errors import MissingError, UsageError, listed
from deploy.files import sha256_folder, sha256_path, size_of

if TYPE_CHECKING:
    from torch import Tensor, nn

PRETRAINED = "transformers/"

# The endings of the classes that answer in one call; a bare `...Model` gives embeddings.
_ENDINGS = (
    "ForSequenceClassification", "ForTokenClassification", "ForImageClassification", "ForQuestionAnswering",
    "ForMaskedLM", "Model", "ModelWithProjection", "ForImageClassificationWithTeacher", "ForSemanticSegmentation",
    "ForDepthEstimation", "ForImageSuperResolution", "ForVideoClassification", *FINDERS,
)  # fmt: skip
_GENERATORS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "DoubleHeadsModel")
_SHOWN = 5


def read_pretrained(request: CheckpointRequest, *, name: str) -> Checkpoint:
    """Everything there is to know about the folder, or the base folder of an adapter; its weights whole and finite.

    Raises UsageError if something is missing or cannot be served, MissingError without transformers.
    """
    path, base = request.path, request.base
    _check_options(request)
    folder, adapter = _open(path, base)
    _check_config(folder)
    tensors = _read_weights(folder)
    module, notes = _load(folder, adapter)
    with _silence():
        made = made_size(import_transformers(), folder)
    found = pretrained_inputs(folder, _network(module), request, made=made)
    preprocessing, more = found.preprocessing, found.notes
    if preprocessing is None:
        with _silence():
            preprocessing, more = read_processor(import_transformers(), folder, found.inputs[0])
    classes, count = class_names(folder.config, _class_name(folder))
    notes += answer_notes(folder, count)
    if isinstance(module, Finder):
        classes, count, note = classes_found(module, found.inputs[0], classes, count)
        notes.append(note)
    if base:
        notes.append(f"a LoRA adapter merged into {base.name}, whose sha256 is {sha256_path(base)}")
    dtype = main_dtype(tensors)
    if dtype != "float32":
        notes.append(f"the weights are {dtype}; they are computed with in float32, which holds each of them exactly")
    if found.takes_text and not has_tokenizer(folder):
        notes.append("no tokenizer lies in the folder: whoever calls the model must bring the right one")
    return Checkpoint(
        path=path.absolute(),
        base=base.absolute() if base else None,
        digest=digest_of(path, base) if base else sha256_folder(path),
        format="torch" if folder.pickled else "safetensors",
        name=name,
        architecture=PRETRAINED + _class_name(folder),
        how="config",
        options={},
        inputs=found.inputs,
        dims=found.dims,
        decisions=decisions(_class_name(folder)),
        dtype=dtype,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        size=size_of(path) + (size_of(base) if base else 0),
        classes=classes,
        num_classes=count,
        preprocessing=preprocessing,
        found_under=None,
        weights=None,
        removed_prefixes=(),
        trust_pickle=False,
        kept=folder.kept,
        own=folder.own,
        notes=(*notes, *more),
    )


def build_pretrained(checkpoint: Checkpoint) -> "nn.Module":
    """The module in float32 and eval mode, without gradients. Raises UsageError if the folder is not what it was."""
    module, _ = _load(*_open(checkpoint.path, checkpoint.base))
    return module


def _open(path: Path, base: Path | None) -> tuple[PretrainedFolder, Adapter | None]:
    """The folder with the network, as the adapter makes it where there is one, and the adapter."""
    if base is None:
        folder = open_folder(path)
        transformers = import_transformers()
        with _silence():  # classes are imported when they are looked up
            return with_token_class(transformers, folder), None
    adapter = read_adapter(path)
    return adapted_folder(import_transformers(), open_folder(base), adapter), adapter


def import_transformers() -> ModuleType:
    """The module `transformers`, kept from the network. Raises MissingError if the extra is not installed."""
    import_torchvision()  # transformers imports it, and beside a CPU-only torch that must be done in our way
    os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported
    try:
        with _silence():
            import transformers
    except ImportError as error:
        raise MissingError(
            f"transformers cannot be imported: {error}",
            expected="the extra for folders of Hugging Face transformers",
            fix='pip install "deployctl[transformers]"',
        ) from error
    return transformers


def _check_options(request: CheckpointRequest) -> None:
    given = {"--arch": request.arch, "--head": request.head, "--weights": request.weights}
    for option, value in given.items():
        if value:
            raise UsageError(
                f"{option} {value} was given for {request.path}, whose {CONFIG} says which network it is",
                expected=f"{CONFIG} alone, or a network of your own as --factory package.module:function",
                fix=f"leave out {option}",
            )
    if request.trust_pickle:
        raise UsageError(
            f"--trust-pickle was given for {request.path}",
            expected="nothing to trust: of such a folder tensors alone are read, and no code",
            fix="leave it out",
        )


def _check_config(folder: PretrainedFolder) -> None:
    """Raises UsageError for what no loading could make good: other code, another quantization, two towers."""
    config, file = folder.config, folder.path / CONFIG
    name = _class_name(folder)
    transformers = import_transformers()
    if name.endswith(_GENERATORS):
        raise UsageError(
            f"{file} names {name}, which generates text token by token",
            expected=f"a network that answers in one call: {', '.join(f'...{ending}' for ending in _ENDINGS)}",
            fix="serve it with an engine for generation: add --backend vllm",
        )
    cls = _find_class(name)
    if cls is None:
        raise _unknown(folder, name, transformers.__version__)
    if not name.endswith(_ENDINGS):
        raise UsageError(
            f"{file} names {name}, a task that is not known here",
            expected=", ".join(f"...{ending}" for ending in _ENDINGS),
            fix=OWN_MODULE,
        )
    if config.get("quantization_config"):
        method = dict(config["quantization_config"]).get("quant_method", "an unnamed method")
        raise UsageError(
            f"the weights of {folder.path} are quantized ({method})",
            expected="float weights",
            fix="save the model before it was quantized, or dequantized: model.dequantize()",
        )
    if not found_by(name):
        check_two_parts(name, config)
    wanted = getattr(cls.config_class, "model_type", None)
    if config.get("model_type", wanted) != wanted:
        raise UsageError(
            f"{file} names the class {name} and the model_type {config['model_type']!r}",
            expected=f"{wanted!r}, to which that class belongs",
            fix="take the config.json that was saved with these weights",
        )


def _find_class(name: str) -> Any:
    """The class of transformers that is called so; None where there is none."""
    transformers = import_transformers()
    with _silence():  # classes are imported when they are looked up
        return getattr(transformers, name, None)


def _unknown(folder: PretrainedFolder, name: str, release: str) -> UsageError:
    if folder.config.get("auto_map"):
        return UsageError(
            f"{name} is code that came with the model ({CONFIG} has an auto_map), no class of transformers {release}",
            expected="a class of transformers: code from a folder could do anything here, so it is never run, and "
            "there is no trust_remote_code",
            fix=f"read that code, make it a module of your own, and {OWN_MODULE}",
        )
    return UsageError(
        f"{folder.path / CONFIG} names {name}, which transformers {release} does not have",
        expected="a class of that release",
        fix=f"install the transformers that it was trained with, or {OWN_MODULE}",
    )


def _class_name(folder: PretrainedFolder) -> str:
    """The one class that config.json names. Raises UsageError if it names none or several."""
    names = folder.config.get("architectures")
    timm = folder.config.get("architecture")
    if isinstance(timm, str) and not names:
        raise UsageError(
            f"{folder.path} is a folder of timm: its {CONFIG} names the architecture {timm!r}",
            expected="the file of its weights",
            fix=f"give that file: {folder.weights[0]} --arch timm/{timm}",
        )
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise UsageError(
            f"{folder.path / CONFIG} names {'no' if not names else f'{names} as its'} architecture",
            expected='one class, such as "architectures": ["BertForSequenceClassification"]',
            fix="save the fine-tuned model itself: model.save_pretrained(folder)",
        )
    return names[0]


def _read_weights(folder: PretrainedFolder) -> dict[str, "Tensor"]:
    """Every tensor of the files, memory-mapped, each usable and finite."""
    import torch

    from deploy.checkpoint.formats import read_stored

    tensors: dict[str, Tensor] = {}
    for path in folder.weights:
        content = read_stored(path).content
        if other := next((name for name, value in content.items() if not isinstance(value, torch.Tensor)), None):
            raise UsageError(
                f"{path} holds {other!r}, which is no tensor", expected="weights by name and nothing else: " + SAVED
            )
        tensors.update(content)
    check_usable(tensors)
    check_finite(tensors)
    return tensors


def _load(folder: PretrainedFolder, adapter: Adapter | None) -> tuple["nn.Module", list[str]]:
    """The module that the folder describes, the adapter in it, and notes.

    Raises UsageError if a tensor of it is in neither of them.
    """
    name, pooling = _class_name(folder), read_pooling(folder)
    cls: Any = _find_class(name)
    # Pooled token embeddings are all that a sentence's is made of: a pooler of the network's own would go unused.
    unused = pooling is not None and "add_pooling_layer" in inspect.signature(cls.__init__).parameters
    keywords, classes = {"add_pooling_layer": False} if unused else {}, head_rows(adapter) if adapter else None
    model, info = _from_pretrained(cls, folder, keywords, classes=classes)
    if adapter:
        merge_into(model, adapter)  # first: a base of another kind is to be called that, rather than incomplete
    _check_whole(folder, name, info, brought=adapter.whole if adapter else ())
    left = [key for key in sorted(info["unexpected_keys"]) if not (unused and key.rpartition("pooler.")[1])]
    notes = [f"{len(left)} tensors that {name} does not have were left out: {listed(left, _SHOWN)}"] if left else []
    if pooling is not None:
        model = SentenceEmbedder(model, pooling)
        notes.append(f"one embedding per text, as modules.json says: {pooling}")
    elif is_two_parts(model):
        model, note = classified_at_end(model)
        notes.append(note)
    elif found_by(name):
        model = Finder(model)
    return model.eval().requires_grad_(False), notes


def _network(module: "nn.Module") -> "nn.Module":
    return module.transformer if isinstance(module, SentenceEmbedder | EndClassifier | Finder) else module


def _from_pretrained(
    cls: Any, folder: PretrainedFolder, keywords: Mapping[str, Any], *, classes: int | None
) -> tuple["nn.Module", dict[str, Any]]:
    import torch

    try:
        with _silence(), _backbones_of_timm(folder):
            config = cls.config_class.from_pretrained(str(folder.path), local_files_only=True)
            config.use_cache = False  # a cache of keys and values would be among the outputs,
            config.use_mems_eval = False  # and so would what XLNet remembers
            config.return_dict = True  # outputs have names, and some classes fail on a tuple of their own
            if classes is not None:
                config.num_labels = classes
            model, info = cls.from_pretrained(
                str(folder.path),
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=not folder.pickled,
                weights_only=True,  # of a pickle nothing but tensors is read
                ignore_mismatched_sizes=True,  # they are refused below, by name
                output_loading_info=True,
                dtype=torch.float32,
                **keywords,
            )
    except Exception as error:  # the loader raises whatever a config leads it to
        first = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"transformers cannot load {folder.path}: {type(error).__name__}: {first}",
            expected=f"a {cls.__name__} as its {CONFIG} describes it",
            fix=f"make this work: transformers.{cls.__name__}.from_pretrained({str(folder.path)!r})",
        ) from error
    return model, info


def _check_whole(folder: PretrainedFolder, name: str, info: Mapping[str, Any], *, brought: Collection[str]) -> None:
    """Raises UsageError if a tensor would be newly initialised, or has another shape than config.json says.

    Those that an adapter has `brought` come from there.
    """
    other = ((key, found, wanted) for key, found, wanted in info["mismatched_keys"] if key not in brought)
    wrong = sorted(f"{key} is {list(found)}, not {list(wanted)}" for key, found, wanted in other)
    if wrong:
        raise UsageError(
            f"the weights of {folder.path} do not have the shapes that {CONFIG} says: {listed(wrong, _SHOWN)}",
            expected=f"weights and {CONFIG} of one save",
            fix="save both again with model.save_pretrained(folder)",
        )
    missing = sorted(set(info["missing_keys"]) - set(brought))
    if missing:
        where = f", which {CONFIG} names"
        fix = "save the fine-tuned model rather than its base: model.save_pretrained(folder)"
        if brought:
            where, fix = (
                ", in the base or its adapter",
                "name them in PEFT's modules_to_save and train again: what training drew at random was not saved",
            )
        raise UsageError(
            f"the weights of {folder.path} lack {len(missing)} tensors of {name}, which would be random: "
            + listed(missing, _SHOWN),
            expected=f"every tensor of {name}{where}",
            fix=fix,
        )


@contextmanager
def _backbones_of_timm(folder: PretrainedFolder) -> Iterator[None]:
    """While this lasts a backbone that config.json says is timm's is that: transformers 5 would ask its hub first."""
    module = sys.modules.get("transformers.backbone_utils")
    before = getattr(module, "hf_api", None)
    if before is None or not folder.config.get("use_timm_backbone"):
        yield
        return
    module.hf_api = lambda: SimpleNamespace(repo_exists=lambda name: False)  # type: ignore[union-attr]
    try:
        yield
    finally:
        module.hf_api = before  # type: ignore[union-attr]


@contextmanager
def _silence() -> Iterator[None]:
    """What transformers and what it imports have to say is said by this room; its bars would spoil the terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    imported = sys.modules.get("transformers")
    if imported is not None:
        imported.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
