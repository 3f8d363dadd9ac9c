"""GRPO on a tiny model from a folder, and what is refused."""

import dataclasses
import json

import evaluated
import pytest

from experiments.arithmetic import arithmetic_grpo
from lmjax.core.errors import UserError
from lmjax.core.task import save_config
from lmjax.train.tune import Base


@pytest.mark.slow
@pytest.mark.parametrize('advantages', ['rewards', 'zero'])
def test_a_run_reports_before_and_after_and_writes_rollouts(advantages, tmp_path):
  folder = evaluated.write_folder(tmp_path / 'model')
  task = dataclasses.replace(
    arithmetic_grpo(),
    base=Base(checkpoint=folder),
    steps=2,
    batch=8,
    group=4,
    evaluate_questions=8,
    advantages=advantages,
  )
  workdir = tmp_path / 'run'
  workdir.mkdir()
  save_config(task, 'arithmetic_grpo', workdir)
  report = task.run(workdir)
  assert set(report['before']) == set(report['after']) == {'exact_match', 'exact_match_drawn'}
  assert {'seconds', 'steps', 'trainable_params', 'peak_rss_gib'} <= set(report)
  lines = [json.loads(line) for line in (workdir / 'rollouts.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines] == [1, 2]
  assert set(lines[0]['rollouts'][0]) == {'question', 'answer', 'reward', 'advantage'}
  metrics = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert {'reward', 'answer_tokens', 'kl', 'entropy', 'clipped'} <= set(metrics[0])
  assert abs(metrics[0]['kl']) < 1e-5
  assert (workdir / 'evaluation.html').exists()


def test_a_batch_that_is_no_whole_groups_is_refused():
  with pytest.raises(
    UserError, match='batch=100 is not a multiple of group=16: the nearest are 96'
  ):
    dataclasses.replace(arithmetic_grpo(), batch=100)
