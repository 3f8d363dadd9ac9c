"""An index on disk: what is added is found, what is deleted is nowhere, and others search meanwhile."""

import resource
import shutil

import numpy as np
import pytest
from small_encoder import write_encoder
from small_posts import DAY, START, make_posts

from lmjax.core.errors import UserError
from lmjax.interop.encoder import load_encoder
from lmjax.search.embed import Embedder
from lmjax.search.index import Counts, Index
from lmjax.search.query import parse
from lmjax.search.searcher import Searcher
from lmjax.search.sets import Document

POSTS = make_posts(60)


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
  return str(write_encoder(tmp_path_factory.mktemp('encoder') / 'bert'))


@pytest.fixture(scope='module')
def embedder(encoder):
  return Embedder(load_encoder(encoder))


@pytest.fixture
def build(tmp_path, embedder, encoder):
  """Opens the index of a test for writing; with posts, they are in it."""

  def opened(posts=(), **more):
    index = Index(tmp_path / 'index', embedder, encoder, **more)
    if posts:
      index.add(posts)
      index.settle()
    return index

  return opened


@pytest.fixture(scope='module')
def searcher(tmp_path_factory, embedder, encoder):
  """Of an index of POSTS that nobody changes."""
  folder = tmp_path_factory.mktemp('shared') / 'index'
  with Index(folder, embedder, encoder) as index:
    index.add(POSTS)
    index.settle()
  found = Searcher(folder)
  yield found
  found.close()


def ids(searcher, asked, count=100):
  hits, _ = searcher.hits(parse(asked), count)
  return {id for hit in hits for id in (hit.document.id, *hit.copies)}


@pytest.mark.parametrize(
  ('asked', 'passes'),
  [
    ('from:ada', lambda n, post: post.author == 'Ada'),
    ('-from:ada -from:bob', lambda n, post: post.author == 'Eve'),
    ('from:ada from:eve lang:en', lambda n, post: post.author == 'Ada'),
    ('lang:de', lambda n, post: post.language == 'de'),
    ('has:link', lambda n, post: n % 4 == 0),
    ('-has:link #pets', lambda n, post: n % 4 and n % 3 == 0),
    ('-#pets', lambda n, post: n % 3),
    ('since:2024-01-05 until:2024-02', lambda n, post: n % 10 and 4 <= n < 31),
    ('since:2024-02', lambda n, post: n % 10 and n >= 31),
    ('until:2024-01-05', lambda n, post: n % 10 and n < 4),
    ('"mark7"', lambda n, post: n == 7),
    ('-cats -mark5 has:link', lambda n, post: n % 4 == 0 and 'cats' not in post.text),
    ('from:nobody', lambda n, post: False),
  ],
)
def test_filters_give_what_is_known_to_pass_and_words_with_them_no_other(searcher, asked, passes):
  wanted = {post.id for n, post in enumerate(POSTS) if passes(n, post)}
  assert ids(searcher, asked) == wanted
  assert ids(searcher, f'sleep {asked}') == wanted  # fewer than candidates: all by meaning


def test_a_phrase_is_words_in_their_order(searcher):
  words = POSTS[9].text.split()
  assert 'p9' in ids(searcher, f'"{words[1]} {words[2]}"')
  assert 'p9' not in ids(searcher, f'"{words[2]} {words[1]}"')


def test_the_latest_come_first_where_nothing_is_looked_for(searcher):
  hits, _ = searcher.hits(parse('-#nothing'), 100)
  times = [hit.document.time for hit in hits]
  timed = [time for time in times if time is not None]
  assert timed == sorted(timed, reverse=True)
  assert times[len(timed) :] == [None] * 6


def test_pages_hold_each_hit_once_in_one_order(searcher):
  whole, end = searcher.hits(parse('cats at night'), 100)
  paged, after = [], None
  for _ in range(100):
    page, after = searcher.hits(parse('cats at night'), 7, after)
    paged += page
    if after is None:
      break
  assert end is None
  assert [hit.document.id for hit in paged] == [hit.document.id for hit in whole]
  assert len({hit.document.id for hit in whole}) == len(whole) > 14


def test_a_hit_says_why_and_shows_where(searcher):
  hit = searcher.hits(parse('mark11 zebras'), 1)[0][0]
  assert hit.document.id == 'p11'
  assert [hit.snippet[a:b] for a, b in hit.highlights] == ['mark11']
  assert hit.why.startswith('has mark11')
  assert sum(hit.reasons.values()) == pytest.approx(hit.score, rel=1e-5)
  assert set(hit.reasons) == {'words', 'words_rank', 'meaning', 'meaning_rank'}


def test_priors_are_visible_and_raise_what_is_recent_or_liked(searcher):
  other = Searcher(searcher.folder, priors={'engagement': 1000.0})
  hits, _ = other.hits(parse('cats'), 100)
  likes = [hit.document.likes or 0.0 for hit in hits]
  assert likes == sorted(likes, reverse=True)
  assert hits[0].reasons['engagement'] == pytest.approx(1000.0)
  assert 'likes' in hits[0].why
  other.close()


def test_copies_are_shown_once(build):
  text = 'big cats sleep all day'
  posts = [Document(f'c{n}', f'{text} https://example.org/{n}') for n in range(3)]
  posts = [post._replace(text=text) for post in posts] + POSTS[:5]
  with build(posts) as index:
    searcher = Searcher(index.folder)
    hits, _ = searcher.hits(parse('cats sleep all day'), 100)
    found = [hit for hit in hits if hit.document.text == text]
    assert len(found) == 1
    assert {found[0].document.id, *found[0].copies} == {'c0', 'c1', 'c2'}
    searcher.close()


def test_counts_add_up_and_what_is_there_is_not_embedded_again(build, embedder, monkeypatch):
  with build() as index:
    assert index.add(POSTS[:20] + POSTS[:1]) == Counts(21, added=20, repeated=1)
    embedded = []
    embed = embedder.embed
    monkeypatch.setattr(embedder, 'embed', lambda texts: embedded.extend(texts) or embed(texts))
    changed = [POSTS[0]._replace(text='red fish'), POSTS[1]._replace(likes=5.0)]
    found = index.add([*changed, *POSTS[2:22]])
    assert found == Counts(22, added=4, changed=2, kept=18)
    assert sorted(embedded) == sorted(['red fish', POSTS[20].whole, POSTS[21].whole])
    assert index.store.count == 22
    assert index.store.known(['p1'])['p1'][1].likes == 5.0


def test_others_search_what_was_changed_since(build):
  with build(POSTS[:40]) as index:
    searcher = Searcher(index.folder)
    assert 'p45' not in ids(searcher, 'mark45')
    index.add(POSTS[40:50])
    index.delete(['p3', 'unknown'])
    assert 'p45' in ids(searcher, '"mark45"')
    assert ids(searcher, '"mark3"') == set()
    vector = searcher.embed([POSTS[3].text])[0]
    near = searcher.nearest(vector, 100)
    assert len(near) == 49 == searcher.count
    index.compact()  # another generation under the reader
    assert 'p45' in ids(searcher, '"mark45"')
    assert len(searcher.nearest(vector, 100)) == 49
    searcher.close()


def test_a_deleted_post_is_in_no_file_and_never_comes_again(build):
  with build(POSTS[:30]) as index:
    assert index.delete(['p17', 'later'], forever=True) == 1
    found = index.add([*POSTS[:30], Document('later', 'mark99 cats')])
    assert (found.banned, found.added) == (2, 0)
    folder = index.folder
  files = [path for path in folder.rglob('*') if path.is_file()]
  everything = b''.join(path.read_bytes() for path in files)
  assert b'mark16' in everything
  assert b'mark17' not in everything
  assert b'mark99' not in everything
  with build() as index:
    vector = index.store.vectors(index.store.numbers(), index.store.tables()[0])[1]
    assert len(vector) == index.store.count == 29


def test_all_is_embedded_again_while_others_search(build, tmp_path, encoder, monkeypatch):
  second = str(write_encoder(tmp_path / 'second', seed=1))
  with build(POSTS[:30]) as index:
    folder = index.folder
  searcher = Searcher(folder)
  other = Embedder(load_encoder(second))
  with pytest.raises(UserError, match='built with another encoder .* or --reembed to make all'):
    Index(folder, other, second)
  meanwhile = []
  embed = other.embed
  look = lambda texts: meanwhile.append(ids(searcher, '"mark5"')) or embed(texts)
  monkeypatch.setattr(other, 'embed', look)
  with Index(folder, other, second, reembed=True) as index:
    assert index.store.said('encoder') == second
    assert len(index.store.tables()) == 1
  assert meanwhile == [{'p5'}]
  assert 'p5' in ids(searcher, 'mark5')
  np.testing.assert_allclose(searcher.embed(['cats']), embed(['cats']), atol=1e-6)
  searcher.close()


@pytest.mark.parametrize('lost', ['vectors.faiss', '.'])
def test_what_was_lost_is_made_anew_of_the_posts(build, lost):
  with build(POSTS[:10]) as index:
    path = index.generation / lost
    folder = index.folder
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  with pytest.raises(
    UserError, match='cannot be (read|opened) .* and start search_posts with this'
  ):
    Searcher(folder)
  with build() as index:
    index.settle()
  searcher = Searcher(folder)
  assert ids(searcher, '"mark5"') == {'p5'}
  assert len(searcher.nearest(np.ones(16, np.float32), 100)) == 10
  searcher.close()


def test_one_process_writes(build):
  with build(), pytest.raises(UserError, match='in use by another process.*pass another --index'):
    build()


def test_a_folder_without_an_index_is_refused(tmp_path, build):
  with pytest.raises(UserError, match='holds no index: build one with --experiment=search_posts'):
    Searcher(tmp_path / 'none')
  with (
    build() as index,
    pytest.raises(UserError, match='is not ready: start search_posts with this'),
  ):
    Searcher(index.folder)
  (tmp_path / 'posts.sqlite').write_bytes(b'no database at all' * 100)
  with pytest.raises(UserError, match='holds no index that can be read'):
    Searcher(tmp_path)


def test_an_encoder_that_was_replaced_is_refused(tmp_path, embedder):
  path = write_encoder(tmp_path / 'mine')
  with Index(tmp_path / 'index', Embedder(load_encoder(str(path))), str(path)) as index:
    index.add(POSTS[:5])
    index.settle()
  other = write_encoder(tmp_path / 'other', seed=2)
  (other / 'model.safetensors').replace(path / 'model.safetensors')
  with pytest.raises(
    UserError, match='was built with another encoder than .* is now: put that back'
  ):
    Searcher(tmp_path / 'index')


def test_a_full_disk_loses_nothing_of_before(build):
  with build(POSTS[:10]) as index:
    size = index.store.path.with_name('posts.sqlite-wal').stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4096, old[1]))
    try:
      with pytest.raises(UserError, match='what was indexed before is kept; make room'):
        index.add(POSTS)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert index.store.count == 10
    assert index.add(POSTS).added == 50
    assert len(Searcher(index.folder).nearest(np.ones(16, np.float32), 100)) == 60


def test_days_are_utc():
  assert parse('since:2024-01-02').filters.since == START + DAY
