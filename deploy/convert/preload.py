"""What the server that children are forked from imports once: named in `deploy.processes.prepare`, called by nobody.

Owns no code. Nothing here may compute with tensors: OpenMP's threads do not survive a fork, and a child that computes
would wait for them for ever. What only one conversion needs (inductor, onnxscript) is left to its own child, where it
is imported while the other child works.
"""

import gc

import torch
import torch.export

from deploy.checkpoint.vision import import_torchvision

# Torch's compiler comes with it, half of the time. Left out it would cost each child that builds a module as much: what
# initialises parameters on the meta device imports it.
import_torchvision()

__all__ = ["torch"]

# The modules' objects live as long as any child: the collector need not look at them again, nor copy their pages.
gc.collect()
gc.freeze()
