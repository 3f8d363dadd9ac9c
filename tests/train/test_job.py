"""What a run refuses when it starts."""

import dataclasses

import pytest
from small import small

from lmjax.core.errors import UserError
from lmjax.train.guard import Guard
from lmjax.train.job import Job


def test_fewer_learnt_positions_than_tokens_are_refused(tmp_path, monkeypatch):
  monkeypatch.setenv('LMJAX_CACHE', str(tmp_path / 'cache'))
  task = small()
  task = dataclasses.replace(task, model=dataclasses.replace(task.model, positions=task.length - 1))
  with Guard() as guard, pytest.raises(UserError, match=r'pass --model.positions=\d+ or more'):
    Job(task, tmp_path, guard)
