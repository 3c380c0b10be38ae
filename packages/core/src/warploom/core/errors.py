"""The exception tree. Every class is also the built-in exception that a Python user would catch."""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "CommunicationError",
    "CompileError",
    "PerformanceWarning",
    "PlanError",
    "UnsupportedError",
    "WarploomError",
]


class WarploomError(Exception):
    """Base of every error that Warploom raises on purpose."""


class ArgumentError(WarploomError, ValueError):
    """An argument is wrong: its dtype, shape, device, stride or value."""

    @classmethod
    def of(cls, op: str, name: str, expected: str, got: object, hint: str = "") -> ArgumentError:
        """Name the argument, what was expected, what came and what to do.

        Examples
        --------
        >>> str(ArgumentError.of("softmax", "logits", "a 2-D tensor", "3-D", "Flatten the batch."))
        'softmax: `logits` must be a 2-D tensor, got 3-D. Flatten the batch.'
        """
        message = f"{op}: `{name}` must be {expected}, got {got}."
        return cls(f"{message} {hint}" if hint else message)


class UnsupportedError(WarploomError, NotImplementedError):
    """No backend, or not the one asked for, can serve a valid request; the message holds the backend table."""


class CompileError(WarploomError, RuntimeError):
    """A kernel did not compile or load; the message holds the compiler's log, or how to get a compiler."""


class PlanError(WarploomError, RuntimeError):
    """`run` before `plan`, or a call that does not fit the plan."""


class CommunicationError(WarploomError, RuntimeError):
    """A collective failed: a peer is missing, late, or called with something else."""


class PerformanceWarning(UserWarning):
    """The answer is right but comes from a slow path; the message says which and why."""
