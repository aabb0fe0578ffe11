"""The built-in domains; importing this package registers them."""

from agent_gym.envs.api_agent.domain import register_domain
from agent_gym.envs.api_agent.domains.shop import shop

for _domain in (shop,):
    register_domain(_domain)

NAMES = ("shop",)
