"""What pyproject.toml leaves to be made: the long description, and the addresses of the package."""

import runpy
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
made = runpy.run_path(str(ROOT / "scripts" / "readme_links.py"))
url = made["repository"](ROOT)
setup(
    long_description=made["described"](ROOT),
    long_description_content_type="text/markdown",
    project_urls=made["addresses"](url),
)
