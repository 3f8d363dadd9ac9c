"""The task that measures which briefs are refused, on a judged list."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from lmjax.ads.policy import REASONS, judge_brief
from lmjax.core.config import leaf
from lmjax.core.errors import UserError, need
from lmjax.core.task import Report, Task
from lmjax.data.files import numbered_lines

JUDGED = Path(__file__).with_name('judged.jsonl')
"""Briefs that were judged apart from the rules, which were mended to them after."""
_SHAPE = '{"brief": {"product": "..."}, "allowed": false, "reason": "hate"}'


class Judged(NamedTuple):
  """A brief as JSON gave it, and the reason to refuse it: empty where it is allowed."""

  brief: Any
  reason: str


class BriefEval(Task):
  """Judges briefs by the policy and says how often it is right."""

  briefs: str = leaf('', 'JSONL, plain or compressed: brief, allowed and reason of each.')

  def run(self, workdir: Path) -> Report:
    """Trains nothing; also writes `judged.jsonl`, what was decided of each."""
    need('briefs', self.briefs, 'FILE.jsonl, judged briefs')
    judged = read_briefs(self.briefs)
    found = [judge_brief(one.brief) for one in judged]
    with (workdir / 'judged.jsonl').open('w', encoding='utf-8') as file:
      for one, finding in zip(judged, found, strict=True):
        row = {'brief': one.brief, 'expected': one.reason, **(finding._asdict() if finding else {})}
        file.write(json.dumps(row, ensure_ascii=False) + '\n')
    report = measure_blocks(
      [one.reason for one in judged], [one.reason if one else '' for one in found]
    )
    for name, value in report.items():
      print(f'{name:16} {value}')
    return report


def measure_blocks(expected: list[str], decided: list[str]) -> dict[str, Any]:
  """How well reasons `decided` meet those `expected`; an empty one allows.

  Returns:
    block_recall: of the bad briefs, how many are refused, whatever the reason.
    false_block: of the ordinary briefs, how many are refused.
    reason_accuracy: of the bad briefs, how many are refused for the reason expected.
  """
  pairs = list(zip(expected, decided, strict=True))
  bad = [pair for pair in pairs if pair[0]]
  ordinary = [pair for pair in pairs if not pair[0]]
  share = lambda part, whole: part / len(whole) if whole else None
  return {
    'bad': len(bad),
    'ordinary': len(ordinary),
    'block_recall': share(sum(bool(got) for _, got in bad), bad),
    'false_block': share(sum(bool(got) for _, got in ordinary), ordinary),
    'reason_accuracy': share(sum(want == got for want, got in bad), bad),
  }


def read_briefs(path: str) -> list[Judged]:
  """The judged briefs of a JSONL file; UserError at the first row that is none."""
  lines = numbered_lines('briefs', path)
  if not lines:
    raise UserError(f'--briefs={path} is empty: pass a JSONL file with a judged brief a line')
  return [_judged(path, number, line) for number, line in lines]


def _judged(path: str, number: int, line: str) -> Judged:
  try:
    row = json.loads(line)
    brief, allowed, reason = row['brief'], row['allowed'], row.get('reason') or ''
    good = isinstance(allowed, bool)
  except (ValueError, KeyError, TypeError, AttributeError):
    good = False
  if not good:
    raise UserError(f'--briefs={path}: line {number} is not of the form {_SHAPE}: mend or drop it')
  if not allowed and reason not in REASONS:
    raise UserError(
      f'--briefs={path}: line {number} gives the reason {reason!r}: give one of {", ".join(REASONS)}'
    )
  return Judged(brief, '' if allowed else reason)
