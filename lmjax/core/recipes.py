"""Recipes: models that a task here trains the first time that they are asked for, and then kept.

A recipe is the name of an experiment that trains. What it gives lies in the cache folder under the hash
of its configuration, so another configuration is another model. Knows nothing about models.
"""

import datetime
import hashlib
import json
from pathlib import Path

from lmjax.core import config, registry
from lmjax.core.assets import cache_folder
from lmjax.core.task import opened, write_report

RECIPES = ('ads_copy_sft', 'arithmetic_base', 'emoji_flow')


def ready(name: str) -> Path:
  """The run of recipe `name`, trained now where it is not yet; one that was stopped goes on."""
  task = registry.find(name)
  text = json.dumps([name, config.to_json(task)], sort_keys=True)
  folder = cache_folder() / 'recipes' / f'{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}'
  if not (folder / 'report.json').exists():
    print(f'training {name} for the first time, kept in {folder} ...', flush=True)
    started = datetime.datetime.now(datetime.UTC)
    with opened(task, name, folder) as (workdir, writes):
      report = task.run(workdir)
      if writes:
        write_report(workdir, name, started, report)
  return folder
