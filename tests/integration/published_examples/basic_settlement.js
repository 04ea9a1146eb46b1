// The basic settlement flow as a client of PacSpace writes it: record three deltas, read the
// running balance, and agree on it with the counterparty. It knows nothing of a simulator.

const API_BASE = process.env.PACSPACE_URL;
const API_KEY = process.env.PACSPACE_API_KEY;

async function pacspace(method, path, body) {
  const response = await fetch(`${API_BASE}${path}`, {
    method,
    headers: { 'X-Api-Key': API_KEY, 'Content-Type': 'application/json' },
    body: body === undefined ? undefined : JSON.stringify(body)
  });
  const answer = await response.json();
  if (!response.ok) {
    throw new Error(`PacSpace error ${response.status}: ${answer.message}`);
  }
  return answer.data;
}

async function recordUsage(accountId, key, bits, description) {
  const { batchId } = await pacspace('POST', '/api/v1/writes', {
    items: [
      { key, accountId, bits, metadata: { description, timestamp: new Date().toISOString() } }
    ]
  });
  console.log(`Recorded: ${bits} for ${key} → batch ${batchId}`);
}

async function getBalance(key) {
  const record = await pacspace('GET', `/api/v1/reads/bucket/${key}`);
  console.log(`Balance for ${key}: ${record.currentBits} (${record.totalWrites} writes)`);
  return record;
}

async function verifyWithCounterparty(key, expected) {
  const { verified, currentBits } = await getBalance(key);
  if (!verified) return { agreed: false, reason: 'pending_verification' };
  if (currentBits !== expected) return { agreed: false, reason: 'balance_mismatch' };
  return { agreed: true };
}

async function settle() {
  const key = 'settlement-2025-06';
  const account = 'customer-acme';
  await recordUsage(account, key, 100, 'API calls, week 1');
  await recordUsage(account, key, 250, 'API calls, week 2');
  await recordUsage(account, key, 150, 'API calls, week 3');

  const { currentBits } = await getBalance(key);
  console.log(`Total usage recorded: ${currentBits}`);

  const agreement = await verifyWithCounterparty(key, 500);
  if (!agreement.agreed) {
    console.log(`No agreement: ${agreement.reason}`);
    return;
  }
  console.log(`Agreement confirmed: both parties agree on ${currentBits}`);
  console.log(`Settlement complete. Generating invoice for ${currentBits}`);
}

settle().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
