"""Ready-made small policies: made, packed, loaded by name, refused, the default of a trainer."""

import hashlib
import json
import math
import re
import sys
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="policies need the extra 'train'")
pytest.importorskip("transformers", reason="policies need the extra 'train'")

from safetensors.torch import load_file  # noqa: E402
from small_lm import ROOT, chat_of, small_model  # noqa: E402

from agent_gym import CHANNELS  # noqa: E402
from agent_gym.lm import making, models, start, tiny  # noqa: E402
from agent_gym.lm.arguments import Common, fill, model_of, size_of  # noqa: E402
from agent_gym.lm.demonstrations import WarmStart, demonstrations, encoded, warm_start  # noqa: E402
from agent_gym.lm.errors import Refused  # noqa: E402
from agent_gym.lm.models import load, pack, parameters_of, policies, token_logprobs  # noqa: E402
from agent_gym.lm.ranks import Ranks  # noqa: E402
from agent_gym.lm.rollout import Limits, environments, evaluate  # noqa: E402
from agent_gym.lm.runs import Run  # noqa: E402
from agent_gym.lm.scores import Scores  # noqa: E402
from agent_gym.lm.tiny import preset  # noqa: E402

ENV, NAME = "APIAgent-v0", "tiny:APIAgent-v0"
KWARGS = {"domains": ["shop"], "difficulty": 1, "max_turns": 4}
CARD = {"env_id": ENV, "env_kwargs": KWARGS, "seed": 1, "hours": 0.0, "validation": {"success": 0.0}}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dialogues():
    (env,) = environments(ENV, 1, chat=None, split="train", bounds={}, **KWARGS)
    return demonstrations(env, range(20), wasteful=0.0, waste=0.0)


@pytest.fixture(scope="module")
def made(dialogues):
    """A policy that has learnt nothing; its weights are those of float16."""
    model = small_model(text for dialogue in dialogues for text in dialogue.texts)
    for p in model.parameters():
        p.data = p.data.half().float()
    return model


@pytest.fixture
def packed(made, tmp_path, monkeypatch):
    """The folder of the policies, with one in it."""
    folder = tmp_path / "policies"
    pack(made, folder / ENV, CARD)
    monkeypatch.setattr(models, "POLICIES", folder)
    return folder


def scores(model, dialogues):
    ids, spans = encoded(chat_of(model), dialogues[0])
    return token_logprobs(model, [ids], [spans]).logprobs


# ---- what is on the disk ----


def test_float16_on_disk_float32_in_memory(packed, made, dialogues):
    model = load(NAME)
    weights = load_file(packed / ENV / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(scores(model, dialogues), scores(made, dialogues))
    assert (model.name, model.adapters, model.four_bit) == (NAME, 0, False)
    assert len(model.trained()) == len(list(model.parameters()))
    assert parameters_of(NAME) == sum(p.numel() for p in made.parameters())
    assert chat_of(model).parser is chat_of(made).parser


def test_the_model_that_is_packed_stays_as_it_is(made, tmp_path):
    before = [p.clone() for p in made.parameters()]
    pack(made, tmp_path / ENV, CARD)
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))


def test_the_card(packed):
    card = json.loads((packed / ENV / "card.json").read_text())
    weights = (packed / ENV / "model.safetensors").read_bytes()
    assert card == {**CARD, "sha256": hashlib.sha256(weights).hexdigest()}


def test_packing_again_replaces_and_is_the_same_to_the_byte(packed, made):
    first = {path.name: path.read_bytes() for path in (packed / ENV).iterdir()}
    (packed / ENV / "left.txt").write_text("of an older version")
    pack(made, packed / ENV, CARD)
    assert {path.name: path.read_bytes() for path in (packed / ENV).iterdir()} == first
    assert [path.name for path in packed.iterdir()] == [ENV]
    pack(load(NAME), packed / ENV, CARD)
    assert (packed / ENV / "model.safetensors").read_bytes() == first["model.safetensors"]
    for path in (packed / ENV).iterdir():  # none of the maker's machine
        assert str(packed.parent).encode() not in path.read_bytes(), path.name


# ---- by name ----


def test_policies_are_those_with_a_card(packed, made, tmp_path, monkeypatch):
    pack(made, packed / "SQL-v0", CARD)
    (packed / ".WebLite-v0.tmp").mkdir()
    assert policies() == [ENV, "SQL-v0"]
    monkeypatch.setattr(models, "POLICIES", tmp_path / "nothing")
    assert policies() == []


def test_refusals(packed):
    for name in ("tiny:Nothing-v0", "tiny:", f"tiny:../policies/{ENV}"):
        with pytest.raises(Refused, match=f"^{name}: there is no ready-made policy for .*, only for {ENV}$"):
            load(name)
    with pytest.raises(Refused, match="holds all parameters of tiny:APIAgent-v0; it cannot be loaded with adapters"):
        load(NAME, adapters=8)
    path = packed / ENV / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Refused, match=r"^tiny:APIAgent-v0: its weights are not those that its card.json names; "):
        load(NAME)


def test_a_checkpoint_of_it_needs_the_package_no_more(packed, made, dialogues, tmp_path, monkeypatch):
    model = load(NAME)
    model.save(tmp_path / "saved")
    monkeypatch.setattr(models, "POLICIES", tmp_path / "nothing")
    again = load(tmp_path / "saved")
    assert again.name == NAME
    assert torch.equal(scores(again, dialogues), scores(made, dialogues))
    model.restore(tmp_path / "saved")


# ---- in a trainer ----


def test_the_default_is_the_environments_own(packed):
    assert model_of(None, ENV) == model_of(None, f"agent_gym:{ENV}") == NAME
    assert model_of(None, "SQL-v0") == "tiny"
    assert model_of("tiny", ENV) == "tiny"
    assert model_of(NAME, "SQL-v0") == NAME
    assert size_of(NAME, None) == size_of("tiny", "some/folder") == "tiny"
    args = Common()
    assert args.model is None
    fill(args, size_of(model_of(args.model, ENV), None))
    assert (args.max_new_tokens, args.max_context) == (96, 1024)


def started(tmp_path, **changes):
    args = Common(model=NAME, run_dir=str(tmp_path / "runs"), device="cpu", max_context=512, **changes)
    run = Run(args, "x", Ranks())
    model, chat = start.starting_policy(args, run, Ranks(), [(ENV, KWARGS)])
    return args, run, model, chat


def test_a_run_starts_from_it_without_a_warm_start(packed, made, dialogues, tmp_path, monkeypatch):
    monkeypatch.setattr(start, "warm_start", lambda *_, **__: pytest.fail("nothing is left to be taught"))
    monkeypatch.setattr(start, "demonstrations", lambda *_, **__: pytest.fail("nobody learns from them"))
    args, run, model, chat = started(tmp_path)
    assert torch.equal(scores(model, dialogues), scores(made, dialogues))
    assert encoded(chat, dialogues[0]) == encoded(chat_of(made), dialogues[0])
    monkeypatch.setattr(models, "POLICIES", tmp_path / "nothing")  # a run that is resumed has its own copy
    again, _ = start.starting_policy(args, run, Ranks(), [(ENV, KWARGS)])
    assert torch.equal(scores(again, dialogues), scores(made, dialogues))


def test_a_warm_start_that_is_asked_for(packed, made, dialogues, tmp_path):
    _, _, model, _ = started(tmp_path, warm=WarmStart(updates=2, demonstrations=20))
    assert not torch.equal(scores(model, dialogues), scores(made, dialogues))


# ---- how they are made ----


def test_copied_is_the_share_of_calls_that_the_model_knows(dialogues):
    model = tiny.fresh((text for dialogue in dialogues for text in dialogue.texts), seed=1)
    chat = chat_of(model)
    known = [encoded(chat, dialogue) for dialogue in dialogues[:4]]
    assert making.copied(model, chat, known) == 0.0
    warm_start(model, known, WarmStart(updates=30, batch_size=4), context=1024, most_tokens=8192, seed=1, ranks=Ranks())
    assert making.copied(model, chat, known) == 1.0
    assert 0.0 < making.copied(model, chat, [encoded(chat, dialogue) for dialogue in dialogues]) < 1.0


def test_copied_looks_at_arguments_alone(made, dialogues, monkeypatch):
    """Neither the name of a tool nor an answer counts, and one token that is not known spoils its call."""
    chat, sure, asked = chat_of(made), {"every": math.log(0.6)}, []

    def scored(model, rows, spans):
        asked.extend(chat.text(ids[begin:end]) for ids, own in zip(rows, spans, strict=True) for begin, end in own)
        logprobs = torch.full((sum(end - begin for own in spans for begin, end in own),), sure["every"])
        logprobs[0] = sure.get("first", sure["every"])
        return Scores(logprobs, logprobs, None)

    monkeypatch.setattr(making, "token_logprobs", scored)
    examples = [encoded(chat, dialogue) for dialogue in dialogues]
    assert making.copied(made, chat, examples) == 1.0
    calls = [turn.action for dialogue in dialogues for turn in dialogue.turns if "<tool_call>" in turn.action]
    assert asked == [action.split('"arguments":{"')[1] for action in calls]  # which is one token
    sure["first"] = math.log(0.4)
    assert making.copied(made, chat, examples) == pytest.approx(1 - len(examples) / len(calls))


@pytest.fixture
def short(monkeypatch):
    """Making with 20 demonstrations of a kind and a test of four tasks."""
    monkeypatch.setattr(making, "demonstrations", lambda env, seeds, **how: demonstrations(env, seeds[:20], **how))

    def on_four(engine, chat, envs, seeds, limits, ranks, *, draw):
        assert (len(seeds), limits) == (256, Limits(96, 1024))
        assert {env.spec.kwargs["split"] for env in envs} == {"validation"}
        return evaluate(engine, chat, envs[:4], seeds[:4], Limits(16, 256), ranks, draw=draw)

    monkeypatch.setattr(making, "evaluate", on_four)


def test_making_one(short, tmp_path, monkeypatch):
    recipe = making.Recipe(demonstrations=20, updates=3, wasteful=2)
    card = making.make(ENV, 1, tmp_path / "a" / ENV, recipe)
    kwargs = preset(ENV).env_kwargs
    assert (card["env_id"], card["env_kwargs"], card["seed"], card["recipe"]) == (ENV, kwargs, 1, vars(recipe))
    assert card["curve [update, loss, calls copied]"] == []  # a row in 200 updates
    assert 0 <= card["validation"]["low"] <= card["validation"]["success"] <= card["validation"]["high"] < 1
    assert set(card["validation"]) == {"success", "low", "high", *CHANNELS, *(f"oracle's {k}" for k in CHANNELS)}
    assert 1 < card["validation"]["oracle's tool_calls"] < 4
    monkeypatch.setattr(models, "POLICIES", tmp_path / "a")
    assert sum(p.numel() for p in load(NAME).parameters()) == card["parameters"]


def test_a_temperature_is_taken_into_the_weights(short, tmp_path, monkeypatch):
    recipe, sharp = making.Recipe(demonstrations=20, updates=1, wasteful=1), []
    for temperature in (1.0, 0.5):
        monkeypatch.setattr(models, "POLICIES", tmp_path / str(temperature))
        making.make(ENV, 1, models.POLICIES / ENV, replace(recipe, temperature=temperature))
        sharp.append(token_logprobs(load(NAME), [list(range(40))], [[(10, 40)]], 0.5 / temperature).logprobs)
    assert torch.allclose(*sharp, atol=1e-4)


def commanded(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["tiny", *words])
    making.main()


def test_the_command(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(making, "make", lambda *given: asked.append(given) or {"validation": {"success": 0.5}})
    commanded(monkeypatch, "make", ENV)
    commanded(monkeypatch, "make", "SQL-v0", "--seed", "3", "--out", str(tmp_path), "--updates", "0", "--wasteful", "7")
    assert asked == [
        (ENV, 1, models.POLICIES / ENV, making.RECIPES[ENV]),
        ("SQL-v0", 3, tmp_path / "SQL-v0", replace(making.RECIPES["SQL-v0"], updates=0, wasteful=7)),
    ]
    assert capsys.readouterr().out.count('"success": 0.5') == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the following arguments are required: command, env_id"),
        (["make"], "the following arguments are required: env_id"),
        (["bake", ENV], "argument command: invalid choice: 'bake'"),
        (["make", "Nothing-v0"], "argument env_id: invalid choice: 'Nothing-v0'"),
        (["make", ENV, "--updates", "many"], "argument --updates: invalid int value: 'many'"),
    ],
)
def test_wrong_use_of_the_command(words, sentence, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        commanded(monkeypatch, *words)
    assert stopped.value.code == 2
    assert f"python -m agent_gym.lm.tiny: error: {sentence}" in capsys.readouterr().err


# ---- the page, and the package ----


def test_it_plays_as_the_page_says(packed):
    page = (ROOT / "docs" / "lm.md").read_text(encoding="utf-8").split("## Ready-made policies")[1]
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    found = {}
    exec(code.replace("64", "4").replace("Limits(4", "Limits(8"), found)
    assert found["model"].name == NAME
    assert len(found["episodes"]) == 4
    assert all(len(episode.logprobs) > 0 for episode in found["episodes"])


@pytest.mark.parametrize("env_id", policies())
def test_those_of_the_package(env_id):
    """They are what their cards say, the page explains the cards, and they are small."""
    card = json.loads((models.POLICIES / env_id / "card.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "lm.md").read_text(encoding="utf-8").split("`card.json` says")[1].split("## Sampling")[0]
    assert set(card) == set(re.findall(r"`([^`]+)`", page)) - {"model.safetensors"}
    assert (card["env_id"], card["env_kwargs"]) == (env_id, preset(env_id).env_kwargs)
    assert parameters_of(f"tiny:{env_id}") == card["parameters"] <= 3e6
    assert load(f"tiny:{env_id}").name == f"tiny:{env_id}"


def test_a_model_of_somebody_else_is_not_ours_for_its_name():
    names = ("tiny", "tiny:SQL-v0", "tiny-llama", "tinyllama/chat", "", None)
    assert [name for name in names if models.is_tiny(name)] == ["tiny", "tiny:SQL-v0"]
