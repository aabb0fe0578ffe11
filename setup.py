"""What pyproject.toml cannot say: README.md with links that work on a package index."""

from pathlib import Path
from runpy import run_path

from setuptools import setup

absolute = run_path(".ci/links.py")["absolute"]
readme = absolute(Path("README.md").read_text(encoding="utf-8"), ".")
setup(long_description=readme, long_description_content_type="text/markdown")
