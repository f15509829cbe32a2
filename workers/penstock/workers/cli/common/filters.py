"""Options that several commands share, gathered into one parameter of each."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

Command = Callable[..., None]


def gathered(
    parameter: str, options: Mapping[str, Any], make: Callable[[dict[str, Any]], Any]
) -> Callable[[Command], Command]:
    """Put options where a command has a parameter, whose value is made of theirs.

    Arguments:
        options: name to annotation; None leaves one out.
        make: takes the values by name.
    """
    kept = {name: option for name, option in options.items() if option is not None}
    kind = inspect.Parameter.KEYWORD_ONLY
    filters = [inspect.Parameter(name, kind, default=None, annotation=option) for name, option in kept.items()]

    def declare(command: Command) -> Command:
        @functools.wraps(command, assigned=("__name__", "__doc__"))
        def run(**values: Any) -> None:
            chosen = {name: values.pop(name) for name in kept}
            command(**{parameter: make(chosen)}, **values)

        parameters: list[inspect.Parameter] = []
        names = {"Selection": Any, "JobFilter": Any, "Filters": Any}
        for each in inspect.signature(command, eval_str=True, locals=names).parameters.values():
            parameters += filters if each.name == parameter else [each]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return declare
