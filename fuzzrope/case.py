"""The case: everything needed to reproduce one run, as frozen data with one canonical JSON form.

A case read from a file is hostile until proved otherwise: :meth:`Case.from_json` checks every field and
every size before anything is allocated, and says in one line what is wrong and where.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from fuzzrope.text import one_line

FORMAT = 1

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int32", "int64")
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "int32": 4, "int64": 8}

_SEEDED = ("normal", "wide", "tiny", "subnormal", "zeros", "infs", "nans", "powers", "cosines", "sines")
RECIPES = (*_SEEDED, "constant", "listed")
DEVICES = ("cuda", "cpu")

MAX_DIMS = 8
MAX_SEED = 2**63 - 1
MAX_ELEMENTS = 2**22  # of one tensor
MAX_EXTENT_BYTES = 2**36  # of one storage; only the touched pages are ever mapped


class CaseError(ValueError):
    """A case that is malformed or too large; the message is one line that names the field."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """How a tensor's elements come about: a named distribution with a seed, one constant, or a list.

    ``listed`` and ``constant`` carry their numbers in ``data``, in row-major order of the view; every
    other recipe is expanded from ``seed`` by :mod:`fuzzrope.values`. Equal means bit for bit: +0 and -0
    differ, all NaN are one.
    """

    kind: str = "normal"
    seed: int = 0
    data: tuple[float, ...] = ()

    @property
    def _key(self) -> tuple[str, int, bytes]:
        numbers = (math.nan if math.isnan(x) else x for x in self.data)
        return self.kind, self.seed, struct.pack(f"<{len(self.data)}d", *numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Values) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def to_json(self) -> dict[str, Any]:
        """JSON form; NaN and infinities are spelled as strings."""
        if self.kind in ("constant", "listed"):
            return {"kind": self.kind, "data": [x if math.isfinite(x) else str(x) for x in self.data]}
        return {"kind": self.kind, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input: dtype, shape, strides and storage offset in elements, and the storage it lives in.

    Specs that name the same storage share memory; specs equal in everything are the same tensor object.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    storage: str = ""
    values: Values = field(default_factory=Values)
    device: str = "cuda"

    @property
    def numel(self) -> int:
        """Number of elements of the view."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """Elements of storage that the view needs, from the storage's start."""
        if self.numel == 0:
            return 0
        return self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) + 1

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "dtype": self.dtype,
            "shape": list(self.shape),
            "strides": list(self.strides),
            "offset": self.offset,
            "storage": self.storage,
            "values": self.values.to_json(),
            "device": self.device,
        }


@dataclass(frozen=True, slots=True)
class Backward:
    """What is differentiated: the inputs that require a gradient, and the cotangents of the outputs in use.

    Both name each input or output once, ``requires`` in the order of the inputs, ``cotangents`` by name. An
    output without a cotangent is not used.
    """

    requires: tuple[str, ...]
    cotangents: tuple[tuple[str, TensorSpec], ...]

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        cotangents = {name: spec.to_json() for name, spec in self.cotangents}
        return {"requires": list(self.requires), "cotangents": cotangents}


@dataclass(frozen=True)
class Case:
    """One run of an operation: its named inputs in order, its options, and what is differentiated, if anything is."""

    operation: str
    tensors: tuple[tuple[str, TensorSpec], ...]
    options: tuple[tuple[str, Any], ...] = ()
    backward: Backward | None = None

    @cached_property
    def specs(self) -> tuple[tuple[str, TensorSpec], ...]:
        """Every tensor that is built: the inputs, then the cotangent of an output NAME as ``grad_NAME``."""
        cotangents = self.backward.cotangents if self.backward else ()
        return self.tensors + tuple((f"grad_{name}", spec) for name, spec in cotangents)

    def __getitem__(self, name: str) -> TensorSpec:
        for key, spec in self.specs:
            if key == name:
                return spec
        raise KeyError(name)

    def with_tensor(self, name: str, **changes: Any) -> Case:
        """The same case with fields of one tensor replaced."""
        return self.with_tensors({name: replace(self[name], **changes)})

    def with_tensors(self, changed: Mapping[str, TensorSpec]) -> Case:
        """The same case with some tensors replaced, named as in :attr:`specs`."""
        tensors = tuple((name, changed.get(name, spec)) for name, spec in self.tensors)
        if self.backward is None:
            return replace(self, tensors=tensors)
        cotangents = tuple((name, changed.get(f"grad_{name}", spec)) for name, spec in self.backward.cotangents)
        return replace(self, tensors=tensors, backward=replace(self.backward, cotangents=cotangents))

    def to_json(self) -> dict[str, Any]:
        """JSON form; ``json.dumps`` of it with sorted keys is canonical."""
        data = {
            "format": FORMAT,
            "operation": self.operation,
            "tensors": {name: spec.to_json() for name, spec in self.tensors},
            "order": [name for name, _ in self.tensors],
            "options": dict(self.options),
        }
        return data if self.backward is None else {**data, "backward": self.backward.to_json()}

    @cached_property
    def id(self) -> str:
        """Twelve hex digits that name this case on every machine."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @classmethod
    def from_json(cls, data: Any, where: str = "case") -> Case:
        """Check and read the JSON form; raises :class:`CaseError` naming the first bad field."""
        keys = {"format", "operation", "tensors", "order", "options"}
        fields = Fields(data, where, keys, optional=frozenset({"backward"}))
        if fields.integer("format", 0, 2**31) != FORMAT:
            raise CaseError(f"{where}.format: this version reads format {FORMAT}, not {data['format']}")
        order = [_name(item, f"{where}.order[{i}]") for i, item in enumerate(fields.items("order", 16))]
        if len(set(order)) != len(order):
            raise CaseError(f"{where}.order: names a tensor twice")
        tensors = Fields(fields["tensors"], f"{where}.tensors", set(order))
        options = Fields(fields["options"], f"{where}.options", None)
        case = cls(
            operation=fields.text("operation"),
            tensors=tuple((n, _read_tensor(tensors[n], f"{tensors.where}.{n}")) for n in order),
            options=tuple(sorted((key, options.scalar(key)) for key in options.data)),
            backward=_read_backward(fields["backward"], f"{where}.backward", order) if "backward" in data else None,
        )
        _check_storages(case, where)
        return case


class Fields:
    """A JSON object whose keys must be exactly the expected ones, if any are; reads fields with their path."""

    def __init__(self, data: Any, where: str, keys: set[str] | None, optional: frozenset[str] = frozenset()) -> None:
        if not isinstance(data, dict):
            raise CaseError(f"{where}: expected an object, got {_brief(data)}")
        keys = set(data) if keys is None else keys
        for key in sorted(keys - set(data)):
            raise CaseError(f"{where}: the key {key!r} is missing")
        for key in sorted(set(data) - keys - optional):
            raise CaseError(f"{where}: unknown key {_brief(key)}")
        self.data, self.where = data, where

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def text(self, key: str, limit: int = 1000) -> str:
        """A string of at most ``limit`` characters."""
        value = self.data[key]
        if not isinstance(value, str) or len(value) > limit:
            raise CaseError(f"{self.where}.{key}: expected a text, got {_brief(value)}")
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        """One of the given strings."""
        value = self.data[key]
        if not isinstance(value, str) or value not in choices:
            raise CaseError(f"{self.where}.{key}: expected one of {', '.join(choices)}, got {_brief(value)}")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return _integer(self.data[key], f"{self.where}.{key}", low, high)

    def items(self, key: str, limit: int) -> list[Any]:
        """A list of at most ``limit`` items."""
        value = self.data[key]
        if not isinstance(value, list) or len(value) > limit:
            raise CaseError(f"{self.where}.{key}: expected a list of at most {limit}, got {_brief(value)}")
        return value

    def integers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        """A short list of integers in [low, high]."""
        return tuple(
            _integer(value, f"{self.where}.{key}[{i}]", low, high) for i, value in enumerate(self.items(key, MAX_DIMS))
        )

    def scalar(self, key: str) -> Any:
        """A JSON scalar."""
        value = self.data[key]
        plain = value is None or isinstance(value, (bool, int, float, str))
        if not plain or (isinstance(value, float) and not math.isfinite(value)):
            raise CaseError(f"{self.where}.{key}: expected a finite scalar, got {_brief(value)}")
        return value


def _brief(value: Any) -> str:
    text = reprlib.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.isidentifier() or len(value) > 100:
        raise CaseError(f"{where}: expected a name, got {_brief(value)}")
    return value


def _integer(value: Any, where: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CaseError(f"{where}: expected an integer from {low} to {high}, got {_brief(value)}")
    return value


def _number(value: Any, where: str) -> float:
    if value in ("nan", "inf", "-inf") or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        try:
            return float(value)
        except OverflowError:
            pass
    raise CaseError(f"{where}: expected a number, 'nan', 'inf' or '-inf', got {_brief(value)}")


def _read_values(data: Any, where: str, numel: int) -> Values:
    listed = isinstance(data, dict) and data.get("kind") in ("constant", "listed")
    fields = Fields(data, where, {"kind", "data"} if listed else {"kind", "seed"})
    kind = fields.choice("kind", RECIPES)
    if not listed:
        return Values(kind, fields.integer("seed", 0, MAX_SEED))
    numbers = fields.items("data", MAX_ELEMENTS)
    expected = 1 if kind == "constant" else numel
    if len(numbers) != expected:
        raise CaseError(f"{where}.data: expected {expected} numbers, got {len(numbers)}")
    return Values(kind, 0, tuple(_number(x, f"{where}.data[{i}]") for i, x in enumerate(numbers)))


def _read_tensor(data: Any, where: str) -> TensorSpec:
    keys = {"dtype", "shape", "strides", "offset", "storage", "values", "device"}
    fields = Fields(data, where, keys)
    dtype = fields.choice("dtype", FLOATS + INTEGERS)
    shape = fields.integers("shape", 0, MAX_EXTENT_BYTES)
    strides = fields.integers("strides", 0, MAX_EXTENT_BYTES)
    if len(shape) != len(strides):
        raise CaseError(f"{where}.strides: {len(strides)} strides for {len(shape)} dimensions")
    if math.prod(shape) > MAX_ELEMENTS:
        raise CaseError(f"{where}.shape: {math.prod(shape)} elements are more than {MAX_ELEMENTS}")
    return TensorSpec(
        dtype=dtype,
        shape=shape,
        strides=strides,
        offset=fields.integer("offset", 0, MAX_EXTENT_BYTES),
        storage=fields.text("storage", 100),
        values=_read_values(fields["values"], f"{where}.values", math.prod(shape)),
        device=fields.choice("device", DEVICES),
    )


def _read_backward(data: Any, where: str, inputs: list[str]) -> Backward:
    fields = Fields(data, where, {"requires", "cotangents"})
    requires = [_name(item, f"{where}.requires[{i}]") for i, item in enumerate(fields.items("requires", 16))]
    if not requires or len(set(requires)) != len(requires) or not set(requires) <= set(inputs):
        raise CaseError(f"{where}.requires: expected some of {', '.join(inputs)}, each once, got {_brief(requires)}")
    cotangents = Fields(fields["cotangents"], f"{where}.cotangents", None)
    if not 0 < len(cotangents.data) <= 16:
        raise CaseError(f"{where}.cotangents: expected 1 to 16 of them, got {len(cotangents.data)}")
    read: list[tuple[str, TensorSpec]] = []
    for name in sorted(_name(key, f"{where}.cotangents") for key in cotangents.data):
        spec = _read_tensor(cotangents[name], f"{cotangents.where}.{name}")
        if f"grad_{name}" in inputs:
            raise CaseError(f"{cotangents.where}.{name}: an input has the name grad_{name}")
        if spec.dtype not in FLOATS or spec.device != "cuda":
            raise CaseError(f"{cotangents.where}.{name}: expected floating point on cuda, as outputs are")
        read.append((name, spec))
    return Backward(tuple(name for name in inputs if name in requires), tuple(read))


def _check_storages(case: Case, where: str) -> None:
    """Views of one storage share a dtype and a device, and no storage is larger than may be mapped."""
    first: dict[str, TensorSpec] = {}
    for name, spec in case.specs:
        place = f"{where}.tensors.{name}"
        if spec.end * ITEMSIZE[spec.dtype] > MAX_EXTENT_BYTES:
            raise CaseError(f"{place}: reaches beyond {MAX_EXTENT_BYTES} bytes of storage")
        other = first.setdefault(spec.storage, spec)
        if (other.dtype, other.device) != (spec.dtype, spec.device):
            raise CaseError(f"{place}: shares storage {spec.storage!r} but not dtype and device")
