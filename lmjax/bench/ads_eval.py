"""The task that measures advertising: copy, pictures and review, on what ships unless told otherwise.

Encoders are search's, which `ads` does not import: hence it stands here. S texts, G labels, D size of a vector.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.ads.audience import load_taxonomy
from lmjax.ads.brief import Brief
from lmjax.ads.creative import Copy, vocabulary, voice_of
from lmjax.ads.evaluate import JUDGED, measure_blocks, read_briefs
from lmjax.ads.generator import Sample, count_slot_errors, make_samples
from lmjax.ads.maker import TEMPLATE, TRIES, Candidate, Maker, Making, limits_for
from lmjax.ads.policy import judge_brief
from lmjax.ads.response import load_response
from lmjax.ads.review import (
  Classifier,
  asset_texts,
  fit_classifier,
  load_classifier,
  measure_review,
  read_labelled,
)
from lmjax.ads.studio import DEFAULT, SAMPLER, accept_brief
from lmjax.ads.writer import Writer
from lmjax.bench.ads_judges import (
  AudienceJudge,
  made_up_response,
  passages_of_interests,
  read_audience_texts,
  self_bleu,
)
from lmjax.core.config import leaf, part
from lmjax.core.errors import UserError
from lmjax.core.task import Report, Task
from lmjax.data.files import numbered_lines
from lmjax.generate.sampler import Sampler
from lmjax.interop.encoder import MINILM, load_encoder
from lmjax.interop.load import load, locate
from lmjax.models.classifier import NgramHash
from lmjax.search.embed import Embedder

PICTURES = 'emoji_flow'
_TEXT = (
  'slot_error', 'audience_accuracy', 'chance', 'self_bleu', 'preferred_over_template', 'in_voice',
)  # fmt: skip
_FIGURES = (
  'nearest_seen', 'nearest_unseen_tone', 'tone_unseen', 'category_held_out', 'judge_real', 'seconds_per_image',
)  # fmt: skip
_FORM = '{"brief": {"product": "..."}, "audience": "a label of --audience_texts"}'
_LENGTH = 64  # tokens of a text that its vector is made of


class AdsEval(Task):
  """Measures copy, pictures and review; trains only what a figure is judged by."""

  checkpoint: str = leaf(
    DEFAULT, 'What writes the copy, as any --checkpoint; empty: no figures of text.'
  )
  briefs: str = leaf('', 'JSONL, a brief and the label of its audience a line; empty: made up.')
  count: int = leaf(
    16, 'Briefs that are made up, of products that no copy is taught of.', low=2, high=1000
  )
  candidates: int = leaf(4, 'Copies of a brief that are kept.', low=2, high=64)
  audience_texts: str = leaf(
    '', 'JSONL, text and label: real texts of each audience; empty: passages of an asset.'
  )
  response: str = leaf('', 'A run of response_train that prefers; empty: made-up readers.')
  pictures: str = leaf(
    PICTURES, 'A run of emoji_flow, or that recipe; empty: no figures of images.'
  )
  judged: str = leaf('', 'JSONL of brief_eval: judged briefs; empty: those that ship.')
  classifier: str = leaf('', 'A run of review_train; empty: one is trained on assets.')
  texts: tuple[str, ...] = leaf((), 'Labelled texts of review_eval; empty: a part of the assets.')
  positive: tuple[str, ...] = leaf((), 'The labels of --texts that count as harmful.')
  seed: int = leaf(0, 'Of the briefs, the copies and the parts that are held out.', low=0)
  sampler: Sampler = part(SAMPLER, 'How copies are drawn.')

  def run(self, workdir: Path) -> Report:
    """Also writes `copies.jsonl`, what was measured; `notes` says what a figure rests on or why it is none."""
    notes: dict[str, str] = {}
    report = {
      'text': self._text(workdir, notes),
      'images': self._images(notes),
      'review': self._review(notes),
    }
    for area, figures in report.items():
      for name, value in figures.items():
        print(f'{area:7} {name:24} {value}')
    for name, said in notes.items():
      print(f'{name}: {said}')
    return {**report, 'notes': notes}

  def _text(self, workdir: Path, notes: dict[str, str]) -> dict[str, float | None]:
    if not self.checkpoint:
      notes['text'] = 'no --checkpoint writes copy'
      return dict.fromkeys(_TEXT)
    judge, samples = self._audiences(notes), self._samples()
    briefs = [accept_brief(one.brief) for one in samples]
    written = self._write(briefs, workdir)
    best = [copies[0].copy if copies else None for copies, _ in written]
    slots = sum(len(one.brief['facts']) for one in samples)
    errors = sum(
      len(one.brief['facts'])
      if copy is None
      else count_slot_errors(copy.text, one.brief['facts'], one.others)
      for one, copy in zip(samples, best, strict=True)
    )
    told = [(copy.text, one.group) for one, copy in zip(samples, best, strict=True) if copy]
    right = [a == b for a, (_, b) in zip(judge.labels_of([text for text, _ in told]), told)]
    overlaps = [
      self_bleu([one.copy.text for one in copies]) for copies, _ in written if len(copies) > 1
    ]
    mean = lambda values: float(np.mean(values)) if len(values) else None
    found = (errors / slots if slots else None, mean(right), 1 / len(judge.names), mean(overlaps))
    preferred = self._preferred(samples, written, notes)
    spoken = zip(briefs, (copies for copies, _ in written), strict=True)
    in_voice = _in_voice((brief, one.copy) for brief, copies in spoken for one in copies)
    return dict(zip(_TEXT, (*found, preferred, mean(in_voice)), strict=True))

  def _samples(self) -> list[Sample]:
    if not self.briefs:
      return make_samples(self.count, self.seed, 'kept')
    found = []
    for number, line in numbered_lines('briefs', self.briefs):
      try:
        row = json.loads(line)
        brief, label = {'facts': [], **row['brief']}, str(row['audience'])
      except (ValueError, KeyError, TypeError):
        raise UserError(
          f'--briefs={self.briefs}: line {number} is not of the form {_FORM}'
        ) from None
      found.append(Sample(brief, label, ()))
    if not found:
      raise UserError(f'--briefs={self.briefs} is empty: give lines of the form {_FORM}')
    return found

  def _audiences(self, notes: dict[str, str]) -> 'AudienceJudge':
    if self.audience_texts:
      rows = read_audience_texts(self.audience_texts)
    else:
      rows = passages_of_interests()
      notes['audience_accuracy'] = (
        f'a classifier of {len(rows)} real passages (boolq-passages) that name one interest; a copy names '
        'its product, which tells much of the audience'
      )
    return AudienceJudge(Embedder(load_encoder(MINILM), _LENGTH), rows)

  def _write(
    self, briefs: Sequence[Brief], workdir: Path
  ) -> list[tuple[list[Candidate], list[Candidate]]]:
    """Of each brief the copies of the model and those of the template, best first."""
    writer, maker = Writer(load(self.checkpoint), self.sampler), Maker(Making())
    found = []
    with (workdir / 'copies.jsonl').open('w', encoding='utf-8') as file:
      for number, brief in enumerate(briefs):
        drawn = writer.write(brief, limits_for(brief), TRIES * self.candidates, self.seed + number)
        chosen = maker.choose(
          brief, drawn, made_by=self.checkpoint, count=self.candidates, templates=1
        )
        parts = [
          [one for one in chosen.shown if (one.made_by == TEMPLATE) is is_plain]
          for is_plain in (False, True)
        ]
        found.append((parts[0], parts[1]))
        for one in chosen.shown:
          row = {'brief': number, 'made_by': one.made_by, **one.copy._asdict(), **one.scores}
          file.write(json.dumps(row, ensure_ascii=False) + '\n')
    return found

  def _preferred(self, samples, written, notes: dict[str, str]) -> float | None:
    """The share of briefs of which a model of responses prefers the best copy to the template, ties half."""
    if self.response:
      model = load_response(self.response)
    else:
      model = made_up_response(self.seed)
      notes['preferred_over_template'] = (
        'readers are made up (a rule of ads/generator.py with noise); a model learnt from their pairs prefers'
      )
    shares = []
    for sample, (copies, plain) in zip(samples, written, strict=True):
      if copies and plain:
        texts = [copies[0].copy.text, plain[0].copy.text]
        audience = accept_brief(sample.brief).audience
        ours, theirs = model.scores(audience, texts, load_taxonomy())
        shares.append((np.sign(ours - theirs) + 1) / 2)
    return float(np.mean(shares)) if shares else None

  def _images(self, notes: dict[str, str]) -> dict[str, Any]:
    if not self.pictures:
      notes['images'] = 'no --pictures: no run of emoji_flow was given'
      return dict.fromkeys(_FIGURES)
    path = locate(self.pictures)
    try:
      found = json.loads((path / 'report.json').read_text(encoding='utf-8'))['images']
    except (OSError, ValueError, KeyError):
      raise UserError(f'--pictures={path} is no finished run of {PICTURES}: pass one') from None
    notes['images'] = f'as the run {path.name} measured its generator'
    return {name: found.get(name) for name in _FIGURES}

  def _review(self, notes: dict[str, str]) -> dict[str, float | None]:
    judged = read_briefs(self.judged or str(JUDGED))
    if not self.judged:
      notes['review'] = (
        'the briefs that ship, to which the rules were mended: --judged=FILE for others'
      )
    found = [judge_brief(one.brief) for one in judged]
    blocks = measure_blocks(
      [one.reason for one in judged], [one.reason if one else '' for one in found]
    )
    return {
      'block_recall': blocks['block_recall'],
      'false_block': blocks['false_block'],
      'macro_f1': self._macro_f1(notes),
    }

  def _macro_f1(self, notes: dict[str, str]) -> float:
    if self.texts and self.classifier:
      return _told(load_classifier(self.classifier, 'classifier'), self.texts, self.positive)
    own, own_S = asset_texts()
    order = np.random.default_rng(self.seed).permutation(len(own))
    held, kept = order[: len(own) // 5], order[len(own) // 5 :]
    pick = lambda places: [own[i] for i in places]
    if self.classifier:
      model = load_classifier(self.classifier, 'classifier')
    else:
      model = fit_classifier(pick(kept), own_S[kept], NgramHash(), decay=2e-5, steps=40)
    if self.texts:
      return _told(model, self.texts, self.positive)
    notes['macro_f1'] = (
      'a fifth of prompts of an asset, posts and passages of others: their subjects differ, which flatters'
    )
    return measure_review(own_S[held], model.is_harmful(pick(held)))['macro_f1']


def _in_voice(copies: Iterable[tuple[Brief, Copy]]) -> list[bool]:
  """Of each copy for a style that has a voice of words.json, whether its action is one of that voice's."""
  told = ((voice_of(brief), copy) for brief, copy in copies)
  voices = vocabulary()['voices']
  return [copy.action in voices[voice]['actions'] for voice, copy in told if voice]


def _told(model: Classifier, paths: Sequence[str], positive: Sequence[str]) -> float:
  texts, harmful_S = read_labelled(paths, positive)
  return measure_review(harmful_S, model.is_harmful(texts))['macro_f1']
