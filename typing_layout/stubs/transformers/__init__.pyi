"""For the type checker, everything that ``from transformers import`` gives is of any type: looking for its types in
twenty-seven hundred files takes a third of the time of all that is checked, and finds few."""

from typing import Any

def __getattr__(name: str) -> Any: ...
