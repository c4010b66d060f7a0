"""How the text of a conversation ends: with the beginning of the next message, or within the last one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....protocol.errors import InvalidRequest, brief

HERE = "GOESONHERE4c1f0e "
"""What shows where a message ends in the text of a template, in which its own words may come again, as ``end`` does in
``<|end|>``. The space behind it shows whether the template strips a message."""


@dataclass(frozen=True)
class ConversationEnd:
    """The way in which the text of a conversation ends. Both are given among what the template is given, as vLLM has
    it."""

    add_generation_prompt: bool = True
    """The beginning of the next message is written too."""
    continue_final_message: bool = False
    """It ends with the last message, which the answer goes on with."""

    @classmethod
    def of(cls, given: dict[str, Any]) -> ConversationEnd:
        """Taken out of what a template is given; ``InvalidRequest`` if it cannot be."""
        asked: dict[str, bool] = {}
        for name in ("add_generation_prompt", "continue_final_message"):
            value = given.pop(name, None)
            if value is not None and not isinstance(value, bool):
                raise InvalidRequest(f"{name}={brief(value)} is neither true nor false", param=name)
            if value is not None:
                asked[name] = value
        goes_on = asked.get("continue_final_message", False)
        if goes_on and asked.get("add_generation_prompt"):
            raise InvalidRequest(
                "add_generation_prompt begins a new message, and continue_final_message goes on with the last one;"
                " leave one out",
                param="continue_final_message",
            )
        return cls(asked.get("add_generation_prompt", not goes_on), goes_on)

    def marked(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """``messages`` for the template, with ``HERE`` behind the text that the answer goes on with."""
        if not self.continue_final_message:
            return messages
        last = messages[-1]
        if last.get("tool_calls"):
            raise InvalidRequest(
                "continue_final_message goes on with a text, and the last message ends with calls; leave one out",
                param="continue_final_message",
            )
        content = last.get("content")
        if isinstance(content, list):
            *others, part = content or [{}]
            text, content = "".join(part.get("text", "") for part in content), [*others, part]
            content[-1] = part | {"text": part.get("text", "") + HERE}
        else:
            text, content = content or "", (content or "") + HERE
        if not text.strip():
            raise self.nowhere()
        return [*messages[:-1], last | {"content": content}]

    def cut(self, text: str) -> str:
        """The text of a conversation up to where the answer begins."""
        if not self.continue_final_message:
            return text
        at = text.rfind(HERE.rstrip())
        if at < 0:
            raise self.nowhere()
        stripped = not text.startswith(HERE, at)
        return text[:at].rstrip() if stripped else text[:at]

    @staticmethod
    def nowhere() -> InvalidRequest:
        return InvalidRequest(
            "continue_final_message goes on with the last message, whose content is empty or is not what the"
            " model's chat template writes of it; give one with a text, or leave it out",
            param="continue_final_message",
        )
