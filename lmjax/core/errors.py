"""Errors that are the user's to mend, and how they are worded.

A `UserError` says in one sentence what was given, what is allowed and what to do. `main` prints it
without a traceback and exits with code 2; anything else is a bug in lmjax and exits with code 1.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """One clear sentence for the user: what was given, what is allowed, what to do."""


def need(flag: str, value: str, what: str) -> None:
  """UserError where a flag that has no default was not given; `what` is an example and what it is."""
  if not value:
    raise UserError(f'no --{flag} was given: pass --{flag}={what}')


def nearest(name: str, known: Iterable[str]) -> str:
  """`did you mean a or b?` for the closest of `known`; where none is close, all of them."""
  known = sorted(known)
  close = closest(name, known)
  if close:
    return f'did you mean {" or ".join(close)}?'
  return f'known are: {", ".join(known) or "none"}'


def closest(name: str, known: Iterable[str]) -> list[str]:
  """Up to three of `known` that `name` may stand for, the likeliest first.

  Part of a name will do: `width` is close to `model.width`, and `lr` to `optimizer.peak_lr`.
  """
  alike = {item: _likeness(name, item) for item in known}
  limit = max([0.6, *(likeness - 0.1 for likeness in alike.values())])
  return sorted((item for item in alike if alike[item] >= limit), key=lambda item: -alike[item])[:3]


def _likeness(name: str, item: str) -> float:
  """From 0 to 1; a part that is the same counts a little less than the whole."""
  ratio = lambda text: difflib.SequenceMatcher(None, name, text).ratio()
  end = item.rpartition('.')[2]
  return max(ratio(item), 0.95 * ratio(end), *(0.8 * ratio(word) for word in end.split('_')))
