"""All parameters in shards: two processes update, sample, save and go on as they do with whole copies."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="agent_gym.lm needs the extra 'train'")
pytest.importorskip("transformers", reason="agent_gym.lm needs the extra 'train'")

from small_lm import ROOT, processes  # noqa: E402

WORLD = """
import copy, sys
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
from small_lm import load_trainer, small_model
import numpy as np
import torch
from agent_gym.lm.engine import TorchEngine
from agent_gym.lm.models import load
from agent_gym.lm.ranks import Ranks
from agent_gym.lm.shards import joined, parted, shard

torch.set_num_threads(1)
ranks, folder = Ranks.start("cpu"), sys.argv[2]
ppo, grpo, rft = (load_trainer(name) for name in ("ppo_c3rl", "grpo_pcgrad", "rft"))
draw = torch.Generator().manual_seed(0)


def episode(index):
    ids = torch.randint(5, 60, (10 + 3 * index,), generator=draw).tolist()
    spans = [(3, 6), (8, len(ids) - 1)]
    logprobs = [-4.0] * sum(end - begin for begin, end in spans)
    return SimpleNamespace(index=index, ids=ids, spans=spans, logprobs=logprobs, steps=[None, None])


episodes = [episode(i) for i in range(8)]
mine = episodes[:6] if ranks.first else episodes[6:]  # one process makes more passes than the other
small = {"num_episodes": 8, "group_size": 2, "micro_batch_tokens": 48, "kl_coef": 0.1, "max_context": 64}


def made(sharded):
    model = small_model(["an order of two books, and a customer who waits for them"] * 4)
    if sharded:
        shard(model, ranks)
    model.freeze_reference()
    return model, torch.optim.SGD(model.trained(), lr=0.1, momentum=0.9)


def by_ppo(model, optimizer, iteration):
    args, turns = ppo.Args(num_minibatches=1, **small), [np.array([1.0, -0.5]) * (1 - e.index % 3) for e in mine]
    return ppo.update(model, None, optimizer, mine, turns, np.ones(4), args, ranks, iteration)


def by_grpo(model, optimizer, iteration):
    args = grpo.Args(num_minibatches=1, surgery="pcgrad", tau=-1.0, groups=2, clip_high=0.2, loss_norm="tokens",
                     **small)
    samples = [grpo.Sample(e, e.index // 2, e.index // 2, e.index // 4, None) for e in mine]
    advantage = np.array([(-1.0) ** e.index for e in mine])
    losses, conflict = grpo.update(model, optimizer, samples, advantage, 2, args, iteration, ranks)
    return losses | {"cosine": conflict.cosine.tolist()}


def by_rft(model, optimizer, iteration):
    args = rft.Args(batch_size=3, epochs=2, learning_rate=1e-3, held_out=0.3, micro_batch_tokens=48)
    return rft.refit(model, [(e.ids, e.spans) for e in episodes], args, ranks, iteration)


found = {}
for name, update in {"ppo": by_ppo, "grpo": by_grpo, "rft": by_rft}.items():
    for sharded in (False, True):
        model, optimizer = made(sharded)
        losses = [update(model, optimizer, iteration) for iteration in range(2)]
        found[name, sharded] = losses, [p.detach().clone() for p in model.whole().net.parameters()]

# go on from a checkpoint, in shards and in one piece
model, optimizer = made(True)
engine = TorchEngine(model, stops=())
by_ppo(model, optimizer, 0)
model.save(folder + "/checkpoint" if ranks.first else None)
state = joined(optimizer.state_dict(), ranks.first)
(state,) = [state for state in ranks.gather(state) if state["state"][0]["momentum_buffer"] is not None]
ranks.barrier()
by_ppo(model, optimizer, 1)
engine.update(model)
engine.submit(0, episodes[7].ids, 8, 1)
turns = []
while not turns:
    turns += engine.step()
goes_on = {}
for sharded in (False, True):
    other, own = made(sharded)
    other.restore(folder + "/checkpoint")
    own.load_state_dict(parted(copy.deepcopy(state), own))
    by_ppo(other, own, 1)
    goes_on[sharded] = [p.detach().clone() for p in other.whole().net.parameters()]
whole = load(folder + "/checkpoint")
if ranks.first:
    torch.save(
        {
            "found": found, "sampled": turns[0].logprobs, "goes on": goes_on,
            "checkpoint": [p.detach() for p in whole.net.parameters()],
            "held": sum(p.to_local().numel() for p in model.trained()), "all": sum(p.numel() for p in model.trained()),
        },
        folder + "/out",
    )
ranks.stop()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    (folder / "world.py").write_text(WORLD)
    processes(2, folder / "world.py", ROOT / "tests", folder, cwd=folder)
    return torch.load(folder / "out", weights_only=False)


def close(one, other):
    for p, q in zip(one, other, strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=0)


@pytest.mark.parametrize("trainer", ["ppo", "grpo", "rft"])
def test_two_updates_are_those_of_whole_copies(world, trainer):
    (figures, weights), (sharded_figures, sharded_weights) = (world["found"][trainer, sharded] for sharded in (0, 1))
    close(weights, sharded_weights)
    for one, other in zip(figures, sharded_figures, strict=True):
        assert other.keys() == one.keys()
        for name in one:  # of which some are matrices
            np.testing.assert_allclose(other[name], one[name], atol=1e-5, rtol=1e-4, err_msg=name)
    assert max(float((p - q).abs().max()) for p, q in zip(weights, world["checkpoint"], strict=True)) > 1e-3


def test_each_process_holds_its_part(world):
    assert world["held"] <= 0.52 * world["all"]


def test_a_checkpoint_is_that_of_a_whole_model_and_is_gone_on_from(world):
    _, weights = world["found"]["ppo", True]
    for sharded in (False, True):
        close(weights, world["goes on"][sharded])


def test_what_samples_is_the_policy_after_the_update(world):
    assert len(world["sampled"]) == 8
    assert all(logprob < 0.0 for logprob in world["sampled"])
