"""Rewards that can be checked: plain functions of what was said and what is right, 0 to 1."""

import re

_NUMBER = re.compile(r'-?\d+')


def exact_match(said: str, right: str) -> float:
  """1 where the whole answer is the right one, white space around it apart."""
  return float(said.strip() == right.strip())


def last_number(said: str, right: str) -> float:
  """1 where the last number in the answer is the right one, whatever stands around it."""
  found = _NUMBER.findall(said.replace(',', ''))
  return float(bool(found) and found[-1] == right.strip())
