"""The memory plan against what the CPU's allocator really gives."""

import json
import math
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig

from agent_gym.lm import plan as planning
from agent_gym.lm.errors import Refused
from agent_gym.lm.models import token_logprobs
from agent_gym.lm.plan import GIB, Args, advice, config_of, counts, plan, shaped

SMALL = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 4096, "tie_word_embeddings": False, "max_position_embeddings": 4096,
}  # fmt: skip


def allocator_peak(run):
    """The most bytes that the CPU's allocator had given out at a time while ``run`` ran, above those at its start."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def update(model, rows, length, entropy):
    scores = token_logprobs(model, [[1] * length] * rows, [[(1, length)]] * rows, entropy_grad=entropy)
    (scores.logprobs.sum() + scores.entropies.sum()).backward()


def kept_by_layers(model, rows, length):
    """Bytes that autograd holds after the layers' forward pass, as its hooks see them; parameters are not counted."""
    own, found = {p.untyped_storage().data_ptr() for p in model.net.parameters()}, {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.hidden(input_ids=torch.ones(rows, length, dtype=torch.long))
    return sum(size for size, _ in found.values()), hidden


CASES = [
    ("qwen2", 8, torch.bfloat16, False, False), ("qwen2", 8, torch.bfloat16, True, True),
    ("llama", 0, torch.float32, False, False), ("llama", 0, torch.bfloat16, True, False),
]  # fmt: skip


@pytest.mark.parametrize(("family", "rank", "dtype", "checkpointing", "entropy"), CASES)
def test_the_peak_of_an_update_is_the_allocators(family, rank, dtype, checkpointing, entropy, one_thread):
    config, rows, length = AutoConfig.for_model(family, **SMALL), 2, 384
    model = shaped(config, rank, dtype, checkpointing, "cpu")
    update(model, rows, length, entropy)  # the gradients are there from now on
    measured = allocator_peak(lambda: update(model, rows, length, entropy))
    planned = planning._pass(config, rank, False, dtype, checkpointing, rows, length, entropy, True)
    assert planned.peak == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(("family", "rank", "dtype", "checkpointing", "entropy"), [c for c in CASES if not c[3]])
def test_the_activations_are_those_that_autograd_keeps(family, rank, dtype, checkpointing, entropy):
    config, rows, length = AutoConfig.for_model(family, **SMALL), 2, 384
    measured, _ = kept_by_layers(shaped(config, rank, dtype, checkpointing, "cpu"), rows, length)
    planned = planning._pass(config, rank, False, dtype, checkpointing, rows, length, entropy, True)
    assert planned.kept == pytest.approx(measured, rel=0.1)


def test_logits_of_a_wide_vocabulary(one_thread):
    """They come in parts, as the head is applied to as many tokens as memory allows."""
    config = AutoConfig.for_model(
        "qwen2", **{**SMALL, "vocab_size": 152_064, "hidden_size": 64, "num_hidden_layers": 4}
    )
    model = shaped(config, 8, torch.bfloat16, True, "cpu")
    update(model, 1, 640, False)
    measured = allocator_peak(lambda: update(model, 1, 640, False))
    planned = planning._pass(config, 8, False, torch.bfloat16, True, 1, 640, False, True)
    assert planned.peak == pytest.approx(measured, rel=0.1)
    assert planned.peak > 2 * 440 * 152_064 * 4


def test_parameters_of_the_known_shapes():
    known = {"0.5B": 494_032_768, "1.5B": 1_543_714_304, "7B": 7_615_616_512, "14B": 14_770_033_664}
    assert {size: counts(config_of(f"Qwen2.5-{size}"), 0).all for size in known} == known
    assert counts(config_of("Qwen/Qwen2.5-7B-Instruct"), 16).trained == 40_370_176


def test_the_lines_of_a_plan():
    args = Args(gpus=4, groups=4, episodes=16)
    found = plan(args)
    base, adapters = 7_615_616_512, 40_370_176
    assert found.held == {
        "weights, bfloat16": base * 2, "adapters of rank 16, float32": adapters * 4,
        "reference policy, float32": adapters * 4, "gradients, float32": adapters * 4,
        "moments of Adam, float32": adapters * 8,
    }  # fmt: skip
    assert found.training["gradients of 4 groups, twice"] == 8 * adapters * 4
    assert found.kv_token == 56 * 1024
    assert found.rollout["keys and values of 16 x 8192 tokens"] == 16 * 8192 * 56 * 1024
    assert plan(Args(model="Qwen2.5-14B")).kv_token == 192 * 1024
    assert found.fits
    assert "fits" in str(found)
    kept = plan(Args(checkpointing=False)).training["activations of 1 x 8192 tokens"]
    assert kept / 8192 / 28 / 1000 == pytest.approx(321, rel=0.1)  # KB a token and layer


def test_all_parameters_sharded_over_gpus():
    one, four = (plan(Args(lora_rank=0, gpus=gpus, fsdp=gpus > 1)) for gpus in (1, 4))
    assert not one.fits
    for name in ("weights, float32", "gradients, float32", "moments of Adam, float32"):
        assert four.held[name] == one.held[name] / 4
    assert four.held["the whole policy to sample with, bfloat16"] == one.held["weights, float32"] / 2


def test_four_bits_and_vllm():
    found = plan(Args(load_in_4bit=True, engine="vllm", gpu_share=0.25))
    linear = 6_525_288_448
    assert found.held["weights, 4 bits"] == linear * 0.5625 + (7_615_616_512 - linear) * 2
    assert found.rollout == {"vLLM, 25% of the GPU": 20 * GIB}


@pytest.mark.parametrize("rank", [0, 16])
@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_a_rollout_beside_the_update(rank, engine):
    alone, beside = (plan(Args(lora_rank=rank, engine=engine, async_rollouts=ahead)) for ahead in (False, True))
    trained = counts(config_of(Args.model), rank).trained
    assert sum(beside.held.values()) == sum(alone.held.values()) + 4 * trained
    (needed,) = beside.needed.values()
    fixed = planning.CONTEXT + sum(alone.held.values())
    assert needed == pytest.approx(sum(alone.needed.values()) - fixed + 4 * trained)
    assert beside.rows == alone.rows if engine == "vllm" else beside.rows < alone.rows or alone.rows == 0


def test_what_does_not_fit_says_what_to_lower(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(AutoConfig.for_model("qwen2", **SMALL).to_dict()))
    args = Args(model=str(tmp_path), gpu_gib=2.0, episodes=4096, micro_batch_tokens=4096, max_context=4096)
    assert not plan(args).fits
    lines = advice(args)
    assert any(line.startswith("--episodes") and line.endswith("GiB, fits") for line in lines)
    again = Args(**{**vars(args), "episodes": plan(args).rows})
    assert plan(again).fits
    assert not math.isinf(plan(args).needed["rollout"])


def test_the_command(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(AutoConfig.for_model("qwen2", **SMALL).to_dict()))
    line = [sys.executable, "-m", "agent_gym.lm.plan", "--model", str(tmp_path), "--gpu-gib", "0.5"]
    line += ["--episodes", "1"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "does not fit" in done.stdout
    assert "--micro-batch-tokens" in done.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "/nowhere"}, "has no config"), ({"load_in_4bit": True, "lora_rank": 0}, "needs adapters"),
        ({"fsdp": True}, "all parameters"), ({"gpus": 0}, "--gpus must be above 0"),
        ({"fsdp": True, "lora_rank": 0, "gpus": 2, "async_rollouts": True}, "--async-rollouts does not go with --fsdp"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_go_together(given, said):
    with pytest.raises(Refused, match=said):
        plan(Args(**given))
