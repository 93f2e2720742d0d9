"""Names of files and classes as text that is safe to print.

Anything may stand in them, and not all of it is text.
"""

import re

# controls (ESC among them), separators that break lines, marks that turn the direction of text, and
# lone surrogates, which stand for bytes of a name that is no UTF-8
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_BYTES = range(0xDC80, 0xDD00)  # how Python writes bytes that are no UTF-8 (PEP 383)
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: object) -> str:
    """Return text in one line that any terminal and file takes.

    What is no text becomes an escape, as \\x1b.
    """
    return _UNSAFE.sub(_escaped, str(text))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] in _SHORT:
        return _SHORT[match[0]]
    if code in _BYTES:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
