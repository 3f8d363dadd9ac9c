"""ads_eval: what its judges say of texts whose answer is known, and a report that says why a figure is none."""

import json

import numpy as np
import pytest
from small_encoder import write_encoder

from lmjax.ads.brief import parse_brief
from lmjax.ads.creative import Copy
from lmjax.ads.review import Classifier
from lmjax.bench.ads_eval import AdsEval, _in_voice
from lmjax.bench.ads_judges import AudienceJudge, self_bleu
from lmjax.core.errors import UserError
from lmjax.interop.encoder import load_encoder
from lmjax.models.classifier import NgramHash
from lmjax.search.embed import Embedder


def write_rows(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def test_a_text_is_told_by_the_texts_it_is_like(tmp_path):
  embedder = Embedder(load_encoder(str(write_encoder(tmp_path / 'bert'))))
  rows = [('cats sleep at night', 'cats'), ('green sea', 'sea'), ('big dogs run', 'dogs')]
  judge = AudienceJudge(embedder, rows)
  assert judge.names == ['cats', 'dogs', 'sea']
  assert judge.labels_of([text for text, _ in rows]) == [label for _, label in rows]
  assert judge.labels_of([]) == []
  with pytest.raises(UserError, match='give two or more'):
    AudienceJudge(embedder, rows[:1])


def test_self_bleu_is_of_repetition():
  pytest.importorskip('sacrebleu')
  same, other = 'baked every morning in one oven', 'a loaf of oats that keeps until Sunday'
  assert self_bleu([same, same]) == pytest.approx(1.0)
  assert self_bleu([same, other]) < 0.1


def test_a_copy_is_in_the_voice_of_its_style_by_its_action():
  brief = lambda style: parse_brief({'product': 'Lamp', 'audience': {'style': style}})
  say = lambda action: Copy('Lamp', 'Make it yours.', action)
  copies = [
    (brief('fun'), say('Go on, look!')),
    (brief('fun'), say('Take it')),
    (brief(''), say('Look')),
  ]
  assert _in_voice(copies) == [True, False]


def test_a_report_without_models_has_the_review_alone(tmp_path):
  rows = [{'text': text, 'label': text[:3]} for text in ('bad one', 'fine one')]
  texts = write_rows(tmp_path / 'texts.jsonl', rows)
  F = NgramHash().buckets
  Classifier(NgramHash(), np.ones(F), np.zeros(F), 1.0, 0.0).save(tmp_path)  # all is harmful
  given = {'texts': (texts,), 'positive': ('bad',), 'classifier': str(tmp_path)}
  report = AdsEval(checkpoint='', pictures='', **given).run(tmp_path)
  assert set(report) == {'text', 'images', 'review', 'notes'}
  assert set(report['text']) == {
    *('slot_error', 'audience_accuracy', 'chance', 'self_bleu', 'preferred_over_template'),
    'in_voice',
  }
  assert set(report['images']) == {
    *('nearest_seen', 'nearest_unseen_tone', 'tone_unseen', 'category_held_out', 'judge_real'),
    'seconds_per_image',
  }
  assert {*report['text'].values(), *report['images'].values()} == {None}
  assert {'text', 'images'} <= set(report['notes'])
  assert report['review']['macro_f1'] == pytest.approx(1 / 3)
  assert report['review']['block_recall'] >= 0.9
  with pytest.raises(UserError, match='no finished run of emoji_flow'):
    AdsEval(checkpoint='', pictures=str(tmp_path)).run(tmp_path)
  path = write_rows(tmp_path / 'briefs.jsonl', [{'brief': {}}])
  with pytest.raises(UserError, match='line 1 is not of the form'):
    AdsEval(briefs=path)._samples()
