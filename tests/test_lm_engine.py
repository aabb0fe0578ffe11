"""agent_gym.lm.engine and agent_gym.lm.kv: what is sampled, how it is batched, and the memory it takes."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from agent_gym.lm.engine import TorchEngine  # noqa: E402
from agent_gym.lm.errors import Refused  # noqa: E402
from agent_gym.lm.kv import KeyValues  # noqa: E402
from agent_gym.lm.models import Model  # noqa: E402

VOCABULARY, STOPS = 200, (1, 2, 3, 4, 5)
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": None,
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention"]
TOKEN = 2 * 2 * 2 * 16 * 4  # bytes: layers, keys and values, heads, size, float32


pytestmark = pytest.mark.usefixtures("one_thread")


def model_of(config=None, seed=0):
    torch.manual_seed(seed)
    net = transformers.AutoModelForCausalLM.from_config(config or transformers.LlamaConfig(**SIZES))
    return Model(net, SimpleNamespace(eos_token_id=1, pad_token_id=0), "small")


@pytest.fixture(scope="module")
def model():
    return model_of()


def gib(rows, columns):
    return rows * columns * TOKEN / 2**30


def memory(engine):
    return sum(side.nbytes for layer in engine.kv._cache.layers for side in layer.held)


def turns_of(engine, count, bound=None):
    found = {}
    while len(found) < count:
        for turn in engine.step():
            assert turn.key not in found
            found[turn.key] = turn
        if bound is not None:
            assert memory(engine) <= bound * 2**30
    return found


def whole(model, ids, temperature=1.0):
    """Log-probabilities after each id, by one pass over all of them."""
    with torch.no_grad():
        return torch.log_softmax(model.logits(model.hidden(input_ids=torch.tensor([ids]))[0], temperature), -1)


def check(model, ids, turn, seed, temperature=1.0, slack=1e-4):
    """Log-probabilities are those of a whole pass; each id is where the next uniform number of its seed falls."""
    logp = whole(model, ids + turn.ids, temperature)[len(ids) - 1 : -1]
    assert len(turn.logprobs) == len(turn.ids)
    assert logp[range(len(turn.ids)), turn.ids].tolist() == pytest.approx(turn.logprobs, abs=slack)
    draws = np.random.default_rng(seed)
    for row, token in zip(logp.double().exp(), turn.ids, strict=True):
        u, sums = draws.random(), row.cumsum(0)
        assert sums[token] - row[token] - slack <= u <= sums[token] + slack


def prompts(count, longest=120):
    rng = np.random.default_rng(7)
    return [rng.integers(6, VOCABULARY, size=n).tolist() for n in rng.integers(2, longest, size=count)]


class Spy:
    """Passes of an engine: (rows, tokens, width)."""

    def __init__(self, engine, monkeypatch):
        self.passes, feed = [], engine.kv.feed

        def spied(slots, ids, at, width):
            self.passes.append((len(slots), len(ids[0]), width))
            assert len(slots) * len(ids[0]) % 4 == 0
            return feed(slots, ids, at, width)

        monkeypatch.setattr(engine.kv, "feed", spied)

    def read(self):
        """Tokens of the passes that read, since it was asked last."""
        read = sum(rows * tokens for rows, tokens, _ in self.passes if tokens > 1)
        self.passes = []
        return read


# ---------------------------------------------------------------------------------------------------------------------
# What is sampled


def test_several_turns_have_the_probabilities_of_whole_passes(model):
    engine = TorchEngine(model, stops=STOPS)
    conversations, more = prompts(13), prompts(60, 25)[13:]
    assert any(len(ids) > 64 for ids in conversations)
    for number in range(3):
        for key, ids in enumerate(conversations):
            engine.submit(key, ids, 20, 100 * number + key)
        for key, turn in turns_of(engine, 13).items():
            check(model, conversations[key], turn, 100 * number + key)
            conversations[key] += turn.ids + more[13 * number + key]


def test_a_prompt_of_one_id(model):
    engine = TorchEngine(model, stops=())
    ids = [9]
    for number in range(3):
        engine.submit(0, ids, 3, number)
        turn = turns_of(engine, 1)[0]
        check(model, ids, turn, number)
        ids = ids + turn.ids


def test_temperature(model):
    for temperature in (0.5, 1.5):
        engine = TorchEngine(model, stops=STOPS, temperature=temperature)
        engine.submit(0, [9, 8, 7], 20, 5)
        check(model, [9, 8, 7], turns_of(engine, 1)[0], 5, temperature)


def test_frequencies_are_probabilities(model):
    engine = TorchEngine(model, stops=())
    for key in range(4000):
        engine.submit(key, [9, 8, 7], 1, key)
    found = np.bincount([turn.ids[0] for turn in turns_of(engine, 4000).values()], minlength=VOCABULARY) / 4000
    assert np.abs(found - whole(model, [9, 8, 7])[-1].exp().numpy()).max() < 0.03


def test_a_turn_ends_at_a_stop_or_at_its_longest(model):
    engine = TorchEngine(model, stops=range(100))  # every other id
    for key in range(40):
        engine.submit(key, [9, 8, 7 + key], 3, key)
    found = turns_of(engine, 40).values()
    assert {(len(turn.ids), turn.stopped) for turn in found} == {(1, True), (2, True), (3, True), (3, False)}
    for turn in found:
        assert [i < 100 for i in turn.ids] == [False] * (len(turn.ids) - 1) + [turn.stopped]


def test_training_mode_is_left(model):
    engine = TorchEngine(model, stops=())
    engine.submit(0, [9], 1, 0)
    model.net.train()
    engine.step()
    assert not model.net.training


# ---------------------------------------------------------------------------------------------------------------------
# A row is the same in any company


def dialogue(key):
    """Its texts: prompts are shared by four, every other group of four is of one text alone."""
    rng = np.random.default_rng(key // 4)
    first = rng.integers(6, VOCABULARY, size=rng.integers(1, 140)).tolist()
    rng = np.random.default_rng(1000 + key)
    return [first, *(rng.integers(6, VOCABULARY, size=n).tolist() for n in rng.integers(1, 40, size=key // 4 % 2 * 2))]


def played(model, keys, delayed=False, **options):
    """What each row wrote when all of them are played."""
    engine = TorchEngine(model, stops=STOPS, **options)
    texts, found = {key: dialogue(key) for key in keys}, {key: [] for key in keys}
    ids, due = {key: [] for key in keys}, {}
    for key in keys:
        due.setdefault(key * 3 % 17 if delayed else 0, []).append(key)
    step, live = 0, 0
    while due or live:
        for key in due.pop(step, []):
            ids[key] += texts[key].pop(0)
            engine.submit(key, ids[key], 30, 10 * key + len(texts[key]))
            live += 1
        for turn in engine.step():
            live -= 1
            key = turn.key
            found[key].append(turn)
            ids[key] += turn.ids
            if texts[key]:
                due.setdefault(step + 1 + (key % 4 if delayed else 0), []).append(key)
            else:
                engine.release([key])
        step += 1
        if "kv_gib" in options:
            assert memory(engine) <= options["kv_gib"] * 2**30
    assert memory(engine) == 0
    return found


@pytest.fixture(scope="module")
def alone(model):
    torch.set_num_threads(1)
    found = {}
    for key in range(40):
        found |= played(model, [key])
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"delayed": True},
        {"kv_gib": gib(16, 192)},
        {"kv_gib": gib(4, 320)},
        {"kv_gib": gib(12, 256), "delayed": True},
    ],
)
def test_rows_are_bit_for_bit_the_same_in_any_company(model, alone, options):
    assert played(model, range(40), **options) == alone


def test_rows_of_a_small_company_are_the_same(model, alone):
    found = played(model, [3, 4, 6, 21])
    assert found == {key: alone[key] for key in found}


# ---------------------------------------------------------------------------------------------------------------------
# Passes


def test_a_row_that_comes_back_is_fed_what_is_new(model, monkeypatch):
    engine = TorchEngine(model, stops=())
    spy = Spy(engine, monkeypatch)
    ids = prompts(1)[0][:1] * 61
    engine.submit(0, ids, 5, 0)
    turn = turns_of(engine, 1)[0]
    assert spy.read() == 60
    ids = ids + turn.ids + [9] * 8
    engine.submit(0, ids, 5, 1)
    turn = turns_of(engine, 1)[0]
    assert spy.read() == 8  # the last id of the turn and seven of the eight
    ids = [*ids[:20], 11, *ids[21:71]]  # another text from column 20 on
    engine.submit(0, ids, 5, 2)
    check(model, ids, turns_of(engine, 1)[0], 2)
    assert spy.read() == 52  # 50, and two of padding
    engine.submit(0, ids, 5, 3)  # the same again
    check(model, ids, turns_of(engine, 1)[0], 3)
    assert spy.read() == 0
    engine.submit(0, ids[:30], 5, 4)  # a beginning
    check(model, ids[:30], turns_of(engine, 1)[0], 4)
    assert spy.read() == 0


def test_a_prompt_is_read_once(model, monkeypatch):
    engine = TorchEngine(model, stops=())
    spy = Spy(engine, monkeypatch)
    ids, other = [9] * 41, [8] * 41
    for key in range(8):
        engine.submit(key, ids if key < 6 else other, 4, key)
    found = turns_of(engine, 8)
    assert spy.read() == 80
    for key in range(8):
        check(model, ids if key < 6 else other, found[key], key)
    engine.submit(0, ids + found[0].ids + [7] * 4, 4, 0)
    turns_of(engine, 1)
    assert spy.read() == 4
    engine.submit(9, ids, 4, 9)  # of a row that has gone on
    check(model, ids, turns_of(engine, 1)[9], 9)
    assert spy.read() == 0


def test_a_prompt_that_was_changed_is_not_copied(model, monkeypatch):
    engine = TorchEngine(model, stops=())
    spy = Spy(engine, monkeypatch)
    first, second = [9] * 41, [9] * 20 + [7] * 21
    for key, ids, read in ((0, first, 40), (0, second, 20), (1, first, 40), (2, second, 0)):
        engine.submit(key, ids, 4, key)
        check(model, ids, turns_of(engine, 1)[key], key)
        assert spy.read() == read


def test_passes_have_little_padding(model, monkeypatch):
    engine = TorchEngine(model, stops=())
    spy = Spy(engine, monkeypatch)
    long = prompts(60, 300)
    for key, ids in enumerate(long):
        engine.submit(key, ids, 1, key)
    turns_of(engine, 60)
    assert all(rows * tokens <= 1024 for rows, tokens, _ in spy.passes)
    assert len(spy.passes) < 25
    real = sum(len(ids) - 1 for ids in long)
    assert real < spy.read() < 1.2 * real
    for key, length in enumerate((9, 101, 9, 10), 60):
        engine.submit(key, [key] * length, 1, key)
    turns_of(engine, 4)
    assert spy.read() == 3 * 12 + 100


def test_rows_write_side_by_side(model, monkeypatch):
    engine = TorchEngine(model, stops=())
    spy = Spy(engine, monkeypatch)
    for key in range(20):
        engine.submit(key, [9, 8], 10 + (key % 10 == 9) * 20, key)
    turns_of(engine, 20)
    written = [rows for rows, tokens, _ in spy.passes if tokens == 1]
    assert written == [20] * 10 + [4] * 20  # 20 rows, then two alone, in the first slots


def test_rows_that_come_late_wait_for_company(model):
    engine = TorchEngine(model, stops=())
    for key in range(16):
        engine.submit(key, [9, 8], 12, key)
    engine.step()
    engine.submit(16, [9, 8], 1, 0)
    assert engine.step() == []
    assert len(engine.writing) == 16
    engine.submit(17, [9, 8], 1, 0)
    assert [turn.key for turn in engine.step()] == [16, 17]
    engine.submit(18, [9, 8], 1, 0)
    turns_of(engine, 17)
    engine.submit(19, [9, 8], 1, 0)
    assert [turn.key for turn in engine.step()] == [19]  # nothing else writes
    assert engine.step() == []


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def test_rows_are_admitted_while_the_bound_holds(model):
    engine = TorchEngine(model, stops=(), kv_gib=gib(8, 128))
    for key in range(20):
        engine.submit(key, [9] * 10 + [key + 6], 30, key)
    ended = []
    while len(ended) < 20:
        ended += [turn.key for turn in engine.step()]
        assert len(engine.writing) <= 8
        assert memory(engine) <= 8 * 128 * TOKEN
    assert ended == list(range(20))  # as they were submitted


def test_rows_between_two_turns_leave_first_and_are_read_again(model, monkeypatch):
    bound = gib(16, 128)
    engine = TorchEngine(model, stops=(), kv_gib=bound)
    spy = Spy(engine, monkeypatch)
    ids = {key: [key + 6] * 64 for key in range(13)}
    for key in ids:
        engine.submit(key, ids[key], 11 - key if key < 9 else 80, key)
    found = turns_of(engine, 9, bound)
    assert [row.key for row in engine.idle] == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert spy.read() == 13 * 64
    found |= turns_of(engine, 4, bound)  # they grow beyond 128 columns, and 8 slots are left
    assert [row.key for row in engine.idle][:4] == [3, 2, 1, 0]
    spy.read()
    for key, read in ((3, 4), (8, 64 + 4)):  # what was sampled is fed one by one
        ids[key] += found[key].ids + [9] * 4
        engine.submit(key, ids[key], 4, 30)
        check(model, ids[key], turns_of(engine, 1, bound)[key], 30)
        assert spy.read() == read


def test_the_row_admitted_last_goes_back_when_all_grow(model):
    engine = TorchEngine(model, stops=(), kv_gib=gib(8, 128))
    ids = {key: [9] * 50 + [key + 6] for key in range(8)}
    for key in range(8):
        engine.submit(key, ids[key], 120, key)
    back, found = [], {}
    while len(found) < 8:
        found |= {turn.key: turn for turn in engine.step()}
        back += [[row.key for row in engine.queue]]
        assert memory(engine) <= 8 * 128 * TOKEN
    assert [4, 5, 6, 7] in back
    assert any(row for row in back if 0 < len(row) < 4) is False  # they come back together
    for key, turn in found.items():
        check(model, ids[key], turn, key)


def test_a_row_that_alone_does_not_fit_is_refused(model):
    engine = TorchEngine(model, stops=(), kv_gib=gib(4, 128))
    engine.submit(0, [9] * 100, 28, 0)
    with pytest.raises(Refused, match="a row of 129 tokens takes"):
        engine.submit(1, [9] * 100, 29, 0)
    assert len(turns_of(engine, 1)[0].ids) == 28


def test_released_rows_leave_no_trace(model, monkeypatch):
    engine = TorchEngine(model, stops=())
    spy = Spy(engine, monkeypatch)
    for key in range(3):
        engine.submit(key, [9] * 20 + [key + 6], 5, key)
    engine.step()
    engine.submit(3, [9, 8], 5, 3)
    engine.release([1, 3, 77])  # one that writes, one that waits, one that is not there
    found = turns_of(engine, 2)
    assert set(found) == {0, 2}
    check(model, [9] * 20 + [8], found[2], 2)
    assert memory(engine) > 0
    engine.release([0, 2])
    assert memory(engine) == 0
    spy.read()
    engine.submit(0, [9] * 20 + [6], 5, 0)
    assert turns_of(engine, 1)[0] == found[0]
    assert spy.read() == 20


def test_new_weights(model, monkeypatch):
    other = model_of(seed=3)
    engine = TorchEngine(model, stops=())
    for key in range(3):
        engine.submit(key, [9] * 20 + [key + 6], 6 if key else 3, key)
    first = turns_of(engine, 1)[0]
    engine.update(other)
    spy = Spy(engine, monkeypatch)
    found = turns_of(engine, 2)
    assert spy.read() == 24 + 4  # the prompt once, and what was written is read like it
    for key, turn in found.items():  # in the middle of a turn: what was written stays
        ids, draws = [9] * 20 + [key + 6], np.random.default_rng(key)
        draws.random(3)
        old = whole(model, ids + turn.ids)[len(ids) - 1 :][range(3), turn.ids[:3]]
        new = whole(other, ids + turn.ids)[len(ids) + 2 :][range(3), turn.ids[3:]]
        assert torch.cat([old, new]).tolist() == pytest.approx(turn.logprobs, abs=1e-4)
    ids = [9] * 20 + [6, *first.ids, 7]
    engine.submit(0, ids, 6, 9)
    check(other, ids, turns_of(engine, 1)[0], 9)


# ---------------------------------------------------------------------------------------------------------------------
# Models


def config_of(name, **sizes):
    return getattr(transformers, name)(**(SIZES | sizes))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("MistralConfig", {"sliding_window": 24}),
        ("Gemma3TextConfig", {"sliding_window": 24, "head_dim": 16, "layer_types": MIXED}),
        ("Gemma3TextConfig", {"sliding_window": 24, "head_dim": 16, "layer_types": ["full_attention"] * 2}),
    ],
)  # fmt: skip
def test_sliding_windows(name, sizes):
    model = model_of(config_of(name, **sizes))
    engine = TorchEngine(model, stops=())
    rows = prompts(5)
    for number in range(2):
        for key, ids in enumerate(rows):
            engine.submit(key, ids, 30, key + number)
        for key, turn in turns_of(engine, 5).items():
            check(model, rows[key], turn, key + number)
            rows[key] += [*turn.ids, 9, 9]


def test_bfloat16_with_adapters():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    net = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | {"initializer_range": 0.1})).bfloat16()
    net = peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    model = Model(net, SimpleNamespace(eos_token_id=1, pad_token_id=0), "small", adapters=4)
    engine = TorchEngine(model, stops=())
    assert engine.kv.token_bytes == TOKEN / 2
    rows = prompts(6)
    for key, ids in enumerate(rows):
        engine.submit(key, ids, 20, key)
    for key, turn in turns_of(engine, 6).items():
        check(model, rows[key], turn, key, slack=0.1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (("MambaConfig", {}), "linear attention layers"),
        (("Llama4TextConfig", {"head_dim": 16, "num_local_experts": 2}), "chunked attention layers"),
    ],
)
def test_other_layers_are_refused(config, message):
    with pytest.raises(Refused, match=message):
        KeyValues(model_of(config_of(config[0], **config[1])))


def test_a_model_that_a_cache_changes_is_refused(model, monkeypatch):
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda cache=None, **inputs: hidden(cache, **inputs) * (1 if cache else 2))
    with pytest.raises(Refused, match="fed token by token"):
        TorchEngine(model, stops=())


def test_wrong_values(model):
    with pytest.raises(Refused, match="temperature"):
        TorchEngine(model, stops=(), temperature=0)
    with pytest.raises(Refused, match="GiB"):
        TorchEngine(model, stops=(), kv_gib=0)
    engine = TorchEngine(model, stops=())
    for ids, most in (([], 1), ([9], 0)):
        with pytest.raises(ValueError, match="1 or more"):
            engine.submit(0, ids, most, 0)
    for _ in range(2):
        engine.submit(0, [9], 3, 0)
        with pytest.raises(ValueError, match="submitted again"):
            engine.submit(0, [9], 3, 0)
        engine.step()
        with pytest.raises(ValueError, match="submitted again"):
            engine.submit(0, [9], 3, 0)
        turns_of(engine, 1)
