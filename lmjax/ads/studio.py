"""The task that makes checked creatives of a brief: copy, ranked and reviewed, and banners of every size."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lmjax
from lmjax.ads import draw
from lmjax.ads.audience import load_taxonomy
from lmjax.ads.banner import Fonts, Palette, choose_palette, lay_out
from lmjax.ads.brief import Brief, Refused, parse_brief
from lmjax.ads.creative import Copy, Limits, Problem, find_problems, limits_of, unlike
from lmjax.ads.policy import review_brief
from lmjax.ads.record import FILE, make_record, sha256
from lmjax.ads.response import load_response
from lmjax.ads.review import Classifier, load_classifier
from lmjax.ads.template import write_templates
from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError, need
from lmjax.core.task import Report, Task, write_json
from lmjax.generate.sampler import Sampler
from lmjax.interop.load import CHECKPOINT, load

DEFAULT = 'smollm2-135m-instruct'
SIZES = ((300, 250), (728, 90), (160, 600), (1200, 628), (1080, 1080))
_PICTURES = ('.png', '.jpg', '.jpeg', '.webp')
_TRIES = 3  # times as many copies are drawn as are shown, since some repeat or fail
_TEMPLATE = 'template'
_COUNTS = ('drawn', 'refused', 'repeated', 'kept')


class Candidate(NamedTuple):
  """A copy that passed, by whom it was written, and its scores."""

  copy: Copy
  made_by: str
  scores: dict[str, float]


class Studio(Task):
  """Makes ranked, checked creatives of a brief, with a template baseline beside them."""

  brief: str = leaf('', 'The brief: a JSON file.')
  output: str = leaf('', 'Folder for the creatives; empty: `creatives` in the workdir.')
  checkpoint: str = leaf(DEFAULT, f'{CHECKPOINT} Empty: templates alone.')
  candidates: int = leaf(
    4, 'Creatives to make, the templates beside them not counted.', low=1, high=64
  )
  templates: int = leaf(2, 'Creatives of the template baseline.', low=0, high=16)
  classifier: str = leaf('', 'A run of review_train that also judges every copy; empty: none.')
  response: str = leaf('', 'A run of response_train that ranks the copies; empty: by facts told.')
  audiences: str = leaf(
    '', 'A JSON file that adds groups to the taxonomy of audiences; empty: none.'
  )
  disclosure: str = leaf('Made with AI', "The line on pictures with a model's copy; empty: none.")
  font: str = leaf('', "A .ttf or .otf file; empty: Pillow's own, which has Latin letters.")
  seed: int = leaf(0, 'The same seed draws the same copies.', low=0, high=2**32 - 1)
  sampler: Sampler = part(Sampler(temperature=0.9, top_p=0.95), 'How copies are drawn.')

  def run(self, workdir: Path) -> Report:
    """Writes a folder a creative: copy.json, a PNG and an SVG of each size, review.json.

    The copies that were refused, and why, are in refused.jsonl beside them.

    Raises:
      Refused: no advertisement is made for such a brief.
    """
    began = time.monotonic()
    need('brief', self.brief, 'FILE.json, what to advertise')
    said, brief = read_brief(self.brief)
    limits, fonts = limits_of(brief.formats or SIZES, brief.product), Fonts(self.font)
    picture = find_picture(brief, Path(self.brief).parent)
    judge = load_classifier(self.classifier, 'classifier') if self.classifier else None
    output = _make(self.output or str(workdir / 'creatives'))
    kept, refused, counts = self._write(brief, limits, judge)
    (output / 'refused.jsonl').write_text(
      ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in refused), encoding='utf-8'
    )
    if not kept:
      raise UserError(
        f'no copy passed its checks, see {output}/refused.jsonl: shorten product and facts, or give '
        'larger formats'
      )
    palette = choose_palette(brief.colours)
    rows = []
    for number, one in enumerate(kept, 1):
      folder = output / f'{number:02}'
      folder.mkdir(exist_ok=True)
      images = self._draw(folder, brief, one, palette, fonts, picture)
      made = {'made_by': one.made_by, 'scores': one.scores, 'disclosure': self._line(one)}
      write_json(folder / 'copy.json', {**one.copy._asdict(), 'alt': images[0]['alt']})
      write_json(folder / FILE, make_record(said, one.copy, problems=[], images=images, **made))
      rows.append(
        {'folder': folder.name, **one.copy._asdict(), 'made_by': one.made_by, **one.scores}
      )
      print(
        f'{folder.name}  {one.copy.headline} | {one.copy.body} | {one.copy.action}  ({one.made_by})'
      )
    seconds = round(time.monotonic() - began, 2)
    print(f'{len(rows)} creatives are in {output}, none approved yet: see {FILE} of each')
    return {'output': str(output), 'creatives': rows, 'copies': counts, 'seconds_to_make': seconds}

  def _write(
    self, brief: Brief, limits: Limits, judge: Classifier | None
  ) -> tuple[list[Candidate], list[dict[str, Any]], dict[str, int]]:
    """What is shown, best first, what is not and why, and counts: drawn = refused + repeated + kept."""
    drawn: list[tuple[Copy, float]] = []
    if self.checkpoint:
      from lmjax.ads.writer import Writer

      writer = Writer(load(self.checkpoint), self.sampler)
      drawn = writer.write(brief, limits, _TRIES * self.candidates, self.seed)
    refused, good = [], []
    for copy, logprob in drawn:
      problems = find_problems(brief, copy, limits) + _harmful(copy, judge)
      if problems:
        refused.append({**copy._asdict(), 'reasons': [one._asdict() for one in problems]})
      else:
        scores = {**score_copy(brief, copy), 'logprob': round(logprob, 4)}
        good.append(Candidate(copy, self.checkpoint, scores))
    good = self._rank(brief, good)
    first = {one.copy: one for one in reversed(good)}
    kept = [first[copy] for copy in unlike([one.copy for one in good])]
    counts = [len(drawn), len(refused), len(good) - len(kept), len(kept)]
    plain = [
      Candidate(copy, _TEMPLATE, score_copy(brief, copy))
      for copy in write_templates(
        brief, limits, max(self.templates, 0 if drawn else self.candidates)
      )
      if not _harmful(copy, judge)
    ]
    shown = kept[: self.candidates] + self._rank(brief, plain)
    return shown, refused, dict(zip(_COUNTS, counts, strict=True))

  def _rank(self, brief: Brief, copies: list[Candidate]) -> list[Candidate]:
    """By what the audience prefers; without a model of that, by facts told and the writer's likelihood."""
    if not self.response or not copies:
      return sorted(copies, key=lambda one: (-one.scores['facts'], -one.scores.get('logprob', 0.0)))
    model, taxonomy = load_response(self.response), load_taxonomy(self.audiences)
    liked = model.scores(brief.audience, [one.copy.text for one in copies], taxonomy)
    told = [
      one._replace(scores={**one.scores, 'response': round(float(score), 4)})
      for one, score in zip(copies, liked, strict=True)
    ]
    return sorted(told, key=lambda one: -one.scores['response'])

  def _line(self, one: Candidate) -> str:
    return '' if one.made_by == _TEMPLATE else self.disclosure

  def _draw(
    self, folder: Path, brief: Brief, one: Candidate, palette: Palette, fonts: Fonts, picture: Any
  ) -> list[dict[str, Any]]:
    """Writes the banners, and returns what the record says of each file."""
    source = draw.RULES if one.made_by == _TEMPLATE else draw.COMPOSITE
    tool = f'lmjax {lmjax.__version__} ({one.made_by})'
    alt = f'{brief.product}: {one.copy.headline}'
    if picture is not None:
      alt += f', with the picture {Path(brief.picture).stem}'
    rows = []
    for width, height in brief.formats or SIZES:
      banner = lay_out(
        one.copy, (width, height), palette, fonts,
        picture=picture is not None, alt=alt, disclosure=self._line(one),
      )  # fmt: skip
      said = draw.provenance(source, tool, alt)
      files = {
        'png': draw.to_png(banner, fonts, picture, said),
        'svg': draw.to_svg(banner, picture, said).encode(),
      }
      for kind, data in files.items():
        name = f'{width}x{height}.{kind}'
        (folder / name).write_bytes(data)
        row = {'file': name, 'sha256': sha256(data), 'width': width, 'height': height, 'alt': alt}
        shown = {'picture': banner.picture is not None, 'contrast': round(banner.contrast, 2)}
        rows.append({**row, **shown, 'bytes': len(data), 'source': source})
    return rows


def read_brief(path: str) -> tuple[Mapping[str, Any], Brief]:
  """A brief's JSON and the brief; Refused where no advertisement is made for it."""
  try:
    said = json.loads(Path(path).read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise UserError(f'--brief={path} cannot be read ({error}): pass a JSON file') from None
  brief = parse_brief(said)
  if found := review_brief(brief):
    reasons = '; '.join(f'{one.reason} ({one.words})' for one in found)
    raise Refused(found[0].reason, f'--brief={path} is refused: {reasons}: change the brief')
  return said, brief


def find_picture(brief: Brief, folder: Path) -> Any:
  """The picture of a brief that names a file, beside the brief or by its whole path; else None."""
  if not brief.picture.lower().endswith(_PICTURES):
    return None
  return draw.read_picture(folder / brief.picture)


def score_copy(brief: Brief, copy: Copy) -> dict[str, float]:
  """`facts`: the share of the brief's facts that the copy says in their words."""
  said = copy.text.casefold()
  told = sum(fact.casefold().rstrip('.') in said for fact in brief.facts)
  return {'facts': round(told / len(brief.facts), 4) if brief.facts else 1.0}


def _harmful(copy: Copy, judge: Classifier | None) -> list[Problem]:
  harmful = judge is not None and bool(judge.is_harmful([copy.text])[0])
  return [Problem('harmful', copy.text)] if harmful else []


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
