"""Dependencies of the root distribution: in a checkout, the five packages beside this file."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
NAMES = ("core", "attention", "gemm", "comm", "sampling")


def requirement(name: str) -> str:
    package = ROOT / "packages" / name
    if package.is_dir():
        return f"warploom-{name} @ {package.as_uri()}"
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return f"warploom-{name}=={version[1]}" if version else f"warploom-{name}"  # in a source distribution


setup(install_requires=[requirement(name) for name in NAMES])
