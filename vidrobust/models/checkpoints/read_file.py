"""Read a file of weights from any framework, without running code that it names."""

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidrobust.models.checkpoints.inert_pickle import InertPickle
from vidrobust.utils.errors import UserError


@dataclass(frozen=True)
class Contents:
    """Contents of a file.

    Attributes:
        value: containers of tensors and plain values, with stand-ins for everything else.
        foreign: names of the classes that stand-ins replace, such as "argparse.Namespace".
    """

    value: Any
    foreign: tuple[str, ...] = ()


def read_weights(path: str | Path) -> Contents:
    """Read a file that torch.save, pickle or safetensors has written.

    Tensors are on the CPU, and arrays of numpy become tensors.

    Raises:
        UserError: for a missing file, one that was cut short, one of another kind, and a
            TorchScript program.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}")
    if path.suffix == ".safetensors":
        return Contents(_read_safetensors(path))
    if not path.stat().st_size:
        raise UserError(f"{path}: the file is empty; download it again")
    if zipfile.is_zipfile(path):
        _require_weights(path)
        if _names_foreign_classes(path):
            return _read_inert(path)
    try:
        return Contents(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError:
        return _read_inert(path)
    except Exception as error:  # torch raises many types for damaged files
        raise _unreadable(path, error) from None


def _names_foreign_classes(path: Path) -> bool:
    """Return whether a zip file of torch names classes that torch would refuse.

    Only its list of names is read: to try would read all tensors before it fails.
    """
    unsafe = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)  # torch 2.5
    if unsafe is None:
        return False
    try:
        return bool(unsafe(path))
    except Exception:  # a damaged file, which reading it names
        return False


def _read_inert(path: Path) -> Contents:
    """Read a file that names classes which torch does not know, without creating them."""
    reader = InertPickle()
    try:
        try:
            value = torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)
        except (RuntimeError, UnicodeDecodeError):
            # not written by torch.save: a plain pickle, of Python 2 in the case of caffe2
            with open(path, "rb") as file:
                value = reader.load(file, encoding="latin1")
            # torch's old format begins with a number: what follows it is damaged
            if isinstance(value, int):
                raise ValueError("its tensors cannot be read") from None
    except Exception as error:  # a pickle may ask anything of its objects
        raise _unreadable(path, error) from None
    return Contents(_tensors(value), tuple(sorted(reader.foreign)))


def _tensors(value: Any) -> Any:
    """Return containers in which arrays of numbers are tensors."""
    if isinstance(value, dict):
        return {key: _tensors(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_tensors(each) for each in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(value))
    return value


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors file."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(
            f"{path}: reading .safetensors needs a package: pip install 'vidrobust[hf]'"
        ) from None
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own type
        raise _unreadable(path, error) from None


def _require_weights(path: Path) -> None:
    """Raise UserError for a zip file that torch.load would run, or that holds no weights."""
    try:
        names = zipfile.ZipFile(path).namelist()
    except zipfile.BadZipFile as error:
        raise _unreadable(path, error) from None
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(
            f"{path}: a TorchScript program, not weights; use it as --model torchscript:{path}"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise UserError(f"{path}: an archive without weights; unpack it and name a file in it")


def _unreadable(path: Path, error: Exception) -> UserError:
    """Return the error of a file that cannot be read, with the probable reason."""
    with open(path, "rb") as file:
        start = file.read(64).lstrip()
    # what a browser or git saves in place of a file
    if start.lower().startswith((b"<!doctype", b"<html")):
        reason = "a web page, not weights; download the file itself"
    elif start.startswith(b"version https://git-lfs"):
        reason = "a pointer of git-lfs, not weights; run git lfs pull"
    elif start.startswith((b"PK", b"\x80")):
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        reason = f"cut short or damaged ({detail}); download it again"
    else:
        reason = "not a checkpoint that torch.save, pickle or safetensors has written"
    return UserError(f"{path}: {reason}")
