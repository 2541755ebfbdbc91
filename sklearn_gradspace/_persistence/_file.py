"""The file: a safetensors file whose metadata are a JSON text and a checksum of everything.

A content, of which JSON can be made, and tensors enter and leave.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

_FORMAT, _VERSION = "sklearn_gradspace", "1"


def write_file(path: Path, content: dict, tensors: dict[str, Tensor]) -> None:
    """Write a file at once: whatever happens, there is the old one or the new one."""
    text = json.dumps(content, allow_nan=False)
    metadata = {"format": _FORMAT, "version": _VERSION, "sha256": _checksum(text, tensors), "content": text}
    written = _safetensors().torch.save(tensors, metadata)  # its save_file makes files that their owner alone may read
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(written)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a file that in the end takes the place of `path`, if all went well."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for the file {path.name}: make it first.")
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_file(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Return the content and the tensors of a file; raise ValueError where they are not as they were written."""
    safetensors = _safetensors()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        with safetensors.safe_open(path, "pt") as file:  # it refuses a header that the file's size does not bear out
            metadata = file.metadata() or {}
            _check_format(path, metadata)
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  it is no dict
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no file that save wrote: {error}") from error
    text = metadata.get("content", "")
    if _checksum(text, tensors) != metadata.get("sha256"):
        raise ValueError(f"{path} is damaged: its checksum is not that of its content.")
    try:
        return json.loads(text), tensors
    except RecursionError as error:
        raise ValueError(f"{path} does not hold what save writes: it is nested too deeply.") from error


def _check_format(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} is a safetensors file, but save did not write it.")
    if metadata.get("version") != _VERSION:
        raise ValueError(f"{path} is of format version {metadata.get('version')}; this version reads {_VERSION}.")


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    total = sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _safetensors():
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("save and load need safetensors: pip install 'sklearn-gradspace[weights]'.") from error
    return safetensors
