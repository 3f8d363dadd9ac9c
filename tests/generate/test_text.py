"""Text that streams is the text that is there at the end, cut before the first stop string."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.data.tokenizer import train
from lmjax.generate.text import Drawn, Ended, Piece, TextListener, Usage

TOKENIZER = train(['so it goes, and so on'], 270)
USAGE = Usage(1, 0, 1)


def stream(tokens, stops=(), reason='length'):
  """What is handed over for `tokens`, and whether a stop string ended it."""
  told = []
  listener = TextListener(TOKENIZER, told.append, stops)
  stopped = any(listener.token(Drawn(token, -1.0, [])) for token in tokens)
  listener.end('stop' if stopped else reason, USAGE)
  assert told[-1] == Ended('stop' if stopped else reason, USAGE)
  return told[:-1], stopped


@settings(max_examples=100, deadline=None)
@given(st.text(), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_pieces_add_up_to_the_text_before_the_first_stop_string(text, stops):
  text = text.encode('utf-8', 'replace').decode()
  tokens = TOKENIZER.encode(text).tolist()
  pieces, stopped = stream(tokens, stops)
  found = [at for stop in stops if (at := text.find(stop)) >= 0]
  said = ''.join(piece.text for piece in pieces)
  assert stopped == bool(found)
  assert not any(stop in said for stop in stops)
  if not found:
    assert said == text
  else:  # of several in one token, the first counts
    assert text.startswith(said)
    assert any(text.startswith(stop, len(said)) for stop in stops)
  used = [drawn.token for piece in pieces for drawn in piece.drawn]
  assert used == tokens[: len(used)]
  assert stopped or used == tokens


def test_characters_come_whole():
  tokens = TOKENIZER.encode('a😀b').tolist()
  pieces, _ = stream(tokens)
  assert [piece.text for piece in pieces] == ['a', '😀', 'b']
  assert list(map(len, (piece.drawn for piece in pieces))) == [1, 4, 1]


@pytest.mark.parametrize(('reason', 'end'), [('length', '\ufffd'), ('cancelled', '')])
def test_half_a_character_at_the_end_is_shown_where_the_text_ends(reason, end):
  pieces, _ = stream(TOKENIZER.encode('a😀').tolist()[:-1], reason=reason)
  assert ''.join(piece.text for piece in pieces) == 'a' + end


def test_what_may_become_a_stop_string_waits():
  pieces, _ = stream(TOKENIZER.encode('xy\nUs').tolist(), ['\nUser:'])
  assert [piece.text for piece in pieces] == ['x', 'y', '\nUs']


def test_control_tokens_spell_nothing():
  pieces, _ = stream(np.array([TOKENIZER.start, *TOKENIZER.encode('a')]).tolist())
  assert pieces == [
    Piece('a', [Drawn(TOKENIZER.start, -1.0, []), Drawn(int(TOKENIZER.encode('a')[0]), -1.0, [])])
  ]
