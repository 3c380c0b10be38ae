"""docs/settings.md repeats core's table of settings."""

from __future__ import annotations

from pathlib import Path

from warploom.core.settings import SETTINGS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def shown(default):
    if default is None or default == {}:
        return ""
    return f"{default:g}" if isinstance(default, float) else str(int(default) if isinstance(default, bool) else default)


def row(setting):
    kind = setting.type.replace("|", "\\|")
    return f"| `{setting.variable}` | {kind} | {shown(setting.default)} | {setting.meaning} |"


def test_page_repeats_the_table():
    expected = "\n".join(["| variable | type | default | meaning |", "|---|---|---|---|", *map(row, SETTINGS.values())])
    assert expected in PAGE.read_text(), f"the table of {PAGE} should be:\n{expected}"
