"""What all sections of the settings are made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

CROSS_CHECK = "cross_check"
"""Error type of rules between values; its context holds ``problems``, pairs of key and text."""


def refuse(problems: list[tuple[str, str]]) -> None:
    """Raise the error of a rule between values, unless there are no problems."""
    if problems:
        text = "; ".join(f"{key} {problem}" for key, problem in problems)
        raise PydanticCustomError(CROSS_CHECK, "{text}", {"text": text, "problems": problems})


class Section(BaseModel):
    """What all sections have in common."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )
