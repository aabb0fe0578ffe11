"""agent_gym.lm.vllm_engine and agent_gym.lm.importance: what is asked of vLLM, how weights reach it, and what makes up
for its arithmetic. Where vLLM is installed, with vLLM itself."""

import copy
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from safetensors.torch import load_file  # noqa: E402
from small_lm import ROOT, load_trainer, rows, shell  # noqa: E402

from agent_gym.lm import models  # noqa: E402
from agent_gym.lm.engine import TorchEngine  # noqa: E402
from agent_gym.lm.errors import Refused  # noqa: E402
from agent_gym.lm.importance import importance  # noqa: E402
from agent_gym.lm.models import Model, token_logprobs  # noqa: E402
from agent_gym.lm.overlap import Rollouts  # noqa: E402
from agent_gym.lm.ranks import Ranks  # noqa: E402
from agent_gym.lm.rollout import Episode  # noqa: E402
from agent_gym.lm.vllm_engine import VLLMEngine, engine_of  # noqa: E402

VOCABULARY, STOPS = 200, (1, 2, 3, 4, 5)
SIZES = {  # heads of 32: on a CPU vLLM has no kernels for smaller ones
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": None,
}  # fmt: skip
REAL = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (docs/scale.md)")

pytestmark = pytest.mark.usefixtures("one_thread")


def model_of(adapters=0, seed=0):
    torch.manual_seed(seed)
    net = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SIZES))
    if adapters:
        net = peft.get_peft_model(net, peft.LoraConfig(r=adapters, lora_alpha=8, target_modules="all-linear"))
    return Model(net, SimpleNamespace(eos_token_id=1, pad_token_id=0), "small", adapters=adapters)


def train(model, seed=1):
    """Move every trained weight, so that adapters begin to matter."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.trained():
            p.add_(0.05 * torch.randn_like(p))


# ---------------------------------------------------------------------------------------------------------------------
# A stand-in for vLLM: each request writes one id a step, drawn from its seed alone, with minus the id as its
# log-probability


class Vllm:
    engines: list = []  # noqa: RUF012

    def __init__(self, options):
        if options["max_model_len"] > 1000:
            raise ValueError("the model takes 1000 tokens\nand more that nobody reads")
        self.options, self.requests, self.adapters, self.weights = options, {}, {}, {}
        self.calls = []
        self.engine_core = SimpleNamespace(_finalizer=SimpleNamespace(atexit=True))
        Vllm.engines.append(self)

    from_engine_args = classmethod(lambda cls, options: cls(options))

    def add_request(self, request_id, prompt, sampling, lora_request=None):
        assert request_id not in self.requests
        assert self.calls[-1:] != ["sleep"]
        draws = np.random.default_rng(sampling["seed"])
        self.requests[request_id] = SimpleNamespace(prompt=prompt, sampling=sampling, adapter=lora_request, ids=[],
                                                    draws=draws)  # fmt: skip

    def abort_request(self, request_ids):
        for one in request_ids:
            del self.requests[one]

    def step(self):
        answers = []
        for name, request in list(self.requests.items()):
            sampling, ids = request.sampling, request.ids
            ids.append(int(request.draws.integers(1, 40)))
            stopped = ids[-1] in sampling["stop_token_ids"]
            if stopped or len(ids) == sampling["max_tokens"]:
                among = [{i: SimpleNamespace(logprob=-float(i))} for i in ids]
                output = SimpleNamespace(token_ids=ids, logprobs=among, finish_reason="stop" if stopped else "length")
                answers.append(SimpleNamespace(request_id=name, outputs=[output]))
                del self.requests[name]
        return answers

    def add_lora(self, request):
        weights = load_file(Path(request.lora_path, "adapter_model.safetensors"))  # it is whole by now
        self.adapters[request.lora_int_id] = weights

    def remove_lora(self, number):
        del self.adapters[number]

    def collective_rpc(self, method, kwargs):
        assert method == "reload_weights"
        self.weights = {name: value.clone() for name, value in kwargs["weights_iterator"]}
        self.calls.append(method)

    def reset_prefix_cache(self):
        self.calls.append("reset_prefix_cache")

    def sleep(self, level):
        assert (level, self.requests) == (1, {})
        self.calls.append("sleep")

    def wake_up(self):
        self.calls.append("wake_up")


class Adapter(SimpleNamespace):
    def __init__(self, name, number, path):
        super().__init__(lora_name=name, lora_int_id=number, lora_path=path)


@pytest.fixture
def vllm(monkeypatch):
    names = {
        "vllm": {"EngineArgs": dict, "LLMEngine": Vllm, "SamplingParams": dict},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": Adapter},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(FINAL_ONLY="final only")},
    }
    for name, held in names.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Vllm, "engines", [])
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def fake(model, **options):
    return VLLMEngine(model, **{"stops": STOPS, "context": 100, **options})


def turns_of(engine, count):
    found = {}
    for _ in range(1000):
        for turn in engine.step():
            assert turn.key not in found
            found[turn.key] = turn
        if len(found) == count:
            return found
    raise AssertionError(f"{len(found)} of {count} turns ended")


@pytest.mark.usefixtures("vllm")
def test_what_is_asked_of_vllm():
    engine = fake(model_of(adapters=12), temperature=0.7, kv_gib=0.5, gpu_share=0.4)
    asked = {
        "skip_tokenizer_init": True, "max_model_len": 100, "dtype": "float32", "enable_lora": True,
        "load_format": "dummy", "max_lora_rank": 16, "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "gpu_memory_utilization": 0.4, "kv_cache_memory_bytes": 2**29, "distributed_executor_backend": None,
    }  # fmt: skip
    assert engine.llm.options.items() >= asked.items()
    config = transformers.AutoConfig.from_pretrained(engine.llm.options["model"])
    assert (config.architectures, config.hidden_size) == (["LlamaForCausalLM"], 64)
    engine.submit(3, [9, 8, 7], 20, 2**64 - 1)
    (request,) = engine.llm.requests.values()
    assert request.prompt == {"prompt_token_ids": [9, 8, 7]}
    assert request.sampling == {
        "temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "logprobs": 0, "ignore_eos": True, "max_tokens": 20,
        "stop_token_ids": [1, 2, 3, 4, 5], "detokenize": False, "output_kind": "final only", "seed": 2**63 - 1,
    }  # fmt: skip


@pytest.mark.usefixtures("vllm")
def test_turns_end_one_by_one_and_rows_come_in_between():
    engine = fake(model_of())
    for key in range(40):
        engine.submit(key, [9, 8, key], 6, key)
    begun = {turn.key: turn for turn in engine.step()}
    assert 0 < len(begun) < 20
    for key, turn in begun.items():  # its next turn begins while the others write
        engine.submit(key, [9, 8, key, *turn.ids, 7], 6, 100 + key)
    found = turns_of(engine, 40)
    assert {key: found[key] for key in begun} != begun
    assert {(len(turn.ids) == 6, turn.stopped) for turn in found.values()} >= {(False, True), (True, False)}
    for turn in found.values():
        assert turn.logprobs == [-float(i) for i in turn.ids]
        assert [i in STOPS for i in turn.ids] == [False] * (len(turn.ids) - 1) + [turn.stopped]


@pytest.mark.usefixtures("vllm")
def test_wrong_rows_are_refused():
    engine = fake(model_of())
    engine.submit(0, [9], 6, 0)
    with pytest.raises(ValueError, match="row 0 is submitted again"):
        engine.submit(0, [9], 6, 0)
    with pytest.raises(ValueError, match="1 or more"):
        engine.submit(1, [], 6, 0)
    with pytest.raises(Refused, match="101 tokens is longer than the context of 100"):
        engine.submit(1, [9] * 95, 6, 0)


@pytest.mark.usefixtures("vllm")
def test_adapters_are_handed_over_under_a_new_name():
    model, seen = model_of(adapters=4), []
    engine = fake(model)
    folder = Path(engine.folder.name)
    assert not any("lora_" in name or "base_layer" in name for name in engine.llm.weights)
    base = model.net.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight
    assert torch.equal(engine.llm.weights["model.layers.1.mlp.up_proj.weight"], base)
    for seed in range(3):
        train(model, seed)
        engine.update(model)
        engine.submit(0, [9], 6, 0)
        adapter = engine.llm.requests["0"].adapter
        seen.append((adapter.lora_name, adapter.lora_int_id))
        (held,) = engine.llm.adapters.values()
        values = peft.get_peft_model_state_dict(model.net)
        assert held.keys() == values.keys()
        assert all(torch.equal(held[name], values[name]) for name in held)
        assert sorted(path.name for path in folder.iterdir()) == ["base", adapter.lora_name]
        engine.release([0])
    assert seen == [("policy-v2", 2), ("policy-v3", 3), ("policy-v4", 4)]
    assert engine.llm.calls == ["reload_weights", "reset_prefix_cache"]  # of the base, once


@pytest.mark.usefixtures("vllm")
def test_the_reference_is_never_handed_over():
    model = model_of(adapters=4)
    train(model)
    model.freeze_reference()
    train(model, 2)
    engine = fake(model)
    (held,) = engine.llm.adapters.values()
    values = peft.get_peft_model_state_dict(model.net, adapter_name="default")
    assert held.keys() == values.keys()
    assert all(torch.equal(held[name], values[name]) for name in held)
    assert not any("lora_" in name for name in engine.llm.weights)


@pytest.mark.usefixtures("vllm")
def test_all_parameters_are_handed_over_in_memory():
    model = model_of()
    engine = fake(model)
    assert not engine.llm.options["enable_lora"]
    for seed in (None, 1):
        if seed:
            train(model, seed)
            engine.update(model)
        assert all(torch.equal(engine.llm.weights[name], value) for name, value in model.net.state_dict().items())
    assert engine.llm.calls == ["reload_weights", "reset_prefix_cache"] * 2


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize("adapters", [0, 4])
def test_a_batch_ahead_is_served_with_weights_one_update_older(adapters):
    model, served, trained = model_of(adapters), [], []
    engine = fake(model)

    def roll_out(iteration):
        served.extend(engine.llm.adapters.values() if adapters else [engine.llm.weights])
        return []

    rollouts = Rollouts(engine, model, roll_out, 4, ahead=True)
    for i in rollouts.over(range(4)):
        rollouts.take(i)
        values = peft.get_peft_model_state_dict(model.net) if adapters else model.net.state_dict()
        trained.append({name: value.clone() for name, value in values.items()})
        train(model, i)
    for held, values in zip(served, [trained[0], *trained[:3]], strict=True):
        assert held.keys() == values.keys()
        assert all(torch.equal(held[name], values[name]) for name in held)


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize("adapters", [0, 4])
def test_an_update_begins_what_is_being_written_again(adapters):
    model = model_of(adapters)
    engine, other = fake(model), fake(model)
    for key in range(20):
        engine.submit(key, [9, key], 8, key)
        other.submit(key, [9, key], 8, key)
    expected = turns_of(other, 20)
    found = {turn.key: turn for turn in engine.step()}
    engine.update(model)
    assert {len(request.ids) for request in engine.llm.requests.values()} == {0}
    assert all(request.adapter is engine.adapter for request in engine.llm.requests.values())
    assert found | turns_of(engine, 20 - len(found)) == expected


@pytest.mark.usefixtures("vllm")
def test_a_gpu_is_left_when_no_row_is_left():
    model = model_of()
    engine = fake(model)
    engine.cuda = True
    engine.llm.calls.clear()
    engine.submit(0, [9], 50, 0)
    engine.submit(1, [9], 1, 1)
    turns_of(engine, 1)
    engine.release([0, 7])
    assert engine.llm.requests == {}
    assert engine.llm.calls == []  # row 1 is between two turns
    engine.release([1])
    engine.release([1])
    assert engine.llm.calls == ["sleep"]
    engine.submit(0, [9], 6, 0)
    engine.release([0])
    engine.update(model)
    assert engine.llm.calls == ["sleep", "wake_up", "sleep", "wake_up", "reload_weights", "reset_prefix_cache"]


@pytest.mark.usefixtures("vllm")
def test_the_engine_that_is_asked_for():
    args = SimpleNamespace(engine="torch", temperature=1.0, kv_gib=None, gpu_share=0.3, max_context=2000)
    chat, model = SimpleNamespace(stops=STOPS), model_of()
    assert isinstance(engine_of(model, chat, args), TorchEngine)
    args.engine, args.max_context = "vllm", 50
    engine = engine_of(model, chat, args)
    assert isinstance(engine, VLLMEngine)
    assert engine.llm.options["max_model_len"] == 50
    args.max_context = 2000
    with pytest.raises(Refused, match=r"^vLLM cannot serve small: the model takes 1000 tokens$"):
        engine_of(model, chat, args)


# ---------------------------------------------------------------------------------------------------------------------
# Importance weights


def test_weights_are_ratios_up_to_the_cap():
    trained, sampled = torch.tensor([-1.0, -1.0, -3.0, -0.5]), torch.tensor([-1.0, -3.0, -1.0, -0.4])
    weight, figures = importance(trained, sampled, [1, 3], 2.0)
    assert weight.tolist() == pytest.approx([1.0, 2.0, np.exp(-2), np.exp(-0.1)])
    gap, same, cut = figures
    assert gap.tolist() == pytest.approx([0.0, 2.0, 2.0, 0.1])
    assert same.tolist() == weight.tolist()
    assert cut.tolist() == [0.0, 1.0, 0.0, 0.0]


def test_the_mask_drops_episodes_by_their_geometric_mean():
    sampled = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0])
    trained = sampled + torch.tensor([0.3, -0.3, 0.02, 0.02, -0.005])
    weight, figures = importance(trained, sampled, [2, 2, 1], 2.0, 0.01)
    assert weight.tolist() == pytest.approx([np.exp(0.3), np.exp(-0.3), 0.0, 0.0, np.exp(-0.005)])
    assert figures[2].tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]


def episodes_of(model, count=8):
    """Turns on random prompts, as the engine samples them."""
    rng, engine, episodes = np.random.default_rng(3), TorchEngine(model, stops=STOPS), []
    prompts = [rng.integers(6, VOCABULARY, size=n).tolist() for n in rng.integers(4, 20, size=count)]
    for key, ids in enumerate(prompts):
        engine.submit(key, ids, 12, key)
    for key, turn in sorted(turns_of(engine, count).items()):
        ids = prompts[key] + turn.ids
        episode = Episode(key, "", {}, "", "", "", key // 4, ids, {}, "", spans=[(len(prompts[key]), len(ids))])
        episode.logprobs, episode.steps = turn.logprobs, [None]
        episodes.append(episode)
    return episodes


def updated(name, model, episodes, **changes):
    """A copy of the model after one plain step on the episodes, all of advantage 1, and the figures."""
    trainer, model = load_trainer(name), copy.deepcopy(model)
    settings = {"num_minibatches": 1, "update_epochs": 1, "kl_coef": 0.0, "max_grad_norm": 1e9,
                "num_episodes": len(episodes), **changes}  # fmt: skip
    optimizer = torch.optim.SGD(model.trained(), lr=1.0)
    if name == "ppo_c3rl":
        args, ones = trainer.Args(**settings), [np.ones(1)] * len(episodes)
        figures = trainer.update(model, None, optimizer, episodes, ones, np.ones(4), args, Ranks(), 0)
    else:
        args = trainer.Args(surgery="none", loss_norm="tokens", clip_high=0.28, **settings)
        samples = [trainer.Sample(e, 0, e.seed, 0, None) for e in episodes]
        figures, _ = trainer.update(model, optimizer, samples, np.ones(len(episodes)), 1, args, 0, Ranks())
    return model, figures


def gradient(model, episodes, weights):
    """Of the mean over the tokens of - weight x log-probability."""
    model = copy.deepcopy(model)
    found = token_logprobs(model, [e.ids for e in episodes], [e.spans for e in episodes]).logprobs
    (-(found * torch.tensor(np.concatenate(weights), dtype=torch.float32)).sum() / len(found)).backward()
    return torch.cat([p.grad.flatten() for p in model.trained()])


@pytest.mark.parametrize("name", ["ppo_c3rl", "grpo_pcgrad", "rft"])
def test_refusals(name, monkeypatch):
    """In one sentence, before anything is loaded."""
    trainer = load_trainer(name)
    monkeypatch.setattr("agent_gym.lm.arguments.find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"^--engine vllm needs vLLM: pip install 'agent-gym\[vllm\]'$"):
        trainer.settle(trainer.Args(engine="vllm"), Ranks())
    with pytest.raises(Refused, match=r"^--ray-workers needs Ray: pip install 'agent-gym\[ray\]'$"):
        trainer.settle(trainer.Args(ray_workers=2), Ranks())
    with pytest.raises(Refused, match=r"^--ray-workers must be 0 or more, not -1$"):
        trainer.settle(trainer.Args(ray_workers=-1), Ranks())
    with pytest.raises(Refused, match=r"^--gpu-share must be above 0 and at most 1, not 0\.0$"):
        trainer.settle(trainer.Args(gpu_share=0.0), Ranks())
    if name != "rft":
        with pytest.raises(Refused, match=r"^--importance-cap must be a number above 0, not 0\.0$"):
            trainer.settle(trainer.Args(importance_cap=0.0), Ranks())


@pytest.mark.parametrize("name", ["ppo_c3rl", "grpo_pcgrad"])
@pytest.mark.parametrize("mask", [None, 0.01])
def test_trainers_weigh_tokens_that_the_sampler_saw_differently(name, mask):
    model = model_of()
    episodes = episodes_of(model)
    weights = [np.ones(len(e.logprobs)) for e in episodes]

    def check():
        after, figures = updated(name, model, episodes, importance_mask=mask)
        moved = [(p - q).flatten() for p, q in zip(model.trained(), after.trained(), strict=True)]
        torch.testing.assert_close(torch.cat(moved).detach(), gradient(model, episodes, weights), atol=1e-5, rtol=1e-3)
        assert figures["losses/importance_mean"] == pytest.approx(np.concatenate(weights).mean(), abs=1e-5)
        return figures

    plain = check()
    assert plain["losses/sampler_gap_mean"] <= plain["losses/sampler_gap_max"] < 1e-4
    assert plain["losses/importance_cut"] == 0.0
    episodes[0].logprobs = [lp - 0.5 for lp in episodes[0].logprobs]  # the sampler was less sure of them
    episodes[1].logprobs = [lp - 1.5 for lp in episodes[1].logprobs]
    episodes[2].logprobs = [lp + 1.0 for lp in episodes[2].logprobs]
    for i, weight in enumerate((np.exp(0.5), 2.0, np.exp(-1.0))):
        weights[i] *= 0.0 if mask else weight
    figures = check()
    tokens, cut = sum(map(len, weights)), sum(map(len, weights[:3] if mask else weights[1:2]))
    assert figures["losses/importance_cut"] == pytest.approx(cut / tokens)
    assert figures["losses/sampler_gap_max"] == pytest.approx(1.5, abs=1e-3)


def test_refits_compare_the_engine_with_the_model():
    trainer, model = load_trainer("rft"), model_of()
    args = trainer.Args(max_new_tokens=10, max_context=100, temperature=0.8)
    examples = [(e.ids, e.spans) for e in episodes_of(model)]
    engine = TorchEngine(model, stops=STOPS, temperature=0.8)
    same = trainer.sampler_gap(engine, model, examples, args, range(5))
    assert same["losses/sampler_gap_max"] < 1e-4
    assert engine.rows == {}
    train(model)
    assert trainer.sampler_gap(TorchEngine(model_of(), stops=STOPS), model, examples, args, range(5))[
        "losses/sampler_gap_mean"
    ] > 0.01  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# vLLM itself


def written(engine, prompts, seed=0):
    for key, ids in enumerate(prompts):
        engine.submit(key, ids, 16, seed + key)
    found = turns_of(engine, len(prompts))
    engine.release(range(len(prompts)))
    return [found[key] for key in range(len(prompts))]


@REAL
@pytest.mark.parametrize("name", ["adapters", "all parameters", "smollm2-135m"])
def test_after_an_update_vllm_has_the_probabilities_of_the_model(name):
    own = name != "smollm2-135m"
    model = model_of(adapters=8 * (name == "adapters")) if own else models.load(name, adapters=16)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(6, VOCABULARY, size=n).tolist() for n in (3, 20, 47, 90)]
    engine = VLLMEngine(model, stops=STOPS, context=256, temperature=0.7, kv_gib=0.25)
    try:
        before = copy.deepcopy(model)
        for update in range(3):
            if update:
                train(model, update)
                engine.update(model)
            turns = written(engine, prompts)
            alone = [written(engine, [ids], key)[0] for key, ids in enumerate(prompts)]
            assert [turn.ids for turn in turns] == [turn.ids for turn in alone]
            full = [ids + turn.ids for ids, turn in zip(prompts, turns, strict=True)]
            spans = [[(len(ids), len(row))] for ids, row in zip(prompts, full, strict=True)]
            sampled = torch.tensor([lp for turn in turns for lp in turn.logprobs])
            with torch.no_grad():
                now = token_logprobs(model, full, spans, 0.7).logprobs
                base = token_logprobs(before, full, spans, 0.7).logprobs
            assert (now - sampled).abs().max() < 1e-3
            assert update == 0 or (base - sampled).abs().max() > 0.05
    finally:
        engine.llm.engine_core.shutdown()


RUNS = {
    "ppo_c3rl": "--num-episodes 8 --total-iterations 2 --eval-episodes 2",
    "grpo_pcgrad": "--num-episodes 16 --group-size 4 --pool-tasks 8 --calibration-samples 2 --total-iterations 2 "
                   "--eval-tasks 2 --eval-samples 2 --eval-every 0",
    "rft": "--rounds 2 --tasks-per-round 8 --samples-per-task 2 --keep success --epochs 1 --eval-episodes 4 "
           "--pass-tasks 2",
}  # fmt: skip


@REAL
@pytest.mark.parametrize(("name", "world"), [("ppo_c3rl", 1), ("grpo_pcgrad", 1), ("rft", 1), ("ppo_c3rl", 2)])
def test_two_iterations_of_each_trainer(name, world, tmp_path):
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []
    line = [*start, str(ROOT / "cleanrl_llm" / f"{name}.py"), "--engine", "vllm", "--kv-gib", "0.25", "--run-dir", "."]
    done = subprocess.run([sys.executable, *line, *RUNS[name].split()], env=shell(), cwd=tmp_path, capture_output=True,
                          text=True, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = tmp_path.glob("*__*")
    learnt = [row for row in rows(folder) if "losses/sampler_gap_max" in row]
    assert len(learnt) == 2
    assert max(row["losses/sampler_gap_max"] for row in learnt) < 1e-3
