"""Each family installed alone: it brings core and nothing of the others, and missing names say what to install."""

from __future__ import annotations

import json

import pytest

from warploom.core.families import FAMILIES

PROBE = """
    import importlib, importlib.util, json, sys
    import warploom

    def attempt(action):
        try:
            action()
        except ImportError as error:
            return str(error)
        return "worked"

    def distributions():
        from importlib.metadata import distributions
        return sorted(d.metadata["Name"] for d in distributions() if d.metadata["Name"].startswith("warploom"))

    MODULES, NAMES = json.loads(sys.argv[1]) if len(sys.argv) > 1 else json.loads(input())
    print(json.dumps({
        "distributions": distributions(),
        "found": {m: importlib.util.find_spec(f"warploom.{m}") is not None for m in MODULES},
        "statement": {m: attempt(lambda: importlib.import_module(f"warploom.{m}")) for m in MODULES},
        "attribute": {m: attempt(lambda: getattr(warploom, m)) for m in MODULES},
        "name": {n: attempt(lambda: getattr(warploom, n)) for n in NAMES},
        "dir": [n for n in [*MODULES, *NAMES] if n in dir(warploom)],
    }))
"""
MODULES = [module for family in FAMILIES.values() for module in family.modules]
SAMPLES = {key: family.names[0] for key, family in FAMILIES.items() if family.names}


def probe(environment):
    question = json.dumps([MODULES, list(SAMPLES.values())])
    program = PROBE.replace("input()", repr(question))
    return json.loads(environment.run(program).stdout.splitlines()[-1])


@pytest.mark.parametrize("installed", FAMILIES)
def test_family_alone(wheels, clean_environment, installed):
    wheel_folder = wheels["core"].parent
    distribution = FAMILIES[installed].distribution
    clean_environment.pip("install", "--no-index", "--find-links", wheel_folder, distribution)

    answer = probe(clean_environment)

    assert answer["distributions"] == sorted(["warploom-core", distribution])
    for key, family in FAMILIES.items():
        there = key == installed
        for module in family.modules:
            assert answer["found"][module] == there, module
            for way in ("statement", "attribute"):
                expected = "worked" if there else f"pip install {family.distribution}"
                assert expected in answer[way][module], (way, module)
            assert (module in answer["dir"]) == there
        if key in SAMPLES:
            assert ("worked" if there else f"pip install {family.distribution}") in answer["name"][SAMPLES[key]]
            assert (SAMPLES[key] in answer["dir"]) == there


def test_uninstalling_one_leaves_the_others(wheels, clean_environment):
    clean_environment.pip("install", "--no-index", "--no-deps", wheels["core"], wheels["sampling"], wheels["gemm"])
    clean_environment.run("import warploom.sampling, warploom.gemm")

    clean_environment.pip("uninstall", "--yes", "warploom-gemm")

    clean_environment.run("import warploom.sampling; warploom.logits_processor")
    assert "pip install warploom-gemm" in clean_environment.run("import warploom.gemm", check=False).stderr


def test_families_in_different_folders_make_one_package(wheels, clean_environment, tmp_path):
    """As with editable installs, `--target` folders and user sites: `extend_path` joins them."""
    for name in ("core", "sampling", "comm"):
        clean_environment.pip("install", "--no-index", "--no-deps", "--target", tmp_path / name, wheels[name])
    (clean_environment.site / "folders.pth").write_text(
        "\n".join(str(tmp_path / name) for name in ("comm", "core", "sampling"))
    )
    clean_environment.run("import warploom.sampling, warploom.comm, warploom.core.errors; warploom.logits_processor")
