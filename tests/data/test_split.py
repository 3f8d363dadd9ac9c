"""The order and the parts depend on the set of posts alone, and near-identical posts stay together."""

import itertools
import random
from collections import Counter
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from lmjax.core.errors import UserError
from lmjax.data import split as split_module
from lmjax.data.sources import Post, Posts, Rows
from lmjax.data.split import PARTS, Corpus, Split, collect, normalise, strip_urls

FIXTURE = Path(__file__).parent / 'fixture/posts.jsonl'


def fixture_posts() -> list[Post]:
  return list(Posts(posts=str(FIXTURE)).read(Rows()))


def collected(posts: list[Post], folder: Path, **settings) -> Corpus:
  rows = Rows()
  return collect(rows.count(posts), Split(**settings), rows, folder)


def parts(corpus: Corpus) -> dict[str, list[str]]:
  return {part: list(corpus.texts(part)) for part in PARTS}


def test_counts_add_up_and_texts_can_be_read_again(tmp_path):
  rows = Rows()
  posts = Posts(posts=str(FIXTURE)).read(rows)
  corpus = collect(posts, Split(held_out=0.2), rows, tmp_path)
  assert corpus.counts['in'] == rows.total == 399
  assert corpus.counts['dropped'] == {'duplicate': 18, 'empty': 3}
  assert corpus.counts['used'] + corpus.counts['held_out'] == 378
  texts = parts(corpus)
  assert parts(corpus) == texts
  assert len(texts['train']) == corpus.counts['used']
  assert len(texts['held_out']) == corpus.counts['held_out']
  assert {*texts['train'], *texts['held_out']} == {post.text for post in fixture_posts()}
  for part in PARTS:
    assert corpus.bytes(part) == sum(len(text.encode()) for text in texts[part])
  assert sorted(path.name for path in tmp_path.iterdir()) == ['held_out.jsonl', 'train.jsonl']


@pytest.mark.parametrize('by', ['text', 'time'])
def test_order_of_rows_and_files_is_irrelevant(tmp_path, by):
  lines = FIXTURE.read_bytes().splitlines(keepends=True)
  random.Random(0).shuffle(lines)
  (tmp_path / 'b.jsonl').write_bytes(b''.join(lines[:150]))
  (tmp_path / 'a.jsonl').write_bytes(b''.join(lines[150:]))
  corpora = []
  for posts in (str(FIXTURE), f'{tmp_path}/*.jsonl'):
    rows = Rows()
    folder = tmp_path / str(len(corpora))
    corpora.append(collect(Posts(posts=posts).read(rows), Split(by=by), rows, folder))
  assert parts(corpora[0]) == parts(corpora[1])
  assert corpora[0].counts == corpora[1].counts


@pytest.mark.parametrize('by', ['text', 'time'])
def test_small_buckets_give_the_same_corpus(tmp_path, monkeypatch, by):
  posts = fixture_posts()
  expected = collected(posts, tmp_path / 'a', by=by)
  monkeypatch.setattr(split_module, '_BUCKET_BYTES', 200)
  monkeypatch.setattr(split_module, '_BUFFER_BYTES', 1000)
  monkeypatch.setattr(split_module, '_CHUNK', 10)
  actual = collected(posts, tmp_path / 'b', by=by)
  assert parts(actual) == parts(expected)
  assert actual.counts == expected.counts


def test_one_text_repeated_beyond_a_bucket(tmp_path, monkeypatch):
  monkeypatch.setattr(split_module, '_BUCKET_BYTES', 200)
  posts = [Post('the same text'), Post('a')] * 50 + fixture_posts()
  corpus = collected(posts, tmp_path)
  assert corpus.counts['dropped'] == {'duplicate': 98 + 18}


@pytest.mark.parametrize('salt', ['', 'a', 'b'])
def test_near_identical_posts_never_straddle(tmp_path, salt):
  posts = fixture_posts()
  again = [Post(f'{post.text.swapcase()}  https://t.co/{n}') for n, post in enumerate(posts)]
  texts = parts(collected(posts + again, tmp_path, held_out=0.3, salt=salt))
  sides = {part: {normalise(text) for text in texts[part]} for part in PARTS}
  assert not sides['train'] & sides['held_out']
  assert len(texts['held_out']) > 50


def test_salt_holds_out_other_posts_and_keeps_the_order(tmp_path):
  posts = fixture_posts()
  plain = parts(collected(posts, tmp_path / 'a', held_out=0.5))
  salted = parts(collected(posts, tmp_path / 'b', held_out=0.5, salt='development'))
  assert set(plain['held_out']) != set(salted['held_out'])
  both = set(plain['train']) & set(salted['train'])
  assert [text for text in plain['train'] if text in both] == [
    text for text in salted['train'] if text in both
  ]


def test_near_identical_posts_are_no_neighbours(tmp_path):
  posts = [Post(f'{word} https://t.co/{n}') for word in ('a', 'b') for n in range(500)]
  texts = list(collected([*posts, *fixture_posts()], tmp_path).texts('train'))
  assert 0.2 < sum(x[0] == y[0] for x, y in itertools.pairwise(texts)) / len(texts) < 0.6


def test_fraction_held_out_is_the_one_asked_for(tmp_path):
  posts = [Post(f'post {n}') for n in range(4000)]
  assert 0.08 < collected(posts, tmp_path, held_out=0.1).counts['held_out'] / 4000 < 0.12


def test_latest_posts_are_held_out_by_time(tmp_path):
  posts = [Post(f'post {n}', time=float(n)) for n in range(100)] + [Post('no time')]
  random.Random(0).shuffle(posts)
  texts = parts(collected(posts, tmp_path, by='time', held_out=0.1))
  assert sorted(texts['held_out']) == [f'post {n}' for n in range(90, 100)]
  assert len(texts['train']) == 91


def test_post_held_out_by_time_is_dropped_if_seen_in_training(tmp_path):
  posts = [Post(f'post {n}', time=float(n)) for n in range(18)]
  posts += [Post('POST 1 http://t.co/x', time=50.0, id='late'), Post('fresh', time=51.0)]
  rows = Rows()
  corpus = collect(rows.count(posts), Split(by='time', held_out=0.1), rows, tmp_path)
  assert list(corpus.texts('held_out')) == ['fresh']
  assert corpus.counts['dropped'] == {'seen_in_training': 1}
  assert rows.examples['seen_in_training'] == ['late']


def test_earliest_of_equal_texts_counts(tmp_path):
  posts = [Post(f'post {n}', time=float(n)) for n in range(20)]
  posts += [Post('post 1', time=99.0), Post('post 2')]
  texts = parts(collected(posts, tmp_path, by='time'))
  assert texts['held_out'] == ['post 19']


def test_time_split_without_times_refused(tmp_path):
  with pytest.raises(UserError, match='no post has a time to split by: pass --time_field=NAME, or'):
    collected([Post('a'), Post('b')], tmp_path, by='time')


def test_nothing_held_out_refused(tmp_path):
  with pytest.raises(
    UserError, match=r'none of 1 distinct posts is held out .* a larger --split.held_out'
  ):
    collected([Post('a')], tmp_path, held_out=0.0001)


def test_everything_held_out_refused(tmp_path):
  with pytest.raises(
    UserError, match=r'all 1 distinct posts are held out .* a smaller --split.held_out'
  ):
    collected([Post('a', time=1.0)], tmp_path, by='time')


def test_no_posts_refused(tmp_path):
  rows = Rows()
  posts = [Post('a')]
  for _ in rows.count(posts):
    rows.drop('empty', 'file:1')
  with pytest.raises(UserError, match='no post to use in 1 rows: 1 empty: check --posts'):
    collect([], Split(), rows, tmp_path)


def test_uncounted_posts_are_a_bug(tmp_path):
  with pytest.raises(RuntimeError, match=r'counted with Rows\.count'):
    collect(fixture_posts(), Split(), Rows(), tmp_path)


def test_leftovers_of_a_killed_run_do_no_harm(tmp_path):
  (tmp_path / 'scratch/buckets').mkdir(parents=True)
  (tmp_path / 'scratch/buckets/a').write_text('half a reco')
  assert collected(fixture_posts(), tmp_path).counts['in'] == 396


@pytest.mark.parametrize('fraction', [0, 0.51, -0.1])
def test_fraction_out_of_range_refused(fraction):
  with pytest.raises(UserError, match=r'expected a number above 0 and at most 0.5'):
    Split(held_out=fraction)


@pytest.mark.parametrize(
  ('text', 'without'),
  [
    ('see https://a.b/c?d=e now', 'see now'),
    ('HTTP://A.B first', 'first'),
    ('two http://a https://b', 'two'),
    ('line\nhttp://a', 'line'),
    ('no url: http:/x', 'no url: http:/x'),
  ],
)
def test_urls_are_stripped(text, without):
  assert strip_urls(text) == without


@pytest.mark.parametrize(
  'same',
  [
    'Straße CAFÉ',
    'strasse  cafe\u0301',
    'ＳＴＲＡＳＳＥ café https://t.co/1',
    'HTTP://X strasse\ncafé',
  ],
)
def test_near_identical_texts_are_equal_once_normalised(same):
  assert normalise(same) == 'strasse café'


@hypothesis.settings(deadline=None)
@hypothesis.given(st.text())
def test_normalised_text_stays_as_it_is(text):
  once = normalise(text)
  assert normalise(once) == once
  assert normalise(f' {text}\n') == once


@hypothesis.settings(deadline=None)
@hypothesis.given(st.text(alphabet=st.characters(codec='ascii')))
def test_fast_path_for_ascii_is_the_same(text):
  assert normalise(text) == normalise(text + ' é')[:-1].rstrip()


@hypothesis.settings(
  deadline=None,
  max_examples=25,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(st.lists(st.text(min_size=1, max_size=5), min_size=8, max_size=20), st.randoms())
def test_any_texts_come_back_once_each_in_one_order(tmp_path, texts, shuffler):
  posts = [
    Post(text, time=float(n))
    for n, text in enumerate(dict.fromkeys(['early one', *texts, 'late two']))
  ]
  first = collected(posts, tmp_path, by='time', held_out=0.2)
  before = parts(first)
  shuffler.shuffle(posts)
  again = parts(collected(posts + posts[:3], tmp_path, by='time', held_out=0.2))
  assert again == before
  assert max(Counter(before['train'] + before['held_out']).values()) == 1


def test_default_posts_are_the_published_ones(tmp_path):
  rows = Rows()
  try:
    posts = Posts().read(rows)
  except UserError as error:
    if 'does not answer' in str(error):
      pytest.skip(str(error))
    raise
  corpus = collect(posts, Split(), rows, tmp_path)
  assert corpus.counts['in'] == 63_326
  assert corpus.counts['dropped'] == {'duplicate': 1_111}
  assert corpus.counts['used'] + corpus.counts['held_out'] == 62_215
