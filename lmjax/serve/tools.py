"""Functions that a model may call: offered by its chat template, read back from what it says."""

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any

from lmjax.serve.schemas import Tool

# How templates of Qwen, Hermes and SmolLM2 have models say it; Llama 3's say the JSON alone.
_MARKED = re.compile(r'<tool_call>(.*?)(?:</tool_call>|\Z)', re.DOTALL)


def schema_of_call(tools: Sequence[Tool]) -> dict[str, Any]:
  """A JSON schema of one call of one of `tools`."""
  calls = [
    {
      'type': 'object',
      'properties': {
        'name': {'const': tool.function.name},
        'arguments': tool.function.parameters or {'type': 'object'},
      },
      'required': ['name', 'arguments'],
      'additionalProperties': False,
    }
    for tool in tools
  ]
  return calls[0] if len(calls) == 1 else {'anyOf': calls}


def read_calls(text: str, names: Sequence[str]) -> tuple[str | None, list[dict[str, Any]]]:
  """(what else is said, the calls) of an answer; a call of what was not offered is text."""
  marked = _MARKED.findall(text)
  found = [call for piece in marked or [text] for call in _parse(piece)]
  if not found or any(call['name'] not in names for call in found):
    return text, []
  said = _MARKED.sub('', text).strip() if marked else ''
  return said or None, [
    {
      'id': f'call_{secrets.token_hex(12)}',
      'type': 'function',
      'function': {
        'name': call['name'],
        'arguments': json.dumps(call['arguments'], ensure_ascii=False),
      },
    }
    for call in found
  ]


def _parse(text: str) -> list[dict[str, Any]]:
  try:
    said = json.loads(text)
  except (ValueError, RecursionError):
    return []
  calls = []
  for call in said if isinstance(said, list) else [said]:
    if not isinstance(call, dict) or not isinstance(call.get('name'), str):
      return []
    arguments = call.get('arguments', call.get('parameters', {}))
    if not isinstance(arguments, dict):
      return []
    calls.append({'name': call['name'], 'arguments': arguments})
  return calls
