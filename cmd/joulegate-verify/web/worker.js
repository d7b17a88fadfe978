// The verifier reads files; in a browser there are none. This gives it the
// ones that the page was handed, read piece by piece as it asks, so that a
// bundle may be larger than memory, and takes what it prints. It begins with
// wasm_exec.js of the Go that has built the program.
'use strict';

const handed = {}; // name -> File
const open = new Map(); // descriptor -> {file, at}
const printed = { 1: '', 2: '' };
const text = { 1: new TextDecoder(), 2: new TextDecoder() };
const reader = new FileReaderSync();
let told = 0;

const not = (cb, code) => cb(Object.assign(new Error(code), { code }));
const enosys = (...args) => not(args.at(-1), 'ENOSYS');
Object.assign(globalThis.fs, {
  writeSync(fd, b) {
    printed[fd] += text[fd].decode(b, { stream: true });
    return b.length;
  },
  write(fd, b, offset, length, at, cb) { cb(null, this.writeSync(fd, b.subarray(offset, offset + length))); },
  open(path, flags, mode, cb) {
    const file = handed[path.slice(path.lastIndexOf('/') + 1)];
    if (!file) return not(cb, 'ENOENT');
    const fd = 3 + open.size;
    open.set(fd, { file, at: 0 });
    cb(null, fd);
  },
  fstat(fd, cb) {
    const f = open.get(fd);
    if (!f) return not(cb, 'EBADF');
    cb(null, {
      isDirectory: () => false, dev: 0, ino: fd, mode: 0o100444, nlink: 1, uid: 0, gid: 0, rdev: 0, size: f.file.size,
      blksize: 4096, blocks: 0, atimeMs: 0, mtimeMs: 0, ctimeMs: 0,
    });
  },
  read(fd, b, offset, length, at, cb) {
    const f = open.get(fd);
    if (!f) return not(cb, 'EBADF');
    const from = at ?? f.at;
    const part = new Uint8Array(reader.readAsArrayBuffer(f.file.slice(from, from + length)));
    b.set(part, offset);
    f.at = from + part.length;
    if (f.file === handed.bundle && performance.now() - told > 100) {
      told = performance.now();
      postMessage({ read: f.at, of: f.file.size });
    }
    cb(null, part.length);
  },
  close(fd, cb) { cb(null); },
  lseek: enosys, readdir: enosys, stat: enosys, lstat: enosys,
});

onmessage = async ({ data }) => {
  Object.assign(handed, data.files);
  const go = new Go();
  let code = 0;
  go.exit = c => { code = c; };
  go.argv = ['joulegate-verify', '--json', '--trust', 'genesis'];
  if (handed.checkpoint) go.argv.push('--checkpoint', 'checkpoint');
  if (data.execute) go.argv.push('--execute');
  go.argv.push('bundle');
  try {
    const raw = Uint8Array.from(atob(data.wasm), c => c.charCodeAt(0));
    const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream('gzip')); // no request is made
    const { instance } = await WebAssembly.instantiate(await new Response(stream).arrayBuffer(), go.importObject);
    await go.run(instance);
    postMessage({ code, report: printed[1], complaint: printed[2] });
  } catch (err) {
    postMessage({ code: 1, report: '', complaint: (printed[2] + ' ' + err).trim() });
  }
};
