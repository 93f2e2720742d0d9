"""Escape text for LaTeX."""

import re

from vidrobust.utils.text import visible

# Characters that LaTeX reads -> how it prints them, in any font encoding.
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "`": r"\symbol{96}",
    # at the beginning of a row they would belong to the line break before them
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    # two of them in a row would become one other character
    "-": "-{}",
    "'": "'{}",
    ",": ",{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
_READ = re.compile(r"""[\\{}~^<>|"`&%$#_\[\]*]|-(?=-)|'(?=')|,(?=,)""")


def latex_escape(text: object) -> str:
    """Return text that LaTeX prints as it is, in one line."""
    return _READ.sub(lambda match: _SPECIAL[match[0]], visible(text))
