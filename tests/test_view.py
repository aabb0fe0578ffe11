"""agent_gym.view: both kinds of page, clicked through in Chromium, and what cannot be shown."""

import json
import os
import random
import re
from dataclasses import replace
from hashlib import sha256

import pytest

from agent_gym import CHANNELS, Step, Trajectory, write_trajectories
from agent_gym.cli import main
from agent_gym.envs.web_lite import chromium
from agent_gym.evaluation.result import (
    AgentCard,
    Outcome,
    Result,
    TasksCard,
    TrajectoriesCard,
    aggregate,
    pack_trajectories,
)
from agent_gym.files import write
from agent_gym.view import render
from agent_gym.view.episodes import with_credits
from agent_gym.view.runs import MOST, CreditMap

get_plotlyjs = pytest.importorskip("plotly.offline", reason="the pages need the extra 'view'").get_plotlyjs

try:
    chromium.find_chromium()
    MISSING = ""
except (ImportError, chromium.BrowserUnavailable) as error:
    if os.environ.get("AGENT_GYM_REQUIRE_BROWSER"):
        raise
    MISSING = str(error)
browser = pytest.mark.skipif(bool(MISSING), reason=MISSING)

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"><!--<script>"
MAP = {
    "iteration": 0, "task_id": "train-1-0", "success": True, "steps": ["look(C1)", "look(C1)", "answer: 1"],
    "u": [1.0, 0.0, None], "v": [[0.0] * 4, [1.0, 12.0, 30.0, 20.5], [None] * 4],
    "eliminated": [1], "necessary": [0, 2],
}  # fmt: skip


def play(task_id, calls, passed=True):
    """An episode that looks ``calls`` times and answers."""
    look = {"id": None, "name": "look", "arguments": {"id": "C1"}, "content": "[]", "error": None, "latency_ms": 20.5}
    action = f'<tool_call>{{"name":"look","arguments":{{"id":"C1"}}}}</tool_call>{HOSTILE}'
    price, last = (dict(zip(CHANNELS, costs, strict=True)) for costs in ((1.0, 12.0, 30.0, 20.5), (0.0, 5.0, 0.0, 0.0)))
    texts = [f"Count the orders. {HOSTILE}", *["[]"] * calls]
    steps = [Step(text, action, price, [look], "0" * 32) for text in texts[:-1]]
    steps.append(Step(texts[-1], "1", last, [], "0" * 32, terminated=True))
    verdict = {
        "status": "pass" if passed else "fail", "reason": "passed" if passed else "wrong_answer",
        "score": float(passed), "diagnostics": [], "trust": "strong",
    }  # fmt: skip
    total = {channel: calls * price[channel] + last[channel] for channel in CHANNELS}
    return Trajectory(
        task_id, "APIAgent-v0", {"budget": {"tool_calls": 3}}, None, tuple(steps), float(passed), verdict, total,
        task_hash="a" * 32,
    )  # fmt: skip


def result(folder, name, success, waste, *, tasks="APIAgent-mini-v1", count=12):
    """A result file of an agent that passes a share of the tasks and looks more often than the oracle does."""
    draw = random.Random(f"{name} {tasks}")
    episodes = [play(f"test-1-{i}", 1 + draw.choice((0, waste)), draw.random() < success) for i in range(count)]
    budget = {"tool_calls": 3.0}
    outcomes = [
        Outcome(
            task_id=one.task_id, task_hash="a" * 32, sample=0, success=one.success, reason=one.verdict["reason"],
            cost=one.cost_total, oracle_cost=play("", 1).cost_total, difficulty=1, task_type="shop.count",
            turns=len(one.steps), redundant_calls=len(one.steps) - 2 if one.success else None,
            failure=None if one.success else "wrong_answer", first_wrong_step=None if one.success else 0, usage=None,
        )
        for one in episodes
    ]  # fmt: skip
    stem, data = re.sub(r"\W", "-", name), pack_trajectories(episodes, "x")
    made = Result(
        agent=AgentCard(name=name, spec=name, settings={}), env_id="APIAgent-v0", env_kwargs={},
        tasks=TasksCard(name=tasks, fingerprint=sha256(tasks.encode()).hexdigest(), count=count), budget=budget,
        samples=1, seed=0, made="2026-01-31", versions={}, outcomes=outcomes,
        aggregates=aggregate(outcomes, budget, 1, 0),
        trajectories=TrajectoriesCard(file=f"{stem}.jsonl", sha256=sha256(data).hexdigest()),
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    write(folder / f"{stem}.jsonl", data)
    write(folder / f"{stem}.json", made.to_json().encode())
    return folder / f"{stem}.json"


def run(folder, seed, *, episodes=3, lr=0.1):
    """A run folder, as a trainer of groups with credits would write it."""
    folder = folder / f"APIAgent-v0__ppo_c3rl__c3rl__{seed}__179000000000{seed}"
    (folder / "trajectories").mkdir(parents=True)
    rows = [
        {
            "iteration": float(i), "charts/success": 0.5 + 0.05 * i, "charts/in_budget_success": 0.4 + 0.05 * i,
            "charts/generated_tokens": 1000.0 * i, "violation/any": 0.5 - 0.1 * i, "cosine/1_0": 0.25 - 0.5 * i,
            **{f"cost/{k}": 4.0 - 0.5 * i for k in CHANNELS}, **{f"violation/{k}": 0.4 - 0.1 * i for k in CHANNELS},
            **{f"lambda/{k}": 0.1 * i for k in CHANNELS}, "budget/tool_calls": 3.0, "budget/read_tokens": -1.0,
        }
        for i in range(3)
    ]  # fmt: skip
    table = {"success@1": [0.5, 0.4, 0.6], "mean tool_calls": [4.0, 3.5, None]}
    (folder / "args.json").write_text(json.dumps({"seed": seed, "model": "tiny", "dual": {"lr": lr}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"iterat')
    (folder / "credits.jsonl").write_text(json.dumps(MAP) + "\n")
    (folder / "groups.json").write_text(json.dumps({"names": ["easy", "hard"], "pool": []}))
    (folder / "result.json").write_text(json.dumps({"tables": {"test": {"start": table, "final": table}}}))
    own = [play("train-1-0", 1), *(play("train-1-0", 2, i > 0) for i in range(episodes - 1))]
    write_trajectories(folder / "trajectories" / "iteration_000000.jsonl", own)
    return folder


# ---- what is in a page -----------------------------------------------------------------------------------------------


def test_the_command_writes_one_page_the_same_each_time(tmp_path, capsys):
    files = [str(result(tmp_path, name, 0.7, 1)) for name in ("one", "two")]
    assert main(["view", *files, "--out", str(tmp_path / "a.html")]) == 0
    assert "a.html" in capsys.readouterr().out
    assert main(["view", *files, "--out", str(tmp_path / "b.html")]) == 0
    page = (tmp_path / "a.html").read_text()
    assert page == (tmp_path / "b.html").read_text()
    assert page.replace(get_plotlyjs(), "").count("<script") == 5  # both files' episodes, their tables, plotly, ours
    assert not list(tmp_path.glob("*.tmp"))


def test_episodes_without_their_trajectory_file_are_told_by_their_outcomes(tmp_path):
    file = result(tmp_path, "one", 0.7, 1)
    (tmp_path / "one.jsonl").unlink()
    episodes = json.loads(re.search(r'id="episodes-0">(.*?)</script>', render([file]))[1])
    assert [one["task_id"] for one in episodes] == [f"test-1-{i}" for i in range(12)]
    assert {one["steps"] for one in episodes} == {None}


def test_credits_stand_at_the_steps_that_they_are_of():
    other, one = play("train-1-0", 1), play("train-1-0", 2)
    found = with_credits([other, one, one], [CreditMap.model_validate(MAP)])
    assert [step.get("u", "none") for step in found[0]["steps"]] == [1.0, 0.0, None]
    assert [step["eliminated"] for step in found[0]["steps"]] == [False, True, False]
    assert [step["necessary"] for step in found[0]["steps"]] == [True, False, True]
    assert all("u" not in step for episode in found[1:] for step in episode["steps"])
    assert sum(len(episode["steps"]) for episode in found) == 2 + 3 + 3


def test_the_trainers_labels_are_recognised():
    pytest.importorskip("torch", reason="the trainers need the extra 'train'")
    import gymnasium as gym
    import numpy as np

    from agent_gym.lm.figures import credit_map
    from agent_gym.wrappers import RecordTrajectory

    env = RecordTrajectory(gym.make("APIAgent-v0", difficulty=3))
    env.reset(seed=5)
    for action in env.unwrapped.oracle():
        env.step(action)
    episode = env.last
    count = len(episode.steps)
    made = credit_map(0, episode, np.ones(count), np.zeros((count, 4)), [], gym.make("APIAgent-v0", difficulty=3))
    found = with_credits([episode], [CreditMap.model_validate(made)])
    assert all(step["u"] == 1.0 for step in found[0]["steps"])


# ---- what cannot be shown --------------------------------------------------------------------------------------------


def break_result(change):
    def broken(folder):
        file = result(folder, "one", 0.7, 1)
        change(file)
        return file

    return broken


def break_run(name, text):
    def broken(folder):
        there = run(folder, 1)
        (there / name).write_text(text)
        return there

    return broken


def edited(**changes):
    return break_result(lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | changes)))


def empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def fresh(folder):
    there = run(folder, 1)
    (there / "metrics.jsonl").unlink()
    return there


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (break_result(lambda file: file.write_text("no JSON")), "one.json"),
        (break_result(lambda file: file.write_bytes(file.read_bytes()[:-200])), "one.json"),
        (break_result(lambda file: file.write_text("[1]")), "one.json"),
        (edited(schema="agent-gym-result-v9"), "one.json"),
        (edited(outcomes=[]), "0 outcomes"),
        (break_result(lambda file: file.with_suffix(".jsonl").write_text("{}")), "one.jsonl"),
        (lambda folder: folder / "nowhere.json", "nowhere.json cannot be read"),
        (empty, "holds no run of a trainer: args.json is missing"),
        (fresh, "logged nothing yet"),
        (break_run("args.json", '{"seed": 1'), "args.json is not what a trainer writes"),
        (break_run("metrics.jsonl", '{"iteration": "x"}\n'), "metrics.jsonl, line 1"),
        (break_run("result.json", '{"tables": {"start": {"success": [1, 1, 1]}}}'), "result.json"),
        (break_run("credits.jsonl", '{"iteration": 0}\n'), "credits.jsonl, line 1"),
        (break_run("groups.json", "{}"), "groups.json"),
        (break_run("trajectories/iteration_000000.jsonl", '{"a": 1}\n{"a": 1}\n'), "iteration_000000.jsonl, line 1"),
        (break_run("trajectories/x.jsonl", replace(play("a", 1), verdict={"status": "?"}).to_json()), "no environment"),
    ],
)
def test_wrong_input_ends_in_one_sentence(make, said, tmp_path, capsys):
    path = make(tmp_path)
    assert main(["view", str(path), "--out", str(tmp_path / "page.html")]) == 1
    told = capsys.readouterr().err
    assert told.startswith("agent-gym: ")
    assert told.count("\n") == 1
    assert said in told
    assert not (tmp_path / "page.html").exists()


def test_files_and_folders_do_not_mix(tmp_path):
    with pytest.raises(ValueError, match="not both"):
        render([result(tmp_path, "one", 0.7, 1), run(tmp_path, 1)])


def test_a_folder_that_cannot_be_written_ends_in_one_sentence(tmp_path, capsys):
    file = result(tmp_path, "one", 0.7, 1)
    assert main(["view", str(file), "--out", str(tmp_path / "nowhere" / "page.html")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_without_plotly_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    assert main(["view", str(result(tmp_path, "one", 0.7, 1))]) == 1
    assert "pip install 'agent-gym[view]'" in capsys.readouterr().err


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chrome():
    from playwright.sync_api import sync_playwright

    flags = [*chromium.FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=chromium.find_chromium(), args=flags)
        yield window
        window.close()


@pytest.fixture
def shown(chrome, tmp_path):
    """Open a page of files or folders; at the end nothing may have been complained of, and nothing asked for."""
    contexts, faults = [], []

    def show(paths, width=1280, scheme="light"):
        file = tmp_path / "page.html"
        file.write_text(render(paths), encoding="utf-8")
        contexts.append(chrome.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)  # of a machine that has other things to do
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: message.type != "error" or faults.append(message.text))
        page.on("request", lambda request: request.url == file.as_uri() or faults.append(request.url))
        page.goto(file.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert not faults


def drawn(page):
    every = "[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))"
    for _ in range(600):  # page.wait_for_function is an eval, which the page's own policy forbids
        if page.evaluate(every):
            break
        page.wait_for_timeout(50)
    assert page.evaluate(every)


def column(page, table, n):
    return page.locator(f"{table} tbody tr > :nth-child({n})").all_inner_texts()


@browser
def test_a_page_of_results(shown, tmp_path):
    agents = {"oracle": (1.0, 0), "baseline": (0.6, 3), "noop": (0.0, 0), "a <b>bold</b> one": (0.8, 1)}
    files = [result(tmp_path / "api", name, *how) for name, how in agents.items()]
    files += [result(tmp_path / "sql", "oracle", 1.0, 0, tasks="SQL-mini-v1")]
    page = shown(files)
    assert page.title() == "Results"
    names = column(page, "#table", 1)
    assert names[0].startswith("oracle")
    assert names[-1].startswith("noop")
    assert any("a <b>bold</b> one" in name for name in names)
    assert "at most 3 tool calls" in names[0]
    assert "1.000\n[1.000, 1.000]" in column(page, "#table", 3)[0]

    # sorted by the keyboard, cheapest first, and back
    button = page.get_by_role("button", name="tool calls")
    button.focus()
    page.keyboard.press("Enter")
    assert button.locator("..").get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")
    assert button.locator("..").get_attribute("aria-sort") == "ascending"
    calls = [float(text.split("\n")[0]) for text in column(page, "#table", 6)]
    assert calls == sorted(calls)
    assert page.locator("#table th[aria-sort]").count() == 1

    # the charts follow what is chosen: five points less one of another set, and less one that is ticked off
    drawn(page)
    points = page.locator("#charts figure:first-child .scatterlayer .points path")
    assert points.count() == 4
    assert "tool calls" in page.locator("#charts .xtitle").first.text_content()
    page.get_by_label("Cost", exact=True).select_option("read_tokens")
    assert "read tokens" in page.locator("#charts .xtitle").first.text_content()
    page.get_by_role("checkbox", name="noop").uncheck()
    assert points.count() == 3
    page.get_by_label("Task set").select_option("SQL-mini-v1")
    assert points.count() == 1
    page.locator("#charts summary").last.click()
    assert page.locator("#charts details table tbody tr").count() == 1

    assert "wrong answer" in page.locator("#failures thead").inner_text()
    page.get_by_label("Episodes of").select_option(label="baseline on APIAgent-mini-v1")
    page.get_by_label("Show", exact=True).select_option("failed")
    episodes = page.get_by_label("Episodes", exact=True)
    failed = episodes.locator("option").count()
    assert 0 < failed < 12
    assert page.locator("[role=status]").inner_text() == f"{failed} of 12 episodes"
    episodes.focus()
    page.keyboard.press("ArrowDown")
    article = page.locator("article")
    assert "failed: wrong answer" in article.inner_text()
    assert article.locator("li").first.locator(".tag").inner_text() == "first wrong step"
    assert "cost 1 tool call, 12 output tokens, 30 read tokens, 20.5 ms" in article.inner_text()
    first = article.locator("h3").inner_text()
    page.keyboard.press("ArrowDown")
    assert article.locator("h3").inner_text() != first
    assert HOSTILE in article.inner_text()
    page.get_by_label("Search").fill("no such words")
    assert episodes.locator("option").count() == 0
    assert page.title() == "Results"
    assert page.locator("article img, article script").count() == 0


@browser
def test_a_page_of_runs(shown, tmp_path):
    page = shown([run(tmp_path, 1), run(tmp_path, 2, lr=0.4, episodes=MOST + 5)])
    rows = column(page, "#runs", 1)
    assert "ppo_c3rl c3rl APIAgent-v0 seed 1" in rows[0]
    assert "dual.lr 0.1" in rows[0]
    assert "dual.lr 0.4" in rows[1]
    assert column(page, "#runs", 3) == ["0.600", "0.600"]
    assert "0.500\n[0.400, 0.600]" in page.locator("#tests tbody tr").first.inner_text()

    drawn(page)
    lines = page.locator("#curves figure:first-child .js-line")
    assert lines.count() == 2
    page.get_by_role("checkbox", name="seed 2").press("Space")
    assert lines.count() == 1
    figure = page.locator("#curves figure", has_text="Mean cost")
    assert figure.locator(".js-line").count() == 2  # the run and its budget
    page.get_by_label("Cost", exact=True).select_option("read_tokens")
    assert figure.locator(".js-line").count() == 1

    steps = page.locator("#credits tbody tr")
    assert steps.count() == 3
    assert "the oracle needs it" in steps.nth(0).inner_text()
    assert "eliminated" in steps.nth(1).inner_text()
    assert steps.nth(1).locator("td").nth(2).inner_text() == "12.0"
    assert steps.nth(2).locator("td").nth(0).inner_text() == "\u2013"

    assert "-0.250" in page.locator("#conflicts tbody").inner_text()
    assert page.locator("#conflicts .heatmaplayer image").count() == 1

    page.get_by_label("Episodes of").select_option(index=1)
    assert f"{MOST} of {MOST} episodes (the file has {MOST + 5})" in page.locator("[role=status]").inner_text()
    page.get_by_label("Show", exact=True).select_option("credits")
    page.get_by_label("Episodes", exact=True).select_option(index=0)
    article = page.locator("article").inner_text()
    assert "success credit 1" in article
    assert "cost credit 1 tool call, 12 output tokens, 30 read tokens, 20.5 ms" in article
    assert page.title() == "Training runs"


@browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["results", "runs"])
def test_it_fits_a_phone_and_follows_the_colour_scheme(shown, tmp_path, kind, scheme):
    page = shown([result(tmp_path, "one", 0.7, 1) if kind == "results" else run(tmp_path, 1)], 390, scheme)
    drawn(page)
    page.get_by_label("Episodes", exact=True).select_option(index=0)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    inks = page.evaluate(
        """[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
            getComputedStyle(document.querySelector('.plot .xtitle')).fill]"""
    )
    light = [sum(map(int, re.findall(r"\d+", ink)[:3])) > 380 for ink in inks]
    assert light == ([True, False, False] if scheme == "light" else [False, True, True])
    unnamed = page.evaluate(
        """[...document.querySelectorAll('input, select')].filter(e => !e.labels?.length && !e.ariaLabel).length
           + [...document.querySelectorAll('table')].filter(e => !e.caption).length
           + [...document.querySelectorAll('section')].filter(e => !e.getAttribute('aria-labelledby')).length"""
    )
    assert unnamed == 0


@browser
def test_of_five_hundred_trajectories_only_the_chosen_one_is_drawn(shown, tmp_path):
    elements = []
    for count in (12, 500):  # the first episode is the same one
        page = shown([result(tmp_path / str(count), "one", 0.7, 3, count=count)])
        episodes = page.get_by_label("Episodes", exact=True)
        assert episodes.locator("option").count() == count
        assert page.locator("article li").count() == 0
        episodes.select_option(index=0)
        assert page.locator("article li").count() > 0
        elements.append(page.locator(".reader *:not(option)").count())
    assert elements[0] == elements[1]
    episodes.select_option(index=400)
    assert "test-1-400" in page.locator("article h3").text_content()
