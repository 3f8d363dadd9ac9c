"""Errors that are the user's to mend, and how they are worded.

A `UserError` says in one sentence what was given, what is allowed and what to do. `main` prints it
without a traceback and exits with code 2; anything else is a bug in lmjax and exits with code 1.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """One clear sentence for the user: what was given, what is allowed, what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
  """`did you mean a or b?` for the closest of `known`, else all of them.

  Of a dotted one its last word is enough: `width` is close to `model.width`.
  """
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
  if not close:
    by_end = {item.rpartition('.')[2]: item for item in reversed(known)}
    close = [by_end[end] for end in difflib.get_close_matches(name, by_end, n=3, cutoff=0.6)]
  if close:
    return f'did you mean {" or ".join(close)}?'
  return f'known are: {", ".join(known)}' if known else 'none is known'
