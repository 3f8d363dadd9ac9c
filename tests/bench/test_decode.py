"""The ratios of bench_decode are those of turns taken in the same round, between each program's best."""

import pytest

from lmjax.bench.contest import Contest, Turn
from lmjax.bench.decode import Decode, read_side, side

SIDES = {
  'read': {'best': 20e9, 'median': 18e9},
  'lmjax 110m float32': {'b1': 45.0, 'b8': 150.0, 'prefill': 600.0, 'bytes_a_token': 400e6},
  'lmjax 110m bfloat16': {'b1': 80.0, 'prefill': 500.0, 'bytes_a_token': 200e6},
  'lmjax 135m float32': {'b1': 36.0, 'bytes_a_token': 500e6},
  'transformers 110m float32': {'b1': 15.0, 'b8': 50.0, 'prefill': 500.0},
  'transformers 110m bfloat16': {'b1': 10.0, 'prefill': 100.0},
  'transformers 135m float32': {'b1': 12.0},
}


def make_contest(slow: float = 1.0) -> Contest:
  """Two rounds; in the second the whole machine is slower by `slow`."""
  scaled = lambda figures, x: {k: v if k == 'bytes_a_token' else v / x for k, v in figures.items()}
  return Contest({n: [Turn(scaled(f, x), 0.0) for x in (1.0, slow)] for n, f in SIDES.items()})


def test_a_round_that_was_slow_for_all_changes_no_ratio():
  ratios = Decode()._ratios(make_contest(slow=3.0))
  found = {name: figure.median for name, figure in ratios.items()}
  assert found == pytest.approx(
    {
      'f32_b1_110m_vs_transformers': 3.0,
      'f32_b1_135m_vs_transformers': 3.0,
      'f32_b8_110m_vs_transformers': 3.0,
      'best_b1_vs_transformers_best': 80 / 15,
      'prefill_512_vs_transformers_best': 1.2,
      'bandwidth_share': 0.9,
      'bandwidth_share_of_median_read': 1.0,
    }
  )


@pytest.mark.slow
def test_our_sides_take_turns():
  shape = {
    'vocab': 64,
    'width': 16,
    'layers': 1,
    'heads': 2,
    'kv_heads': 1,
    'head_dim': 8,
    'mlp': 32,
  }
  cases = [
    {'name': 'b2', 'batch': 2, 'prompt': 4, 'tokens': 32},
    {'name': 'prefill', 'batch': 1, 'prompt': 8, 'tokens': 1},
  ]
  figures = side({'shape': shape, 'dtype': 'bfloat16', 'cases': cases})()
  assert figures['prefill'] > 0
  matrices = 64 * 16 + 16 * 16 * 2 + 16 * 8 * 2 + 16 * 32 * 3
  assert figures['bytes_a_token'] >= 2 * matrices
  rates = read_side({})()
  assert rates['best'] >= rates['median'] > 1e8
