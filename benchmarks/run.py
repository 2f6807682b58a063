"""The table: eager, torch.compile, AOTInductor and ONNX Runtime by hand, and deployctl, side by side on one machine.

Run from the project's root on an idle machine: `python benchmarks/run.py`; all models with `--full`. Writes
benchmarks/results/table.json, docs/benchmarks.md and its plots, after each model; `--render` writes the page from the
JSON alone. With `--work DIR` a run that was killed goes on where it was.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a script, its own folder comes first in the path instead of the project's root.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from benchmarks.table.command import main

    main()
