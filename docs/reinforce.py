"""REINFORCE on APIAgent-v0, complete: a small model, warm-started for a moment, then the policy gradient with the mean
reward as its baseline."""

import numpy as np
import torch

from agent_gym.lm import tiny
from agent_gym.lm.chat import Chat
from agent_gym.lm.demonstrations import WarmStart, demonstrations, encoded, warm_start
from agent_gym.lm.engine import TorchEngine
from agent_gym.lm.models import passes, token_logprobs
from agent_gym.lm.ranks import Ranks
from agent_gym.lm.rollout import Limits, environments, play
from agent_gym.lm.seeds import stream

UPDATES, ITERATIONS, EPISODES = 400, 20, 32
TASKS = {"domains": ["shop"], "difficulty": 1, "max_turns": 6}

ranks = Ranks.start("cpu")
torch.set_num_threads(1)

# the oracle's dialogues make the tokenizer, and the model copies them for a while
source = environments("APIAgent-v0", 1, chat=None, split="train", bounds={}, **TASKS)[0]
dialogues = demonstrations(source, range(3000), wasteful=0.5, waste=0.3)
model = tiny.fresh((text for dialogue in dialogues for text in dialogue.texts), seed=1)
chat = Chat(model.tokenizer, stops=model.stops, sees_tools=False)
examples = [encoded(chat, dialogue) for dialogue in dialogues]
warm_start(model, examples, WarmStart(updates=UPDATES), context=512, most_tokens=8192, seed=1, ranks=ranks)

envs = environments("APIAgent-v0", EPISODES, chat=chat, split="train", bounds={}, **TASKS)
engine = TorchEngine(model, stops=chat.stops)
optimizer = torch.optim.AdamW(model.trained(), lr=2e-4)

for iteration in range(ITERATIONS):
    tasks = [stream("task", iteration, i) for i in range(EPISODES)]
    draws = [stream("draw", iteration, i) for i in range(EPISODES)]
    engine.update(model)  # the weights have changed: what it keeps of them is stale
    episodes = [e for e in play(engine, chat, envs, tasks, Limits(48, 512), draws=draws) if not e.infra]

    # an episode is worth its success, and a little for every call that the environment could run
    worth = np.array([e.success - 0.1 * sum(r["error"] is not None for s in e.steps for r in s.tool_results)
                      for e in episodes])  # fmt: skip
    weight = worth - worth.mean()
    tokens = sum(len(e.logprobs) for e in episodes)
    rows, spans = [e.ids for e in episodes], [e.spans for e in episodes]
    for part in passes(model, rows, spans, 8192):
        logprobs = token_logprobs(model, [rows[i] for i in part], [spans[i] for i in part]).logprobs  # its own tokens
        of_tokens = np.repeat(weight[part], [len(episodes[i].logprobs) for i in part])
        (-(logprobs * torch.tensor(of_tokens, dtype=torch.float32)).sum() / tokens).backward()
    optimizer.step()
    optimizer.zero_grad()
    success = np.mean([e.success for e in episodes])
    calls = np.mean([e.cost_total["tool_calls"] for e in episodes])
    print(f"{iteration}: worth {worth.mean():.2f}, success {success:.2f}, calls {calls:.1f}")
