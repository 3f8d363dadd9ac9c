"""The smaller benchmarks: what they compare, count and write, and that each side of them runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from lmjax.bench import checkpoint, contest, data, growth, guard, time_to_loss
from lmjax.core.errors import UserError
from lmjax.data.prepare import prepare
from lmjax.data.sources import Posts
from lmjax.data.split import Split
from lmjax.data.tokenizer import TokenizerConfig

FIXTURE = str(Path(__file__).parents[1] / 'data/fixture/posts.jsonl')


def test_what_grew_beyond_what_is_allowed_is_named(capsys):
  held = {'step': 2.0, 'read': 1.0}
  assert guard.compare({'step': 2.5, 'read': 1.0}, held, 1.3) == []
  assert guard.compare({'step': 2.7, 'read': 1.0}, held, 1.3) == [
    'step is 1.35 times what it was, 1.3 is allowed'
  ]
  assert 'held' in capsys.readouterr().out
  with pytest.raises(UserError, match='holds no pack: pass --update'):
    guard.compare({'pack': 1.0}, held, 1.3)


def test_slopes_are_exponents_of_the_upper_half():
  xs = [1, 2, 4, 8, 16, 32]
  assert growth.slope(xs, [7, 7, 7, *[3.0 * x**2 for x in xs[3:]]]) == pytest.approx(2.0)


def test_lines_grow_to_what_is_asked():
  found = growth.lines(2048, 8)
  assert [point['length'] for point in found['length'].points] == [256, 512, 1024, 2048]
  assert all(point['length'] * point['rows'] == 2048 for point in found['length'].points)
  assert [point['layers'] for point in found['layers, scanned'].points] == [2, 4, 8]


def test_a_point_compiles_and_takes_its_step():
  point = {**growth._BASE, 'width': 64, 'layers': 1, 'rows': 8, 'length': 32, 'devices': 2}
  figures = growth.point_turn(point)()
  assert figures['step_bytes'] > 8 * figures['parameters'] / 2  # moments, over two devices
  assert figures['step_seconds'] > 0


def test_a_corpus_has_the_size_asked_and_no_duplicates(tmp_path):
  texts = ['one of the posts that there are', 'and another one, which is longer than that']
  path = tmp_path / 'posts.jsonl'
  posts = data.write_corpus(texts, 20_000, path)
  lines = [json.loads(line)['text'] for line in path.read_text(encoding='utf-8').splitlines()]
  assert len(lines) == len(set(lines)) == posts
  assert 20_000 <= sum(map(len, lines)) < 20_100
  turn = data.prepare_turn({'posts': str(path), 'scratch': str(tmp_path)})
  assert turn()['tokens_per_second'] > 0


def test_peers_get_every_post_between_its_start_and_end(tmp_path):
  shards = prepare(Posts(posts=FIXTURE), Split(), TokenizerConfig(vocab=300))
  time_to_loss.export(shards, tmp_path / 'posts.npz')
  found = np.load(tmp_path / 'posts.npz')
  held_out = list(shards.stream('held_out'))
  assert found['held_out_lengths'].tolist() == [len(post) + 2 for post in held_out]
  first = found['held_out'][: len(held_out[0]) + 2]
  assert first.tolist() == [shards.tokenizer.start, *held_out[0], shards.tokenizer.end]
  assert found['held_out_bytes'] == sum(len(text.encode()) for text in shards.texts('held_out'))
  ends = np.count_nonzero(found['train'] == shards.tokenizer.end)
  assert ends == shards.posts('train')


def test_a_save_and_a_restore_are_timed(tmp_path):
  shape = {'width': 64, 'layers': 1, 'heads': 1, 'mlp': 64, 'vocab': 64, 'length': 32, 'rows': 1}
  turn = checkpoint.turn_of({**shape, 'dtype': 'float32', 'folder': str(tmp_path)})
  figures = turn()
  stored = sum(path.stat().st_size for path in (tmp_path / '1').rglob('*') if path.is_file())
  assert figures['gigabytes'] == stored / 1e9
  assert figures['save_seconds'] >= figures['stall_seconds'] > 0


def test_a_watch_counts_what_ran_inside_as_its_own():
  with contest.Watch() as watch:
    sum(range(2_000_000))
  assert watch.seconds > 0
  assert watch.others >= 0
