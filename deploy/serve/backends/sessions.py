"""How ONNX Runtime is set up beside a server that works on the same cores.

Owns the session's options only; needs nothing of the server's stub, so that tests can open the same session.
"""

from collections.abc import Mapping
from typing import Any

from deploy.convert import ort_session
from deploy.convert.ort_session import LEVEL

# The server receives the next requests on the same cores while the model runs. By default a worker without work spins
# for many milliseconds and takes a core from it; one that sleeps at once is late for the next operator, 50 us later.
# In smaller blocks, whoever has a core does more of an operator. benchmarks/serving_overhead.py measures this.
SHARED_CORES = {"session.intra_op.spin_duration_us": "100", "session.dynamic_block_base": "4"}


def session_options(*, threads: int | None, graph_level: int, parameters: Mapping[str, str] = {}) -> Any:
    """The options of a session, the config's `parameters` among them; without `threads` ONNX Runtime chooses."""
    options = ort_session.session_options({**parameters, LEVEL: str(graph_level)}, threads=threads)
    for name, value in SHARED_CORES.items():
        options.add_session_config_entry(name, value)
    return options
