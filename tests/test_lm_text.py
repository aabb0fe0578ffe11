"""What a model sampled is played character by character, whatever its tokenizer would tidy up."""

import gymnasium as gym
import pytest

pytest.importorskip("agent_gym.lm", reason="needs the extra 'train'", exc_type=ImportError)

from agent_gym.lm import tiny
from agent_gym.lm.chat import Chat
from agent_gym.lm.demonstrations import Said, sampled_here

TEXTS = ["if x != y : return 'a , b .'", "do n't I 'm we 've ? no ! \" a \"", "  two  blanks \n , and a line"]


@pytest.fixture(scope="module")
def chat():
    tokenizer = tiny.tokenizer(TEXTS)
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    assert tokenizer.decode(tokenizer.encode("x != y")) == "x!= y"  # the tokenizer tidies unless it is told not to
    return Chat(tokenizer, sees_tools=False)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("ended", [False, True])
def test_what_was_sampled_is_played(chat, text, ended):
    ids = [*chat.encode(text), *([chat.eos] if ended else [])]
    assert chat.text(ids) == text
    assert chat.count(text) == len(chat.encode(text)) + 1
    assert sampled_here(chat, Said(text, ids, []))
    env = gym.make("APIAgent-v0", domains=["shop"], difficulty=1, disable_env_checker=True, parser=chat.parser)
    env.reset(seed=1)
    assert env.unwrapped.read(chat.text(ids)).text == text.strip()
