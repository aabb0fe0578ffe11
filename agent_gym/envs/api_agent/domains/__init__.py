"""The built-in domains; importing this package registers them."""

from agent_gym.envs.api_agent.domain import register_domain
from agent_gym.envs.api_agent.domains.calendar import calendar
from agent_gym.envs.api_agent.domains.files import files
from agent_gym.envs.api_agent.domains.mail import mail
from agent_gym.envs.api_agent.domains.shop import shop
from agent_gym.envs.api_agent.domains.travel import travel

for _domain in (shop, calendar, mail, files, travel):
    register_domain(_domain)

NAMES = ("shop", "calendar", "mail", "files", "travel")
