// Conversations, kept in this browser alone.
//
// A conversation is { id, title, turns }, a turn { user, answers, shown }: every answer that was drawn
// for a question is kept, { text, model, reason, tokens, seconds, first, mark: 1 | -1 | 0 }.

const KEPT = 'lmjax.conversations';

export function readAll() {
  try {
    return JSON.parse(localStorage.getItem(KEPT)) ?? [];
  } catch {
    return [];
  }
}

/** Keeps a conversation, the last used first; false where the browser has no room. */
export function keep(conversation) {
  const others = readAll().filter((each) => each.id !== conversation.id);
  return write([conversation, ...others]);
}

export function remove(id) {
  write(readAll().filter((each) => each.id !== id));
}

export function begin() {
  return { id: crypto.randomUUID?.() ?? String(Math.random()), title: '', turns: [] };
}

/** The messages before the answer of a turn, as the API reads them. */
export function messagesOf(conversation, turn, system) {
  const messages = system ? [{ role: 'system', content: system }] : [];
  for (const { user, answers, shown } of conversation.turns.slice(0, turn)) {
    messages.push({ role: 'user', content: user });
    messages.push({ role: 'assistant', content: answers[shown]?.text ?? '' });
  }
  messages.push({ role: 'user', content: conversation.turns[turn].user });
  return messages;
}

/** Rows { prompt, chosen, rejected } of messages: each liked answer beside each disliked one. */
export function preferences(system) {
  const rows = [];
  for (const conversation of readAll()) {
    conversation.turns.forEach((turn, number) => {
      const marked = (mark) => turn.answers.filter((answer) => answer.mark === mark);
      const said = (answer) => [{ role: 'assistant', content: answer.text }];
      for (const good of marked(1)) {
        for (const bad of marked(-1)) {
          const prompt = messagesOf(conversation, number, system);
          rows.push({ prompt, chosen: said(good), rejected: said(bad) });
        }
      }
    });
  }
  return rows;
}

function write(all) {
  try {
    localStorage.setItem(KEPT, JSON.stringify(all));
    return true;
  } catch {
    return false;
  }
}
