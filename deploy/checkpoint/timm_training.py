"""What timm itself wrote beside the weights: its training script's arguments, or the config.json of its hub.

Owns which of it changes the network, and the evaluation transform that timm makes of it. Called by timm_models and
load.
"""

import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from deploy.checkpoint.inputs import RESIZE_NOTE, UNKNOWN, UNKNOWN_NOTE, range_of, with_facts
from deploy.checkpoint.model import Preprocessing
from deploy.checkpoint.timm_entries import import_timm, timm_version
from deploy.checkpoint.training import TrainingFacts
from deploy.checkpoint.understand import Contents
from deploy.errors import UsageError

CONFIG = "config.json"
_HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Only timm's own script asks for both; others have an `img_size` too, and make of it what they like.
_OF_ITS_SCRIPT = frozenset(("crop_pct", "gp"))
_OF_IMAGES = ("input_size", "img_size", "crop_pct", "interpolation", "mean", "std")
_CROP_MODES = ("center", "squash")
# What timm's builder takes beside the network's own arguments: other weights, and other ways of compiling.
_NOT_OF_THE_NETWORK = frozenset((
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "checkpoint_path", "cache_dir",
    "scriptable", "exportable", "no_jit", "features_only", "device", "dtype",
))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmSaid:
    """What is told of the network's making. `arch` is its name, with the tag of the weights that it began with.

    `options` go to timm's builder; `images` are the script's arguments on images, None where no script of timm's
    was at work; `cfg` is a pretrained_cfg that lies with the weights, from `source`.
    """

    arch: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] | None = None
    cfg: Mapping[str, Any] | None = None
    source: str = "checkpoint"

    @property
    def by_timm(self) -> bool:
        """Whether timm wrote it: its training script or its hub's folder."""
        return self.images is not None or self.cfg is not None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images; None where nothing says them."""
        images = self.images or {}
        sizes = images.get("input_size") or (0, images.get("img_size"), images.get("img_size"))
        if not all(sizes[1:]):
            sizes = (self.cfg or {}).get("input_size") or (0, None, None)
        _, height, width = sizes
        return (int(height), int(width)) if height and width else None


def hub_folder(path: Path) -> Path | None:
    """The weights' file of a folder that timm saved for its hub; None where it is no such folder."""
    if not path.is_dir() or not _hub_config(path):
        return None
    return next((path / name for name in _HUB_WEIGHTS if (path / name).is_file()), None)


def beside(path: Path) -> dict[str, str]:
    """The hub's config.json beside a weights' file, each value as JSON, as safetensors files hold metadata."""
    config = _hub_config(path.parent) if path.name in _HUB_WEIGHTS else {}
    return {name: json.dumps(value) for name, value in config.items()}


def what_timm_said(contents: Contents) -> TimmSaid:
    """The arguments of timm's training script in the file, else the hub's config."""
    args, arch = contents.stored.content.get("args"), contents.stored.content.get("arch")
    args = vars(args) if isinstance(args, Namespace) else args
    if isinstance(args, Mapping) and isinstance(args.get("model"), str):
        arch = args["model"]
    arch = arch.rpartition("/")[2] if isinstance(arch, str) else None
    if isinstance(args, Mapping):
        whole = args.keys() >= _OF_ITS_SCRIPT
        images = {name: args[name] for name in _OF_IMAGES if args.get(name)} if whole else None
        if images is not None and not _is_size(images.get("input_size", [3, 1, 1])):
            del images["input_size"]
        return TimmSaid(arch=arch, options=_of_arguments(args), images=images)
    hub = {name: _parsed(text) for name, text in contents.stored.metadata.items()}
    cfg = hub.get("pretrained_cfg")
    if not isinstance(cfg, dict) or not isinstance(hub.get("architecture"), str) or not _is_size(cfg.get("input_size")):
        return TimmSaid(arch=arch)
    tag, options = f".{cfg['tag']}" if cfg.get("tag") else "", _of_hub(hub)
    if size := options.get("img_size"):  # the pretrained_cfg may still be that of the weights before
        cfg = {**cfg, "input_size": [3, size, size] if isinstance(size, int) else [3, *size]}
    return TimmSaid(
        arch=hub["architecture"].partition(".")[0] + tag,
        options=options,
        cfg=cfg,
        source=f"{CONFIG} of timm",
    )


def timm_preprocessing(
    name: str, shape: tuple[int, int, int], facts: TrainingFacts, said: TimmSaid
) -> tuple[Preprocessing, tuple[str, ...]]:
    """What timm's evaluation makes of images, with notes on how far that can be relied on.

    `name` may have the tag of the weights whose pretrained_cfg it is. What the file says goes first, as in timm.
    """
    cfg, source, notes = _config(name, said)
    told = said.images is not None
    if cfg is not None:
        _check_images(cfg, source)
    if cfg is None or (shape[0] != len(cfg["mean"]) and not (told and facts.mean)):
        return with_facts(facts, UNKNOWN, (UNKNOWN_NOTE,)) if not told else (UNKNOWN, (UNKNOWN_NOTE,))
    if not told and said.cfg is None:
        usual, more = _steps(cfg, shape)
        return with_facts(facts, usual.model_copy(update={"source": source}), (*notes, *more))
    images = {**(said.images or {}), "in_chans": shape[0]}
    settled = {**cfg, **import_timm().data.resolve_data_config(images, pretrained_cfg=dict(cfg))}
    found, more = _steps(settled, shape)
    return found.model_copy(update={"source": f"checkpoint, else {source}" if told else source}), (*notes, *more)


def _config(name: str, said: TimmSaid) -> tuple[Mapping[str, Any] | None, str, tuple[str, ...]]:
    """The pretrained_cfg that counts, where it is from, and a note where that is a guess."""
    if said.cfg is not None:
        usual = import_timm().models.get_pretrained_cfg(name)
        given = {name: value for name, value in said.cfg.items() if value is not None}
        return {**(usual.to_dict() if usual else {}), **given}, said.source, ()
    cfg = import_timm().models.get_pretrained_cfg(name)
    if cfg is None:
        return None, "", ()
    source = f"timm {cfg.architecture}.{cfg.tag}" if cfg.tag else f"timm {name}"
    note = f"preprocessing: the pretrained_cfg of {source}; nothing in the checkpoint says that this training used it"
    return cfg.to_dict(), source, () if said.images is not None else (note,)


def _check_images(cfg: Mapping[str, Any], source: str) -> None:
    """Raises UsageError where what is said of images is no mean, deviation, share or word."""
    wrong = [
        f"{name} {cfg.get(name)!r}"
        for name, fits in (("mean", _are_numbers), ("std", _are_numbers), ("crop_pct", _is_share))
        if not fits(cfg.get(name))
    ]
    wrong += [f"std {cfg['std']!r}"] if not wrong and 0 in cfg["std"] else []
    words = ("interpolation", "crop_mode")
    wrong += [f"{name} {cfg[name]!r}" for name in words if not isinstance(cfg.get(name) or "", str)]
    if wrong:
        raise UsageError(
            f"{source} says of images: {', '.join(wrong)}",
            expected="mean and std as a list of numbers each, no std of 0, crop_pct as one number above 0, and words",
            fix=f"write what training used into {CONFIG}, as timm saves it",
        )


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(_is_number(one) for one in value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _steps(cfg: Mapping[str, Any], shape: tuple[int, int, int]) -> tuple[Preprocessing, tuple[str, ...]]:
    """What timm's `create_transform(is_training=False)` does; resize and crop only for the size it makes."""
    height, width = cfg["input_size"][1:]
    mode, why = cfg.get("crop_mode") or "center", ""
    resize: int | tuple[int, int] | None = None
    if shape[1:] != (height, width):
        why = f"; those weights used {height} x {width}"
    elif height != width or mode not in _CROP_MODES:
        why = f" in timm's crop_mode {mode!r}, which resizes otherwise than by one edge or to both"
    else:
        scaled = int(height / cfg["crop_pct"])
        resize = (scaled, scaled) if mode == "squash" else scaled
    return Preprocessing(
        source="",
        resize=resize,
        crop=height if resize else None,
        mean=tuple(map(float, cfg["mean"])),
        std=tuple(map(float, cfg["std"])),
        layout="NCHW, RGB",
        value_range=range_of(cfg["mean"], cfg["std"]) or (0.0, 1.0),
        interpolation=cfg["interpolation"],
    ), (f"{RESIZE_NOTE} {shape[1]} x {shape[2]}{why}",) if why else ()


def _of_arguments(args: Mapping[str, Any]) -> dict[str, Any]:
    """What the script hands on to the builder that changes what is computed, and no tensor tells."""
    options = _of_the_network(args.get("model_kwargs"))
    if isinstance(args.get("gp"), str):
        options.setdefault("global_pool", args["gp"])
    if isinstance(args.get("bn_eps"), float):
        options.setdefault("bn_eps", args["bn_eps"])
    return options


def _of_hub(hub: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the hub's config records; of an older timm the pooling alone, where it is not the usual."""
    if "model_args" in hub or timm_version() is None:
        return _of_the_network(hub.get("model_args"))
    import torch

    pooling, name = hub.get("global_pool"), hub["architecture"].partition(".")[0]
    timm = import_timm()
    if not isinstance(pooling, str) or not timm.is_model(name):
        return {}
    with torch.device("meta"):
        usual = getattr(timm.create_model(name, pretrained=False), "global_pool", None)
    return {"global_pool": pooling} if isinstance(usual, str) and usual != pooling else {}


def _of_the_network(arguments: Any) -> dict[str, Any]:
    """Keyword arguments as they are after a way through JSON, those that are the network's own."""
    given = arguments if isinstance(arguments, Mapping) else {}
    plain = json.loads(json.dumps({str(name): value for name, value in given.items()}, default=lambda _: None))
    return {name: value for name, value in plain.items() if value is not None and name not in _NOT_OF_THE_NETWORK}


def _is_size(value: Any) -> bool:
    """Whether it is timm's (channels, height, width)."""
    return isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(side, int) for side in value)


def _hub_config(folder: Path) -> dict[str, Any]:
    """The config.json of timm's hub in a folder; nothing where there is none."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return {}
    ours = isinstance(config, dict) and isinstance(config.get("architecture"), str) and "architectures" not in config
    return config if ours else {}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
