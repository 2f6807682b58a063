"""Which library's architecture a file's weights belong to: timm's where timm says so, else torchvision's, else timm's.

Owns that order alone. Called by load.
"""

from dataclasses import replace

from deploy.checkpoint.identify import UnknownArchitectureError
from deploy.checkpoint.model import CheckpointRequest
from deploy.checkpoint.timm_entries import TIMM
from deploy.checkpoint.timm_models import is_of_timm, timm_look_alikes, understand_timm
from deploy.checkpoint.understand import Contents, Understood, understand_zoo


def understand_library(request: CheckpointRequest, contents: Contents) -> Understood:
    """The architecture of a library that fits: torchvision's goes first, unless timm wrote the file, then timm's.

    Raises UsageError if there is not exactly one, MissingError if timm was asked for and is not here.
    """
    if request.arch.strip().startswith(TIMM) if request.arch is not None else is_of_timm(contents):
        return understand_timm(request, contents)
    try:
        understood = understand_zoo(request, contents)
    except UnknownArchitectureError as error:
        return understand_timm(request, contents, otherwise=error)
    return replace(understood, notes=(*understood.notes, *timm_look_alikes(request, understood)))
