import pytest

from agent_gym import eliminate
from agent_gym.env import tool_env
from agent_gym.lm.demonstrations import demonstrations
from agent_gym.lm.rollout import environments
from agent_gym.lm.thoughts import THOUGHTS
from agent_gym.lm.tiny import preset
from agent_gym.wrappers import RecordTrajectory


def both(env_id, count, waste):
    (env,) = environments(env_id, 1, chat=None, split="train", bounds={}, **preset(env_id).env_kwargs)
    silent, aloud = (
        demonstrations(env, range(count), wasteful=float(waste > 0), waste=waste, aloud=aloud)
        for aloud in (False, True)
    )
    return tool_env(env), silent, aloud


@pytest.mark.parametrize("env_id", THOUGHTS)
@pytest.mark.parametrize("waste", [0.0, 0.5])
def test_thoughts_change_no_call_and_no_verdict_and_hold_only_what_was_seen(env_id, waste):
    env, silent, aloud = both(env_id, 60, waste)
    assert len(silent) == len(aloud)
    said = 0
    for one, other in zip(silent, aloud, strict=True):
        seen = one.messages[-1]["content"].replace("_", " ")
        for turn, spoken in zip(one.turns, other.turns, strict=True):
            read, heard = env.read(turn.action), env.read(spoken.action)
            assert read.calls == heard.calls
            assert turn.answers == spoken.answers
            if turn.action != spoken.action:
                said += 1
                thought = heard.text.partition("\n```")[0] if not read.calls else heard.text
                assert all(words in seen for line in thought.split("\n") for words in _copied(env_id, line))
            seen += "".join(answer["content"] for answer in turn.answers)
    assert said >= 10


@pytest.mark.parametrize("env_id", ["APIAgent-v0", "WebLite-v0"])
def test_of_a_wasteful_episode_elimination_leaves_what_the_oracle_does(env_id):
    (made,) = environments(env_id, 1, chat=None, split="train", bounds={}, **preset(env_id).env_kwargs)
    env = RecordTrajectory(made)
    demonstrations(env, range(40), wasteful=1.0, waste=0.5, aloud=True)
    wasted = 0.0
    for episode in env.trajectories[:]:
        # A scan shows every id, and so explains a call without the look-ups that say which one is meant.
        if episode.success and not any('"list_' in str(step.action) for step in episode.steps):
            env.reset(seed=episode.seed)
            base = tool_env(env)
            needed = sum(len(base.read(action).calls) for action in base.oracle())
            assert eliminate(env, episode, {"tool_calls": 1.0}).trajectory.cost_total["tool_calls"] == needed
            wasted += episode.cost_total["tool_calls"] - needed
    assert wasted > 20


def _copied(env_id, line):
    """A line of a thought is copied as it stands; one about columns is a word of the request and a name."""
    return line.rsplit(" ", 1) if env_id == "SQL-v0" else [line]


def test_of_a_list_the_records_up_to_the_one_that_is_meant():
    rows = '[{"id":"E1","title":"Tumu","day":"d1","room":"R1"},{"id":"E2","title":"Bikli","day":"d2","room":"R2"}]'
    think = THOUGHTS["APIAgent-v0"]
    ask = "Tell the name of the room of the Bikli event of the organiser with e-mail a@b.c."
    assert think(ask, [rows], [["R2"], ["Hall"]]) == 'E1","title":"Tumu\nE2","title":"Bikli","day":"d2","room":"R2'
    assert think(ask.replace("Bikli", "Tumu"), [rows], [["E1"]]) == 'E1","title":"Tumu'
    assert think(ask, [rows], [["R9"]]) == ""  # nothing of it is needed
    assert think("Cancel events E1 and E2.", [rows], [["E1", "E2"]]) == ""  # no name to look up
    assert think(ask, [rows, rows], [["R2"]]) == ""  # read again
    assert think(ask, ["no such organiser"], [["R2"]]) == ""


def test_an_element_by_its_label_and_a_column_by_the_words_for_it():
    page = 'Ask\nlink "Rooms" [11]\nBo button "Accept Bo" [22] button "Decline Bo" [33]'
    assert THOUGHTS["WebLite-v0"](page, [], [["33"]]) == '"Decline Bo" [33]'
    assert THOUGHTS["WebLite-v0"]("Start with element 33.\n" + page, [], [["33"]]) == ""
    rows = "Rito 2031-03-03\n09:00 Kapu\n11:00 Bo"
    assert THOUGHTS["WebLite-v0"]("Who has Rito at 09:00?\n" + page, [rows], [["Kapu"]]) == "09:00 Kapu"
    query = "SELECT wr_nation FROM writers WHERE wr_born < 1950 AND wr_nation <> 'Land'"
    words = THOUGHTS["SQL-v0"]("Show the land where birth year is low.", ["wr_nation TEXT\nwr_born INTEGER"], [[query]])
    assert words == "land wr_nation\nbirth year wr_born"
