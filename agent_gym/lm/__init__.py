"""Language models at work in the environments: conversations in token ids, sampling, episodes, runs. No algorithm.

Needs the extra ``train``: ``pip install 'agent-gym[train]'``.
"""

from importlib.util import find_spec as _find_spec

for _package in ("torch", "transformers"):
    if _find_spec(_package) is None:
        raise ImportError(f"agent_gym.lm needs {_package}: pip install 'agent-gym[train]'")
