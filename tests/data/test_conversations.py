"""Conversations and pairs in every shape: encoded, cut between turns, counted and packed."""

import json

import numpy as np
import pytest
from test_chat import CHATML
from test_chat import tokenizer as tokenizer

from lmjax.data import conversations, preference
from lmjax.data.conversations import Chats, Refused, conversation, encode_chat, sort_rows

ASK, SAY = {'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Yes'}
SHAPES = {
  'openai': {'messages': [ASK, SAY]},
  'parts': {'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': 'Hi'}]}, SAY]},
  'sharegpt': {
    'conversations': [{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Yes'}]
  },
  'alpaca': {'instruction': 'Hi', 'input': '', 'output': 'Yes'},
  'question': {'question': 'Hi', 'answer': ['Yes', 'Aye']},
}
BROKEN = [
  {'text': 'Hi'},
  {'messages': [ASK]},
  {'instruction': 'Hi', 'output': ''},
  {'messages': [{'role': 'pope', 'content': 'Hi'}]},
]
PAIRS = {
  'prompt': {'prompt': 'Hi', 'chosen': 'Yes', 'rejected': 'No'},
  'messages': {'prompt': [ASK], 'chosen': [SAY], 'rejected': [{**SAY, 'content': 'No'}]},
  'sharegpt': {
    'conversations': [{'from': 'human', 'value': 'Hi'}],
    'chosen': {'from': 'gpt', 'value': 'Yes'},
    'rejected': {'from': 'gpt', 'value': 'No'},
  },
  'anthropic': {
    'chosen': '\n\nHuman: Hi\n\nAssistant: Yes',
    'rejected': '\n\nHuman: Hi\n\nAssistant: No',
  },
  'question': {'question': 'Hi', 'options': 'A. Yes\nB. No', 'answer': ['Yes']},
}


@pytest.mark.parametrize('shape', SHAPES)
def test_every_shape_is_the_same_conversation(shape):
  found = conversation(SHAPES[shape])
  assert [(m['role'], m['content']) for m in found.messages] == [
    ('user', 'Hi'),
    ('assistant', 'Yes'),
  ]


def test_rows_are_counted_and_counts_add_up(tokenizer, tmp_path):
  path = tmp_path / 'rows.jsonl'
  lines = [json.dumps(row) for row in [*SHAPES.values(), *BROKEN]]
  path.write_text('\n'.join([*lines, '{"messages": ']) + '\n')
  rows = Chats(chats=str(path)).rows()
  found = sort_rows(rows, lambda values: encode_chat(values, CHATML, tokenizer, 100), 0.4)
  counts = found.counts
  assert counts['in'] == 10 == counts['used'] + counts['held_out'] + sum(counts['dropped'].values())
  assert (counts['used'], counts['held_out']) == (3, 2)
  assert counts['dropped']['without an answer'] == 2
  assert counts['dropped']['of an unknown shape'] == 1


def test_what_does_not_fit_is_cut_between_turns(tokenizer):
  row = {'messages': [ASK, SAY, ASK, SAY]}
  whole = encode_chat(row, CHATML, tokenizer, 1000)
  first, both = whole.ends
  assert both == len(whole.tokens)
  for length in (first - 1, both - 2):
    cut = encode_chat(row, CHATML, tokenizer, length)
    assert len(cut.tokens) == first
    assert cut.tokens.tolist() == whole.tokens[:first].tolist()
    assert cut.weights[-2] == 1
  with pytest.raises(Refused, match='longer than a row'):
    encode_chat(row, CHATML, tokenizer, first - 2)


def test_packed_conversations_are_whole_and_do_not_see_each_other(tokenizer):
  texts = [encode_chat(SHAPES['openai'], CHATML, tokenizer, 200) for _ in range(5)]
  length = 2 * (len(texts[0].tokens) - 1) + 3
  rows = conversations.pack(texts, length)
  assert sorted(text for row in rows for text in row) == list(range(5))
  batch = conversations.lay([[texts[text] for text in row] for row in rows], length)
  assert batch.weights_BL.sum() == 5 * texts[0].weights.sum()
  assert batch.segments_BL.max() == 2
  said = batch.targets_BL[batch.weights_BL == 1]
  assert tokenizer.text(said) == 'Yes' * 5
  assert np.all(batch.positions_BL[batch.segments_BL == 2][:3] == [0, 1, 2])


@pytest.mark.parametrize('shape', PAIRS)
def test_every_shape_is_the_same_pair(tokenizer, shape):
  pair = preference.encode_pair(PAIRS[shape], CHATML, tokenizer, 200)
  said = [tokenizer.text(side.tokens[side.weights == 1]) for side in (pair.chosen, pair.rejected)]
  assert said == ['Yes', 'No']
  batch = preference.lay_pairs([pair], 200)
  assert batch.segments_BL.max() == 2


@pytest.mark.parametrize(
  ('row', 'told'),
  [
    ({'prompt': 'Hi', 'chosen': 'Yes', 'rejected': 'Yes'}, 'two equal answers'),
    ({'prompt': 'Hi', 'chosen': 'Yes', 'rejected': ''}, 'without an answer'),
    ({'prompt': 'Hi' * 200, 'chosen': 'Yes', 'rejected': 'No'}, 'longer than a row'),
    ({'question': 'Hi', 'options': 'A. Yes', 'answer': ['Yes']}, 'without a wrong option'),
  ],
)
def test_a_row_without_a_pair_is_refused(tokenizer, row, told):
  with pytest.raises(Refused, match=told):
    preference.encode_pair(row, CHATML, tokenizer, 200)
