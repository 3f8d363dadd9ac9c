"""From copies of a brief to creatives in a folder each: checked, ranked, drawn in every size, recorded.

Knows nothing about how copies are written: `writer.py` and `template.py` do. Extra [ads].
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lmjax
from lmjax.ads import draw
from lmjax.ads.audience import load_taxonomy
from lmjax.ads.banner import Fonts, choose_palette, lay_out
from lmjax.ads.brief import Brief
from lmjax.ads.creative import Copy, Limits, Problem, find_problems, limits_of, unlike, unsaid
from lmjax.ads.record import FILE, make_record, sha256
from lmjax.ads.template import write_templates
from lmjax.core.config import Config, leaf
from lmjax.core.task import write_json

SIZES = ((300, 250), (728, 90), (160, 600), (1200, 628), (1080, 1080))
TEMPLATE = 'template'
TRIES = 3  # times as many copies are drawn as are shown, since some repeat or fail
_PICTURES = ('.png', '.jpg', '.jpeg', '.webp')
_COUNTS = ('drawn', 'refused', 'repeated', 'kept')


class Making(Config):
  """How copies are judged, ranked and drawn."""

  classifier: str = leaf('', 'A run of review_train that also judges every copy; empty: none.')
  response: str = leaf('', 'A run of response_train that ranks the copies; empty: by facts told.')
  audiences: str = leaf(
    '', 'A JSON file that adds groups to the taxonomy of audiences; empty: none.'
  )
  generator: str = leaf(
    '', 'A run of emoji_flow, or that recipe, draws a picture that names no file; empty: none.'
  )
  disclosure: str = leaf('Made with AI', 'The line on pictures that a model had a part in.')
  font: str = leaf('', "A .ttf or .otf file; empty: Pillow's own, which has Latin letters.")


class Candidate(NamedTuple):
  """A copy that passed, by whom it was written, and its scores."""

  copy: Copy
  made_by: str
  scores: dict[str, float]


class Choice(NamedTuple):
  """What is shown, best first, what is not and why, and counts: drawn = refused + repeated + kept.

  Attributes:
    unsaid: facts that nothing shown says, for want of room or of more candidates.
  """

  shown: list[Candidate]
  refused: list[dict[str, Any]]
  counts: dict[str, int]
  unsaid: list[str]


class Picture(NamedTuple):
  """Pillow's image, and whether a model drew it."""

  image: Any
  drawn: bool


class Maker:
  """Makes creatives of briefs with what its settings name, which is read once."""

  def __init__(
    self, settings: Making, moderate: Callable[[str], str | None] = lambda text: None
  ) -> None:
    """`moderate`: why a text is refused, or None, asked beside the settings' classifier."""
    self._settings, self._fonts, self._moderate = settings, Fonts(settings.font), moderate
    self._taxonomy = load_taxonomy(settings.audiences)
    self._judge = self._response = self._generator = None
    if settings.classifier:
      from lmjax.ads.review import load_classifier

      self._judge = load_classifier(settings.classifier, 'classifier')
    if settings.response:
      from lmjax.ads.response import load_response

      self._response = load_response(settings.response)
    if settings.generator:
      from lmjax.interop.load import locate
      from lmjax.train.images import load_generator

      self._generator = load_generator(str(locate(settings.generator)))

  def choose(
    self,
    brief: Brief,
    drawn: Sequence[tuple[Copy, float]],
    *,
    made_by: str,
    count: int,
    templates: int,
  ) -> Choice:
    """The best `count` of the copies that a model has `drawn`, with `templates` of the baseline beside."""
    limits = limits_for(brief)
    refused, good = [], []
    for copy, logprob in drawn:
      problems = self.check(brief, copy)
      if problems:
        refused.append({**copy._asdict(), 'reasons': [one._asdict() for one in problems]})
      else:
        scores = {**score_copy(brief, copy), 'logprob': round(logprob, 4)}
        good.append(Candidate(copy, made_by, scores))
    good = self._rank(brief, good)
    first = {one.copy: one for one in reversed(good)}
    kept = [first[copy] for copy in unlike([one.copy for one in good])]
    counts = [len(drawn), len(refused), len(good) - len(kept), len(kept)]
    plain = [
      Candidate(copy, TEMPLATE, score_copy(brief, copy))
      for copy in write_templates(brief, limits, max(templates, 0 if drawn else count))
      if not self._harmful(copy)
    ]
    shown = kept[:count] + self._rank(brief, plain)
    missing = unsaid(brief, [one.copy.text for one in shown])
    return Choice(shown, refused, dict(zip(_COUNTS, counts, strict=True)), missing)

  def check(self, brief: Brief, copy: Copy) -> list[Problem]:
    """Why `copy` may not be shown; empty where it may."""
    return find_problems(brief, copy, limits_for(brief)) + self._harmful(copy)

  def picture(self, brief: Brief, folder: Path | None) -> Picture | None:
    """The picture of a brief: a file beside it in `folder`, or one that is drawn of its words."""
    if folder is not None and brief.picture.lower().endswith(_PICTURES):
      return Picture(draw.read_picture(folder / brief.picture), False)
    if self._generator is None or not brief.picture:
      return None
    from PIL import Image

    from lmjax.generate.image import FlowSampler

    (pixels,) = self._generator.draw([brief.picture], FlowSampler(), 0)
    return Picture(Image.fromarray(pixels).resize((512, 512), Image.Resampling.BICUBIC), True)

  def write(
    self,
    folder: Path,
    said: Mapping[str, Any],
    brief: Brief,
    one: Candidate,
    picture: Picture | None,
    problems: Sequence[Problem] = (),
  ) -> dict[str, Any]:
    """Writes copy.json, a PNG and an SVG of each size and the record, which is returned, into `folder`.

    Args:
      said: the brief as JSON gave it.
      problems: of its copy; with any it gets a record and no pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = [] if problems else self._draw(folder, brief, one, picture)
    made = {'made_by': one.made_by, 'scores': one.scores, 'disclosure': self._line(one, picture)}
    record = make_record(said, one.copy, problems=problems, images=images, **made)
    write_json(folder / 'copy.json', {**one.copy._asdict(), 'alt': _alt(brief, one, picture)})
    write_json(folder / FILE, record)
    return record

  def _rank(self, brief: Brief, copies: list[Candidate]) -> list[Candidate]:
    """By what the audience prefers; without a model of that, by facts told and the writer's likelihood."""
    if self._response is None or not copies:
      return sorted(copies, key=lambda one: (-one.scores['facts'], -one.scores.get('logprob', 0.0)))
    texts = [one.copy.text for one in copies]
    liked = self._response.scores(brief.audience, texts, self._taxonomy)
    told = [
      one._replace(scores={**one.scores, 'response': round(float(score), 4)})
      for one, score in zip(copies, liked, strict=True)
    ]
    return sorted(told, key=lambda one: -one.scores['response'])

  def _line(self, one: Candidate, picture: Picture | None) -> str:
    drawn = picture is not None and picture.drawn
    return self._settings.disclosure if drawn or one.made_by != TEMPLATE else ''

  def _harmful(self, copy: Copy) -> list[Problem]:
    if self._judge is not None and self._judge.is_harmful([copy.text])[0]:
      return [Problem('harmful', copy.text)]
    why = self._moderate(copy.text)
    return [] if why is None else [Problem('harmful', why)]

  def _draw(
    self, folder: Path, brief: Brief, one: Candidate, picture: Picture | None
  ) -> list[dict[str, Any]]:
    """Writes the banners, and returns what the record says of each file."""
    line, palette = self._line(one, picture), choose_palette(brief.colours)
    by_model = one.made_by != TEMPLATE or (picture is not None and picture.drawn)
    source = draw.COMPOSITE if by_model else draw.RULES
    tool = f'lmjax {lmjax.__version__} ({one.made_by})'
    alt, image = _alt(brief, one, picture), None if picture is None else picture.image
    rows = []
    for width, height in brief.formats or SIZES:
      banner = lay_out(
        one.copy, (width, height), palette, self._fonts,
        picture=picture is not None, alt=alt, disclosure=line,
      )  # fmt: skip
      packet = draw.provenance(source, tool, alt)
      files = {
        'png': draw.to_png(banner, self._fonts, image, packet),
        'svg': draw.to_svg(banner, image, packet).encode(),
      }
      for kind, data in files.items():
        name = f'{width}x{height}.{kind}'
        (folder / name).write_bytes(data)
        row = {'file': name, 'sha256': sha256(data), 'width': width, 'height': height, 'alt': alt}
        shown = {'picture': banner.picture is not None, 'contrast': round(banner.contrast, 2)}
        rows.append({**row, **shown, 'bytes': len(data), 'source': source})
    return rows


def limits_for(brief: Brief) -> Limits:
  """The lengths that fit all formats of a brief; Refused where the product's name has no room."""
  return limits_of(brief.formats or SIZES, brief.product)


def _alt(brief: Brief, one: Candidate, picture: Picture | None) -> str:
  """The text that stands for a banner where it cannot be seen."""
  alt = f'{brief.product}: {one.copy.headline}'
  return alt if picture is None else f'{alt}, with the picture {Path(brief.picture).stem}'


def score_copy(brief: Brief, copy: Copy) -> dict[str, float]:
  """`facts`: the share of the brief's facts that the copy says in their words."""
  said = copy.text.casefold()
  told = sum(fact.casefold().rstrip('.') in said for fact in brief.facts)
  return {'facts': round(told / len(brief.facts), 4) if brief.facts else 1.0}
