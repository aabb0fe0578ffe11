"""What a run may begin with, and learn from."""

import gymnasium as gym
import pytest

pytest.importorskip("torch", reason="the trainers need the extra 'train'")
pytest.importorskip("transformers", reason="the trainers need the extra 'train'")

from agent_gym import CHANNELS, Trajectory
from agent_gym.lm.demonstrations import dialogue_of
from agent_gym.lm.errors import Refused


@pytest.mark.parametrize("split", ["validation", "test"])
def test_nothing_is_learnt_from_episodes_of_the_tests(split):
    env, costs = gym.make("APIAgent-v0"), dict.fromkeys(CHANNELS, 0.0)
    episode = Trajectory("t", "APIAgent-v0", {"split": split}, 0, (), 0.0, None, costs)
    with pytest.raises(Refused, match=f"^here: an episode of the {split} split, which is kept for the tests; choose"):
        dialogue_of(episode, env, "here")
