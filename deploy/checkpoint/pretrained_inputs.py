"""What a transformers network takes: token ids or pixels, and how many of them.

Owns the reading of config.json and of the tokenizer's settings for that, and of the size of images. Loads nothing.
Called by pretrained.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy.checkpoint.left_out import left_out
from deploy.checkpoint.model import CheckpointRequest, Preprocessing
from deploy.checkpoint.padding import check_padding
from deploy.checkpoint.pretrained_folder import (
    CONFIG,
    MASK,
    OWN_MODULE,
    PIXELS,
    PROCESSOR,
    SEQUENCE,
    TOKENS,
    TYPES,
    PretrainedFolder,
)
from deploy.checkpoint.sentence_folder import longest_text
from deploy.checkpoint.vocabulary import words_without_a_row
from deploy.errors import UsageError
from deploy.spec import BATCH, Dim, TensorSpec

if TYPE_CHECKING:
    from torch import nn

# What most encoders were trained with. Longer texts cost memory with their square, so they are asked for.
_USUAL_TOKENS = 512
# What networks read beside a text or an image, and answer something without: where words stand on a page, the path to
# them in a document, the shapes of characters, which parts of an image are filled up.
_MORE = (
    "bbox", "xpath_tags_seq", "input_shape_ids", "visual_embeds", "visual_feats", "pixel_attention_mask", "image",
)  # fmt: skip
# The ending of classes whose input is a clip: so many images in their order.
_CLIPS = "ForVideoClassification"
# The fewest tokens of kinds that do not take one: MobileBERT joins each token with both of its neighbours.
_LEAST = {"mobilebert": 3}
# Kinds that count in each call how many tokens attend to all: Longformer. Reformer's hashing draws at random, and
# counts what is masked; its axial positions are cut to the largest one.
_BY_VALUE = frozenset(("longformer",))
_HASHED = "reformer"
# Kinds of token in a text, where the network has no table of them: XLNet's are the two texts and what stands for both.
_TYPES = 3
# A tokenizer without a limit of its own has this one, or a larger one: 10^30.
_NO_LIMIT = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedInputs:
    """What is known of the inputs. `dims` are the dynamic ones beside the batch.

    `preprocessing` is None for images, whose processor says it: `processors`.
    """

    inputs: tuple[TensorSpec, ...]
    dims: tuple[Dim, ...]
    preprocessing: Preprocessing | None
    notes: tuple[str, ...]

    @property
    def takes_text(self) -> bool:
        """Whether a tokenizer makes the inputs."""
        return self.inputs[0].name == TOKENS


def pretrained_inputs(
    folder: PretrainedFolder,
    network: "nn.Module",
    request: CheckpointRequest,
    *,
    made: tuple[int, int] | None = None,
) -> PretrainedInputs:
    """The inputs of the network, `made` being the height and width of what its image processor makes.

    Raises UsageError if it takes something else than one text or one image.
    """
    takes = set(inspect.signature(network.forward).parameters)
    main = getattr(network, "main_input_name", None)
    _check_said(request)
    more = [name for name in _MORE if name in takes]
    pixels = type(network).__name__.endswith("ForImageClassification")
    tables = getattr(network.config, "type_vocab_sizes", None)
    if main == TOKENS and PIXELS not in takes and not (more or pixels or tables):
        return _text(folder, network, request, takes)
    if main == PIXELS and TOKENS not in takes and not more:
        return _image(folder, network, request, made)
    both = [name for name in (TOKENS, PIXELS) if name in takes and name != main]
    read = [str(main), *both, *more, *(["a table in the types of its tokens"] if tables else [])]
    raise UsageError(
        f"{type(network).__name__} reads {' and '.join(read)}{', which are the colours of pixels' if pixels else ''}",
        expected=f"a network of a text alone ({TOKENS}) or of an image alone ({PIXELS})",
        fix=OWN_MODULE,
    )


def _check_said(request: CheckpointRequest) -> None:
    """Raises UsageError for what was said of the inputs and the folder says itself."""
    said = {
        "--values": request.values,
        "--input-shape with a name or dtype": any(one.shape is None or one.name or one.dtype for one in request.inputs),
        "--fuse-preprocess": request.preprocessing.fuse,
        "the preprocessing": request.preprocessing.said,
    }
    for option, value in said.items():
        if value:
            raise UsageError(
                f"{option} was given for {request.path}, a folder of transformers",
                expected="what config.json and preprocessor_config.json say",
                fix="leave it out, or give the module as --factory",
            )


def _asked_length(request: CheckpointRequest, longest: int) -> Dim | None:
    """The bounds of a text's length as asked for by `--dynamic input_ids:1=MIN..MAX`; None where nothing was asked."""
    if not request.dynamic:
        return None
    asked = request.dynamic[0]
    bounds = asked.bounds
    plain = len(request.dynamic) == 1 and asked.input == TOKENS and [axis for axis, _ in asked.axes] == [1]
    if not plain or bounds is None or not 1 <= bounds[0] <= bounds[1] <= longest:
        raise UsageError(
            f"--dynamic {asked.input} does not fit a network that takes texts of 1 to {longest} tokens",
            expected=f"bounds of their length: --dynamic {TOKENS}:1=MIN..MAX, or N..N for texts of that length alone",
            fix=f"leave it out, or write --dynamic {TOKENS}:1=1..{longest}",
        )
    return Dim(name=SEQUENCE, minimum=bounds[0], maximum=bounds[1])


def _text(
    folder: PretrainedFolder, network: "nn.Module", request: CheckpointRequest, takes: set[str]
) -> PretrainedInputs:
    if request.input_shapes:
        raise UsageError(
            f"--input-shape was given for {type(network).__name__}, which takes texts of any length",
            expected="no shape: the length of a request is its own",
            fix="leave out --input-shape",
        )
    config: Any = network.config
    if config.model_type in _BY_VALUE or _is_hashed(config):
        raise UsageError(
            f"{type(network).__name__} reads from the values of its inputs how much it computes, which no graph holds",
            expected="a network whose computation follows from the inputs' shapes",
            fix="train one whose attention has one form for all texts, such as ModernBERT; or give a module of your "
            "own in which that is fixed as --factory package.module:function",
        )
    check_padding(folder, network)
    words = getattr(config.get_text_config(), "vocab_size", None)
    if words is None:
        raise UsageError(
            f"{folder.path / CONFIG} has no vocab_size: {type(network).__name__} takes no token ids",
            expected="a network of the ids that a tokenizer gives",
            fix=f"give the module as --factory package.module:function, and --values {TOKENS}=LOW..HIGH",
        )
    dim, note = _length(folder, network, request)
    fixed = dim.minimum == dim.maximum
    shape = (BATCH, dim.maximum if fixed else SEQUENCE)
    inputs = [
        TensorSpec(name=TOKENS, dtype="int64", shape=shape, values=(0, words - 1)),
        TensorSpec(name=MASK, dtype="int64", shape=shape, mask=True),
    ]
    types = _types(folder, config)
    if TYPES in takes and types > 1:
        inputs.append(TensorSpec(name=TYPES, dtype="int64", shape=shape, values=(0, types - 1)))
    return PretrainedInputs(
        inputs=tuple(inputs),
        dims=() if fixed else (dim,),
        preprocessing=Preprocessing(source=f"the tokenizer of {folder.path.name}"),
        notes=(*note, *words_without_a_row(folder, words), *left_out(network, takes)),
    )


def _is_hashed(config: Any) -> bool:
    """Whether it is a Reformer with a layer of hashed attention or axial positions, as all but a few are."""
    return config.model_type == _HASHED and ("lsh" in config.attn_layers or config.axial_pos_embds)


def _types(folder: PretrainedFolder, config: Any) -> int:
    """How many types of tokens there are: as the network's table has, else as its tokenizer makes any."""
    table = getattr(config, "type_vocab_size", None)
    if table is not None:
        return int(table)
    made = (folder.read("tokenizer_config.json") or {}).get("model_input_names") or ()
    return _TYPES if TYPES in made else 0


def _length(folder: PretrainedFolder, network: "nn.Module", request: CheckpointRequest) -> tuple[Dim, tuple[str, ...]]:
    """The length of a text: as asked, else from whichever says the least: positions, tokenizer, what is usual."""
    tokenizer = folder.read("tokenizer_config.json") or {}
    told = [_positions(network), _whole_attention(network), tokenizer.get("model_max_length"), longest_text(folder)]
    limits = [int(limit) for limit in told if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT]
    config: Any = network.config
    longest, least = min(limits, default=_USUAL_TOKENS), _LEAST.get(config.model_type, 1)
    few: tuple[str, ...] = (f"texts of {least} tokens or more: clients fill up shorter ones",) if least > 1 else ()
    asked = _asked_length(request, longest)
    if asked is not None:
        fixed = f"texts of {asked.maximum} tokens: clients fill up shorter ones, as padding='max_length' does"
        return asked, (fixed,) if asked.minimum == asked.maximum else ()
    dim = Dim(name=SEQUENCE, minimum=least, maximum=min(longest, _USUAL_TOKENS))
    if longest == _whole_attention(network):
        few += (
            f"texts of up to {dim.maximum} tokens: {type(network).__name__} attends to all of up to {longest}, and of "
            "longer ones to blocks, which is not served",
        )
    if longest <= _USUAL_TOKENS:
        return dim, few
    return dim, (
        *few,
        f"texts of up to {_USUAL_TOKENS} tokens; the network could take {longest}: "
        f"--dynamic {TOKENS}:1={least}..{longest}",
    )


def _whole_attention(network: "nn.Module") -> int | None:
    """The tokens up to which BigBird attends to all of them; None for others.

    Beyond it attends to blocks, some of them drawn at random, until it has met one shorter text: then to all for ever.
    A version computes one of the two, which is that of the lengths that have no choice.
    """
    config: Any = network.config
    if getattr(config, "attention_type", None) != "block_sparse":
        return None
    return int((5 + 2 * config.num_random_blocks) * config.block_size)


def _positions(network: "nn.Module") -> int | None:
    """The positions that a text can use: those of the embedding, without the ones that stand for padding (RoBERTa).

    Nor those that no text is given: MRA, Nyströmformer and YOSO count from 2 on, and go as far as their own list does.
    """
    from torch import nn

    for name, part in network.named_modules():
        if isinstance(part, nn.Embedding) and name.endswith("position_embeddings"):
            rows = part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
            listed = getattr(network.get_submodule(name.rpartition(".")[0]), "position_ids", None)
            return rows if listed is None else min(rows, listed.shape[-1])
    config: Any = network.config
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def _image(
    folder: PretrainedFolder, network: "nn.Module", request: CheckpointRequest, made: tuple[int, int] | None
) -> PretrainedInputs:
    if request.dynamic:
        raise UsageError(
            f"--dynamic was given for {request.path}, whose images have one size",
            expected="no --dynamic",
            fix="leave it out, or give the module as --factory",
        )
    config: Any = getattr(network.config, "vision_config", network.config)
    channels, built = int(getattr(config, "num_channels", 3)), sides(getattr(config, "image_size", None))
    size = _asked_size(network, request, channels, built) or _own_size(folder, network, (channels, built), made)
    shape = _shape(network, channels, size)
    why = _refusal(network, shape)
    if why:
        raise UsageError(
            f"{type(network).__name__} does not take one {'clip' if shape[3:] else 'image'} of {list(shape)}: {why}",
            expected="a network of one image of that size, or of one clip",
            fix=f"say the size with --input-shape {channels},HEIGHT,WIDTH; for more inputs give the module as "
            "--factory package.module:function, and each input of its forward as --input-shape NAME=DTYPE:SIZES",
        )
    return PretrainedInputs(
        inputs=(TensorSpec(name=PIXELS, dtype="float32", shape=(BATCH, *shape)),),
        dims=(),
        preprocessing=None,
        notes=(),
    )


def _shape(network: "nn.Module", channels: int, size: tuple[int, int]) -> tuple[int, ...]:
    """The sizes of one image of this height and width; those of a clip, its images first, for a network of clips."""
    config: Any = network.config
    frames = (int(config.num_frames),) if type(network).__name__.endswith(_CLIPS) else ()
    return (*frames, channels, *size)


def _asked_size(
    network: "nn.Module", request: CheckpointRequest, channels: int, built: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Height and width as asked for; None where nothing was."""
    if not request.input_shapes:
        return None
    (*rest,) = request.input_shapes
    if len(rest) != 1 or len(rest[0]) != 3 or rest[0][0] != channels:
        raise UsageError(
            f"--input-shape {' and '.join(','.join(map(str, shape)) for shape in rest)} does not fit",
            expected=f"one shape {channels},HEIGHT,WIDTH, without the batch",
        )
    asked = rest[0][1], rest[0][2]
    if built and asked != built and not _takes(network, _shape(network, channels, asked)):
        raise UsageError(
            f"--input-shape asks for {asked[0]} x {asked[1]}, and config.json says {built[0]} x {built[1]}",
            expected="the size that the network's positions were made for",
            fix="leave out --input-shape",
        )
    return asked


def _own_size(
    folder: PretrainedFolder,
    network: "nn.Module",
    own: tuple[int, tuple[int, int] | None],
    made: tuple[int, int] | None,
) -> tuple[int, int]:
    """Height and width: what the processor makes if the network takes it, else what either was set to.

    `own` are the network's channels, and the height and width that it was built for, where it says so.
    A network that takes images of other sizes than it was built for, as DINOv2, is fed what its processor makes.
    """
    (channels, built), settings = own, folder.read(PROCESSOR) or {}
    if made and (made == built or _takes(network, _shape(network, channels, made))):
        return made
    found = built or sides(settings.get("crop_size")) or _one_size(settings.get("size"))
    if found is None:
        varied = f"{PROCESSOR} of {folder.path} makes images of many sizes" if settings.get("size") else ""
        raise UsageError(
            varied or f"neither {CONFIG} nor {PROCESSOR} of {folder.path} says how large the images are",
            expected="the size that training used" + ", or one that clients can bring all images to" * bool(varied),
            fix=f"add --input-shape {channels},HEIGHT,WIDTH",
        )
    return found


def _one_size(value: object) -> tuple[int, int] | None:
    """Height and width of a processor's setting; None where they depend on the image: both of its sides have limits."""
    varies = isinstance(value, Mapping) and {"shortest_edge", "longest_edge"} <= value.keys()
    return None if varies else sides(value)


def _takes(network: "nn.Module", shape: tuple[int, ...]) -> bool:
    """Whether the network computes with an image, or a clip, of this shape."""
    return _refusal(network, shape) is None


def _refusal(network: "nn.Module", shape: tuple[int, ...]) -> str | None:
    """What the network says of an image, or a clip, of this shape; None where it takes it."""
    import torch

    try:
        with torch.no_grad():
            network(torch.zeros(1, *shape))
    except Exception as error:  # noqa: BLE001 - each network has its own way to refuse a size
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None


def sides(value: object) -> tuple[int, int] | None:
    """Height and width of what config files hold: a number, a pair, or a mapping."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2:
        return int(value[0]), int(value[1])
    if isinstance(value, Mapping):
        if {"height", "width"} <= value.keys():
            return int(value["height"]), int(value["width"])
        if "shortest_edge" in value:
            return int(value["shortest_edge"]), int(value["shortest_edge"])
    return None
