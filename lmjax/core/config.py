"""Configuration: frozen dataclasses whose every leaf is a typed, documented command-line flag.

A part is a `Config` subclass; its fields are declared with `leaf` (a value) or `part` (another
`Config`, perhaps optional). `leaves` lists what can be set, `override` returns a changed copy, and
`to_json` / `from_json` round-trip one. Values are checked at construction, so a bad one is refused
before anything is compiled or downloaded. Knows nothing about absl, experiments or JAX.

    class Decoder(Config):
      width: int = leaf(256, 'Size D of the residual stream.', low=1)
      qk_norm: Norm | None = part(Norm(), 'Normalise queries and keys.')
"""

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union, dataclass_transform

from lmjax.core.errors import UserError, nearest

_NONE = ('none', 'null')


def leaf(
  default: Any = dataclasses.MISSING,
  doc: str = '',
  *,
  low: float | None = None,
  high: float | None = None,
  above: float | None = None,
  run: bool = False,
) -> Any:
  """A value of a `Config`: its default, one line of documentation and its range.

  Args:
    default: the default; without one the field must be given.
    doc: one line for `--help`, with the unit.
    low, high: smallest and largest value allowed, both inclusive.
    above: the value must be larger than this.
    run: True for a leaf that says how to run and not what is computed: it may change between
      starts in one workdir. Others are identity leaves.
  """
  metadata = {'doc': doc, 'low': low, 'high': high, 'above': above, 'run': run}
  return dataclasses.field(default=default, metadata=metadata)


def part(default: Any, doc: str = '', *, inline: bool = False, run: bool = False) -> Any:
  """A nested `Config`, or None where its annotation allows.

  Args:
    default: a `Config` instance or None.
    doc: one line for `--help`.
    inline: its leaves become flags of the owner (`--posts`, not `--source.posts`).
    run: every leaf below is a run leaf (see `leaf`).
  """
  return dataclasses.field(default=default, metadata={'doc': doc, 'inline': inline, 'run': run})


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Config:
  """Base of every part and task. Subclasses become frozen, keyword-only dataclasses."""

  def __init_subclass__(cls, **kwargs: Any) -> None:
    super().__init_subclass__(**kwargs)
    dataclasses.dataclass(frozen=True, kw_only=True)(cls)

  def __post_init__(self) -> None:
    """Checks the type and range of every leaf; extend it with checks across fields."""
    for field in fields(self):
      value = getattr(self, field.name)
      kind = _types(type(self))[field.name]
      if _part_type(kind) is None:
        object.__setattr__(self, field.name, check(field.name, value, kind, field.metadata))
      elif not (isinstance(value, Config) or (value is None and is_optional(kind))):
        raise UserError(f'{field.name}={value!r}: expected {describe(kind)}')


class Leaf(typing.NamedTuple):
  """One settable value. A switch is the `none` / `on` flag of an optional part."""

  name: str  # the flag: model.width
  path: tuple[str, ...]  # where it is: ('model', 'width')
  kind: Any  # its annotation
  value: Any
  metadata: Mapping[str, Any]
  run: bool

  @property
  def is_switch(self) -> bool:
    return self.metadata.get('switch', False)


def fields(config: Config) -> tuple[dataclasses.Field, ...]:
  return dataclasses.fields(config)  # type: ignore[arg-type]


def leaves(config: Config) -> list[Leaf]:
  """Every leaf below `config`, in declaration order; optional parts that are off show their defaults."""
  found = list(_walk(config, (), '', False))
  names = [leaf.name for leaf in found]
  repeated = {name for name in names if names.count(name) > 1}
  assert not repeated, f'{type(config).__name__} declares {repeated} twice: rename an inline leaf'
  return found


def _walk(config: Config, path: tuple[str, ...], prefix: str, run: bool):
  for field in fields(config):
    kind = _types(type(config))[field.name]
    value = getattr(config, field.name)
    here, name = (*path, field.name), prefix + field.name
    runs = run or field.metadata.get('run', False)
    part_type = _part_type(kind)
    if part_type is None:
      yield Leaf(name, here, kind, value, field.metadata, runs)
      continue
    if is_optional(kind):
      switch = {'doc': field.metadata.get('doc', ''), 'switch': True}
      state = 'none' if value is None else 'on'
      yield Leaf(name, here, Literal['none', 'on'], state, switch, runs)
    inner = part_type() if value is None else value
    yield from _walk(inner, here, prefix if field.metadata.get('inline') else f'{name}.', runs)


def parse(leaf: Leaf, text: str) -> Any:
  """The value that `text` gives to `leaf`; UserError with the allowed values when it gives none."""
  try:
    value = _parse(text, leaf.kind)
  except ValueError:
    raise UserError(f'expected {describe(leaf.kind, leaf.metadata)}') from None
  return check('', value, leaf.kind, leaf.metadata)


def override(config: Config, changes: Mapping[str, Any]) -> Config:
  """A copy of `config` with the leaves named in `changes` replaced; unknown names are refused.

  Setting a leaf of an optional part that is off turns it on; setting one beside `part=none` is a
  contradiction.
  """
  known = {leaf.name: leaf for leaf in leaves(config)}
  for name in changes:
    if name not in known:
      raise UserError(f'unknown setting {name!r}: {nearest(name, known)}')
  by_path = {known[name].path: value for name, value in changes.items()}
  return _replace(config, (), by_path)


def _replace(config: Config, path: tuple[str, ...], changes: Mapping[tuple[str, ...], Any]) -> Any:
  new = {}
  for field in fields(config):
    here = (*path, field.name)
    below = {key: value for key, value in changes.items() if key[: len(here)] == here}
    if not below:
      continue
    part_type = _part_type(_types(type(config))[field.name])
    if part_type is None:
      new[field.name] = below[here]
    else:
      switch = below.pop(here, 'on')
      if switch == 'none' and below:
        given = ', '.join('.'.join(key) for key in below)
        name = '.'.join(here)
        raise UserError(f'--{name}=none contradicts {given}: drop one of them')
      current = getattr(config, field.name)
      base = part_type() if current is None else current
      new[field.name] = None if switch == 'none' else _replace(base, here, below)
  return dataclasses.replace(config, **new) if new else config


def to_json(config: Config) -> dict[str, Any]:
  """Leaf name -> JSON value, every leaf of the parts that are on."""
  absent = tuple(
    f'{leaf.name}.' for leaf in leaves(config) if leaf.is_switch and leaf.value == 'none'
  )
  return {
    leaf.name: leaf.value.name if isinstance(leaf.value, enum.Enum) else leaf.value
    for leaf in leaves(config)
    if not leaf.name.startswith(absent or ('\0',))
  }


def from_json(config: Config, values: Mapping[str, Any]) -> Config:
  """`config` with every leaf of `values` (as `to_json` wrote them) applied."""
  known = {leaf.name: leaf for leaf in leaves(config)}
  changes = {}
  for name, value in values.items():
    if name not in known:
      raise UserError(f'unknown setting {name!r}: {nearest(name, known)}')
    try:
      changes[name] = check(
        name, _from_json(value, known[name].kind), known[name].kind, known[name].metadata
      )
    except KeyError:
      raise UserError(f'{name}={value!r}: expected {describe(known[name].kind)}') from None
  return override(config, changes)


def changed_identity(old: Mapping[str, Any], config: Config) -> list[tuple[str, Any, Any]]:
  """(leaf, old, new) of each identity leaf whose saved value differs from `config`'s."""
  new = to_json(config)
  run = {leaf.name for leaf in leaves(config) if leaf.run}
  names = [name for name in {**old, **new} if name not in run]
  normal = lambda value: list(value) if isinstance(value, tuple) else value
  pairs = [(name, normal(old.get(name)), normal(new.get(name))) for name in names]
  return [row for row in pairs if row[1] != row[2]]


def check(name: str, value: Any, kind: Any, metadata: Mapping[str, Any]) -> Any:
  """`value` as `kind` (an int is taken for a float), or UserError with what is allowed."""
  given = f'{name}={value!r}: ' if name else ''
  try:
    value = _as_kind(value, kind)
  except TypeError:
    raise UserError(f'{given}expected {describe(kind, metadata)}') from None
  for number in value if isinstance(value, tuple) else (value,):
    if isinstance(number, int | float) and not isinstance(number, bool):
      low, high, above = (metadata.get(key) for key in ('low', 'high', 'above'))
      inside = (low is None or number >= low) and (high is None or number <= high)
      if not (inside and (above is None or number > above) and math.isfinite(number)):
        raise UserError(f'{given}expected {describe(kind, metadata)}')
  return value


def describe(kind: Any, metadata: Mapping[str, Any] = types.MappingProxyType({})) -> str:
  """What is allowed, in words: `an integer of 1 or more`, `one of: scan, list`, `none or a number`."""
  if is_optional(kind):
    return f'none or {describe(_inner(kind), metadata)}'
  origin = typing.get_origin(kind)
  if origin is Literal:
    return f'one of: {", ".join(map(str, typing.get_args(kind)))}'
  if origin is tuple:
    arguments = typing.get_args(kind)
    if arguments[-1] is Ellipsis:
      return f'a comma-separated list, each {describe(arguments[0], metadata)}'
    return f'{len(arguments)} comma-separated values, each {describe(arguments[0], metadata)}'
  if isinstance(kind, type) and issubclass(kind, enum.Enum):
    return f'one of: {", ".join(kind.__members__)}'
  words = {int: 'an integer', float: 'a number', bool: 'true or false', str: 'a text'}
  return words.get(kind, getattr(kind, '__name__', str(kind))) + _range(metadata)


def _range(metadata: Mapping[str, Any]) -> str:
  low, high, above = (metadata.get(key) for key in ('low', 'high', 'above'))
  if low is not None and high is not None:
    return f' from {low} to {high}'
  if low is not None:
    return f' of {low} or more'
  if above is not None:
    return f' above {above}' + (f' and at most {high}' if high is not None else '')
  return f' of {high} or less' if high is not None else ''


def is_optional(kind: Any) -> bool:
  return typing.get_origin(kind) in (Union, types.UnionType) and type(None) in typing.get_args(kind)


def _inner(kind: Any) -> Any:
  rest = tuple(argument for argument in typing.get_args(kind) if argument is not type(None))
  return rest[0] if len(rest) == 1 else Union[rest]  # noqa: UP007


def _part_type(kind: Any) -> type[Config] | None:
  """The `Config` class that a field holds; of several (`Cosine | Constant`) the first is the default."""
  members = (
    typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
  )
  parts = [member for member in members if isinstance(member, type) and issubclass(member, Config)]
  return parts[0] if parts else None


@functools.cache
def _types(cls: type) -> dict[str, Any]:
  return typing.get_type_hints(cls)


def _parse(text: str, kind: Any) -> Any:
  if is_optional(kind):
    return None if text.lower() in _NONE else _parse(text, _inner(kind))
  origin = typing.get_origin(kind)
  if origin is Literal:
    by_text = {str(choice): choice for choice in typing.get_args(kind)}
    if text not in by_text:
      raise ValueError(text)
    return by_text[text]
  if origin is tuple:
    return _parse_tuple(text, typing.get_args(kind))
  if kind is bool:
    return _parse_bool(text)
  if isinstance(kind, type) and issubclass(kind, enum.Enum):
    if text not in kind.__members__:
      raise ValueError(text)
    return kind[text]
  return kind(text)


def _parse_bool(text: str) -> bool:
  words = {'true': True, '1': True, 'false': False, '0': False}
  if text.lower() not in words:
    raise ValueError(text)
  return words[text.lower()]


def _parse_tuple(text: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
  items = [item.strip() for item in text.strip('()[] ').split(',') if item.strip()]
  if arguments[-1] is Ellipsis:
    return tuple(_parse(item, arguments[0]) for item in items)
  if len(items) != len(arguments):
    raise ValueError(text)
  return tuple(_parse(item, kind) for item, kind in zip(items, arguments, strict=True))


def _from_json(value: Any, kind: Any) -> Any:
  if isinstance(kind, type) and issubclass(kind, enum.Enum):
    return kind[value]
  return tuple(value) if isinstance(value, list) else value


def _as_kind(value: Any, kind: Any) -> Any:
  """`value` if it is of `kind`, an int turned into a float where a float is asked; else TypeError."""
  if is_optional(kind):
    return None if value is None else _as_kind(value, _inner(kind))
  origin = typing.get_origin(kind)
  if origin is Literal:
    if value not in typing.get_args(kind) or isinstance(value, bool):
      raise TypeError(value)
    return value
  if origin is tuple:
    arguments = typing.get_args(kind)
    if not isinstance(value, tuple | list):
      raise TypeError(value)
    if arguments[-1] is Ellipsis:
      return tuple(_as_kind(item, arguments[0]) for item in value)
    if len(value) != len(arguments):
      raise TypeError(value)
    return tuple(_as_kind(item, inner) for item, inner in zip(value, arguments, strict=True))
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise TypeError(value)
  return value
