// Policies as the explorer holds them: a string per step, a digit per layer. First of three parts of one module;
// explorer.py joins explorer_policy.js, explorer_figures.js and explorer.js.

// Both averages of policy.py: each layer once, and by its multiplications.
function averages(data, bits) {
  const cost = data.layers.map(([, inside, outside, tokens]) => inside * outside * tokens);
  let plain = 0, weighted = 0;
  for (const row of bits) [...row].forEach((digit, l) => {
    plain += Number(digit);
    weighted += Number(digit) * cost[l];
  });
  const total = cost.reduce((a, b) => a + b, 0);
  return { average: plain / (bits.length * cost.length), weighted: weighted / (bits.length * total) };
}

// Sum of the stored errors of a policy's roundings (marginals.py), each as if it were alone. null: none are stored.
function predictedError(data, weights, bits) {
  if (!weights.errors) return null;
  const { low, high, codes } = weights.errors, bytes = atob(codes), B = data.a_bits.length, L = data.layers.length;
  let sum = 0;
  bits.forEach((row, t) => [...row].forEach((digit, l) => {
    const b = data.a_bits.indexOf(Number(digit));
    sum += Math.exp(low + (bytes.charCodeAt((t * L + l) * B + b) / 255) * (high - low));
  }));
  return sum;
}

// A float as Python writes it, since the file's sha256 is of Python's JSON.
function pythonFloat(x) {
  if (Number.isInteger(x) && Math.abs(x) < 1e16) return x + ".0";
  if (Math.abs(x) >= 1e-4 && Math.abs(x) < 1e16) return String(x);
  return x.toExponential().replace(/e([+-])(\d)$/, "e$10$2");
}

// The file that adatsq.Policy.load reads: sorted fields, then the sha256 of all the others.
function policyFile(data, bits) {
  const list = (values) => `[${values.join(", ")}]`;
  const fields = [
    `"average_bits": ${pythonFloat(averages(data, bits).average)}`,
    `"bits": ${list(bits.map((row) => list([...row])))}`,
    ...(data.branches === null ? [] : [`"branches": ${data.branches}`]),
    `"format_version": 1`,
    `"layers": ${list(data.layers.map(([name, ...sizes]) => list([JSON.stringify(name), ...sizes])))}`,
    `"model": ${JSON.stringify(data.model)}`,
    `"timesteps": ${list(data.timesteps.map(pythonFloat))}`,
  ].join(", ");
  return `{${fields}, "sha256": "${sha256(`{${fields}}`)}"}\n`;
}

// FIPS 180-4. The browser has its own, but not on pages served by plain http.
function sha256(text) {
  const primes = [];
  for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
  const fraction = (x) => ((x - Math.floor(x)) * 2 ** 32) | 0, K = primes.map((p) => fraction(Math.cbrt(p)));
  const H = primes.slice(0, 8).map((p) => fraction(Math.sqrt(p)));
  const bytes = [...new TextEncoder().encode(text)], length = bytes.length * 8;
  bytes.push(128);
  while (bytes.length % 64 !== 56) bytes.push(0);
  for (let i = 7; i >= 0; i--) bytes.push(Math.floor(length / 2 ** (8 * i)) % 256);
  const turn = (x, n) => (x >>> n) | (x << (32 - n)), W = new Int32Array(64);
  for (let start = 0; start < bytes.length; start += 64) {
    let [a, b, c, d, e, f, g, h] = H;
    for (let i = 0; i < 64; i++) {
      if (i < 16) W[i] = bytes.slice(start + 4 * i, start + 4 * i + 4).reduce((x, byte) => (x << 8) | byte, 0);
      else {
        const p = W[i - 15], q = W[i - 2];
        W[i] = W[i - 16] + (turn(p, 7) ^ turn(p, 18) ^ (p >>> 3)) + W[i - 7] + (turn(q, 17) ^ turn(q, 19) ^ (q >>> 10));
      }
      const one = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + K[i] + W[i]) | 0;
      const two = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [a, b, c, d, e, f, g, h] = [(one + two) | 0, a, b, c, (d + one) | 0, e, f, g];
    }
    [a, b, c, d, e, f, g, h].forEach((x, i) => { H[i] = (H[i] + x) | 0; });
  }
  return H.map((x) => (x >>> 0).toString(16).padStart(8, "0")).join("");
}
