"""Configuration: frozen dataclasses whose every leaf is a typed, documented command-line flag.

A part is a `Config` subclass; its fields are declared with `leaf` (a value) or `part` (another
`Config`, perhaps optional). `leaves` lists what can be set, `override` returns a changed copy, and
`to_json` / `from_json` round-trip one. Values are checked at construction, so a bad one is refused
before anything is compiled or downloaded. A leaf is an int, float, bool, str, Literal, Enum, an
Optional of one of these or a tuple of them. Knows nothing about absl, experiments or JAX.

    class Decoder(Config):
      width: int = leaf(256, 'Size D of the residual stream.', low=1)
      qk_norm: Norm | None = part(Norm(), 'Normalise queries and keys.')
"""

import dataclasses
import enum
import functools
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, dataclass_transform

from lmjax.core.errors import UserError, nearest

_NONE = ('none', 'null')

C = TypeVar('C', bound='Config')


def leaf(
  default: Any,
  doc: str,
  *,
  low: float | None = None,
  high: float | None = None,
  above: float | None = None,
  run: bool = False,
) -> Any:
  """A value of a `Config`: its default, one line of documentation and its range.

  Args:
    default: the default.
    doc: one line for `--help`, with the unit.
    low, high: smallest and largest number allowed, both inclusive; of a tuple, each.
    above: the number must be larger than this.
    run: True for a leaf that says how to run and not what is computed: it may change between
      starts in one workdir. Others are identity leaves.
  """
  metadata = {'doc': doc, 'low': low, 'high': high, 'above': above, 'run': run}
  return dataclasses.field(default=default, metadata=metadata)


def part(default: Any, doc: str, *, inline: bool = False, run: bool = False) -> Any:
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
    """Checks the type and range of every leaf; extend it with checks across fields.

    Their UserError names a leaf as `name=value`: `override` completes that to `model.name=value`.
    """
    for field in fields(self):
      value = getattr(self, field.name)
      kind = _types(type(self))[field.name]
      if not _part_types(kind):
        object.__setattr__(self, field.name, check(field.name, value, kind, field.metadata))
      elif not isinstance(value, _part_types(kind)) and not (value is None and is_optional(kind)):
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
    if not _part_types(kind):
      yield Leaf(name, here, kind, value, field.metadata, runs)
      continue
    if is_optional(kind):
      switch = {'doc': field.metadata['doc'], 'switch': True}
      state = 'none' if value is None else 'on'
      yield Leaf(name, here, Literal['none', 'on'], state, switch, runs)
    inner = _part_types(kind)[0]() if value is None else value
    yield from _walk(inner, here, _inner_prefix(prefix, field), runs)


def _inner_prefix(prefix: str, field: dataclasses.Field) -> str:
  return prefix if field.metadata.get('inline') else f'{prefix}{field.name}.'


def override(config: C, changes: Mapping[str, Any]) -> C:
  """A copy of `config` with the leaves named in `changes` replaced, by values of Python or of JSON.

  Setting a leaf of an optional part that is off turns it on.

  Raises:
    UserError: a name is unknown, a value is not allowed, values contradict each other, or a leaf is
      set beside `part=none`.
  """
  known = {leaf.name: leaf for leaf in leaves(config)}
  by_path: dict[tuple[str, ...], Any] = {}
  for name in changes:
    if name not in known:
      raise UserError(f'unknown setting {name!r}: {nearest(name, known)}')
  for name, value in changes.items():
    leaf = known[name]
    by_path[leaf.path] = check(name, value, leaf.kind, leaf.metadata)
    if leaf.is_switch and value == 'none':
      below = [other for other in changes if known[other].path[:-1][: len(leaf.path)] == leaf.path]
      given = ' and '.join(f'{other}={to_text(changes[other])}' for other in below)
      if below:
        raise UserError(f'{name}=none contradicts {given}: drop one of them')
  return _replace(config, (), '', by_path)


from_json = override  # of what `to_json` wrote


def _replace(
  config: Any, path: tuple[str, ...], prefix: str, changes: Mapping[tuple[str, ...], Any]
) -> Any:
  new = {}
  for field in fields(config):
    here = (*path, field.name)
    below = {key: value for key, value in changes.items() if key[: len(here)] == here}
    parts = _part_types(_types(type(config))[field.name])
    if not below:
      continue
    if not parts:
      new[field.name] = below[here]
    elif below.get(here) == 'none':
      new[field.name] = None
    else:
      inner = getattr(config, field.name) or parts[0]()
      new[field.name] = _replace(inner, here, _inner_prefix(prefix, field), below)
  try:
    return dataclasses.replace(config, **new) if new else config
  except UserError as error:
    names = [leaf.name for leaf in leaves(config)]
    raise UserError(qualify(str(error), names, prefix)) from None


def qualify(sentence: str, names: Iterable[str], prefix: str) -> str:
  """`sentence` with `prefix` before each of `names` wherever it gives a value: `name=`."""
  for name in names:
    sentence = re.sub(rf'(?<![\w.\'"/-]){re.escape(name)}=', f'{prefix}{name}=', sentence)
  return sentence


def to_json(config: Config) -> dict[str, Any]:
  """Leaf name -> JSON value: the switch of every optional part, and every leaf of those that are on."""
  found = leaves(config)
  off = tuple(f'{leaf.name}.' for leaf in found if leaf.is_switch and leaf.value == 'none')
  return {leaf.name: _plain(leaf.value) for leaf in found if not leaf.name.startswith(off)}


def _plain(value: Any) -> Any:
  if isinstance(value, tuple):
    return [_plain(item) for item in value]
  return value.name if isinstance(value, enum.Enum) else value


def changed_identity(old: Mapping[str, Any], config: Config) -> list[tuple[str, Any, Any]]:
  """(leaf, old, new) of each identity leaf whose value in `old` (of `to_json`) differs from `config`'s.

  Of an optional part that was switched, only the switch.
  """
  new = to_json(config)
  run = {leaf.name for leaf in leaves(config) if leaf.run}
  changed = [name for name in {**old, **new} if name not in run and old.get(name) != new.get(name)]
  switched = tuple(
    f'{leaf.name}.' for leaf in leaves(config) if leaf.is_switch and leaf.name in changed
  )
  return [(name, old.get(name), new.get(name)) for name in changed if not name.startswith(switched)]


def check(name: str, value: Any, kind: Any, metadata: Mapping[str, Any]) -> Any:
  """`value` as `kind`, or UserError with what is allowed.

  An int is taken for a float, a list for a tuple, a name for a member of an Enum.
  """
  given = f'{name}={value!r}: ' if name else ''
  try:
    value = _as_kind(value, kind)
    for item in value if isinstance(value, tuple) else (value,):
      _check_range(item, metadata)
  except (TypeError, ValueError, OverflowError):
    raise UserError(f'{given}expected {describe(kind, metadata)}') from None
  return value


def _check_range(value: Any, metadata: Mapping[str, Any]) -> None:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return
  low, high, above = (metadata.get(key) for key in ('low', 'high', 'above'))
  inside = (low is None or value >= low) and (high is None or value <= high)
  if not (inside and (above is None or value > above) and abs(value) < math.inf):
    raise ValueError(value)


def describe(kind: Any, metadata: Mapping[str, Any] = types.MappingProxyType({})) -> str:
  """What is allowed, in words: `an integer of 1 or more`, `one of: scan, list`, `none or a number`."""
  if is_optional(kind):
    return f'none or {describe(_inner(kind), metadata)}'
  origin = typing.get_origin(kind)
  if origin is Literal:
    return f'one of: {", ".join(map(str, typing.get_args(kind)))}'
  if origin is tuple:
    each = [describe(item, metadata) for item in typing.get_args(kind) if item is not Ellipsis]
    if typing.get_args(kind)[-1] is Ellipsis:
      return f'a comma-separated list, each {each[0]}'
    return f'{len(each)} comma-separated values: {"; ".join(each)}'
  if isinstance(kind, type) and issubclass(kind, enum.Enum):
    return f'one of: {", ".join(kind.__members__)}'
  if _part_types(kind):
    return ' or '.join(part_type.__name__ for part_type in _part_types(kind))
  words = {int: 'an integer', float: 'a number', bool: 'true or false', str: 'a text'}
  return words.get(kind, str(kind)) + _range(metadata)


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


def _part_types(kind: Any) -> tuple[type[Config], ...]:
  """The `Config` classes that a field may hold (`Cosine | Constant`), none of a leaf.

  An optional part that is off is turned on as the first of them, with its defaults.
  """
  members = (
    typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
  )
  return tuple(m for m in members if isinstance(m, type) and issubclass(m, Config))


@functools.cache
def _types(cls: type) -> dict[str, Any]:
  return typing.get_type_hints(cls)


def parse(leaf: Leaf, text: str) -> Any:
  """The value that `text` gives to `leaf`; UserError with the allowed values when it gives none."""
  try:
    value = _parse(text, leaf.kind)
  except ValueError:
    raise UserError(f'expected {describe(leaf.kind, leaf.metadata)}') from None
  return check('', value, leaf.kind, leaf.metadata)


def to_text(value: Any) -> str:
  """A leaf's value as `parse` reads it."""
  if isinstance(value, tuple | list):
    return ','.join(map(to_text, value))
  if value is None or isinstance(value, bool):
    return str(value).lower()
  return value.name if isinstance(value, enum.Enum) else str(value)


def _parse(text: str, kind: Any) -> Any:
  if is_optional(kind):
    return None if text.lower() in _NONE else _parse(text, _inner(kind))
  origin = typing.get_origin(kind)
  if origin is tuple:
    return _parse_tuple(text, typing.get_args(kind))
  if origin is Literal:
    return _pick(text, {str(choice): choice for choice in typing.get_args(kind)})
  if kind is bool:
    return _pick(text.lower(), {'true': True, '1': True, 'false': False, '0': False})
  if isinstance(kind, type) and issubclass(kind, enum.Enum):
    return _pick(text, kind.__members__)
  assert kind in (int, float, str), f'a leaf cannot be a {kind}'
  return kind(text)


def _pick(given: Any, choices: Mapping[Any, Any]) -> Any:
  if given not in choices:
    raise ValueError(given)
  return choices[given]


def _parse_tuple(text: str, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
  items = [item.strip() for item in text.split(',')] if text.strip() else []
  if kinds[-1] is Ellipsis:
    kinds = kinds[:1] * len(items)
  if len(items) != len(kinds):
    raise ValueError(text)
  return tuple(map(_parse, items, kinds))


def _as_kind(value: Any, kind: Any) -> Any:
  """`value` if it is of `kind`, converted as `check` says; TypeError or ValueError if not."""
  if is_optional(kind):
    return None if value is None else _as_kind(value, _inner(kind))
  origin = typing.get_origin(kind)
  if origin is tuple and isinstance(value, tuple | list):
    kinds = typing.get_args(kind)
    if kinds[-1] is Ellipsis:
      kinds = kinds[:1] * len(value)
    return tuple(_as_kind(item, inner) for item, inner in zip(value, kinds, strict=True))
  if origin is Literal:
    return _pick((type(value), value), {(type(c), c): c for c in typing.get_args(kind)})
  if isinstance(kind, type) and issubclass(kind, enum.Enum) and isinstance(value, str):
    return _pick(value, kind.__members__)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, origin or kind) or (kind is int and isinstance(value, bool)):
    raise TypeError(value)
  return value
