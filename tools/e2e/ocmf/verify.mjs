// Reads one {"line": OCMF, "key": hex SubjectPublicKeyInfo} per line and
// prints {"verified": bool, "value"?: payload, "error"?: text} for each.
import { createInterface } from 'node:readline';
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url); // the packages' main is CommonJS
const { Verifier } = require('@road-labs/ocmf');
const { Crypto } = require('@road-labs/ocmf-crypto-noble');

const crypto = new Crypto();
const verifier = new Verifier(crypto);

for await (const request of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const { line, key } = JSON.parse(request);
    const publicKey = await crypto.decodeEcPublicKey(Buffer.from(key, 'hex'), 'spki-der');
    const { verified, value } = await verifier.parseAndVerify(line, publicKey);
    answer = { verified, value: value?.payloadData };
  } catch (e) {
    answer = { verified: false, error: String(e) };
  }
  console.log(JSON.stringify(answer));
}
