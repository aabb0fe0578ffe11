"""An episode as the pages read it: short names, no token ids, every text once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agent_gym.trajectory import Step, Trajectory

if TYPE_CHECKING:
    from agent_gym.view.runs import CreditMap

STATUS = {"pass": "passed", "fail": "failed", "infra": "no verdict"}


def episode(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory for the reader of a page.

    The answer to a step is what the agent saw next; after the last step, what its tools returned.
    """
    verdict = trajectory.verdict or {"status": "infra", "reason": "cut before a verdict"}
    seen = [step.observation for step in trajectory.steps]
    return {
        "task_id": trajectory.task_id,
        "status": STATUS[verdict["status"]],
        "reason": verdict["reason"],
        "cost": trajectory.cost_total,
        "over": trajectory.violates(trajectory.env_kwargs.get("budget") or {}),
        "request": seen[0] if seen else "",
        "steps": [_step(step, answer) for step, answer in zip(trajectory.steps, [*seen[1:], None], strict=True)],
    }


def _step(step: Step, answer: str | None) -> dict[str, Any]:
    action = step.action if isinstance(step.action, str) else json.dumps(step.action, ensure_ascii=False, indent=1)
    if answer is None:
        answer = "\n".join(str(result["content"]) for result in step.tool_results)
    calls = [{"name": result["name"], "error": result["error"]} for result in step.tool_results]
    return {"action": action, "answer": answer, "calls": calls, "cost": step.cost}


def with_credits(trajectories: Sequence[Trajectory], maps: Sequence[CreditMap]) -> list[dict[str, Any]]:
    """Episodes, those first whose credits a run has.

    Args:
        trajectories: Of one iteration.
        maps: The lines of credits.jsonl about that iteration.
    """
    found: dict[int, dict[str, Any]] = {}
    for one in maps:
        for i, trajectory in enumerate(trajectories):
            if i not in found and trajectory.task_id == one.task_id and _is_of(one.steps, trajectory.steps):
                found[i] = episode(trajectory)
                for t, (step, u, v) in enumerate(zip(found[i]["steps"], one.u, one.v, strict=True)):
                    step |= {"u": u, "v": v, "eliminated": t in one.eliminated, "necessary": t in one.necessary}
                break
    return [*found.values(), *(episode(t) for i, t in enumerate(trajectories) if i not in found)]


def _is_of(labels: Sequence[str], steps: Sequence[Step]) -> bool:
    """Whether the labels, each perhaps cut short, are those of the steps."""
    return len(labels) == len(steps) and all(
        _label(step).startswith(label.removesuffix("…")) for label, step in zip(labels, steps, strict=True)
    )


def _label(step: Step) -> str:
    """As :func:`agent_gym.lm.figures.credit_map` labels a step."""
    ran = (result for result in step.tool_results if result.get("error") != "not_run")
    calls = [f"{result['name']}({', '.join(map(str, result['arguments'].values()))})" for result in ran]
    return "; ".join(calls) or f"answer: {step.action}"
