"""``warploom explain``: which backend would serve a request, and why not the others."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import re
import typing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warploom.core.backends import Operator
    from warploom.core.problem import Problem

__all__ = ["register"]

_EXAMPLES = """\
examples:
  warploom explain                                       list the operators
  warploom explain softmax                               what describes a request to softmax
  warploom explain softmax batch=64 vocab=128256 dtype=float32 arch=90
"""


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "explain",
        help="the backend table of a described request",
        description="Print which backends could serve a request, which one is taken, and why. The request is described "
        "by the fields of the operator's problem; those of the device come from this machine's GPU unless given "
        "(arch=90 alone describes a request on some sm_90 GPU).",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("operator", nargs="?", help="the operator's name; without it, the operators are listed")
    parser.add_argument("fields", nargs="*", metavar="key=value", help="the fields that describe the request")
    parser.add_argument("--backend", default="auto", help="explain what asking for this backend would give")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    operators = _operators()
    if options.operator is None:
        _list(operators)
        return 0
    operator = _find(operators, options.operator)
    if not options.fields:
        _describe(operator)
        return 0
    print(operator.explain(_problem(operator, options.fields), options.backend))
    return 0


def _operators() -> dict[str, Operator]:
    """All operators. A family registers them as its modules are imported, some only when a public name is used."""
    from warploom.core import families
    from warploom.core.backends import OPERATORS

    for point in families.installed().values():
        module = importlib.import_module(point.module)
        for name in getattr(module, "__all__", ()):
            getattr(module, name)
    return dict(sorted(OPERATORS.items(), key=lambda item: (item[1].family, item[0])))


def _list(operators: dict[str, Operator]) -> None:
    width = max((len(name) for name in operators), default=0)
    family = None
    for name, operator in operators.items():
        if operator.family != family:
            family = operator.family
            print(f"{family}:")
        print(f"  {name:<{width}}  {', '.join(operator.backend_names)}")
    if not operators:
        print("no operators: no family is installed")


def _find(operators: dict[str, Operator], name: str) -> Operator:
    from warploom.core.errors import ArgumentError

    if name not in operators:
        near = difflib.get_close_matches(name, operators, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "`warploom explain` lists them."
        raise ArgumentError.of("explain", "operator", "the name of an operator", repr(name), hint)
    return operators[name]


def _problem_type(operator: Operator) -> type[Problem]:
    """The dataclass of the operator's requests, from the annotations of its backends."""
    from warploom.core.errors import ArgumentError
    from warploom.core.problem import Problem

    for backend in operator.backends.values():
        for method in (type(backend).supports, type(backend).run):
            found = typing.get_type_hints(method).get("problem")
            if isinstance(found, type) and issubclass(found, Problem):
                return found
    raise ArgumentError(f"explain: the backends of {operator.name} don't say what type of problem they take")


def _fields(operator: Operator) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Name → field and resolved type."""
    problem = _problem_type(operator)
    hints = typing.get_type_hints(problem)
    return {field.name: (field, hints[field.name]) for field in dataclasses.fields(problem) if field.init}


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _describe(operator: Operator) -> None:
    print(f"{operator.name} ({operator.family}), backends in order of preference: {', '.join(operator.backend_names)}")
    print("a request is described by:")
    for name, (field, kind) in _fields(operator).items():
        given = "required" if _required(field) else f"default {_shown(field)}"
        print(f"  {name}=<{_type_name(kind)}>  {given}")


def _shown(field: dataclasses.Field[Any]) -> str:
    factory = field.default_factory
    return repr(factory() if factory is not dataclasses.MISSING else field.default).removeprefix("torch.")


def _type_name(kind: Any) -> str:
    if not typing.get_args(kind):
        return getattr(kind, "__name__", str(kind))
    return re.sub(r"\b(typing|torch)\.", "", str(kind))


def _problem(operator: Operator, pairs: list[str]) -> Problem:
    from warploom.core.errors import ArgumentError

    fields = _fields(operator)
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ArgumentError.of("explain", pair, "given as key=value", repr(pair))
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"Did you mean {near[0]}?" if near else ""
            raise ArgumentError.of(
                "explain", name, f"a field of {operator.name} ({', '.join(fields)})", "unknown", hint
            )
        values[name] = _parse(name, text, fields[name][1])
    missing = [name for name, (field, _) in fields.items() if _required(field) and name not in values]
    if missing:
        hint = f"`warploom explain {operator.name}` lists all fields."
        raise ArgumentError.of("explain", missing[0], "given", f"no {', '.join(missing)}", hint)
    return _problem_type(operator)(**{**_device(values), **values})


def _device(values: dict[str, Any]) -> dict[str, Any]:
    """The device fields that were not given: of a GPU with that arch, else of this machine."""
    import torch

    from warploom.core.problem import Problem

    if values.get("device_type") == "cpu":
        return {}
    if "arch" in values or "device_type" in values or "device_name" in values:
        return {"device_type": "cuda", "arch": 90, "device_name": "unknown"}
    return Problem.where(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _parse(name: str, text: str, kind: Any) -> Any:
    """Read a value by the field's type."""
    import torch

    from warploom.core.errors import ArgumentError
    from warploom.core.tensors import as_dtype

    options = typing.get_args(kind)
    if type(None) in options:
        if text.lower() == "none":
            return None
        kind = next(option for option in options if option is not type(None))
    if kind is torch.dtype:
        return as_dtype(text, "explain", name)
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ArgumentError.of("explain", name, "true or false", repr(text))
        return text.lower() in ("true", "1")
    if typing.get_origin(kind) is tuple:
        return tuple(_parse(name, part, typing.get_args(kind)[0]) for part in text.split(",") if part)
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError:
        raise ArgumentError.of("explain", name, f"of type {kind.__name__}", repr(text)) from None
