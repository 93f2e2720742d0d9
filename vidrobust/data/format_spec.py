"""FormatSpec: everything that the package must know about a format.

The registry is in `build.py`, and the parsers are in `formats.py`. Nothing outside the registry may
ask for a format by its name: what differs between formats is a field of the entry.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vidrobust import config
from vidrobust.data.records import Parsed

# (root, split "train" or "test", fold) -> (records, names of the classes)
Parser = Callable[[Path, str, int], Parsed]


@dataclass(frozen=True)
class FormatSpec:
    """A layout of data sets, by the name that data.name gives it.

    An entry is called like its parser: `FORMATS["ucf101"](root, "train", 1)`.

    Attributes:
        parse: the parser.
        help: what the format reads under data.root, in Markdown; a cell of the table in
            docs/data.md.
        folds: numbers of the official splits among which data.fold chooses; empty: there is one.
        other_split: the split that is read if another data set is evaluated in this format
            (eval.shift.name): "test", or "train" for a format with a single list.
        draw: writes a built-in data set under root, from the data options; None: the files must be
            there already.
        copies_as: name of the format in which copies of the files are read; empty: this format.
        second_cues: root -> (uid of a video -> name of the class that a second cue suggests); None:
            such classes are unknown.
        has_files: whether the data set is files under root that an archive may hold.
    """

    parse: Parser
    help: str
    folds: tuple[int, ...] = ()
    # what few formats need; see the attributes above
    other_split: str = "test"
    draw: Callable[[Path, config.DataConfig], None] | None = None
    copies_as: str = ""
    second_cues: Callable[[Path], dict[str, str]] | None = None
    has_files: bool = True

    def __call__(self, root: Path, split: str, fold: int) -> Parsed:
        """Return the records and classes of one split.

        Args:
            root: folder of the data set.
            split: "train" or "test".
            fold: number of the official split; unused without folds.
        """
        return self.parse(root, split, fold)
