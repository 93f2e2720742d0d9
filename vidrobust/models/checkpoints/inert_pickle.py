"""Read pickled files of unknown origin without running any of their code.

A pickle names functions and classes, which an ordinary reader imports and calls. This reader only
builds tensors, arrays and plain containers. Every other class is replaced by an inert stand-in that
keeps what it is given, so that the tensors beside it can be read.

`InertPickle` takes the place of the module `pickle` in `torch.load(..., pickle_module=...)`.
"""

import builtins
import collections
import io
import pickle
from functools import partial
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor, _rebuild_tensor_v2


class StandIn:
    """Keep the arguments, attributes and items of an object of a foreign class.

    Attributes:
        foreign_class: module and name of the class, such as "argparse.Namespace".
    """

    foreign_class = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "StandIn":
        """Create an object from any arguments, which are kept."""
        made = super().__new__(cls)
        made.__dict__["arguments"] = args
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Keep the state: attributes by name, or anything else as a whole."""
        if isinstance(state, dict):
            self.__dict__.update({str(key): value for key, value in state.items()})
        else:
            self.__dict__["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keep an entry of a foreign dictionary."""
        self.__dict__.setdefault("entries", []).append((key, value))

    def append(self, item: Any) -> None:
        """Keep an item of a foreign list."""
        self.__dict__.setdefault("items", []).append(item)

    def extend(self, items: Any) -> None:
        """Keep the items of a foreign list."""
        self.__dict__.setdefault("items", []).extend(items)

    def add(self, item: Any) -> None:
        """Keep an item of a foreign set."""
        self.append(item)

    def __call__(self, *args: Any, **kwargs: Any) -> "StandIn":
        """Return another stand-in, because a foreign object is never asked to do anything."""
        return type(self)(*args)


# --- What is built ---


def _new(kind: Any, *args: Any) -> Any:
    """Make an object as `copyreg._reconstructor` and `copyreg.__newobj__` do, of stand-ins only."""
    if isinstance(kind, type) and issubclass(kind, StandIn):
        return kind(*args)
    raise UnpicklingError(f"an object of {kind!r} without its arguments")


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    """Make bytes of text that Python 2 has pickled, as `_codecs.encode`."""
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise UnpicklingError(f"text in the encoding {encoding!r}")
    return text.encode(encoding)


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Make an array that its state fills later, as `numpy.core.multiarray._reconstruct`."""
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _scalar(dtype: np.dtype, content: bytes | str = b"") -> Any:
    """Make a number, as `numpy.core.multiarray.scalar`."""
    if dtype.hasobject:
        raise UnpicklingError("a number that is an object")
    if isinstance(content, str):  # byte strings of Python 2 are read as latin-1
        content = content.encode("latin1")
    return np.frombuffer(content, dtype, 1)[0]


_CONTAINERS = "bool bytearray bytes complex dict float frozenset int list set slice str tuple"
# (module, name) -> what builds the object; each only holds data
_BUILDERS: dict[tuple[str, str], Any] = {
    **{("builtins", name): getattr(builtins, name) for name in _CONTAINERS.split()},
    ("builtins", "unicode"): str,
    ("builtins", "long"): int,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "deque"): collections.deque,
    ("_codecs", "encode"): _encode,
    ("copyreg", "_reconstructor"): _new,
    ("copyreg", "__newobj__"): _new,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}
# module of Python 2 or of an earlier numpy -> its present name
_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "exceptions": "builtins",
    "numpy.core.multiarray": "numpy._core.multiarray",
}


class InertPickle:
    """Take the place of the module `pickle`, and remember which classes were replaced.

    Attributes:
        foreign: name of a class -> its stand-in.
        Unpickler: class that reads one pickle.
    """

    __name__ = "inert_pickle"  # torch.load asks for it

    def __init__(self) -> None:
        self.foreign: dict[str, type[StandIn]] = {}
        find = self._find

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                return find(module, name)

        self.Unpickler = Unpickler

    def load(self, file: BinaryIO, **options: Any) -> Any:
        """Read the next pickle of a file, as `pickle.load`."""
        return self.Unpickler(file, **options).load()

    def _find(self, module: str, name: str) -> Any:
        """Return what builds an object: one of `_BUILDERS`, a data type, or a stand-in."""
        module = _MODULES.get(module, module)
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return partial(self._from_bytes)
        if (module, name) in _BUILDERS:
            builder = _BUILDERS[module, name]
            # A pickle can set attributes of whatever it names. Types of C refuse that; a function
            # is given as an object of its own.
            return builder if isinstance(builder, type) else partial(builder)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        key = f"{module}.{name}"
        if key not in self.foreign:
            self.foreign[key] = type(name, (StandIn,), {"foreign_class": key})
        return self.foreign[key]

    def _from_bytes(self, content: bytes) -> Any:
        """Read a storage that plain pickle has saved, as `torch.storage._load_from_bytes` does."""
        return torch.load(
            io.BytesIO(content), map_location="cpu", pickle_module=self, weights_only=False
        )
