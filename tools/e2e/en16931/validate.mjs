// Reads one JSON string, a UBL document, per line and prints
// {"errors": [code]} for each.
import { createInterface } from 'node:readline';
import { EInvoice } from '@fin.cx/einvoice';

for await (const line of createInterface({ input: process.stdin })) {
  const errors = [];
  try {
    const invoice = await EInvoice.fromXml(JSON.parse(line));
    for (const level of ['syntax', 'semantic', 'business']) {
      const r = await invoice.validate(level);
      errors.push(...r.errors.map(e => e.code));
      if (!r.valid && !r.errors.length) errors.push(level);
    }
  } catch (e) {
    errors.push(String(e));
  }
  console.log(JSON.stringify({ errors }));
}
