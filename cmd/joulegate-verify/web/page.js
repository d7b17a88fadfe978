// The page hands files to a worker that runs the verifier, and shows what it
// says. Nothing leaves the page: its policy allows no connection at all.
'use strict';

const $ = id => document.getElementById(id);
const files = {};
const kinds = ['bundle', 'genesis', 'checkpoint'];
let worker = null;

const size = n => n < 1e6 ? `${Math.ceil(n / 1e3).toLocaleString()} kB` : `${(n / 1e6).toLocaleString(undefined, { maximumFractionDigits: 1 })} MB`;

// kindOf tells by its first bytes what a dropped file is.
async function kindOf(file) {
  const head = new TextDecoder().decode(await file.slice(0, 19).arrayBuffer());
  if (head.startsWith('joulegate bundle')) return 'bundle';
  if (head.trimStart().startsWith('{')) return 'genesis';
  return 'checkpoint';
}

function take(kind, file) {
  files[kind] = file;
  $(kind + '-name').textContent = file ? `${file.name}, ${size(file.size)}` : $(kind + '-name').dataset.none;
  $(kind).closest('.file').classList.toggle('has', !!file);
  stop();
  $('result').hidden = true;
  $('check').disabled = !(files.bundle && files.genesis);
  $('hint').textContent = !files.bundle ? 'Choose the bundle.' : !files.genesis ? 'Choose the genesis file that you trust.' : '';
}

function stop() {
  worker?.terminate();
  worker = null;
  $('progress').hidden = true;
  $('check').textContent = 'Check it';
}

function element(tag, className, text) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text) e.textContent = text;
  return e;
}

function show(verdict, title, words) {
  const box = $('verdict');
  box.className = 'verdict ' + verdict;
  $('mark').textContent = verdict === 'green' ? '✓' : '✗';
  $('title').textContent = title;
  $('assurance').textContent = words;
  $('result').hidden = false;
  box.focus();
}

function report(r) {
  const list = $('checks');
  list.replaceChildren();
  for (const c of r.checks) {
    const waits = !c.ok && c.detail === 'not reached';
    const li = element('li', c.ok ? 'ok' : waits ? 'waits' : 'red');
    const mark = element('span', 'mark', c.ok ? '✓' : waits ? '–' : '✗');
    mark.setAttribute('aria-hidden', 'true');
    const words = element('div');
    const name = element('p', 'name', c.name);
    name.prepend(element('span', 'sr', c.ok ? 'holds: ' : waits ? 'not reached: ' : 'does not hold: '));
    words.append(name);
    if (!waits) words.append(element('p', 'detail', c.detail));
    li.append(mark, words);
    list.append(li);
  }
  const c = r.claim;
  $('about').textContent = c && c.chain_id ? `Microgrid ${c.chain_id}, blocks ${c.first_height} to ${c.tip_height}` +
    (c.all ? ', everything the ledger holds.' : ', a part of what the ledger holds.') : '';
  const failed = r.checks.find(c => !c.ok && c.detail !== 'not reached');
  if (r.ok) show('green', 'Green: every check holds', 'Assurance: ' + r.assurance + '.');
  else show('red', 'Red: do not rely on this bundle', failed ? `This does not hold: “${failed.name}”. There the verifier stopped.` : r.assurance);
}

function check() {
  if (worker) return stop();
  const source = URL.createObjectURL(new Blob([$('worker').textContent], { type: 'text/javascript' }));
  worker = new Worker(source);
  URL.revokeObjectURL(source);
  $('result').hidden = true;
  $('progress').hidden = false;
  $('bar').removeAttribute('value');
  $('step').textContent = 'The verifier starts …';
  $('check').textContent = 'Stop';
  worker.onmessage = ({ data }) => {
    if (data.of) {
      $('bar').value = data.read / data.of;
      $('step').textContent = data.read < data.of ? `${size(data.read)} of ${size(data.of)} read` : 'All of it is read. Adding up …';
      return;
    }
    stop();
    try {
      report(JSON.parse(data.report));
    } catch {
      $('checks').replaceChildren();
      $('about').textContent = '';
      show('red', 'It could not be checked', data.complaint.replace(/^joulegate-verify: /, '') || `The verifier ended with ${data.code} and said nothing.`);
    }
  };
  worker.onerror = e => {
    stop();
    $('checks').replaceChildren();
    show('red', 'It could not be checked', e.message || 'This browser does not let the verifier run.');
  };
  worker.postMessage({ files: { ...files }, wasm: $('wasm').textContent.trim(), execute: $('execute').checked });
}

for (const kind of kinds) $(kind).addEventListener('change', e => take(kind, e.target.files[0]));
$('check').addEventListener('click', check);
for (const name of ['dragover', 'drop', 'dragleave']) {
  addEventListener(name, async e => {
    e.preventDefault();
    document.body.classList.toggle('over', name === 'dragover');
    if (name === 'drop') for (const f of e.dataTransfer.files) take(await kindOf(f), f);
  });
}
