"""Which of two answers is better, by a judge that the user names: a function, or a command.

A judge sees the two in an order drawn for each prompt, so that one that prefers a place wins nothing.
"""

import json
import shlex
import subprocess
from collections.abc import Sequence

import numpy as np

from lmjax.core.errors import UserError
from lmjax.core.outside import find_function
from lmjax.train.bootstrap import Items, of_values

VERDICTS = {'first': 1.0, 'second': 0.0, 'tie': 0.5}


def win_items(
  judge: str, prompts: Sequence[str], before: Sequence[str], after: Sequence[str], seed: int
) -> Items:
  """1 for each prompt where `after` won, 0 where `before` did, 0.5 for a tie.

  Args:
    judge: `MODULE:FUNCTION`, rows -> verdicts; or a command that reads a row as JSON from each line of
      its input and writes a verdict on each line. A row has `prompt`, `first` and `second`; verdicts are
      first, second and tie.

  Raises:
    UserError: the judge fails, or says something else.
  """
  swapped = np.random.default_rng(seed).random(len(prompts)) < 0.5
  rows = []
  for prompt, old, new, swap in zip(prompts, before, after, swapped.tolist(), strict=True):
    first, second = (old, new) if swap else (new, old)
    rows.append({'prompt': prompt, 'first': first, 'second': second})
  verdicts = _ask(judge, rows)
  bad = [verdict for verdict in verdicts if verdict not in VERDICTS]
  if bad or len(verdicts) != len(rows):
    said = f'said {bad[0]!r}' if bad else f'gave {len(verdicts)} verdicts on {len(rows)} rows'
    raise UserError(f'--judge={judge} {said}: each row needs one of {", ".join(VERDICTS)}')
  scores = np.array([VERDICTS[verdict] for verdict in verdicts])
  return of_values(np.where(swapped, 1.0 - scores, scores))


def _ask(judge: str, rows: Sequence[dict[str, str]]) -> list[str]:
  module, _, function = judge.partition(':')
  if function.isidentifier() and module.replace('.', '').isidentifier():
    return [str(verdict) for verdict in find_function('judge', judge)(list(rows))]
  lines = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  try:
    done = subprocess.run(shlex.split(judge), input=lines, capture_output=True, text=True)
  except (OSError, ValueError) as error:
    raise UserError(f'--judge={judge} cannot be run: {error}: pass a command or M:F') from None
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ['it said nothing'])[-1]
    raise UserError(f'--judge={judge} ended with {done.returncode}: {last}')
  return done.stdout.split()
