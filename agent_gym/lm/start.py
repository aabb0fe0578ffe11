"""The policy that a run begins with: a checkpoint, a ready-made or pretrained model, or a small one, warm-started."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from agent_gym.lm import tiny
from agent_gym.lm.chat import Chat
from agent_gym.lm.demonstrations import Dialogue, demonstrations, encoded, warm_start
from agent_gym.lm.errors import Refused
from agent_gym.lm.models import Model, is_tiny, load
from agent_gym.lm.ranks import Ranks
from agent_gym.lm.rollout import environments
from agent_gym.lm.runs import Run
from agent_gym.lm.seeds import stream
from agent_gym.lm.shards import shard

__all__ = ["starting_policy"]

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def starting_policy(
    args: Any, run: Run, ranks: Ranks, kinds: Sequence[tuple[str, dict[str, Any]]]
) -> tuple[Model, Chat]:
    """Load or make the policy, the same on every rank, and keep it in checkpoints/start of the run.

    A run that is resumed starts from there, whatever became of ``init``.

    Args:
        args: The trainer's arguments: ``model`` (a name by now), ``init``, ``lora_rank``, ``load_in_4bit``, ``fsdp``,
            ``dtype``, ``checkpointing``, ``thinking``, ``warm``, ``seed``, ``max_context`` and ``micro_batch_tokens``.
        run: Where it is kept.
        ranks: The demonstrations and the warm start are shared over them.
        kinds: Ids and keyword arguments of the environments whose demonstrations a warm start learns from.

    Returns:
        The policy and its chat.
    """
    small = is_tiny(args.model)
    if args.fsdp and ranks.world == 1:
        raise Refused("--fsdp shares the parameters out to several processes: start them with torchrun")
    if args.fsdp and (args.load_in_4bit or (args.lora_rank and not small)):
        raise Refused("--fsdp is for all parameters: it needs --lora-rank 0, and does not go with --load-in-4bit")
    options: dict[str, Any] = {
        "four_bit": args.load_in_4bit, "device": "cpu" if args.fsdp else ranks.device, "dtype": DTYPES[args.dtype],
        "checkpointing": ranks.device.type == "cuda" if args.checkpointing is None else args.checkpointing,
        "seed": args.seed,
        "adapters": 0 if small else args.lora_rank,
    }  # fmt: skip

    def loaded(name: str) -> Model:
        model = load(name, **options)
        if args.fsdp:
            shard(model, ranks)
        return model

    kept = run.folder / "checkpoints" / "start"
    begun = ranks.gather(kept.exists())[0]  # one answer, or a late process would see what the first has just written
    fresh = args.model == "tiny" and not begun and not args.init
    if fresh:
        dialogues = _demonstrations(None, args, ranks, kinds)
        model = tiny.fresh((text for dialogue in dialogues for text in dialogue.texts), args.seed).to(ranks.device)
    else:
        model = loaded(str(kept) if begun else args.init or args.model)
    chat = Chat(model.tokenizer, thinking=args.thinking, stops=model.stops, sees_tools=not small)
    updates = 0 if begun or args.init else args.warm.updates
    if updates is None:
        updates = max(tiny.preset(env_id).updates for env_id, _ in kinds) if fresh else 0
    if updates:
        if not fresh:
            dialogues = _demonstrations(chat, args, ranks, kinds)
        loss = warm_start(
            model, [encoded(chat, dialogue) for dialogue in dialogues], replace(args.warm, updates=updates),
            context=args.max_context, most_tokens=args.micro_batch_tokens, seed=args.seed, ranks=ranks,
        )  # fmt: skip
        if loss > 0.3 and ranks.first:
            print(f"warm start: the loss is still {loss:.2f} a token, which leaves little to improve (--warm.updates)")
    if not begun:
        run.save("start", model, {})
    if fresh:
        model = loaded(str(kept))  # as a resumed run has it, in the asked precision
    return model, chat


def _demonstrations(
    chat: Chat | None, args: Any, ranks: Ranks, kinds: Sequence[tuple[str, dict[str, Any]]]
) -> list[Dialogue]:
    """The oracle's, of each environment an equal share."""
    count = args.warm.demonstrations
    if count is None:
        count = max(tiny.preset(env_id).demonstrations for env_id, _ in kinds)
    found: list[Dialogue] = []
    for number, (env_id, kwargs) in enumerate(kinds):
        (env,) = environments(env_id, 1, chat=chat, split="train", bounds={}, **kwargs)
        own = range(number, count, len(kinds))
        found += demonstrations(
            env, [stream(args.seed, "demonstration task", i) for i in own], wasteful=args.warm.wasteful,
            waste=args.warm.waste, draws=[stream(args.seed, "demonstration", i) for i in own], ranks=ranks,
            aloud=is_tiny(args.model),
        )  # fmt: skip
    return found
