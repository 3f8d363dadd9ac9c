"""One page of the reports of runs, and the tour that ends with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmjax.bench.tour import TourPage
from lmjax.core.errors import UserError

ROOT = Path(__file__).parents[2]


def test_a_page_shows_what_the_reports_have(tmp_path):
  common = {'device': '1 x cpu', 'started': '2026-11-26T08:00:00+00:00', 'seconds': 12.5}
  reports = {
    'posts': {
      'experiment': 'posts_tiny',
      'steps': 1200,
      'bits_per_byte': 1.78,
      'samples': ['<b>hi</b>'],
      'baseline_bits_per_byte': {'kneser_ney': 1.81},
    },
    'chat': {
      'experiment': 'chat_sft_smol',
      'before': {'loss': 3.0},
      'answers': [{'prompt': 'Why?', 'before': 'No.', 'after': 'So.'}],
    },
  }
  for name, report in reports.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / 'report.json').write_text(json.dumps({**common, **report}))
  folders = tuple(str(tmp_path / name) for name in reports)
  TourPage(runs=folders).run(tmp_path)
  page = (tmp_path / 'page.html').read_text()
  for said in ('posts_tiny', '1,200', '1.780', '1.810', '&lt;b&gt;hi&lt;/b&gt;', 'So.', '3.000'):
    assert said in page
  assert '<b>hi' not in page
  with pytest.raises(UserError, match='is no report: pass folders of finished runs'):
    TourPage(runs=(str(tmp_path),)).run(tmp_path)


@pytest.mark.slow
@pytest.mark.long
def test_the_tour_goes_from_posts_to_a_page_and_is_not_done_twice(tmp_path):
  environment = {**os.environ, 'TOUR': 'small', 'PYTHON': sys.executable}
  command = [str(ROOT / 'tools' / 'tour.sh'), str(tmp_path)]
  subprocess.run(command, env=environment, check=True)
  page = (tmp_path / 'tour.html').read_text()
  for name in ('posts_tiny', 'posts_adapt_smol', 'chat_sft_smol', 'search_posts', 'ads_studio'):
    assert name in page
  assert page.count('data:image/png;base64,') == 1
  again = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
  assert again.stdout.count('done before') == 5
