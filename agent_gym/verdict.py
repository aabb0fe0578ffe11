"""What a verifier says about an episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["InfraError", "Verdict"]


class InfraError(Exception):
    """Raised by a verifier or tool when *our* machinery failed, not the submission.

    The episode then ends with ``verdict.status == "infra"`` and a reward of NaN: there is no verdict, and a
    trainer must drop the episode and count it instead of learning from a 0 nobody earned.
    """


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one episode.

    Args:
        status: ``"pass"``, ``"fail"``, or ``"infra"`` when no verdict could be reached.
        reason: What the submission did (``passed``, ``wrong_state``, ``wrong_answer``, ``budget`` ...).
        score: Share of the checks that held, in [0, 1]. The reward is 1 on a pass and 0 on a fail.
        diagnostics: One line a fault, naming where expected and found differ.
        trust: ``"weak"`` when the submission shared a process with its checks.
    """

    status: Literal["pass", "fail", "infra"]
    reason: str
    score: float
    diagnostics: tuple[str, ...] = ()
    trust: Literal["strong", "weak"] = "strong"

    @property
    def reward(self) -> float:
        """1.0 for a pass, 0.0 for a fail, NaN where there is no verdict."""
        return {"pass": 1.0, "fail": 0.0, "infra": float("nan")}[self.status]

    def to_dict(self) -> dict[str, Any]:
        """A fresh JSON-able dict, as it stands in ``info["verdict"]`` and in trajectory files."""
        return {
            "status": self.status,
            "reason": self.reason,
            "score": self.score,
            "diagnostics": list(self.diagnostics),
            "trust": self.trust,
        }
