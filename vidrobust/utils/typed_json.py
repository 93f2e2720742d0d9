"""Read parsed JSON into dataclasses, with every entry checked."""

from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_origin

import cattrs
from cattrs.errors import IterableValidationError, IterableValidationNote

T = TypeVar("T")


def _exactly(*kinds: type) -> Callable[[Any, Any], Any]:
    """Return a reader that takes values of these types as they are, and raises for others."""

    def take(value: Any, _: Any) -> Any:
        # True is an int in Python, but not in JSON
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise TypeError
        return value

    return take


def _list_reader(kind: Any) -> Callable[[Any, Any], Any]:
    """Return a reader of lists, such as list[str], that raises for text and objects."""
    (item_kind,) = get_args(kind)

    def take(value: Any, _: Any) -> Any:
        if not isinstance(value, list):
            raise TypeError
        items = []
        errors: list[Exception] = []
        for index, item in enumerate(value):
            try:
                items.append(_CONVERTER.structure(item, item_kind))
            except Exception as error:  # any error of a reader; the note names the place
                note = IterableValidationNote(f"@ index {index}", index, item_kind)
                error.__notes__ = [*getattr(error, "__notes__", []), note]
                errors.append(error)
        if errors:
            raise IterableValidationError("", errors, kind)
        return items

    return take


# cattrs alone would turn 3 into "3", "3" into 3, and "ab" into ["a", "b"]
_CONVERTER = cattrs.Converter()
_CONVERTER.register_structure_hook_factory(lambda kind: get_origin(kind) is list, _list_reader)
for _kind, _accepted in ((str, (str,)), (int, (int,)), (float, (float, int)), (bool, (bool,))):
    _CONVERTER.register_structure_hook(_kind, _exactly(*_accepted))


def from_json(kind: type[T], content: Any) -> T:
    """Return the dataclass that a JSON object holds.

    Keys that are no field are ignored, and fields with a default may be missing: files of earlier
    and later revisions are read. `dataclasses.asdict` is the way back.

    Args:
        kind: the dataclass.
        content: what `json.load` returns.

    Raises:
        ValueError: an entry is missing or of another type; the message names the first three.
    """
    try:
        return _CONVERTER.structure(content, kind)
    except (cattrs.BaseValidationError, TypeError, ValueError) as error:
        problems = [line.replace("$.", "") for line in cattrs.transform_error(error)]
        raise ValueError("; ".join(problems[:3])) from None
