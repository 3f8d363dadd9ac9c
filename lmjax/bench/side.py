"""One side of a contest, in a process of its own: `python -m lmjax.bench.side MODULE:FUNCTION SETTINGS`.

FUNCTION(settings) makes ready and returns a function that takes one turn. What a side says is a line
of JSON: one when it is ready, and one after each line that it is sent. Peers speak the same.
"""

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

Turn = Callable[[], dict[str, Any]]


def main(argv: list[str]) -> None:
  """Makes the side of `argv` ready, then takes a turn for every line of standard input."""
  module, _, function = argv[1].partition(':')
  turn: Turn = getattr(importlib.import_module(module), function)(json.loads(argv[2]))
  say({'ready': True})
  for _ in sys.stdin:
    say(turn())


def say(row: dict[str, Any]) -> None:
  print(json.dumps(row), flush=True)


if __name__ == '__main__':
  main(sys.argv)
