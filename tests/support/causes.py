"""What a red test died of: only an assertion about values shows that it has noticed a mistake."""

from typing import Any

from torch.autograd.gradcheck import GradcheckError

VALUES = "values"


def cause_of(call: Any) -> str:
    """ "values", or what else: an error's name, or the fixtures. `call` is pytest's, of a phase that has raised.

    Hypothesis raises the assertion itself, or a group of them, and gradcheck an error of its own."""
    kinds = {type(error).__name__ for error in _leaves(call.excinfo.value) if not _is_about_values(error)}
    return ", ".join(sorted(kinds)) or (VALUES if call.when == "call" else call.when)


def _leaves(error: Any) -> list[Any]:
    return [leaf for one in error.exceptions for leaf in _leaves(one)] if hasattr(error, "exceptions") else [error]


def _is_about_values(error: Any) -> bool:
    return isinstance(error, (AssertionError, GradcheckError))
