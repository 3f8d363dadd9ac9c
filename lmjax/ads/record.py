"""The decision record of a creative: why it may be shown or not, its scores, who approved it, how it was made."""

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lmjax.ads.creative import Copy, Problem
from lmjax.core.config import leaf
from lmjax.core.errors import UserError, need
from lmjax.core.task import Report, Task, write_json

SCHEMA = 1
FILE = 'review.json'
Decision = Literal['approved', 'rejected', 'pending']


def make_record(
  brief: Mapping[str, Any],
  copy: Copy,
  *,
  made_by: str,
  problems: Sequence[Problem],
  scores: Mapping[str, float],
  images: Sequence[Mapping[str, Any]],
  disclosure: str,
) -> dict[str, Any]:
  """The record of a creative, which a person has not decided on yet.

  Args:
    brief: as JSON gave it; the record holds its hash.
    made_by: the model's name, or 'template'.
    problems: of the copy; where there are any it is blocked and cannot be approved.
    images: of each file its name, hash, size, alternative text, contrast and digital source type.
    disclosure: the line that pictures show; '' for none.
  """
  said = json.dumps(brief, sort_keys=True, ensure_ascii=False).encode()
  return {
    'schema': SCHEMA,
    'brief_sha256': hashlib.sha256(said).hexdigest(),
    'copy': copy._asdict(),
    'made_by': made_by,
    'verdict': 'blocked' if problems else 'passed',
    'reasons': [problem._asdict() for problem in problems],
    'scores': dict(scores),
    'images': [dict(image) for image in images],
    'disclosure': disclosure,
    'approval': {'state': 'pending', 'by': '', 'at': '', 'note': ''},
  }


class Decide(Task):
  """Writes a person's decision into the review record of a creative."""

  review: str = leaf('', f'The creative: its folder, or the {FILE} in it.')
  state: Decision = leaf('approved', 'What was decided; pending takes a decision back.')
  by: str = leaf('', 'Who decided.')
  note: str = leaf('', 'Why, in words.')

  def run(self, workdir: Path) -> Report:
    """Returns the record; UserError where its checks did not pass or a file has changed since."""
    need('review', self.review, f'FOLDER, of a creative with its {FILE}')
    need('by', self.by, 'NAME, who decided')
    record = decide(Path(self.review), self.state, self.by, self.note)
    print(f'{self.review}: {self.state} by {self.by}')
    return {'review': self.review, **record['approval']}


def decide(path: Path, state: Decision, by: str, note: str = '') -> dict[str, Any]:
  """Writes what a person decided into the record at `path`, or in that folder, and returns it.

  Raises:
    UserError: approved though its checks did not pass, or a file has changed since.
  """
  path = path / FILE if path.is_dir() else path
  record = read_record(path)
  if state == 'approved':
    check_whole(path.parent, record)
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
  record['approval'] = {'state': state, 'by': by, 'at': now, 'note': note}
  write_json(path, record)
  return record


def read_record(path: Path) -> dict[str, Any]:
  """The record at `path`; UserError where there is none."""
  try:
    record = json.loads(path.read_text(encoding='utf-8'))
    if record['schema'] == SCHEMA and record['approval']['state']:
      return record
  except (OSError, ValueError, KeyError, TypeError):
    pass
  raise UserError(f'--review={path} is no review record: pass a folder that ads_studio wrote')


def check_whole(folder: Path, record: Mapping[str, Any]) -> None:
  """UserError where a creative did not pass its checks, or its files are not those that were reviewed."""
  if record['verdict'] != 'passed':
    said = ', '.join(f'{one["kind"]} {one["words"]}' for one in record['reasons'])
    raise UserError(f'{folder} did not pass its checks ({said}): it cannot be approved')
  for image in record['images']:
    path = folder / image['file']
    if not path.is_file() or sha256(path.read_bytes()) != image['sha256']:
      raise UserError(f'{path} is not the file that was reviewed: make the creatives again')
  copy = json.loads((folder / 'copy.json').read_text(encoding='utf-8'))
  if {name: copy.get(name) for name in Copy._fields} != record['copy']:
    raise UserError(f'{folder}/copy.json is not the copy that was reviewed: make it again')


def sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()
