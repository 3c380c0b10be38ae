"""Warploom: GPU operators for LLM serving engines.

The public names of every installed family are attributes of this package, imported on first use:
``warploom.softmax`` is ``warploom.sampling.softmax``. `warploom.core.families` says which family has which name.
"""

from pkgutil import extend_path
from typing import Any

from warploom.core import families as _families

__path__ = extend_path(__path__, __name__)  # the families are distributions of their own under this package
__version__ = "0.1.0"

_families.explain_missing_imports()


def __getattr__(name: str) -> Any:
    value = _families.resolve(name)
    globals()[name] = value  # the next access is a plain attribute
    return value


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith("__")} | {"core", *_families.public_names()})
