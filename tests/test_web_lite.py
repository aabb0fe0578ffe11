import asyncio
import itertools
import json
import os
import pickle
import random
import re
import socket
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from walks import web

from agent_gym import Call, Delete, ToolCache, counterfactuals, restore, snapshot, state_hash
from agent_gym.envs.splits import SPLITS
from agent_gym.envs.web_lite import chromium
from agent_gym.envs.web_lite.actions import act
from agent_gym.envs.web_lite.dom import DomBackend
from agent_gym.envs.web_lite.env import TOOLS
from agent_gym.envs.web_lite.page import Control, canonical_path, number_elements
from agent_gym.envs.web_lite.site import Request, signed, unsigned
from agent_gym.envs.web_lite.sites import SITES
from agent_gym.envs.web_lite.tasks import compose, composition_split
from agent_gym.formats import HermesParser
from agent_gym.gate import gate_task
from agent_gym.tools import ToolError
from agent_gym.wrappers import RecordTrajectory

pytest.importorskip("selectolax", reason="WebLite-v0 reads pages with selectolax: pip install 'agent-gym[web]'")

try:
    chromium.find_chromium()
    MISSING = ""
except (ImportError, chromium.BrowserUnavailable) as error:
    if os.environ.get("AGENT_GYM_REQUIRE_BROWSER"):
        raise
    MISSING = str(error)
browser = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def call(name, **arguments):
    return HermesParser().render("", [Call(name, arguments)])


def make(**kwargs):
    return gym.make("WebLite-v0", disable_env_checker=True, **kwargs)


def page(env):
    base = env.unwrapped
    return base._backend.show(base._world)


def number(env, name, role=""):
    """The number of the element of that name on the shown page."""
    found = [e.number for e in page(env).elements.values() if e.control.name == name and role in ("", e.control.role)]
    return found[0]


def click(env, name):
    return env.step(call("click", element=number(env, name)))


def search(env, text):
    env.step(call("fill", element=number(env, "Search", "textbox"), text=text))
    return env.step(call("click", element=number(env, "Search", "button")))


# ---- sites and pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SITES))
def test_a_site_is_a_pure_function(name):
    site, tables = SITES[name], compose("train", 2, 0, (name,)).world.tables
    before = (tables.hash, pickle.dumps(tables))
    addresses = ["/", "/?page=2", "/nowhere", signed(tables, "/?q=a&page=9999999"), *site.nav.values()]
    for address in addresses:
        first, second = (site.respond(tables, Request(address)) for _ in range(2))
        assert first == second
        assert first[0] is tables
    actions = ["/star/00", "/add/00", "/order", "/switch/00", "/accept/none", "/create", "/none"]
    for action in actions:
        first, second = (site.respond(tables, Request(action, "POST", {"name": "X", "role": "owner"})) for _ in (0, 1))
        assert first[0].hash == second[0].hash
        assert first[1] == second[1]
    assert (tables.hash, pickle.dumps(tables)) == before


def test_user_text_is_shown_and_never_read_as_markup():
    env = make(sites=["mail"], difficulty=1)
    env.reset(seed=0)
    evil = '<b>x</b> & "y" <script>'
    observation, *_ = search(env, evil)
    assert re.search(rf'textbox "Search" \[\d+\] value "{re.escape(evil)}"', observation)
    assert "Nothing found." in observation
    env.step(call("go_to", path="/"))
    click(env, next(e.control.name for e in page(env).elements.values() if e.control.target.startswith("/mail/")))
    env.step(call("fill", element=number(env, "Reply"), text=evil))
    observation, *_ = click(env, "Send")
    assert f"You replied: {evil}" in observation


def test_numbers_differ_between_elements_and_tasks_but_not_between_pages():
    controls = [Control("link", str(i), "/") for i in range(500)]
    numbers = number_elements(controls, 0)
    assert len(set(numbers)) == 500
    assert all(1000 <= n <= 9999 for n in numbers)
    assert number_elements(controls, 1) != numbers
    env = make(sites=["shop"], difficulty=1)
    env.reset(seed=0)
    cart = number(env, "Cart")
    env.step(call("go_to", path="/nowhere"))
    assert number(env, "Cart") == cart


@pytest.mark.parametrize(
    "path", ["/", "//a/../b", "/a%2e%2e/%zz?q=a+b&q=%00&c", "/x y?ü=%FF#frag", "/..//.", "/?a=~*'()"]
)
def test_an_address_has_one_spelling(path):
    assert canonical_path(canonical_path(path)) == canonical_path(path)
    assert canonical_path(path).startswith("/")


def test_tools_do_what_a_browser_does():
    env = make(sites=["admin"], difficulty=8)
    env.reset(seed=0)
    first = page(env).text
    click(env, "Next page")
    second = page(env).text
    assert "page 2 of" in second
    assert env.step(call("back"))[0] == first
    name = next(e.control.name for e in page(env).elements.values() if e.control.target.startswith("/user/"))
    before = state_hash(env)
    click(env, name)
    click(env, "Newsletter")
    assert re.search(r'checkbox "Newsletter" \[\d+\] on', page(env).text)
    observation, *_ = env.step(call("select", element=number(env, "Role"), option="owner"))
    assert re.search(r'select "Role" \[\d+\] value "owner"', observation)
    click(env, "Users")  # what was not saved is gone
    assert state_hash(env) == before
    assert env.step(call("look"))[0] == page(env).text


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (("click", {"element": 77}), "the page that is shown has no element 77"),
        (("click", {"element": "Search:textbox"}), "is a textbox: use fill"),
        (("click", {"element": "Role:select"}), "is a select: use select"),
        (("fill", {"element": "Search:button", "text": "a"}), "is a button: use click"),
        (("fill", {"element": "Search:textbox", "text": "a\nb"}), "one line of at most 500 characters"),
        (("fill", {"element": "Search:textbox", "text": "a" * 501}), "one line of at most 500 characters"),
        (("select", {"element": "Role:select", "option": "king"}), "offers reader, editor, owner, not 'king'"),
        (("go_to", {"path": "http://elsewhere"}), "is no address of this site: it starts with '/'"),
        (("go_to", {"path": "/" + "a" * 600}), "the address is 601 characters long, more than 500"),
        (("back", {}), "there is no page before this one"),
    ],
)
def test_tool_errors_say_what_would_be_right(action, says):
    env = make(sites=["admin"], difficulty=1)
    env.reset(seed=0)
    name, arguments = action
    target = arguments.get("element")
    if isinstance(target, str):
        label, _, role = target.partition(":")
        if label == "Role":
            env.step(call("go_to", path="/new"))
        arguments = {**arguments, "element": number(env, label, role)}
    before = state_hash(env)
    observation, _, _, _, info = env.step(call(name, **arguments))
    assert says in json.loads(observation)["message"]
    assert info["state_hash"] == before
    assert info["cost"]["tool_calls"] == 1.0


def test_an_element_of_a_page_that_is_gone_is_refused():
    for seed in range(20):
        env = make(sites=["mail"], difficulty=4)
        env.reset(seed=seed)
        shown = set(page(env).elements)
        env.step(call("go_to", path="/archive"))
        for gone in shown - set(page(env).elements):
            observation, *_ = env.step(call("click", element=gone))
            if not observation.startswith("{"):
                pytest.fail(f"element {gone} of another page was clicked")
            break


# ---- tasks ---------------------------------------------------------------------------------------------------------

WAYS = [(site.name, goal, way) for site in SITES.values() for goal in site.goals for way in goal.ways]


def test_every_site_has_four_templates_and_more():
    assert len(SITES) >= 4
    assert min(len(site.goals) for site in SITES.values()) >= 4
    assert sum(len(site.goals) for site in SITES.values()) >= 16


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("site", "goal", "way"), WAYS, ids=lambda x: x if isinstance(x, str) else x.build.__name__)
def test_every_template_is_sound(split, site, goal, way):
    env, level = make(split=split), goal.ways[way]
    wanted, found = (goal.name(way),), 0
    for seed in range(400):
        task = compose(split, level, seed, (site,))
        if task.composition == wanted:
            env = make(split=split, sites=[site])
            assert gate_task(env, task.id, seed) == []
            found += 1
        if found == 2:
            return
    pytest.fail(f"no {split} task of {wanted[0]} in 400 seeds")


def test_splits_share_no_name_and_only_test_has_compositions_of_its_own():
    names, compositions = {}, {}
    for split in SPLITS:
        tasks = [compose(split, 2 + seed % 7, seed, tuple(SITES)) for seed in range(90)]
        compositions[split] = {task.composition for task in tasks if len(task.composition) > 1}
        names[split] = {
            word
            for task in tasks
            for table in task.world.tables.tables.values()
            for record in table.values()
            for key, value in record.model_dump().items()
            if key in ("name", "subject", "sender", "title", "code")
            for word in [str(value).split()[-1]]
            if word not in ("rows", "Me")
        }
    assert all(not here & there for here, there in itertools.combinations(names.values(), 2))
    parts = {goal.name(way): (goal, way) for _, goal, way in WAYS}
    for split, found in compositions.items():
        assert len(found) > 10
        of = {composition_split([parts[name] for name in composition]) for composition in found}
        assert of == {"test" if split == "test" else "train"}


@pytest.mark.parametrize("level", range(1, 9))
def test_tasks_of_validation_are_sound(level):
    env = make(split="validation", difficulty=level)
    for seed in range(3):
        _, info = env.reset(seed=seed)
        assert gate_task(env, info["task_id"], seed) == []


def test_a_single_goal_belongs_to_all_splits():
    assert composition_split([(SITES["mail"].goals[0], "here")]) is None


def test_difficulty_one_is_short():
    for site in SITES:
        for seed in range(10):
            task = compose("train", 1, seed, (site,))
            assert len(task.request) < 600


@pytest.mark.parametrize("level", range(1, 9))
def test_the_oracle_makes_as_many_calls_as_asked(level):
    env = make(difficulty=level)
    for seed in range(5):
        env.reset(seed=seed)
        assert len(env.unwrapped.oracle()) == level + 1


def walk(world, calls):
    """The worlds that some calls lead through on the dom backend; it ends where one of them is refused."""
    worlds, backend = [world], DomBackend()
    for name, arguments in calls:
        try:
            worlds.append(worlds[-1].apply(act(backend, worlds[-1], name, arguments)))
        except ToolError:
            break
    return worlds


def passes(task, calls):
    """Whether these calls do what is asked, and show what is asked for."""
    worlds = walk(task.world, calls)
    told = any((task.answer or "") in DomBackend().show(world).text for world in worlds)
    return len(worlds) == len(calls) + 1 and told and not worlds[-1].tables.differences(task.goal)


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_step_of_the_oracle_is_needless(split):
    for seed in range(100):
        task = compose(split, 1 + seed % 8, seed, tuple(SITES))
        calls = [(call.name, call.arguments) for call in task.calls]
        assert passes(task, calls)
        for count in range(1, len(calls) + 1):
            for left_out in itertools.combinations(range(len(calls)), count):
                assert not passes(task, [c for at, c in enumerate(calls) if at not in left_out]), (task.id, left_out)


def made_up(task):
    """Addresses that one who knows how the site is built can put together from the request."""
    names, days = re.findall(r'"([^"]*)"', task.words), ["", *re.findall(r"\?day=.*|\d{4}-\d\d-\d\d", task.words)]
    keys = [f"{at:02}" for at in range(25)]
    every = [f"/?q={name}" for name in names] + [f"/?page={n}" for n in range(2, 6)] + ["/?color=red", "/checkout"]
    every += [f"/room/{name}?day={day}" for name in names for day in days]
    every += [address for key in keys for address in (f"/mail/{key}", f"/article/{key}", f"/user/{key}/delete")]
    return [*every, *(f"/user/{key}" for key in keys), *SITES[task.world.site].nav.values()]


def shorter(task, most):
    """A breadth-first search for a solution of at most so many calls: everything that can be clicked, everything that
    the request names written into every field, every address made up. What changes anything else is not followed.
    """
    wanted, backend = task.world.tables.differences(task.goal), DomBackend()
    words = re.findall(r'"([^"]*)"|(\d{4}-\d\d-\d\d)|\b(\d+)\b', task.words)
    words, addresses = [next(filter(None, found)) for found in words], made_up(task)
    told_at = [w.path for w in walk(task.world, [(c.name, c.arguments) for c in task.calls])
               if (task.answer or "") in backend.show(w).text]  # fmt: skip
    layer, seen = [(task.world, task.answer is None)], set()
    for _ in range(most):
        following = []
        for world, told in layer:
            calls = [("back", {}), *(("go_to", {"path": path}) for path in addresses)]
            for element in backend.show(world).elements.values():
                number, options = {"element": element.number}, element.control.options
                calls.append(("click", number))
                if element.control.role == "textbox":
                    calls += [("fill", number | {"text": word}) for word in words]
                calls += [("select", number | {"option": o}) for o in options if re.search(rf"\b{o}\b", task.words)]
            for name, arguments in calls:
                for after in walk(world, [(name, arguments)])[1:]:
                    changed = after.tables.differences(task.world.tables)
                    if any(
                        not any(f"{p}.".startswith(f"{q}.") or f"{q}.".startswith(f"{p}.") for q in wanted)
                        for p in changed
                    ):
                        continue
                    knows = told or after.path in told_at
                    if knows and not after.tables.differences(task.goal):
                        return True
                    if (after.hash, knows) not in seen:
                        seen.add((after.hash, knows))
                        following.append((after, knows))
        layer = following
    return False


@pytest.mark.parametrize("level", [2, 3, 4])
def test_no_address_that_can_be_made_up_is_a_short_cut(level):
    for seed in range(5):
        task = compose("train", level, seed, tuple(SITES))
        assert not shorter(task, level - 1), task.id


def test_only_the_pages_of_the_menu_open_by_an_address_alone():
    opened = 0
    for seed in range(40):
        task = compose("train", 2 + seed % 7, seed, tuple(SITES))
        site = SITES[task.world.site]
        for world in walk(task.world, [(call.name, call.arguments) for call in task.calls]):
            shown, bare = site.view(world.tables, world.path), unsigned(world.path)
            assert "Page not found" not in shown
            assert ("Page not found" in site.view(world.tables, bare)) == (bare not in site.nav.values())
            assert "Page not found" in site.view(world.tables, f"{bare}{'&' if '?' in bare else '?'}sid=1000000")
            (secret,) = task.world.tables.tables["session"]
            assert secret not in DomBackend().show(world).text
            opened += bare not in site.nav.values()
    assert opened > 40


def test_the_shortest_order_of_the_goals_is_the_declared_one():
    """Tell "A"'s e-mail, suspend "B": the other way round one need not come back to the list."""
    for seed in range(300):
        task = compose("train", 2, seed, ("admin",))
        if task.composition == ("admin.email:here", "admin.suspend:here"):
            assert task.steps[0][1].split()[0] == "Suspend"
            return
    pytest.fail("no such task in 300 seeds")


def test_what_an_article_is_made_of_cannot_be_guessed():
    answers = [task.answer for seed in range(200) if "shop.material:far" in
               (task := compose("train", 3, seed, ("shop",))).composition]  # fmt: skip
    assert len(answers) > 20
    assert len(set(answers)) > 0.9 * len(answers)


def test_search_is_cheaper_than_paging():
    cheaper = 0
    for seed in range(300):
        task = compose("train", 3, seed, ("mail",))
        if task.composition != ("mail.star:far",):
            continue
        env = make(sites=["mail"])
        env.reset(options={"task": task.id})
        for action in env.unwrapped.oracle():
            *_, info = env.step(action)
        searched = info["cost_total"]
        assert info["verdict"]["status"] == "pass"
        button = task.steps[-1][1]
        env.reset(options={"task": task.id})
        while all(e.control.name != button for e in page(env).elements.values()):
            click(env, "Next page")
        click(env, button)
        *_, info = env.step("Done.")
        assert info["verdict"]["status"] == "pass"
        paged = info["cost_total"]
        assert paged["latency_ms"] > 1.5 * searched["latency_ms"]
        assert paged["tool_calls"] > searched["tool_calls"]
        cheaper += 1
    assert cheaper > 3


def test_a_page_costs_by_what_it_shows():
    env = make(sites=["admin"], difficulty=8)
    env.reset(seed=0)
    long = env.step(call("go_to", path="/"))[4]["cost"]["latency_ms"]
    short = env.step(call("go_to", path="/nowhere"))[4]["cost"]["latency_ms"]
    typed = (
        env.step(call("go_to", path="/"))[4]
        and env.step(call("fill", element=number(env, "Search", "textbox"), text="a"))[4]["cost"]["latency_ms"]
    )
    assert long > 2 * short > typed


# ---- the verdict ---------------------------------------------------------------------------------------------------


def task_of(composition, split="train", site="mail", level=1):
    return next(t for s in range(999) if (t := compose(split, level, s, (site,))).composition == (composition,))


def test_collateral_damage_is_found():
    task = task_of("mail.star:here")
    env = make(sites=["mail"])
    env.reset(options={"task": task.id})
    wanted = task.steps[0][1]
    other = next(e.control.name for e in page(env).elements.values() if e.control.name.startswith("Archive "))
    click(env, other)
    if any(e.control.name == wanted for e in page(env).elements.values()):
        click(env, wanted)
    _, reward, _, _, info = env.step("Done.")
    assert reward == 0.0
    assert info["verdict"]["reason"] == "wrong_state"
    assert "changed though nothing asked for it" in " ".join(info["verdict"]["diagnostics"])


def test_the_answer_counts_where_one_is_asked_for():
    task = task_of("mail.code:here")
    env = make(sites=["mail"])
    for answer, reason in ((task.answer, "passed"), (f'"{task.answer}".', "passed"), ("C0000", "wrong_answer")):
        env.reset(options={"task": task.id})
        _, reward, _, _, info = env.step(call("submit", answer=answer))
        assert info["verdict"]["reason"] == reason
        assert reward == float(reason == "passed")


# ---- snapshots -----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_state_hash_is_of_the_content_alone(seed):
    env = make(sites=["mail"], difficulty=1)
    env.reset(seed=seed)
    start = state_hash(env)
    name = next(e.control.name for e in page(env).elements.values() if e.control.name.startswith("Star "))
    click(env, name)
    assert state_hash(env) != start
    click(env, f"Un{name[0].lower()}{name[1:]}")
    assert state_hash(env) == start
    search(env, "a")
    assert state_hash(env) != start  # another page
    env.step(call("go_to", path="/"))
    assert state_hash(env) == start
    env.step(call("fill", element=number(env, "Search", "textbox"), text="x"))
    assert state_hash(env) != start  # another text in the field
    env.step(call("fill", element=number(env, "Search", "textbox"), text=""))
    assert state_hash(env) == start


def test_snapshots_share_the_tables():
    env = make(sites=["admin"], difficulty=8)
    env.reset(seed=0)
    before = env.unwrapped._world
    click(env, "Next page")
    assert env.unwrapped._world.tables is before.tables


# ---- replay --------------------------------------------------------------------------------------------------------


def record(task, names):
    env = RecordTrajectory(make(sites=[task.world.site]))
    env.reset(options={"task": task.id})
    for name in names:
        click(env, name)
    env.step("Done." if task.answer is None else task.answer)
    return env, env.last


def test_a_number_that_only_a_removed_page_showed_is_ungrounded():
    task = task_of("mail.delete:here", level=2)
    env, trajectory = record(task, [name for _, name, _ in task.steps])
    assert trajectory.reward == 1.0
    (deleted,) = counterfactuals(env, trajectory, [Delete(0)])
    assert deleted.validity == ("ungrounded", "executed")
    assert deleted.reward == 0.0


def test_a_needless_page_costs_and_brings_nothing():
    task = task_of("mail.star:here")
    env, trajectory = record(task, ["Archive", "Inbox", task.steps[0][1]])
    assert trajectory.reward == 1.0
    (deleted,) = counterfactuals(env, trajectory, [Delete(0, length=2)], cache=ToolCache())
    assert deleted.reward == 1.0
    assert deleted.validity == ("executed", "executed")
    assert deleted.cost_credit["latency_ms"] > 50


# ---- wrong input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"split": "dev"}, "choose 'train', 'validation' or 'test'"),
        ({"difficulty": 0}, "a whole number of actions from 1 to 8"),
        ({"difficulty": [3, 2]}, "or \\[least, most\\]"),
        ({"difficulty": "hard"}, "a whole number of actions"),
        ({"sites": ["bank"]}, "there is no 'bank'; there are shop, mail"),
        ({"sites": []}, "there is no '\\(none\\)'"),
        ({"backend": "firefox"}, "choose one of 'dom', 'chromium'"),
        ({"tasks": "other"}, "the only source beside the generator is 'miniwob'"),
        ({"render_mode": "rgb_array"}, "needs backend='chromium'"),
        ({"render_mode": "depth"}, "render_mode='depth'"),
        ({"port": -1}, "a whole number from 0"),
    ],
)
def test_arguments_that_cannot_be(kwargs, says):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=says):
            make(**kwargs)


def test_a_missing_parser_names_the_extra(monkeypatch):
    from agent_gym.envs.web_lite import dom

    monkeypatch.setitem(sys.modules, "selectolax.lexbor", None)
    with pytest.raises(ImportError, match=r"selectolax.*pip install 'agent-gym\[web\]'"):
        dom._parser()


def test_a_missing_playwright_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(ImportError, match=r"Playwright.*pip install 'agent-gym\[web\]'"):
        make(backend="chromium")


def test_a_missing_browser_says_what_to_install(monkeypatch):
    pytest.importorskip("playwright")
    monkeypatch.setenv("AGENT_GYM_CHROMIUM", "/no/such/browser")
    with pytest.raises(chromium.BrowserUnavailable, match="apt install chromium"):
        make(backend="chromium")
    monkeypatch.delenv("AGENT_GYM_CHROMIUM")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(chromium.BrowserUnavailable, match="none of chromium"):
        make(backend="chromium")


# ---- Chromium ------------------------------------------------------------------------------------------------------


@browser
def test_both_backends_do_the_same():
    dom, real = make(max_turns=20), make(max_turns=20, backend="chromium")
    rng, steps, seed = random.Random(1), 0, 0
    try:
        while steps < 40:
            assert dom.reset(seed=seed) == real.reset(seed=seed)
            seen, done = [], False
            assert page(real).text == page(dom).text
            while not done:
                action = web(rng, dom, seen)
                ours, theirs = dom.step(action), real.step(action)
                assert repr(ours) == repr(theirs)
                done, steps = ours[2] or ours[3], steps + 1
            seed += 1
    finally:
        real.close()


PARTS = st.one_of(
    st.sampled_from(
        ["", "mail", "00", "style.css", "archive", "room", "..", ".", "%2e%2e", "%2F", "favicon.ico", "a b"]
    ),
    st.text(max_size=6),
)
NAMES = st.one_of(
    st.sampled_from(
        ["", "q", "page", "color", "day", "action", "method", "label", "path", "_charset_", "getAttribute"]
    ),
    st.text(max_size=4),
)
ADDRESSES = st.builds(
    lambda slashes, parts, query, mark, end: slashes + "/".join(parts) + mark + "&".join(query) + end,
    st.sampled_from(["/", "//", "/./"]),
    st.lists(PARTS, max_size=3),
    st.lists(st.builds(lambda name, sign, value: name + sign + value, NAMES, st.sampled_from(["=", "", "=="]),
                       st.one_of(st.sampled_from(["", "2", "<b>", "%ff", "%0d%0a", "x" * 400]), st.text(max_size=5))),
             max_size=4),
    st.sampled_from(["?", "", "#", "?#", "??", ";"]),
    st.sampled_from(["", "#top", "?", "/", "&&"]),
)  # fmt: skip


@pytest.fixture(scope="module")
def both():
    if MISSING:
        pytest.skip(MISSING)
    made = [make(sites=["mail"], difficulty=3, max_turns=10**6, backend=name) for name in ("dom", "chromium")]
    for env in made:
        env.reset(seed=1)
    yield made
    for env in made:
        env.close()


@settings(max_examples=40, deadline=None)
@given(address=ADDRESSES, session=st.booleans(), at=st.integers(0, 30))
@example(address="/?=x", session=False, at=5)
@example(address="/?=x", session=True, at=5)
@example(address='/?_charset_=x&getAttribute=y&"><b>=z', session=True, at=5)
@example(address="/?action=x&label=y&path=/archive&method=get", session=True, at=5)
@example(address="/style.css", session=False, at=0)
@example(address="/" + "\U0001f600" * 480, session=False, at=0)
@example(address="/?q=" + "\u6f22" * 480, session=True, at=2)
def test_both_backends_agree_on_every_address(both, address, session, at):
    if session:  # what the site's own links carry, so that its pages are met with odd queries too
        address = signed(both[0].unwrapped.task.world.tables, address.partition("#")[0])
    opened = [env.step(call("go_to", path=address)) for env in both]
    assert repr(opened[0]) == repr(opened[1])
    elements = list(page(both[0]).elements.values())
    element = elements[at % len(elements)]
    if element.control.role in ("link", "button"):
        pressed = [env.step(call("click", element=element.number)) for env in both]
        assert repr(pressed[0]) == repr(pressed[1])


@browser
def test_the_browser_comes_back_to_a_snapshot_of_either_backend():
    dom, real = make(sites=["admin"], difficulty=5), make(sites=["admin"], difficulty=5, backend="chromium")
    try:
        for env in (dom, real):
            env.reset(seed=0)
            env.step(call("go_to", path="/new"))
            env.step(call("fill", element=number(env, "Name"), text="Zoe"))
        snap = snapshot(dom)
        assert pickle.dumps(snap) == pickle.dumps(snapshot(real))
        observation = click(real, "Create")[0]
        restore(real, snap)
        assert re.search(r'textbox "Name" \[\d+\] value "Zoe"', page(real).text)
        assert click(real, "Create")[0] == observation
    finally:
        real.close()


@browser
def test_a_picture_of_the_page():
    env = make(sites=["shop"], backend="chromium", render_mode="rgb_array", difficulty=1)
    try:
        env.reset(seed=0)
        picture = env.render()
        assert picture.shape == (540, 720, 3)
        assert picture.dtype == np.uint8
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
        env.step(call("go_to", path="/cart"))
        assert not np.array_equal(env.render(), picture)
    finally:
        env.close()


@browser
def test_other_event_loops_run_once_the_browser_has_quit():
    for _ in range(2):
        chromium.open_page().set_content("<p>here</p>")
        assert asyncio.get_running_loop().is_running()  # Playwright's own
        chromium.quit_browser()
        assert asyncio.run(asyncio.sleep(0, "done")) == "done"
    chromium.quit_browser()  # there is none


@browser
def test_a_dead_browser_is_no_verdict_and_the_next_episode_works():
    env = make(sites=["mail"], backend="chromium", difficulty=1)
    try:
        env.reset(seed=0)
        env.step(call("look"))
        chromium._at_home(lambda: chromium._local.browser.close())()
        _, reward, terminated, truncated, info = env.step(call("go_to", path="/archive"))
        assert (terminated, truncated) == (False, True)
        assert np.isnan(reward)
        assert info["verdict"]["status"] == "infra"
        assert "the browser failed" in info["verdict"]["diagnostics"][0]
        env.reset(seed=0)
        for action in env.unwrapped.oracle():
            _, reward, *_ = env.step(action)
        assert reward == 1.0
    finally:
        env.close()


@browser
def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port={port}: cannot be served on: Address already in use"):
            make(backend="chromium", port=port)


# ---- MiniWoB++ -----------------------------------------------------------------------------------------------------

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))


@pytest.fixture(scope="module")
def wob():
    if MISSING:
        pytest.skip(MISSING)
    try:
        env = make(tasks="miniwob", max_turns=200)
    except ImportError as error:
        if os.environ.get("AGENT_GYM_REQUIRE_BROWSER"):
            raise
        pytest.skip(str(error))
    yield env
    env.close()


def test_the_package_has_more_than_a_hundred_tasks(wob):
    assert len(wob.unwrapped.sites) >= 100


@pytest.mark.parametrize(
    "name",
    [
        "click-button", "enter-text", "click-checkboxes", "click-menu", "drag-box", "drag-items", "social-media",
        "stock-market", "simon-says", "use-slider",
    ],
)  # fmt: skip
def test_a_script_solves_it(wob, name):
    from miniwob_solvers import solve

    for seed in range(2):
        assert solve(wob, name, seed) == {
            "status": "pass", "reason": "passed", "score": 1.0, "diagnostics": [], "trust": "strong",
        }  # fmt: skip


def test_pictures_show_what_they_stand_for(wob):
    text, _ = wob.reset(options={"task": "order-food-0"})
    assert re.search(r'^\[\d+\] img alt "meat" title "meat"$', text, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "line"), [("drag-items", 'div "'), ("click-menu", "div#ui-id"), ("drag-box", "div#d")]
)
def test_what_can_be_dragged_or_pointed_at_has_its_place(wob, name, line):
    text, _ = wob.reset(options={"task": f"{name}-0"})
    lines = [found for found in text.splitlines() if line in found]
    assert lines
    assert all(re.search(r" at \d+,\d+ \d+x\d+$", found) for found in lines)


def test_the_mouse_stays_where_it_hovers(wob):
    text, _ = wob.reset(options={"task": "click-menu-0"})
    first = int(re.search(r'\[(\d+)\] div\S* "Xaviera"', text)[1])
    assert '"Laurie"' not in text.partition("\n")[2]
    assert '"Laurie"' in wob.step(call("hover", element=first))[0]
    assert "has no element 999" in wob.step(call("hover", element=999))[0]
    assert "has no element 999" in wob.step(call("drag_to", element=first, to=999))[0]


def test_the_clock_stops_at_the_next_tick_of_a_page(wob):
    """The stock's price changes ten times a second, a lamp of the other page is on for a quarter of one."""
    wob.reset(options={"task": "stock-market-0"})
    points = [wob.step(call("wait"))[0].count("circle.plot-point") for _ in range(5)]
    assert points == [1, 2, 3, 4, 5]
    wob.reset(options={"task": "simon-says-0"})
    lit = [wob.step(call("wait"))[0].count(".push") for _ in range(6)]
    assert lit == [1, 0, 1, 0, 1, 0]


def test_miniwob_is_seeded(wob):
    first, other, again = (wob.reset(options={"task": f"click-link-{seed}"})[0] for seed in (1, 2, 1))
    assert first == again != other


def test_miniwob_gives_the_pages_own_reward(wob):
    wob.reset(options={"task": "click-test-2-0"})
    wrong = next(line for line in wob.unwrapped.task.world.text.splitlines() if '"TWO"' in line)
    observation, *_ = wob.step(call("click", element=int(wrong[1 : wrong.index("]")])))
    assert observation == "The page has ended the task."
    observation, *_ = wob.step(call("wait"))
    assert "give the final answer" in observation
    _, reward, _, _, info = wob.step("Done.")
    assert reward == 0.0
    assert info["verdict"]["diagnostics"] == ["the page's reward is -1"]


def test_miniwob_says_that_it_has_no_snapshot_and_plays_again_instead(wob):
    from agent_gym.envs.web_lite.miniwob import reexecute

    env = RecordTrajectory(make(tasks="miniwob", sites=["enter-text"]))
    env.reset(seed=5)
    env.step(call("fill", element=1, text="abc"))
    with pytest.raises(NotImplementedError, match="it has no snapshot"):
        snapshot(env)
    shown = env.step(call("wait"))[0]
    env.step("Done.")
    other = make(tasks="miniwob", sites=["enter-text"])
    observation, info = reexecute(other, env.last, steps=2)
    assert observation == shown
    assert info["state_hash"] == env.last.steps[1].state_hash
    with pytest.raises(ValueError, match="the trajectory has 3"):
        reexecute(other, env.last, steps=4)
    env.close()
    other.close()


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"sites": ["no-such"]}, "MiniWoB\\+\\+ has no task 'no-such'"),
        ({"backend": "dom"}, "they need 'chromium'"),
        ({"threshold": 0}, "a reward above 0"),
    ],
)
def test_miniwob_arguments_that_cannot_be(wob, kwargs, says):
    with pytest.raises(ValueError, match=says):
        make(tasks="miniwob", **kwargs)
    with pytest.raises(ValueError, match="it reads name-seed"):
        wob.reset(options={"task": "click-test"})


def test_an_element_that_miniwob_does_not_show_is_refused(wob):
    wob.reset(options={"task": "enter-text-0"})
    for action in (call("click", element=99), call("fill", element=99, text="x")):
        assert "has no element 99" in wob.step(action)[0]
    assert "takes no text" in wob.step(call("fill", element=2, text="x"))[0]
    assert "there is no key" in wob.step(call("press", key="Nonsense"))[0]


def test_addresses_are_checked_before_they_are_opened():
    with pytest.raises(ToolError, match="starts with '/'"):
        canonical_path("elsewhere")


def test_the_page_lists_every_goal_and_every_tool():
    text = (Path(__file__).parents[1] / "docs" / "web_lite.md").read_text(encoding="utf-8")
    for site in SITES.values():
        goals = (f"`{g.build.__name__}` ({', '.join(f'{w} {n}' for w, n in g.ways.items())})" for g in site.goals)
        assert f"| {site.name} | {'; '.join(goals)} |" in text
    for tool in TOOLS.values():
        latency = f"{tool.latency.base_ms:.0f} + {tool.latency.per_unit_ms:.0f}"
        assert f"| `{tool.name}({', '.join(tool.parameters)})` | {latency} |" in text
