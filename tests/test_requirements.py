"""What lmjax imports is what setup.cfg asks for, so that it starts on a machine with nothing else."""

import ast
import configparser
import importlib.metadata
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def normal(distribution: str) -> str:
  return re.sub(r'[-_.]+', '-', distribution).lower()


def declared(section: str, option: str) -> set[str]:
  """The distributions that an option of setup.cfg lists, without versions and extras."""
  parser = configparser.ConfigParser()
  parser.read(ROOT / 'setup.cfg')
  lines = parser[section][option].split('\n')
  return {normal(re.split(r'[<>=!~;\[ ]', line)[0]) for line in lines if line.strip()}


def imported() -> set[str]:
  """The top-level modules that lmjax and experiments import and that are not Python's own."""
  found = set()
  for top in ('lmjax', 'experiments'):
    for path in (ROOT / top).rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
          found |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
          found.add(node.module.partition('.')[0])
  return found - sys.stdlib_module_names - {'lmjax', 'experiments'}


def distributions() -> dict[str, set[str]]:
  """Each imported module -> the distributions that it may come from; of one not installed, its name."""
  known = importlib.metadata.packages_distributions()
  return {module: {normal(name) for name in known.get(module, [module])} for module in imported()}


def test_every_import_comes_from_a_declared_requirement():
  required = declared('options', 'install_requires')
  for extra in ('torch', 'hf', 'eval', 'serve', 'search', 'qdrant', 'ads', 'bench', 's3', 'gcs'):
    required |= declared('options.extras_require', extra)
  assert {module for module, names in distributions().items() if not names & required} == set()


def test_every_requirement_is_imported():
  used = set().union(*distributions().values())
  assert declared('options', 'install_requires') - used == set()
