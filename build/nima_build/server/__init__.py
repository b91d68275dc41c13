"""The tritonserver inside the PyPI wheel nvidia-pytriton, run and kept alive on this machine.

The wheel is used for its binaries only (tritonserver 2.51 and the Python backend's stubs): none of
its Python code runs.
"""

from nima_build.server._embedded import EmbeddedServer
from nima_build.server._install import ServerError, ServerLost, missing_packages
from nima_build.server._options import ServerOptions
from nima_build.server._probe import Probe, ProbeResult
from nima_build.server._rollout import Rollout, RolloutError
from nima_build.server._security import ADMIN_HEADER, GRPC_ADMIN_HEADER, ServerTLS
from nima_build.server._supervisor import RestartPolicy, Supervisor

__all__ = [
    "ADMIN_HEADER",
    "GRPC_ADMIN_HEADER",
    "EmbeddedServer",
    "Probe",
    "ProbeResult",
    "RestartPolicy",
    "Rollout",
    "RolloutError",
    "ServerError",
    "ServerLost",
    "ServerOptions",
    "ServerTLS",
    "Supervisor",
    "missing_packages",
]
