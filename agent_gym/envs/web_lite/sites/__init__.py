"""The sites: one file each."""

from agent_gym.envs.web_lite.site import Site
from agent_gym.envs.web_lite.sites.admin import admin
from agent_gym.envs.web_lite.sites.booking import booking
from agent_gym.envs.web_lite.sites.mail import mail
from agent_gym.envs.web_lite.sites.shop import shop

__all__ = ["SITES"]

SITES: dict[str, Site] = {site.name: site for site in (shop, mail, booking, admin)}
