// The place to talk with the model.

import { streamChat } from './api.js';
import { download, make } from './dom.js';
import { showMarkdown } from './markdown.js';
import { readSettings } from './settings.js';
import { begin, keep, messagesOf, preferences, readAll, remove } from './store.js';

const STOPPED = { length: 'cut at its length', content_filter: 'not shown', cancelled: 'stopped' };

export function show(root, context) {
  new Chat(root, context);
}

class Chat {
  constructor(root, context) {
    this.context = context;
    this.conversation = readAll()[0] ?? begin();
    this.stopper = null;
    this.showing = null; // a timer, while a longer answer waits to be shown
    this.pause = 0; // ms before that
    this.list = make('ul', { id: 'conversations' });
    this.log = make('div', { id: 'log', role: 'log', 'aria-label': 'Conversation', tabindex: '0' });
    this.note = make('p', { id: 'note', role: 'status' });
    this.box = make('textarea', { id: 'box', rows: 2, 'aria-label': 'Message', placeholder: 'Ask something' });
    this.send = make('button', { id: 'send', type: 'submit' }, 'Send');
    this.stop = make('button', { id: 'stop', type: 'button', hidden: true, onclick: () => this.stopper?.abort() }, 'Stop');
    this.box.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
    const form = make('form', { id: 'ask' }, this.box, this.send, this.stop);
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      const text = this.box.value.trim();
      if (!text || this.stopper) return;
      this.box.value = '';
      this.conversation.turns.push({ user: text, answers: [], shown: 0 });
      this.conversation.title ||= text.slice(0, 60);
      this.answer(this.conversation.turns.length - 1);
    });
    root.append(
      make(
        'aside',
        { 'aria-label': 'Conversations' },
        make('button', { id: 'new', type: 'button', onclick: () => this.open(begin()) }, 'New conversation'),
        this.list,
        make('button', { id: 'export', type: 'button', onclick: () => this.export() }, 'Export preferences'),
      ),
      make('section', { id: 'chat', 'aria-label': 'Chat' }, this.log, this.note, form),
    );
    document.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') this.stopper?.abort();
    });
    this.draw();
  }

  open(conversation) {
    this.stopper?.abort();
    this.conversation = conversation;
    this.note.textContent = '';
    this.draw();
    this.box.focus();
  }

  draw() {
    this.list.replaceChildren(
      ...readAll().map((each) =>
        make(
          'li',
          {},
          make(
            'button',
            {
              type: 'button',
              class: 'open',
              'aria-current': each.id === this.conversation.id ? 'true' : null,
              onclick: () => this.open(each),
            },
            each.title,
          ),
          make(
            'button',
            {
              type: 'button',
              'aria-label': `Delete ${each.title}`,
              onclick: () => {
                remove(each.id);
                if (each.id === this.conversation.id) this.open(readAll()[0] ?? begin());
                else this.draw();
              },
            },
            '×',
          ),
        ),
      ),
    );
    this.log.replaceChildren(...this.conversation.turns.flatMap((turn, number) => this.turn(turn, number)));
    if (!this.conversation.turns.length) {
      this.log.append(make('p', { class: 'empty' }, 'Nothing said yet. What you write stays in this browser.'));
    }
    this.log.scrollTop = this.log.scrollHeight;
  }

  turn(turn, number) {
    const edit = make('button', { type: 'button', onclick: () => this.edit(number) }, 'Edit');
    const user = make(
      'article',
      { class: 'user', 'aria-label': 'You' },
      make('div', { class: 'text plain' }, turn.user),
      make('p', { class: 'tools' }, edit),
    );
    if (!turn.answers.length) return [user];
    const answer = turn.answers[turn.shown];
    const text = make('div', { class: 'text' });
    showMarkdown(text, answer.text);
    const tools = make('p', { class: 'tools' });
    const shown = make('article', { class: 'answer', 'aria-label': 'Answer' }, text, tools);
    this.tools(tools, turn, number, answer);
    return [user, shown];
  }

  tools(tools, turn, number, answer) {
    const mark = (value, label, sign) =>
      make(
        'button',
        {
          type: 'button',
          'aria-label': label,
          'aria-pressed': String(answer.mark === value),
          onclick: () => {
            answer.mark = answer.mark === value ? 0 : value;
            this.keep();
            this.draw();
          },
        },
        sign,
      );
    const step = (by, label, sign) =>
      make('button', {
        type: 'button',
        'aria-label': label,
        disabled: !turn.answers[turn.shown + by],
        onclick: () => {
          turn.shown += by;
          this.keep();
          this.draw();
        },
      }, sign);
    if (turn.answers.length > 1) {
      tools.append(step(-1, 'Answer before', '‹'), `${turn.shown + 1} of ${turn.answers.length}`, step(1, 'Next answer', '›'));
    }
    tools.append(
      mark(1, 'Good answer', 'Good'),
      mark(-1, 'Bad answer', 'Bad'),
      make('button', { type: 'button', onclick: () => this.answer(number) }, 'Retry'),
      make('span', { class: 'speed' }, speed(answer)),
    );
  }

  edit(number) {
    if (this.stopper) return;
    const turn = this.conversation.turns[number];
    const box = make('textarea', { rows: 3, 'aria-label': 'Edited message' });
    box.value = turn.user;
    const form = make(
      'form',
      { class: 'edit' },
      box,
      make('button', { type: 'submit' }, 'Ask again'),
      make('button', { type: 'button', onclick: () => this.draw() }, 'Cancel'),
    );
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      if (!box.value.trim()) return;
      this.conversation.turns.splice(number, Infinity, { user: box.value.trim(), answers: [], shown: 0 });
      this.answer(number);
    });
    this.log.querySelectorAll('article.user')[number].replaceChildren(form);
    box.focus();
  }

  /** Draws another answer to a turn; what came after it is dropped. */
  async answer(number) {
    if (this.stopper) return;
    const { conversation } = this;
    const turn = conversation.turns[number];
    const stopper = new AbortController();
    this.stopper = stopper;
    const { system, ...settings } = readSettings();
    conversation.turns.length = number + 1;
    const messages = messagesOf(conversation, number, system);
    const answer = { text: '', model: this.context.model, reason: null, tokens: 0, seconds: 0, first: 0, mark: 0 };
    this.keep();
    turn.answers.push(answer);
    turn.shown = turn.answers.length - 1;
    this.busy(true);
    this.draw();
    const text = [...this.log.querySelectorAll('article.answer .text')].at(-1);
    text.setAttribute('aria-busy', 'true');
    const begun = performance.now();
    try {
      for await (const piece of streamChat({ model: this.context.model, messages, ...settings }, stopper.signal)) {
        const now = (performance.now() - begun) / 1000;
        if (piece.text) {
          answer.first ||= now;
          answer.text += piece.text;
          if (this.conversation === conversation) this.showPiece(text, answer.text);
        } else {
          [answer.reason, answer.tokens] = [piece.reason, piece.usage.completion_tokens];
        }
        answer.seconds = now;
      }
    } catch (error) {
      if (error.name === 'AbortError') answer.reason = 'cancelled';
      else this.note.textContent = error.message;
      if (!answer.text) {
        turn.answers.pop();
        turn.shown = Math.max(0, turn.answers.length - 1);
      }
    }
    this.stopper = null;
    this.busy(false);
    if (!keep(conversation)) this.note.textContent = 'This browser has no room left: delete conversations.';
    if (this.conversation === conversation) this.draw();
  }

  // Markdown is parsed anew and whole: a long answer is shown less often than its pieces come, so that the page
  // spends at most a fifth of its time on it and hears a press of Stop.
  showPiece(node, text) {
    this.latest = text;
    this.showing ||= setTimeout(() => {
      this.showing = null;
      const begun = performance.now();
      const { scrollTop, scrollHeight, clientHeight } = this.log;
      if (node.isConnected) showMarkdown(node, this.latest);
      if (scrollHeight - scrollTop - clientHeight < 60) this.log.scrollTop = this.log.scrollHeight;
      this.pause = 4 * (performance.now() - begun);
    }, this.pause);
  }

  busy(is) {
    this.send.hidden = is;
    this.stop.hidden = !is;
    if (is) this.note.textContent = '';
  }

  keep() {
    keep(this.conversation);
  }

  export() {
    const rows = preferences(readSettings().system);
    if (!rows.length) {
      this.note.textContent = 'No pair yet: mark one answer to a question as good and another (Retry) as bad.';
      return;
    }
    download('preferences.jsonl', rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
    this.note.textContent = `${rows.length} pairs exported.`;
  }
}

function speed(answer) {
  if (!answer.seconds) return '';
  const after = answer.seconds - answer.first;
  const rate = answer.tokens > 1 && after > 0 ? `${((answer.tokens - 1) / after).toFixed(1)} tokens/s, ` : '';
  const stopped = STOPPED[answer.reason] ? `, ${STOPPED[answer.reason]}` : '';
  return `${rate}first after ${answer.first.toFixed(2)} s${stopped}`;
}
