"""An MPS control daemon of this run's own: its pipes and logs are in a temporary folder, clients find it by environment
variable, and it ends with the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager

CONTROL = "nvidia-cuda-mps-control"
LIMIT_S = 20


@contextmanager
def mps():
    """RuntimeError with the reason when MPS cannot be started."""
    if shutil.which(CONTROL) is None:
        raise RuntimeError(f"{CONTROL} is not on the PATH")
    with tempfile.TemporaryDirectory(prefix="bp-mps-") as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        for place in places.values():
            os.mkdir(place)
        os.environ.update(places)
        try:
            # Its background half would hold a pipe open: what it says is in its log.
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "timeout": LIMIT_S}
            code = subprocess.run([CONTROL, "-d"], **quiet).returncode
            if code != 0:
                raise RuntimeError(f"{CONTROL} -d ended with code {code}")
            try:
                yield
            finally:
                subprocess.run([CONTROL], input="quit\n", text=True, **quiet)
        finally:
            for name in places:
                os.environ.pop(name, None)
