"""Every prediction of every post stands in exactly one row, and padding is nothing."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.core.errors import UserError
from lmjax.data import packing
from lmjax.data.packing import Packing, Pieces, fill, plan

START, END = 1000, 1001
METHODS = ('best_fit', 'split')

post_lengths = st.lists(st.integers(0, 40), min_size=1, max_size=60)
row_lengths = st.integers(1, 24)
methods = st.sampled_from(METHODS)


def _posts(lengths: list[int]) -> list[np.ndarray]:
  """Posts whose tokens say where they are from: post * 100 + place."""
  return [np.arange(size, dtype=np.uint16) + 100 * post for post, size in enumerate(lengths)]


def _rows(lengths: list[int], length: int, method: packing.Method):
  pieces = plan(np.array(lengths), length, method)
  posts = _posts(lengths)
  rows = int(pieces.row[-1]) + 1
  return fill(pieces, [posts[post] for post in pieces.post], rows, length, start=START, end=END)


@given(post_lengths, row_lengths, methods)
def test_pieces_make_each_prediction_once_and_rows_hold_them(lengths, length, method):
  pieces = plan(np.array(lengths), length, method)
  made = [
    (post, start + offset)
    for _, post, start, size in zip(*map(np.ndarray.tolist, pieces), strict=True)
    for offset in range(size)
  ]
  assert sorted(made) == [(post, at) for post, size in enumerate(lengths) for at in range(size + 1)]
  used = np.bincount(pieces.row, pieces.size)
  assert used.max() <= length
  assert used.min() > 0
  assert (np.diff(pieces.row) >= 0).all()


@given(post_lengths, row_lengths)
def test_best_fit_cuts_only_posts_that_are_longer_than_a_row(lengths, length):
  pieces = plan(np.array(lengths), length, 'best_fit')
  counts = np.bincount(pieces.post)
  np.testing.assert_array_equal(counts, [-(-(size + 1) // length) for size in lengths])


@given(post_lengths, row_lengths)
def test_best_fit_is_best_fit_decreasing(lengths, length):
  free: list[int] = []
  for size in sorted(plan(np.array(lengths), length, 'best_fit').size.tolist(), reverse=True):
    rooms = [(room, row) for row, room in enumerate(free) if room >= size]
    if rooms:
      free[min(rooms)[1]] -= size
    else:
      free.append(length - size)
  pieces = plan(np.array(lengths), length, 'best_fit')
  assert sorted(length - np.bincount(pieces.row, pieces.size)) == sorted(free)


@given(post_lengths, row_lengths)
def test_split_leaves_room_in_the_last_row_only(lengths, length):
  pieces = plan(np.array(lengths), length, 'split')
  assert (np.bincount(pieces.row, pieces.size)[:-1] == length).all()


@given(post_lengths, row_lengths, methods)
def test_rows_predict_each_token_and_end_once_from_the_token_before(lengths, length, method):
  batch = _rows(lengths, length, method)
  real = batch.weights_BL == 1
  pairs = list(zip(batch.tokens_BL[real].tolist(), batch.targets_BL[real].tolist(), strict=True))
  expected = []
  for post in _posts(lengths):
    stream = [START, *post.tolist(), END]
    expected += itertools.pairwise(stream)
  assert sorted(pairs) == sorted(expected)


@given(post_lengths, row_lengths, methods)
def test_a_segment_is_consecutive_tokens_of_one_post(lengths, length, method):
  batch = _rows(lengths, length, method)
  for row in range(len(batch.tokens_BL)):
    segments = batch.segments_BL[row]
    used = int((segments > 0).sum())
    assert (np.diff(segments[:used]) >= 0).all()
    assert sorted(set(segments[:used].tolist())) == list(range(1, int(segments.max()) + 1))
    for segment in range(1, int(segments.max()) + 1):
      here = segments == segment
      np.testing.assert_array_equal(batch.positions_BL[row][here], np.arange(here.sum()))
      tokens, targets = batch.tokens_BL[row][here], batch.targets_BL[row][here]
      np.testing.assert_array_equal(tokens[1:], targets[:-1])
      assert len({int(token) // 100 for token in tokens if token < START}) <= 1


@given(post_lengths, row_lengths, methods)
def test_padding_has_no_weight_and_no_segment(lengths, length, method):
  batch = _rows(lengths, length, method)
  np.testing.assert_array_equal(batch.weights_BL > 0, batch.segments_BL > 0)
  assert set(np.unique(batch.weights_BL)) <= {0, 1}
  assert batch.weights_BL.sum() == sum(lengths) + len(lengths)


def test_the_arrays_of_one_row():
  pieces = Pieces(*np.array([[0, 0], [0, 1], [0, 1], [3, 2]]))  # a post of 2; the rest of one of 2
  batch = fill(pieces, [np.array([5, 6]), np.array([7, 8])], 1, 6, start=START, end=END)
  np.testing.assert_array_equal(batch.tokens_BL, [[START, 5, 6, 7, 8, 0]])
  np.testing.assert_array_equal(batch.targets_BL, [[5, 6, END, 8, END, 0]])
  np.testing.assert_array_equal(batch.weights_BL, [[1, 1, 1, 1, 1, 0]])
  np.testing.assert_array_equal(batch.segments_BL, [[1, 1, 1, 2, 2, 0]])
  np.testing.assert_array_equal(batch.positions_BL, [[0, 1, 2, 0, 1, 0]])
  integers = ('tokens_BL', 'targets_BL', 'segments_BL', 'positions_BL')
  assert {getattr(batch, name).dtype for name in integers} == {np.dtype(np.int32)}
  assert batch.weights_BL.dtype == np.float32


@pytest.mark.parametrize('method', METHODS)
def test_windows_are_packed_by_themselves(prepared, tmp_path, monkeypatch, method):
  monkeypatch.setattr(packing, 'WINDOW', 64)
  shards = prepared(300, 1)
  packed = Packing(shards, 'train', 48, method)
  lengths = shards.lengths('train')
  made = []
  for window in range(len(packed.starts) - 1):
    rows = int(packed.starts[window + 1] - packed.starts[window])
    expected = plan(lengths[window * 64 : window * 64 + 64], 48, method)
    assert rows == expected.row[-1] + 1
    for row in range(rows):
      pieces = packed.row(window, row)
      assert set(pieces.row.tolist()) == {row}
      made += [window * 64 + post for post in expected.post[expected.row == row]]
      assert pieces.post.tolist() == made[-len(pieces.post) :]
  assert set(made) == set(range(len(lengths)))
  positions = int(lengths.sum()) + len(lengths)
  assert packed.fill == positions / (packed.rows * 48)


def _packed(shards) -> Packing:
  return Packing(shards, 'train', 37, 'best_fit')


def test_the_index_is_written_once_and_again_when_it_was_cut_short(prepared):
  shards = prepared(300, 1)
  starts = np.array(_packed(shards).starts)
  (index,) = shards.folder.glob('train.packing-best_fit-37-*.npy')
  written = index.stat().st_mtime_ns
  np.testing.assert_array_equal(_packed(shards).starts, starts)
  assert index.stat().st_mtime_ns == written
  index.write_bytes(index.read_bytes()[:-4])
  np.testing.assert_array_equal(_packed(shards).starts, starts)
  np.testing.assert_array_equal(np.load(index), starts)


def test_an_index_that_is_wrong_is_noticed(prepared):
  shards = prepared(300, 1)
  _packed(shards)
  (index,) = shards.folder.glob('train.packing-best_fit-37-*.npy')
  np.save(index, np.load(index) * 2)
  with pytest.raises(UserError, match='is damaged: delete it'):
    _packed(shards).row(0, 0)
  index.unlink()
