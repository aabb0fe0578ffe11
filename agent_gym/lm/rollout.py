"""Episodes: the model writes a turn, the environment answers in a thread, and nobody waits for the slowest."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from tqdm import tqdm

import agent_gym
from agent_gym import Group, Snapshot, Step, Trajectory, Verdict, tool_env
from agent_gym.lm.chat import Chat
from agent_gym.lm.engine import Engine, Turn
from agent_gym.lm.errors import Refused
from agent_gym.lm.ranks import Ranks
from agent_gym.lm.seeds import stream
from agent_gym.messages import answers
from agent_gym.replay import plain_kwargs

__all__ = ["Branch", "Episode", "Limits", "answers", "environments", "evaluate", "judged", "play"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an episode may grow.

    Args:
        new_tokens: Tokens of one turn, its end included; a longer one is cut.
        context: Tokens of the whole conversation.
    """

    new_tokens: int
    context: int


@dataclass(eq=False)
class Episode:
    """What was played: the tokens, where the model wrote them, and what the environment said.

    Args:
        index: Its place among the starts.
        env_id: Gymnasium id.
        env_kwargs: Keyword arguments of ``gym.make``, as far as JSON can hold them.
        task_id: The task.
        task_hash: The task's fingerprint.
        task_type: What kind of task it is.
        seed: Seed of the reset.
        ids: The whole conversation, up to the model's last turn.
        cost_total: What it has cost, by channel.
        observation: What the environment said last.
        before: Of a branch, the steps that were not played anew.
        spans: ``[begin, end)`` in ``ids`` of each turn of the model.
        logprobs: Of the model's tokens under the sampling policy, all turns in one row.
        steps: The turns that were played, one for each span.
        snapshots: The environment's state before each of them.
        reward: 1.0 or 0.0; None where there is no verdict.
        verdict: ``Verdict.to_dict()``; the reason ``"context"`` says that it outgrew the limit.
        cut: Turns that were cut for their length.
    """

    index: int
    env_id: str
    env_kwargs: dict[str, Any]
    task_id: str
    task_hash: str
    task_type: str
    seed: int
    ids: list[int]
    cost_total: dict[str, float]
    observation: str
    before: tuple[Step, ...] = ()
    spans: list[tuple[int, int]] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    reward: float | None = None
    verdict: dict[str, Any] | None = None
    cut: int = 0

    @property
    def success(self) -> float:
        """1.0 where the verifier passed it, else 0.0."""
        return float(self.verdict is not None and self.verdict["status"] == "pass")

    @property
    def infra(self) -> bool:
        """Whether it ended without a verdict: what runs it failed, or a wrapper cut it."""
        return self.verdict is None or self.verdict["status"] == "infra"

    @classmethod
    def begun(
        cls, index: int, env: gym.Env, seed: int, observation: str, info: Mapping[str, Any], ids: Sequence[int] = ()
    ) -> Episode:
        """The episode that a reset begins.

        Args:
            index: Its place among the starts.
            env: Where.
            seed: Of the reset.
            observation: What the reset returned, as is the next.
            info: See there.
            ids: The prompt, where a model reads ids.
        """
        base: Any = tool_env(env)
        kwargs = plain_kwargs(base.spec.kwargs) | ({"budget": base.budget} if "budget" in base.spec.kwargs else {})
        return cls(
            index, base.spec.id, kwargs, info["task_id"], info["task_hash"], info["task_type"], seed, list(ids),
            info["cost_total"], observation,
        )  # fmt: skip

    def note(
        self, action: Any, outcome: Any, ids: list[int] | None = None, logprobs: list[float] | None = None
    ) -> bool:
        """Write down a step and what came of it.

        Args:
            action: What was played.
            outcome: What ``env.step`` returned.
            ids: Of a turn that was sampled here.
            logprobs: Of these.

        Returns:
            Whether it ended the episode.
        """
        observation, reward, terminated, truncated, info = outcome
        self.cut += isinstance(action, Mapping) and action.get("finish_reason") == "length"
        self.steps.append(
            Step(
                self.observation, action, info["cost"], info["tool_results"], info["state_hash"], terminated,
                truncated, ids, logprobs,
            )
        )  # fmt: skip
        self.observation, self.cost_total = observation, info["cost_total"]
        if terminated or truncated:
            self.verdict = info.get("verdict")
            self.reward = None if self.infra else float(reward)
        return terminated or truncated

    def trajectory(self, group: Group | None = None) -> Trajectory:
        """The episode as the suite's trajectory files hold it, a branch's from its origin's first step on.

        Args:
            group: The cluster it belongs to.
        """
        return Trajectory(
            self.task_id, self.env_id, self.env_kwargs, self.seed, (*self.before, *self.steps), self.reward,
            self.verdict, self.cost_total, group, self.task_hash,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Branch:
    """A start in the middle of an episode. Its costs and ids go on from there; its spans, log-probabilities and steps
    are those that were written anew.

    Args:
        episode: The one it branches off.
        t: The first step, by its place in ``episode.steps``, that is written anew.
    """

    episode: Episode
    t: int


class _Row(NamedTuple):
    """An episode that is being played."""

    episode: Episode
    env: gym.Env
    done: bool


def play(
    engine: Engine,
    chat: Chat,
    envs: Sequence[gym.Env],
    starts: Sequence[int | Branch],
    limits: Limits,
    *,
    draws: Sequence[int],
    workers: int | None = None,
    patience: float | None = None,
    on_done: Callable[[Episode], None] | None = None,
    stop: threading.Event | None = None,
) -> list[Episode]:
    """Play an episode from each start to its end.

    The environments are a pool: an episode takes a free one, so there are as many at a time as environments. A turn is
    played in a thread as soon as it is written, while the engine goes on with the others. Equal starts that stand next
    to each other begin together, when there is room for all of them, so that the engine can feed their prompt once.

    Args:
        engine: Writes the turns.
        chat: Reads and writes ids.
        envs: Made alike; see :func:`environments`.
        starts: Task seeds, or branches off episodes that were played in environments like these.
        limits: A prompt or an episode that outgrows the context fails with the reason ``"context"``.
        draws: One sampling seed an episode; its turn ``t`` is sampled with ``stream(draw, t)``.
        workers: Threads that environments step in. By default 8, or as many as ``envs`` have Ray workers.
        patience: The engine waits for an answer that takes no longer than so many seconds. It takes in what has come
            in the order of the starts, so that fast environments make a schedule that repeats itself. By default 0.2,
            and 0.02 where there is a GPU, whose passes do not repeat themselves bit by bit anyway.
        on_done: Told of each episode as it ends.
        stop: Set by another thread, it ends the playing before the next pass of the engine.

    Returns:
        The episodes in the order of ``starts``.

    Raises:
        CancelledError: ``stop`` was set.
        Exception: What an environment raised.
    """
    if workers is None:
        workers = getattr(envs, "workers", 8)
    if patience is None:
        patience = 0.02 if torch.cuda.is_available() else 0.2
    if len(draws) != len(starts):
        raise ValueError(f"{len(draws)} draws for {len(starts)} starts: there must be one for each")
    if starts and not envs:
        raise ValueError("there is no environment to play in")
    alike = [list(group) for _, group in groupby(range(len(starts)), key=lambda i: starts[i])]
    waiting = deque(group[at : at + len(envs)] for group in alike for at in range(0, len(group), len(envs)))
    free, ended = deque(envs), dict[int, Episode]()
    writing: dict[int, _Row] = {}
    pending: dict[Future[list[_Row]], float] = {}  # until when the engine waits for it
    held: set[int] = set()  # what the engine keeps a prefix of
    pool = ThreadPoolExecutor(workers)

    def hand(function: Callable[..., list[_Row]], *arguments: Any) -> None:
        queue = 1 + len(pending) // workers
        pending[pool.submit(function, *arguments)] = time.monotonic() + patience * queue

    def begin(count: int) -> None:
        group = waiting.popleft()
        if group[count:]:
            waiting.appendleft(group[count:])
        hand(_opened, chat, [free.popleft() for _ in group[:count]], group[:count], starts[group[0]], limits)

    try:
        while waiting or writing or pending:
            if stop is not None and stop.is_set():
                raise CancelledError
            while waiting and len(waiting[0]) <= len(free):
                begin(len(waiting[0]))
            if young := [one for one, until in pending.items() if until > time.monotonic()]:
                wait(young, max(pending[one] for one in young) - time.monotonic(), FIRST_EXCEPTION)
            if not writing and not any(one.done() for one in pending):
                if waiting and free:  # rather a part of a group than nothing
                    begin(len(free))
                    continue
                wait(pending, return_when=FIRST_COMPLETED)
            arrived = [one for one in pending if one.done()]
            for row in sorted((row for one in arrived for row in one.result()), key=lambda row: row.episode.index):
                episode, key = row.episode, row.episode.index
                if not row.done:
                    most = min(limits.new_tokens, limits.context - len(episode.ids))
                    engine.submit(key, episode.ids, most, stream(draws[key], len(episode.steps)))
                    writing[key] = row
                    held.add(key)
                    continue
                if key in held:
                    engine.release([key])
                    held.remove(key)
                free.append(row.env)
                ended[key] = episode
                if on_done is not None:
                    on_done(episode)
            for one in arrived:
                del pending[one]
            for turn in engine.step() if writing else ():
                hand(_advanced, chat, writing.pop(turn.key), turn, limits)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # what an environment is still at after a failure is left alone
        if held:
            engine.release(sorted(held))
    return [ended[i] for i in range(len(starts))]


def _opened(chat: Chat, envs: list[gym.Env], indices: list[int], start: int | Branch, limits: Limits) -> list[_Row]:
    """Begin the same episode in each environment; its prompt is encoded once."""
    rows, prompt = [], None
    for env, index in zip(envs, indices, strict=True):
        if isinstance(start, Branch):
            old, t = start.episode, start.t
            agent_gym.restore(env, old.snapshots[t])
            episode = Episode(
                index, old.env_id, old.env_kwargs, old.task_id, old.task_hash, old.task_type, old.seed,
                old.ids[: old.spans[t][0]], tool_env(env).cost_total, old.steps[t].observation,
                (*old.before, *old.steps[:t]),
            )  # fmt: skip
        else:
            observation, info = env.reset(seed=start)
            prompt = chat.prompt(info["messages"], info["tools"]) if prompt is None else prompt
            episode = Episode.begun(index, env, start, observation, info, prompt)
        rows.append(_Row(episode, env, _overlong(episode, 0, limits)))
    return rows


def _advanced(chat: Chat, row: _Row, turn: Turn, limits: Limits) -> list[_Row]:
    """Play the turn that was written and append what the environment answers."""
    episode, env, _ = row
    ids, logprobs = list(turn.ids), list(turn.logprobs)
    text = chat.text(ids)
    action: Any = text if turn.stopped else {"role": "assistant", "content": text, "finish_reason": "length"}
    episode.spans.append((len(episode.ids), len(episode.ids) + len(ids)))
    episode.ids += ids
    episode.logprobs += logprobs
    episode.snapshots.append(agent_gym.snapshot(env))
    if episode.note(action, env.step(action), ids, logprobs):
        return [_Row(episode, env, True)]
    reply = chat.reply(answers(episode.observation, episode.steps[-1].tool_results), turn.stopped)
    done = _overlong(episode, len(reply), limits)
    episode.ids += [] if done else reply
    return [_Row(episode, env, done)]


def _overlong(episode: Episode, more: int, limits: Limits) -> bool:
    """Whether so many more ids would leave no room for another turn; the episode has then failed."""
    if len(episode.ids) + more < limits.context:
        return False
    episode.reward, episode.verdict = 0.0, Verdict("fail", "context", 0.0).to_dict()
    return True


def judged(episodes: Sequence[Episode], ranks: Ranks, when: str) -> list[Episode]:
    """The episodes that can be learnt from: they have a verdict, and a turn of the model.

    Args:
        episodes: Those of this process.
        ranks: The processes; one of them must have such an episode.
        when: What was played, for the sentence that says there is none.

    Raises:
        Refused: In every process, if none has one.
    """
    kept = [episode for episode in episodes if not episode.infra and episode.steps]
    lost = [episode.verdict for episode in episodes if episode.infra]
    why = {verdict["diagnostics"][0] if verdict else "cut by a wrapper" for verdict in lost}
    found = ranks.gather((len(kept), why))
    if not any(count for count, _ in found):
        reasons = "; ".join(sorted(reason for _, own in found for reason in own))[:200]
        said = f"reached a verdict ({reasons})" if reasons else "has a turn, as no prompt fits into --max-context"
        raise Refused(f"{when}: no episode {said}")
    return kept


def environments(
    env_id: str,
    count: int,
    *,
    chat: Chat | None,
    split: str,
    bounds: Mapping[str, float],
    on_budget: str = "record",
    ray_workers: int = 0,
    **kwargs: Any,
) -> Sequence[gym.Env]:
    """Environments for a model: they read its format and count its tokens.

    Args:
        env_id: Gymnasium id.
        count: How many.
        chat: Gives the parser and the token counter; None where there is no model yet: the environment's own.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        bounds: Budget by channel; an infinite one is none.
        on_budget: ``"record"`` or ``"truncate"``.
        ray_workers: If not 0, the environments are :class:`agent_gym.remote.RayEnvs` on so many workers, which all that
            are made with this number share.
        **kwargs: Further arguments of the environment.

    Raises:
        Refused: If it cannot be made.
        ImportError: Ray is not installed.
    """
    budget = {channel: bound for channel, bound in bounds.items() if math.isfinite(bound)}
    given: dict[str, Any] = {"split": split, "budget": budget, "on_budget": on_budget, **kwargs}
    if chat is not None:
        named = (name for name, parser in agent_gym.PARSERS.items() if parser is chat.parser)
        given["parser"] = next(named, chat.parser)
    try:
        envs = [gym.make(env_id, disable_env_checker=True, **given) for _ in range(count)]
    except (gym.error.Error, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise Refused(f"cannot make {env_id}: {error}") from error
    if chat is not None:
        for env in envs:
            tool_env(env).token_counter = chat.count  # no argument: wrappers copy those deeply, tokenizer and all
    if ray_workers:
        from agent_gym.remote import RayEnvs, shared_executor

        return RayEnvs(envs, shared_executor(ray_workers))
    return envs


def evaluate(
    engine: Engine,
    chat: Chat,
    envs: Sequence[gym.Env],
    seeds: Sequence[int],
    limits: Limits,
    ranks: Ranks,
    *,
    draw: int,
    samples: int = 1,
    workers: int | None = None,
    title: str = "test",
) -> list[Trajectory]:
    """Play a set of tasks, shared out to the processes.

    Args:
        engine: Writes the turns.
        chat: Reads and writes ids.
        envs: This process's own.
        seeds: Of the tasks.
        limits: See :func:`play`.
        ranks: The processes.
        draw: Seeds the sampling: sample ``k`` of task ``i`` is drawn with ``stream(draw, i, k)``, whatever the number
            of processes.
        samples: Episodes a task.
        workers: Threads of each process; see :func:`play`.
        title: Of the progress bar.

    Returns:
        All episodes, task by task, the samples of a task next to each other: the same list in every process.
    """
    own = [(i, k) for i in ranks.share(range(len(seeds))) for k in range(samples)]
    with tqdm(total=len(own), desc=title, leave=False, disable=not ranks.first) as bar:
        episodes = play(
            engine, chat, envs, [seeds[i] for i, _ in own], limits, draws=[stream(draw, i, k) for i, k in own],
            workers=workers, on_done=lambda _: bar.update() and None,
        )  # fmt: skip
    played = [(*place, episode.trajectory()) for place, episode in zip(own, episodes, strict=True)]
    every = [one for part in ranks.gather(played) for one in part]
    return [trajectory for *_, trajectory in sorted(every, key=lambda one: one[:2])]
