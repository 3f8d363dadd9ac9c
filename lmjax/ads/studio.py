"""The task that makes checked creatives of a brief: copy, ranked and reviewed, and banners of every size."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmjax.ads.brief import Brief, Refused, parse_brief
from lmjax.ads.maker import TRIES, Maker, Making, limits_for
from lmjax.ads.policy import review_brief
from lmjax.ads.record import FILE
from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError, need
from lmjax.core.task import Report, Task
from lmjax.generate.sampler import Sampler
from lmjax.interop.load import CHECKPOINT, load

DEFAULT = 'smollm2-135m-instruct'
SAMPLER = Sampler(temperature=0.9, top_p=0.95)


class Studio(Making, Task):
  """Makes ranked, checked creatives of a brief, with a template baseline beside them."""

  brief: str = leaf('', 'The brief: a JSON file.')
  output: str = leaf('', 'Folder for the creatives; empty: `creatives` in the workdir.')
  checkpoint: str = leaf(DEFAULT, f'{CHECKPOINT} Empty: templates alone.')
  candidates: int = leaf(
    4, 'Creatives to make, the templates beside them not counted.', low=1, high=64
  )
  templates: int = leaf(2, 'Creatives of the template baseline.', low=0, high=16)
  seed: int = leaf(0, 'The same seed draws the same copies.', low=0, high=2**32 - 1)
  sampler: Sampler = part(SAMPLER, 'How copies are drawn.')

  def run(self, workdir: Path) -> Report:
    """Writes a folder a creative: copy.json, a PNG and an SVG of each size, review.json.

    The copies that were refused, and why, are in refused.jsonl beside them.

    Raises:
      Refused: no advertisement is made for such a brief.
    """
    began = time.monotonic()
    need('brief', self.brief, 'FILE.json, what to advertise')
    said, brief = read_brief(self.brief)
    limits, maker = limits_for(brief), Maker(self)
    picture = maker.picture(brief, Path(self.brief).parent)
    output = _make(self.output or str(workdir / 'creatives'))
    drawn = []
    if self.checkpoint:
      from lmjax.ads.writer import Writer

      writer = Writer(load(self.checkpoint), self.sampler)
      drawn = writer.write(brief, limits, TRIES * self.candidates, self.seed)
    kept, refused, counts, left = maker.choose(
      brief, drawn, made_by=self.checkpoint, count=self.candidates, templates=self.templates
    )
    (output / 'refused.jsonl').write_text(
      ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in refused), encoding='utf-8'
    )
    if not kept:
      raise UserError(
        f'no copy passed its checks, see {output}/refused.jsonl: shorten product and facts, or give '
        'larger formats'
      )
    rows = []
    for number, one in enumerate(kept, 1):
      name = f'{number:02}'
      maker.write(output / name, said, brief, one, picture)
      rows.append({'folder': name, **one.copy._asdict(), 'made_by': one.made_by, **one.scores})
      print(f'{name}  {one.copy.headline} | {one.copy.body} | {one.copy.action}  ({one.made_by})')
    seconds = round(time.monotonic() - began, 2)
    print(f'{len(rows)} creatives are in {output}, none approved yet: see {FILE} of each')
    if left:
      print(
        f'{len(left)} facts are in none of them, {left[0][:60]!r} first: to have them said, shorten facts or '
        'pass more --candidates'
      )
    made = {'output': str(output), 'creatives': rows, 'copies': counts, 'facts_unsaid': left}
    return made | {'seconds_to_make': seconds}


def read_brief(path: str) -> tuple[Mapping[str, Any], Brief]:
  """A brief's JSON and the brief; Refused where no advertisement is made for it."""
  try:
    said = json.loads(Path(path).read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise UserError(f'--brief={path} cannot be read ({error}): pass a JSON file') from None
  return said, accept_brief(said, f'--brief={path}')


def accept_brief(said: Any, name: str = 'the brief') -> Brief:
  """The brief that a JSON value stands for; Refused where no advertisement is made for it."""
  brief = parse_brief(said)
  if found := review_brief(brief):
    reasons = '; '.join(f'{one.reason} ({one.words})' for one in found)
    raise Refused(found[0].reason, f'{name} is refused: {reasons}: change the brief')
  return brief


def _make(folder: str) -> Path:
  path = Path(folder)
  try:
    path.mkdir(parents=True, exist_ok=True)
    taken = sorted(path.glob(f'*/{FILE}'))
  except OSError as error:
    raise UserError(f'--output={folder} cannot be made ({error.strerror}): pass another') from None
  if taken:
    raise UserError(f'--output={folder} has creatives already: pass another, or remove them first')
  return path
