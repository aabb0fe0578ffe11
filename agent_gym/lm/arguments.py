"""What the arguments of every trainer go through: defaults by the model's size, one sentence for what cannot work."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from agent_gym.lm.errors import Refused
from agent_gym.lm.models import parameters_of
from agent_gym.lm.tiny import preset

__all__ = ["at_least", "env_kwargs_of", "fill", "size_of"]

Size = Literal["tiny", "small", "large"]
LENGTHS: dict[Size, dict[str, int]] = {  # tokens of a turn and of an episode
    "tiny": {"max_new_tokens": 48, "max_context": 512},
    "small": {"max_new_tokens": 256, "max_context": 4096},
    "large": {"max_new_tokens": 1024, "max_context": 8192},
}


def size_of(model: str, init: str | None) -> Size:
    """The class of a model: tiny, small (below one billion parameters) or large.

    Args:
        model: As ``--model``.
        init: As ``--init``.
    """
    if model == "tiny":
        return "tiny"
    return "small" if parameters_of(init or model) < 1e9 else "large"


def fill(args: Any, size: Size, **defaults: Any) -> None:
    """Set what was not given: the lengths that suit the size, and ``defaults``."""
    for name, value in {**LENGTHS[size], **defaults}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def env_kwargs_of(text: str | None, env_id: str) -> dict[str, Any]:
    """Keyword arguments of an environment from a flag.

    Args:
        text: As ``--env-kwargs``: JSON, or None for those of the tiny model's preset.
        env_id: Gymnasium id.

    Raises:
        Refused: It is no JSON object, or names what a trainer sets itself.
    """
    if text is None:
        return dict(preset(env_id).env_kwargs)
    try:
        kwargs = json.loads(text)
    except ValueError as error:
        raise Refused(f"--env-kwargs is not valid JSON: {error}") from None
    if not isinstance(kwargs, dict):
        raise Refused("--env-kwargs must be a JSON object such as '{\"difficulty\": 2}'")
    if own := {"split", "budget", "on_budget"} & set(kwargs):
        raise Refused(f"--env-kwargs: {', '.join(sorted(own))} is set by the trainer; use --budget")
    return kwargs


def at_least(args: Any, least: Mapping[str, float], above: tuple[str, ...] = ()) -> None:
    """Refuse numbers that are too small.

    Args:
        args: The arguments, with ``budget`` among them.
        least: The smallest value by name; a value of None is left alone.
        above: Names of finite numbers above 0.

    Raises:
        Refused: With the flag, the bound and what was given.
    """
    for name, bound in least.items():
        value = getattr(args, name)
        if value is not None and not value >= bound:
            raise Refused(f"--{name.replace('_', '-')} must be {bound} or more, not {value}")
    for name in above:
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise Refused(f"--{name.replace('_', '-')} must be a number above 0, not {value}")
    for name, value in asdict(args.budget).items():
        if value is not None and not value >= 0:
            raise Refused(f"--budget.{name.replace('_', '-')} must be 0 or more, not {value:g}")
