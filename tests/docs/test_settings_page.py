"""docs/settings.md repeats core's table of settings."""

from __future__ import annotations

from pathlib import Path

from warploom.core.settings import SETTINGS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def row(setting):
    default = {None: "", True: "1", False: "0"}.get(setting.default) if setting.default != {} else ""
    shown = f"{setting.default:g}" if default is None and isinstance(setting.default, float) else default
    cells = [f"`{setting.variable}`", setting.type.replace("|", "\\|"), setting.default if shown is None else shown]
    return f"| {' | '.join(map(str, cells))} | {setting.meaning} |".replace("|  |", "| |")


def test_page_repeats_the_table():
    expected = "\n".join(["| variable | type | default | meaning |", "|---|---|---|---|", *map(row, SETTINGS.values())])
    assert expected in PAGE.read_text(), f"the table of {PAGE} should be:\n{expected}"
