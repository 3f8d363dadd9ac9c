"""Pairs of posts, an encoder that learns from them, and posts in other words."""

from pathlib import Path

import numpy as np
import pytest
from small_encoder import WORDS, write_encoder, write_jsonl
from small_models import random_params

from lmjax.core import command_line
from lmjax.core.errors import UserError
from lmjax.data.tokenizer import train
from lmjax.interop.load import Loaded
from lmjax.models.transformer import Decoder
from lmjax.search.pairs import (
  KINDS,
  PairBatches,
  Source,
  as_source,
  cloze,
  crops,
  find_usable,
  hashtags,
  title,
)
from lmjax.search.paraphrase import paraphrase

TEXT = 'one two three four five six seven eight nine ten'
DRAWS = [(a, b, a + 7, b + 3) for a in range(6) for b in range(12)]


def test_crops_are_spans_and_a_cloze_is_all_there_is():
  for drawn in DRAWS:
    first, second = crops(Source(TEXT), drawn)
    assert first in TEXT
    assert second in TEXT
    assert 3 <= len(first.split()) <= 7
    span, rest = cloze(Source(TEXT), drawn)
    assert sorted(f'{span} {rest}'.split()) == sorted(TEXT.split())
    assert span in TEXT
    assert 3 <= len(span.split()) <= 5
  assert crops(Source('too few words'), DRAWS[0]) is None


def test_hashtags_and_titles_find_their_posts():
  drawn = DRAWS[0]
  post = as_source('Look at the #SolarPower here #new_roof https://t.co/x', ' A roof ')
  assert hashtags(post, drawn) == ('Solar Power new roof', 'Look at the here')
  assert title(post._replace(title='A roof'), drawn) == ('A roof', post.text)
  assert hashtags(Source('no tag, a#b neither'), drawn) is None
  assert title(Source('What it says: A ROOF.', 'a roof'), drawn) is None  # it would find itself


def test_posts_that_give_no_pair_are_counted():
  sources = [Source(TEXT), Source('short'), Source('see this #now'), Source('short #now')]
  usable = find_usable(sources, ('crops', 'hashtags'))
  assert usable.counts == {'crops': 1, 'hashtags': 1}
  assert usable.kinds == [('crops',), ('hashtags',)]
  assert usable.left_out == 2
  with pytest.raises(UserError, match='of 4 posts 0 give pairs=title: pass other --posts, or more'):
    find_usable(sources, ('title',))
  assert set(KINDS) == {'crops', 'cloze', 'hashtags', 'title', 'paraphrase'}


def test_a_batch_is_a_function_of_its_number():
  usable = find_usable([Source(f'{TEXT} {n}') for n in range(10)], ('crops',))
  encode = lambda texts: [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]
  make = lambda: PairBatches(usable, encode, batch=4, length=16, seed=1)
  first, again = make().batch(3), make()
  again.batch(0)
  for x, y in zip(vars(first).values(), vars(again.batch(3)).values(), strict=True):
    np.testing.assert_array_equal(x, y)
  seen = np.concatenate([again.batch(step).sources_Q for step in range(5)])
  assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
  part = again.batch(3, [2])
  np.testing.assert_array_equal(part.queries_QL[0], first.queries_QL[2])


def posts(path):
  """The tag of a post says which two words it has."""
  rows = []
  for n, a in enumerate(WORDS):
    for b in WORDS[n + 1 : n + 6]:
      rows.append({'id': f'{a}-{b}', 'text': f'{a} {b} {b} {a} #{a} #{b}'})
  return write_jsonl(path, rows)


def run(workdir, experiment, *flags):
  command = command_line.parse(['lmjax', f'--experiment={experiment}', *flags])
  workdir.mkdir(exist_ok=True)
  (workdir / 'config.json').write_text('{}')
  return command.task.run(workdir)


@pytest.mark.slow
def test_an_encoder_learns_from_posts_and_is_taken_by_eval(tmp_path):
  encoder = write_encoder(tmp_path / 'bert')
  flags = [
    f'--posts={posts(tmp_path / "posts.jsonl")}',
    f'--encoder={encoder}',
    '--pairs=hashtags,crops',
    '--objective.matryoshka=8',
    '--length=16',
    '--judged=20',
    '--batch=16',
    '--optimizer.peak_lr=3e-3',
    '--evaluate_every=20',
  ]
  report = run(tmp_path / 'one', 'search_pretrain', *flags, '--steps=40')
  assert list(report['mrr_by_size']) == ['8', '16']
  for before, after in report['mrr_by_size'].values():
    assert after > before
  differently = ['--mesh.data=2', '--objective.pieces=4']
  split = run(tmp_path / 'two', 'search_pretrain', *flags, '--steps=40', *differently)
  np.testing.assert_allclose(split['loss'], report['loss'], rtol=1e-3)
  documents = write_jsonl(tmp_path / 'd.jsonl', [{'id': w, 'text': f'{w} {w}'} for w in WORDS])
  queries = write_jsonl(
    tmp_path / 'q.jsonl', [{'id': w, 'text': w, 'relevant': [w]} for w in WORDS]
  )
  asked = [f'--documents={documents}', f'--queries={queries}']
  found = run(tmp_path / 'e', 'search_eval', *asked, f'--checkpoint={tmp_path / "one"}')
  assert found['methods']['dense']['mrr_at_10'] > 0.3
  short = [f'--encoder={tmp_path / "one" / "encoder"}', '--dimensions=8']
  assert run(tmp_path / 's', 'search_eval', *asked, *short)['embedder'] != found['embedder']


def test_what_cannot_be_learnt_from_is_refused(tmp_path):
  given = f'--posts={posts(tmp_path / "posts.jsonl")}'
  bert = f'--encoder={write_encoder(tmp_path / "bert")}'
  with pytest.raises(UserError, match='accumulate=2: every pair of a batch is a negative of'):
    run(tmp_path / 'a', 'search_pretrain', given, '--accumulate=2')
  with pytest.raises(
    UserError, match='batch=64 is not a multiple of --objective.pieces=3: pass one of'
  ):
    run(tmp_path / 'a', 'search_pretrain', given, '--objective.pieces=3')
  with pytest.raises(UserError, match='name one kind or more, each once'):
    run(tmp_path / 'a', 'search_pretrain', given, '--pairs=crops,crops')
  with pytest.raises(UserError, match='judged=80 of .* pass --judged='):
    run(tmp_path / 'a', 'search_pretrain', given, bert, '--judged=80')


@pytest.mark.slow
def test_a_model_says_posts_in_other_words_once(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path))
  words = train(['hello there good night'] * 3, 300)
  model = Decoder(vocab=300, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48)
  template = '{{ messages[-1].content }}'
  loaded = Loaded(model, random_params(model), words, Path('tiny'), 0, template, (words.end,), None)
  said = paraphrase(loaded, ['hello there', 'good night'])
  assert len(said) == 2
  (file,) = (tmp_path / 'paraphrases').iterdir()
  np.save(file, np.array(['first', 'second']))
  assert paraphrase(loaded, ['hello there', 'good night']) == ['first', 'second']
  with pytest.raises(UserError, match='tiny has no chat template: pass a model that was taught to'):
    paraphrase(loaded._replace(chat_template=None), ['hello'])
