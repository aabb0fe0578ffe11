"""Language models at work in the environments: conversations in token ids, sampling, episodes, runs. No algorithm.

Needs the extra ``train``: ``pip install 'agent-gym[train]'``. Import it before torch, so that threads and memory are as
they should be on a shared machine.
"""

import contextlib
import ctypes
import os
import sys
from importlib.util import find_spec

for _package in ("torch", "transformers"):
    if find_spec(_package) is None:
        raise ImportError(f"agent_gym.lm needs {_package}: pip install 'agent-gym[train]'")

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # long-spinning threads starve each other on shared cores
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # with AVX-512 too, a row's sums do not depend on other rows
if sys.platform == "linux":
    # glibc hands every freed tensor back to the kernel and faults it in again, which on virtual machines takes longer
    # than the arithmetic. Keep the memory: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX of mallopt(3).
    with contextlib.suppress(OSError, AttributeError):  # another libc
        for _option, _value in ((-1, 2**31 - 1), (-3, 2**30), (-8, 1)):
            ctypes.CDLL("libc.so.6").mallopt(_option, _value)
