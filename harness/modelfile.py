"""A model as the user names it: one of the catalogue, a folder with config.json and safetensors, or a GGUF file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from harness.errors import InputError
from sizing.catalog import ModelShape, model, native_quantization, quantization
from sizing.names import parse_model
from sizing.ownmodel import config_quantization, from_config, from_gguf

_MOST_HEADER_BYTES = 256 * 1024**2


def find_model(name: str) -> tuple[ModelShape, str]:
    """(shape, the quantization of its own files).

    Raises:
        InputError: it is neither a file nor known, or its files cannot be read.
    """
    if not name.strip():
        raise InputError("a model without a name", "name a model of `bench advise --list models`")
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(path)
    if path.is_dir() or path.name == "config.json":
        return _folder(path if path.is_dir() else path.parent)
    try:
        shape = model(name, typical_will_do=True)
    except LookupError as error:
        raise InputError(
            str(error.args[0]),
            "name a model of `bench advise --list models`, a folder with config.json, or a .gguf file",
        ) from None
    return shape, parse_model(name).quantization or native_quantization(name)


def _folder(path: Path) -> tuple[ModelShape, str]:
    """A folder as Hugging Face keeps it: config.json, and the tensors' exact bytes where safetensors lie beside it."""
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: no config.json in it", "name the folder that holds the model's config.json"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path / 'config.json'}: cannot be read: {error}", "give a whole config.json") from None
    files = sorted(path.glob("*.safetensors"))
    size = sum(map(safetensors_bytes, files)) if files else None
    try:
        shape = from_config(path.resolve().name, config, size, str(path / "config.json"))
    except ValueError as error:
        raise InputError(f"{path / 'config.json'}: {error}", "give the config.json of a decoder model") from None
    return _of_format(shape, config_quantization(config))


def safetensors_bytes(file: Path) -> int:
    """Bytes of all tensors of a file, from its header alone.

    Raises:
        InputError: the file is none.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= _MOST_HEADER_BYTES:
                raise ValueError("its header has no length")
            header = json.loads(opened.read(length))
        return max(int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: no safetensors file: {error}", "download it again") from None


def _gguf(path: Path) -> tuple[ModelShape, str]:
    try:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        header = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer")}
        tokens = reader.fields.get("tokenizer.ggml.tokens")
        if tokens is not None:
            header.setdefault("tokenizer.ggml.tokens", list(range(len(tokens.data))))
        header["tensors"] = tuple(tensor.name for tensor in reader.tensors)
        size = sum(int(tensor.n_bytes) for tensor in reader.tensors)
        params = sum(int(tensor.n_elements) for tensor in reader.tensors)
        shape = from_gguf(path.stem, header, size, params, str(path))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path}: cannot be read as GGUF: {error}", "download it again") from None
    return _of_format(shape, parse_model(path.name).quantization or _common_type(reader))


def _of_format(shape: ModelShape, own: str) -> tuple[ModelShape, str]:
    """The shape with its files' format, where the tables know that one."""
    try:
        quantization(own)
    except LookupError:
        return shape, own
    return dataclasses.replace(shape, file_format=own), own


def _common_type(reader: Any) -> str:
    """The type that most weights have."""
    sizes: dict[str, int] = {}
    for tensor in reader.tensors:
        kind = str(tensor.tensor_type.name).lower()
        sizes[kind] = sizes.get(kind, 0) + int(tensor.n_elements)
    return max(sizes, key=lambda kind: sizes[kind]) if sizes else "q4_k_m"
