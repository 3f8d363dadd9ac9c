"""Posts become shards once, whatever the order of the rows and whoever is killed on the way."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from generated import make_posts, prepare_posts, write_posts

from lmjax.core.errors import UserError
from lmjax.data.prepare import prepare, prepare_all
from lmjax.data.sources import Posts
from lmjax.data.split import Split
from lmjax.data.tokenizer import TokenizerConfig

POSTS = make_posts(300, seed=1)
FIXTURE = Path(__file__).parent / 'fixture' / 'posts.jsonl'


def test_the_manifest_accounts_for_every_row(cache, tmp_path):
  shards = prepare_posts(write_posts(tmp_path / 'a.jsonl', [*POSTS, *POSTS[:7], '', '  ']))
  rows = shards.manifest['rows']
  assert rows['in'] == 309
  assert rows['dropped'] == {'duplicate': 7, 'empty': 2}
  assert rows['used'] + rows['held_out'] == 300
  assert (shards.posts('train'), shards.posts('held_out')) == (rows['used'], rows['held_out'])
  assert any('7 of 309 rows dropped as duplicate' in note for note in shards.notes)


def test_the_manifest_counts_what_is_in_the_shards(cache, tmp_path):
  shards = prepare_posts(write_posts(tmp_path / 'a.jsonl', POSTS))
  read = {part: list(shards.texts(part)) for part in ('train', 'held_out')}
  assert sorted(read['train'] + read['held_out']) == sorted(POSTS)
  for part, texts in read.items():
    entry = shards.manifest['parts'][part]
    assert entry['posts'] == len(texts) == sum(shard['posts'] for shard in entry['shards'])
    assert entry['bytes'] == sum(len(text.encode()) for text in texts)
    assert entry['tokens'] == shards.lengths(part).sum()


def test_posts_in_ten_scripts_come_back_exactly(cache):
  written = {json.loads(line).get('text') for line in FIXTURE.read_text('utf-8').splitlines()}
  shards = prepare_posts(FIXTURE)
  read = [*shards.texts('train'), *shards.texts('held_out')]
  assert len(read) > 300
  assert set(read) <= written


def test_the_order_of_rows_and_files_is_irrelevant(cache, tmp_path):
  mixed = random.Random(0).sample(POSTS, len(POSTS))
  for name, texts in (('one', [POSTS]), ('two', [mixed[200:], mixed[:200]])):
    (tmp_path / name).mkdir()
    for number, some in enumerate(texts):
      write_posts(tmp_path / name / f'{number}.jsonl', some)
  one, two = (prepare_posts(tmp_path / name / '*.jsonl') for name in ('one', 'two'))
  assert one.folder != two.folder
  assert one.manifest['parts'] == two.manifest['parts']
  assert one.manifest['tokenizer_sha256'] == two.manifest['tokenizer_sha256']


def test_moved_posts_are_not_prepared_again(cache, tmp_path):
  first = prepare_posts(write_posts(tmp_path / 'a.jsonl', POSTS))
  written = (first.folder / 'manifest.json').stat().st_mtime_ns
  again = prepare_posts((tmp_path / 'a.jsonl').rename(tmp_path / 'b.jsonl'))
  assert again.sha256 == first.sha256
  assert (again.folder / 'manifest.json').stat().st_mtime_ns == written


@pytest.mark.parametrize('change', [{'vocab': 300}, {'tokenizer': 'saved.json'}])
def test_another_tokenizer_is_another_corpus(cache, tmp_path, monkeypatch, change):
  monkeypatch.chdir(tmp_path)
  path = write_posts(tmp_path / 'a.jsonl', POSTS)
  first = prepare_posts(path)
  first.tokenizer.save('saved.json')
  second = prepare_posts(path, **change)
  assert second.folder != first.folder
  assert list(second.texts('train')) == list(first.texts('train'))


def test_several_sources_share_a_tokenizer_that_saw_them_all(cache, tmp_path):
  latin, greek = ['the ferry is late'] * 200, ['το πλοίο αργεί'] * 200
  paths = [
    write_posts(tmp_path / name, [f'{text} {number}' for number, text in enumerate(texts)])
    for name, texts in (('latin.jsonl', latin), ('greek.jsonl', greek))
  ]
  both = prepare_all(
    [Posts(posts=str(path)) for path in paths], Split(), TokenizerConfig(vocab=320)
  )
  alone = prepare_posts(paths[0])
  assert both[0].manifest['tokenizer_sha256'] == both[1].manifest['tokenizer_sha256']
  assert both[0].manifest['tokenizer_sha256'] != alone.manifest['tokenizer_sha256']
  for text in (latin[0], greek[0]):
    assert len(both[0].tokenizer.encode(text)) < len(text.encode()) / 2
  shutil.rmtree(both[1].folder)  # only what is missing is built again, under the same tokenizer
  rebuilt = prepare_all(
    [Posts(posts=str(path)) for path in paths], Split(), TokenizerConfig(vocab=320)
  )
  assert [shards.sha256 for shards in rebuilt] == [shards.sha256 for shards in both]


def test_of_several_at_once_one_builds_and_all_get_it(cache, tmp_path):
  posts = Posts(posts=str(write_posts(tmp_path / 'a.jsonl', POSTS)))
  stages = []

  def one(_):
    config = TokenizerConfig(vocab=320)
    return prepare(posts, Split(), config, progress=lambda what, *_: stages.append(what)).sha256

  with ThreadPoolExecutor(4) as pool:
    assert len(set(pool.map(one, range(4)))) == 1
  assert stages.count('training the tokenizer') == 1


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[3])
from lmjax.data.prepare import *
def progress(what, done, total):
  if what == sys.argv[2]:
    os.kill(os.getpid(), signal.SIGKILL)
prepare(Posts(posts=sys.argv[1]), Split(), TokenizerConfig(vocab=320), progress=progress)
"""


def test_a_killed_process_leaves_nothing_that_is_taken_for_a_corpus(cache, tmp_path):
  path = write_posts(tmp_path / 'a.jsonl', POSTS)
  command = [sys.executable, '-c', KILLED, str(path), 'tokenising posts', str(Path.cwd())]
  killed = subprocess.run(command, env=os.environ, capture_output=True, text=True)
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  assert [entry.suffix for entry in cache.iterdir() if entry.is_dir()] == ['.draft']
  shards = prepare_posts(path)
  assert sorted([*shards.texts('train'), *shards.texts('held_out')]) == sorted(POSTS)
  assert [entry for entry in cache.iterdir() if entry.is_dir()] == [shards.folder]


def _shorten(path: Path) -> None:
  path.write_bytes(path.read_bytes()[:-9])


def _garble(path: Path) -> None:
  path.write_bytes(path.read_bytes().replace(b'"', b'?', 1))


@pytest.mark.parametrize(
  ('name', 'damage'),
  [
    ('manifest.json', Path.unlink),
    ('manifest.json', _shorten),
    ('manifest.json', _garble),
    ('notes.json', Path.unlink),
    ('tokenizer.json', _garble),
    ('train.lengths.npy', _shorten),
    ('held_out-00000.array_record', _shorten),
    ('train-00000.array_record', Path.unlink),
  ],
)
def test_a_damaged_corpus_is_not_used(cache, tmp_path, caplog, name, damage):
  path = write_posts(tmp_path / 'a.jsonl', POSTS[:60])
  first = prepare_posts(path)
  damage(first.folder / name)
  again = prepare_posts(path)
  assert 'is damaged and is prepared again' in caplog.text
  assert again.sha256 == first.sha256
  assert sorted([*again.texts('train'), *again.texts('held_out')]) == sorted(POSTS[:60])


def test_a_failure_leaves_no_draft(cache, tmp_path):
  with pytest.raises(UserError):
    prepare_posts(write_posts(tmp_path / 'a.jsonl', ['', ' ']))
  assert not [entry for entry in cache.iterdir() if entry.is_dir()]


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path / 'file'))
  with pytest.raises(UserError, match='set LMJAX_CACHE to a folder that you can write'):
    prepare_posts(write_posts(tmp_path / 'a.jsonl', POSTS))


def test_a_prepared_corpus_is_a_source_and_gives_its_tokenizer_to_others(cache, tmp_path):
  ready = prepare_posts(write_posts(tmp_path / 'a.jsonl', make_posts(300, 1)))
  corpus = Posts(posts=str(ready.folder / 'manifest.json'))
  other = Posts(posts=str(write_posts(tmp_path / 'b.jsonl', make_posts(200, 2))))
  first, second = prepare_all([corpus, other], Split(), TokenizerConfig(vocab=400))
  assert (first.folder, first.sha256) == (ready.folder, ready.sha256)
  assert second.tokenizer.sha256 == ready.tokenizer.sha256
  assert second.posts('train') > 0


def test_prepared_corpora_of_different_tokenizers_are_refused(cache, tmp_path):
  path = write_posts(tmp_path / 'a.jsonl', make_posts(300, 1))
  folders = [prepare_posts(path, vocab=vocab).folder for vocab in (320, 340)]
  corpora = [Posts(posts=str(folder / 'manifest.json')) for folder in folders]
  with pytest.raises(
    UserError, match='have different tokenizers: prepare the posts again with one'
  ):
    prepare_all(corpora, Split(), TokenizerConfig())
