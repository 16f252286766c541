"""The setting `chat_template`: a template's text, or a file that holds one."""

from __future__ import annotations

from pathlib import Path

from quire.api.errors import TokenizerError
from quire.loading.chat_template import ChatTemplate


def read_template(setting: str | None) -> str | None:
    """The template's text; None where there is none.

    Raises:
        TokenizerError: it is neither a template nor a readable file, or not valid Jinja.
    """
    if setting is None:
        return None
    text = setting
    if "{" not in setting:
        try:
            text = Path(setting).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise TokenizerError(
                f"chat_template={setting!r} is neither a template nor a readable file: {reason}"
            ) from None
    ChatTemplate(text)
    return text
