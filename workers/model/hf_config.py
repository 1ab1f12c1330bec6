"""Reads a model's config.json and generation_config.json, without transformers. Called by `families/`.

A value that is missing or of a wrong type becomes an `UnsupportedModel` that names it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import ModelNotFound, UnsupportedModel


@dataclass(frozen=True, slots=True)
class HfConfig:
    """Typed look-ups in one JSON object. An explicit null counts as absent, as in transformers."""

    values: dict[str, Any]
    source: str  # for messages

    @property
    def architecture(self) -> str:
        names = self.values.get("architectures") or ["none named"]
        return str(names[0])

    def __bool__(self) -> bool:
        return bool(self.values)

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.unsupported(f"{name} must be an integer, not {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.unsupported(f"{name} must be a number, not {value!r}")
        return float(value)

    def optional_integer(self, name: str) -> int | None:
        return self.integer(name) if name in self else None

    def optional_number(self, name: str) -> float | None:
        return self.number(name) if name in self else None

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list."""
        return tuple(HfConfig({name: value}, self.source).number(name) for value in self._list(name))

    def integers(self, name: str) -> tuple[int, ...]:
        """A list; empty when it is absent."""
        values = self._list(name) if name in self else []
        return tuple(HfConfig({name: value}, self.source).integer(name) for value in values)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list; empty when it is absent."""
        return tuple(map(str, self._list(name))) if name in self else ()

    def text(self, name: str, default: str) -> str:
        return str(self._get(name, default))

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self._get(name, default))

    def section(self, name: str) -> HfConfig:
        """A nested object; empty when it is absent."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise self.unsupported(f"{name} must be an object, not {value!r}")
        return HfConfig(value, f"{self.source}, {name}")

    def require(self, name: str, expected: str, *, default: str) -> None:
        value = self.text(name, default)
        if value != expected:
            raise self.unsupported(f"its {name} is {value!r}, and only {expected!r} is known")

    def unsupported(self, reason: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self.source} describes a model that cannot run here: {reason}")

    def _list(self, name: str) -> list[Any]:
        value = self._get(name, None)
        if not isinstance(value, list):
            raise self.unsupported(f"{name} must be a list, not {value!r}")
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise self.unsupported(f"it does not say {name}")
        return default


def read_config(directory: Path) -> HfConfig:
    path = directory / "config.json"
    if not path.is_file():
        raise ModelNotFound(f"{directory} holds no config.json: give a directory in Hugging Face format")
    values, beside = _read_object(path), directory / "hf_quant_config.json"
    if "quantization_config" not in values and beside.is_file():  # where modelopt's older checkpoints say it
        said = HfConfig(_read_object(beside), str(beside)).section("quantization")
        if "quant_algo" in said:
            values["quantization_config"] = {"quant_method": "modelopt", **said.values}
    return HfConfig(values, str(path))


def read_eos_token_ids(directory: Path, config: HfConfig) -> tuple[int, ...]:
    """Of generation_config.json where it names any, else of config.json: one id, several, or none."""
    path = directory / "generation_config.json"
    generation = _read_object(path) if path.is_file() else {}
    for values in (generation, config.values):
        found = values.get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, list) else (int(found),)
    return ()


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedModel(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UnsupportedModel(f"{path} must hold a JSON object")
    return value
