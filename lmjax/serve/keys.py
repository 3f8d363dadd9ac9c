"""Who may ask, and how much: API keys as hashes, each with its own rate and number at a time.

A key is 32 random bytes, so one SHA-256 of it is as good as a slow hash. The file holds a JSON object a
line: `{"name": "ada", "sha256": "...", "requests_per_minute": 60, "concurrent": 4, "priority": -1}`.
"""

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lmjax.core.errors import UserError
from lmjax.serve.errors import ApiError
from lmjax.serve.limits import Limits

PREFIX = 'lmjax-'
_HEX = frozenset('0123456789abcdef')
_MOST_OWNERS = 10_000  # of whom the rate is remembered


class Key(NamedTuple):
  """Whose it is and what he may.

  priority: of his requests, lower ones first; they may give way to others, and never go before.
  """

  name: str
  sha256: str
  requests_per_minute: int | None = None
  concurrent: int | None = None
  priority: int = 0


class Keys:
  """The keys of a file, or none, and what their owners are doing."""

  def __init__(self, keys: list[Key], limits: Limits) -> None:
    self._keys, self._limits = keys, limits
    self._tokens: dict[str, tuple[float, float]] = {}  # owner -> requests left, as of when
    self._running: dict[str, int] = {}

  @property
  def needed(self) -> bool:
    return bool(self._keys)

  def owner(self, headers: Mapping[str, str], address: str) -> Key:
    """Whose request this is: the key's, or the address's where there are no keys.

    Raises:
      ApiError: 401, the key is missing or unknown.
    """
    if not self._keys:
      return Key(address, '')
    kind, _, given = headers.get('authorization', '').partition(' ')
    digest = hash_key(given.strip()) if kind.lower() == 'bearer' else ''
    found = None
    for key in self._keys:  # every one, so that the time tells nothing
      found = key if hmac.compare_digest(key.sha256, digest) else found
    if found is None:
      told = 'is unknown' if given else 'is missing'
      message = f'the API key {told}: send the header Authorization: Bearer KEY'
      raise ApiError(401, message, code='invalid_api_key')
    return found

  def take(self, key: Key) -> None:
    """Counts one request against the rate of its owner.

    Raises:
      ApiError: 429, it has none left.
    """
    rate = key.requests_per_minute or self._limits.requests_per_minute
    if rate is None:
      return
    now = time.monotonic()
    left, then = self._tokens.get(key.name, (float(rate), now))
    left = min(rate, left + (now - then) * rate / 60)
    if left < 1:
      seconds = int((1 - left) * 60 / rate) + 1
      message = f'{key.name} has had its {rate} requests a minute: try again in {seconds} s'
      raise ApiError(429, message, code='rate_limit_exceeded', retry_seconds=seconds)
    if len(self._tokens) >= _MOST_OWNERS:
      self._tokens.clear()
    self._tokens[key.name] = left - 1, now

  @contextmanager
  def running(self, key: Key) -> Iterator[None]:
    """Counts one request of an owner while it lasts.

    Raises:
      ApiError: 429, as many as may are running already.
    """
    most = key.concurrent or self._limits.concurrent
    mine = self._running.get(key.name, 0)
    if most is not None and mine >= most:
      message = f'{key.name} has {most} requests running, as many as it may: wait for one'
      raise ApiError(429, message, code='concurrency_limit_exceeded', retry_seconds=1)
    self._running[key.name] = mine + 1
    try:
      yield
    finally:
      self._running[key.name] -= 1
      if not self._running[key.name]:
        del self._running[key.name]


def hash_key(key: str) -> str:
  return hashlib.sha256(key.encode('utf-8', 'replace')).hexdigest()


def read_keys(path: Path) -> list[Key]:
  """The keys of a file.

  Raises:
    UserError: it cannot be read, or a line is none.
  """
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'--api_keys={path} cannot be read: {error}') from None
  keys = []
  for number, line in enumerate(lines, 1):
    if line.strip():
      keys.append(_read_key(line, f'--api_keys={path}: line {number}'))
  if not keys:
    raise UserError(f'--api_keys={path} holds no key: add one with --experiment=api_key')
  return keys


def _read_key(line: str, where: str) -> Key:
  try:
    key = Key(**json.loads(line))
  except (ValueError, TypeError):
    raise UserError(
      f'{where} is no key: write them with --experiment=api_key --name=NAME --api_keys=FILE'
    ) from None
  numbers: list[Any] = [key.requests_per_minute, key.concurrent]
  if not (isinstance(key.name, str) and key.name and isinstance(key.sha256, str)):
    raise UserError(f'{where} needs a name and a sha256, both text: give it both')
  if len(key.sha256) != 64 or not _HEX.issuperset(key.sha256):
    raise UserError(f'{where}: sha256 is not 64 hexadecimal digits: store the hash, not the key')
  if any(n is not None and (type(n) is not int or n < 1) for n in numbers):
    raise UserError(f'{where}: requests_per_minute and concurrent are integers of 1 or more')
  if type(key.priority) is not int:
    raise UserError(f'{where}: priority is an integer, lower ones first, and 0 without it')
  return key


def add_key(path: Path, name: str) -> str:
  """A new key, whose hash is added to the file, which nobody else may read.

  Raises:
    UserError: the name is taken, or the file cannot be written.
  """
  if path.exists() and any(key.name == name for key in read_keys(path)):
    raise UserError(f'{path} has a key of {name} already: pass another --name, or delete its line')
  key = PREFIX + secrets.token_urlsafe(32)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), 'a') as file:
      file.write(json.dumps({'name': name, 'sha256': hash_key(key)}) + '\n')
  except OSError as error:
    raise UserError(f'--api_keys={path} cannot be written: {error.strerror}') from None
  return key
