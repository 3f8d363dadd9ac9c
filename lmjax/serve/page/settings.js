// How answers are drawn, kept in the browser; the API key only until the tab is closed.

import { make } from './dom.js';

const KEPT = 'lmjax.settings';
const FIELDS = [
  ['system', 'System prompt', { type: 'textarea' }],
  ['temperature', 'Temperature (0: the likeliest)', { type: 'number', min: 0, max: 2, step: 0.1 }],
  ['top_p', 'Top p', { type: 'number', min: 0.01, max: 1, step: 0.01 }],
  ['top_k', 'Top k', { type: 'number', min: 1, step: 1 }],
  ['max_tokens', 'Tokens of an answer at most', { type: 'number', min: 1, step: 1 }],
  ['seed', 'Seed (empty: another each time)', { type: 'number', min: 0, step: 1 }],
];

/** What was set; empty fields are left out. */
export function readSettings() {
  try {
    return JSON.parse(localStorage.getItem(KEPT)) ?? {};
  } catch {
    return {};
  }
}

export function readKey() {
  return sessionStorage.getItem('lmjax.key') ?? '';
}

/** Shows the dialog; resolves when it is closed. */
export function openSettings() {
  const dialog = document.getElementById('settings');
  const settings = readSettings();
  const field = ([name, label, { type, ...rest }]) => {
    const same = { id: `set-${name}`, ...rest };
    const input = type === 'textarea' ? make('textarea', { ...same, rows: 3 }) : make('input', { ...same, type });
    input.value = settings[name] ?? '';
    return make('p', {}, make('label', { for: `set-${name}` }, label), input);
  };
  const key = field(['key', 'API key (where the server asks for one)', { type: 'password', autocomplete: 'off' }]);
  key.querySelector('input').value = readKey();
  document.getElementById('settings-fields').replaceChildren(...FIELDS.map(field), key);
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener(
      'close',
      () => {
        save();
        done();
      },
      { once: true },
    );
  });
}

function save() {
  const kept = {};
  for (const [name, , { type }] of FIELDS) {
    const input = document.getElementById(`set-${name}`);
    if (input.value.trim() === '' || !input.checkValidity()) continue;
    kept[name] = type === 'number' ? Number(input.value) : input.value;
  }
  localStorage.setItem(KEPT, JSON.stringify(kept));
  sessionStorage.setItem('lmjax.key', document.getElementById('set-key').value.trim());
}
