// The bit-budget explorer, for two hosts: anywidget with a kernel, and a plain page without one.
// Last of three parts of one module, see explorer_policy.js.
// model: { get(name), set(name, value), save_changes(), on("change:name", callback) }; see explorer.py for the names.

const CSS = `
.adatsq-explorer { font: 14px/1.4 system-ui, sans-serif; color: inherit; max-width: 760px; }
.adatsq-explorer .controls { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 6px 24px; }
.adatsq-explorer label { display: flex; gap: 8px; align-items: center; margin: 0; min-width: 0; }
.adatsq-explorer .controls .whole { grid-column: 1 / -1; }
.adatsq-explorer .controls label > span, .adatsq-explorer form label > span { min-width: 7.5em; }
.adatsq-explorer input[type=range] { flex: 1; min-width: 80px; accent-color: #D55E00; }
.adatsq-explorer output, .adatsq-explorer .facts b { font-variant-numeric: tabular-nums; }
.adatsq-explorer label output { min-width: 4em; }
.adatsq-explorer select, .adatsq-explorer input:is([type=text], [type=number]) { flex: 1; min-width: 0; font: inherit; color: inherit;
  background: transparent; border: 1px solid #8888; border-radius: 4px; padding: 2px 4px; }
.adatsq-explorer option { color: black; background: white; }
.adatsq-explorer button { font: inherit; color: inherit; background: #8882; border: 1px solid #8888; border-radius: 4px; padding: 2px 10px; }
.adatsq-explorer .clip { display: flex; gap: 12px; align-items: center; font-size: 12px; }
.adatsq-explorer .clip button { min-width: 5em; }
.adatsq-explorer [hidden] { display: none; }
.adatsq-explorer .together { display: grid; gap: 4px 24px; margin: 10px 0; }
.adatsq-explorer.broad .together { grid-template-columns: minmax(0, 3fr) minmax(0, 4fr); }
.adatsq-explorer .facts { display: grid; gap: 2px; margin: 8px 0; }
/* Two lines each, needed or not: the map below stays where it is while somebody paints on it. */
.adatsq-explorer .pictures figcaption, .adatsq-explorer .facts span:last-child { min-height: 2.8em; }
.adatsq-explorer .pictures, .adatsq-explorer .brush, .adatsq-explorer .actions, .adatsq-explorer form { display: flex; flex-wrap: wrap;
  gap: 6px 12px; align-items: center; margin: 4px 0; }
.adatsq-explorer .pictures { align-items: start; flex-wrap: nowrap; }
.adatsq-explorer form label { flex: 1 1 200px; }
.adatsq-explorer fieldset { border: 0; margin: 0; padding: 0; display: flex; gap: 8px; min-width: 0; }
.adatsq-explorer legend { float: left; padding: 0; margin: 0; width: auto; font: inherit; }
.adatsq-explorer [data-brushes] { display: flex; flex-wrap: wrap; gap: 2px 12px; }
.adatsq-explorer [data-brushes] label { gap: 3px; }
.adatsq-explorer figure { margin: 0 0 12px; padding: 0; max-width: 100%; }
.adatsq-explorer figcaption { font-size: 12px; font-weight: inherit; line-height: 1.4; text-align: left; color: inherit; padding: 2px 0; }
.adatsq-explorer .pictures figure { flex: 0 1 150px; min-width: 80px; margin: 0; }
.adatsq-explorer canvas { width: 100%; image-rendering: pixelated; display: block; }
.adatsq-explorer svg { width: 100%; display: block; }
.adatsq-explorer [data-figure=front] svg { touch-action: pan-y; cursor: ew-resize; }
.adatsq-explorer svg text { fill: currentColor; font-size: 11px; }
.adatsq-explorer :focus-visible, .adatsq-explorer svg:focus { outline: 2px solid #2A86C7; outline-offset: 2px; }
.adatsq-explorer .key { display: inline-block; width: 10px; height: 10px; border: 1px solid #8888; margin: 0 4px 0 10px; }
.adatsq-explorer .readout { min-height: 2.8em; }
html[data-theme=dark] .cell_output .text_html:has(.adatsq-explorer) { background: none !important;
  color: inherit !important; padding: 0 !important; }
`;

const FRAME = `
<div class="controls">
  <label><span>activation budget</span><input type="range" name="budget" min="0" step="1"><output></output></label>
  <label><span>model</span><select name="model"></select></label>
  <label><span>method</span><select name="method"></select></label>
  <label><span>weight bits</span><select name="w_bits"></select></label>
  <label><span>temperature τ</span><select name="tau"></select></label>
  <label><span>beam width</span><select name="beam"></select></label>
  <label class="whole"><span>prompt</span><select name="prompt"></select></label>
</div>
<div class="together"><figure data-figure="front"></figure><div>
<div class="pictures">
  <figure><canvas data-picture="full" role="img"></canvas><figcaption>full precision</figcaption></figure>
  <figure><canvas data-picture="quantized" role="img"></canvas><figcaption data-value="name"></figcaption></figure>
  <figure><canvas data-picture="difference" role="img"></canvas><figcaption>difference × ${TIMES}</figcaption></figure>
</div>
<div class="clip" data-clip hidden><button type="button" data-do="play">play</button><span data-value="frame"></span></div>
<div class="facts" aria-live="polite">
  <span>PSNR for this prompt <b data-value="psnr"></b></span>
  <span>average activation bits <b data-value="average"></b></span>
  <span>weighted by multiplications <b data-value="weighted"></b></span>
  <span>accumulated error <b data-value="error"></b></span>
  <span>memory of the transformer <b data-value="memory"></b></span>
  <span>score <b data-value="score"></b></span>
</div>
</div></div>
<form class="live" hidden>
  <label><span>another prompt</span><input type="text" name="text"></label><button>run live</button>
  <output aria-live="polite"></output>
</form>
<form class="search" hidden>
  <label><span>another budget</span><input type="number" name="wanted" min="3" max="8" step="0.01" required></label>
  <label><span>beam width</span><input type="number" name="width" min="1" max="64" step="1" value="4" required></label><button>search live</button>
</form>
<figure data-figure="policy"></figure>
<p class="note" aria-live="polite" data-value="note"></p>
<div class="actions"><button type="button" data-do="download">download this policy</button>
  <button type="button" data-do="reset" hidden>back to the stored policy</button></div>`;

// What tells one setting of a model from another, each offered as far as it is stored beside those before it.
const KEYS = {
  method: (method) => ({ ladder: "beam search, ladder of bits", paper: "beam search, default shares",
    lagrangian: "bits by carried error", uniform: "fixed bits" })[method] || method,
  w_bits: (bits) => `${bits} bits`,
  tau: (tau) => (tau === null ? "∞ (uniform)" : String(tau)),
  beam: (beam) => (beam === null ? "no beam" : String(beam)),
};

const interval = ({ value, ci_low, ci_high }) => `${value.toFixed(3)} [${ci_low.toFixed(3)}, ${ci_high.toFixed(3)}]`;
const clamp = (i, list) => Math.min(Math.max(i, 0), list.length - 1);

function render({ model, el }) {
  el.classList.add("adatsq-explorer");
  el.setAttribute("role", "group");
  el.setAttribute("aria-label", "Bit-budget explorer");
  el.innerHTML = `<style>${CSS}</style>${FRAME}`;
  // JupyterLab asks the element that has the focus, and none around it, whether it may take its keys for the notebook.
  el.addEventListener("focusin", (event) => { event.target.dataset.lmSuppressShortcuts = "true"; });
  const find = (selector) => el.querySelector(selector), control = (name) => find(`[name=${name}]`);
  const say = (name, text) => { find(`[data-value=${name}]`).textContent = text; };
  const models = model.get("data");
  let asked = 0, pictures = null, trouble = "", draft = null; // a painting under way, not yet told to the kernel
  let beam = null; // the last one chosen: a method without beams must not forget it
  models.forEach((data, i) => control("model").add(new Option(data.name, i)));

  function state() {
    const data = models[clamp(model.get("model"), models)], stored = data.settings[clamp(model.get("setting"), data.settings)];
    const weights = data.weights.find((w) => w.w_bits === stored.w_bits && w.tau === stored.tau);
    const choices = stored.choices.map(({ budget, policy }) => ({ budget, ...weights.policies[policy] }));
    const setting = { ...stored, choices }, index = clamp(model.get("budget"), choices), choice = choices[index];
    const p = clamp(model.get("prompt"), data.prompts), painted = draft || (model.get("painted").length ? model.get("painted") : null);
    return { data, setting, index, choice, weights, p, painted, bits: painted || choice.bits, live: model.get("live") };
  }

  function change(values) {
    for (const name in values) model.set(name, values[name]);
    model.save_changes();
    draw();
  }

  // Another stored point: a painting is left behind, the prompt stays.
  function go(values) {
    [draft, trouble] = [null, ""];
    change({ live: null, painted: [], ...values });
  }

  function options(name, texts, chosen) {
    const select = control(name), made = JSON.stringify(texts);
    if (select.dataset.made !== made) select.replaceChildren(...texts.map((text, i) => new Option(text, i)));
    select.dataset.made = made;
    select.value = chosen;
    select.disabled = texts.length === 1;
  }

  // Values of KEYS[i] among the settings that agree with the present one in all keys before it.
  function offered(data, setting, i) {
    const keys = Object.keys(KEYS), before = keys.slice(0, i);
    const same = data.settings.filter((s) => before.every((key) => s[key] === setting[key]));
    return [...new Set(same.map((s) => s[keys[i]]))];
  }

  // The setting most like the present one, and its budget nearest to the present one, among some of data's settings.
  function nearest(data, some) {
    const { setting, choice } = state(), keys = Object.keys(KEYS), wanted = { ...setting, beam: setting.beam ?? beam };
    const like = (s) => keys.reduce((sum, key, k) => sum + (s[key] === wanted[key] ? 2 ** (keys.length - k) : 0), 0);
    const best = some.reduce((a, b) => (like(b) > like(a) ? b : a));
    const away = best.choices.map((c) => Math.abs(c.budget - choice.budget));
    return { setting: data.settings.indexOf(best), budget: away.indexOf(Math.min(...away)) };
  }

  function choose(i, value) {
    const { data, setting } = state(), keys = Object.keys(KEYS), before = keys.slice(0, i);
    go(nearest(data, data.settings.filter((s) => s[keys[i]] === value && before.every((key) => s[key] === setting[key]))));
  }

  function facts({ data, choice, weights, p, painted, bits, live }) {
    const now = averages(data, bits);
    say("average", now.average.toFixed(3));
    say("weighted", now.weighted.toFixed(3));
    say("error", live ? `${live.error.toPrecision(3)}, live` : painted ? "not run" : choice.error.toPrecision(3));
    say("psnr", live ? `${live.psnr.toFixed(1)} dB, live` : painted ? "not run" : `${choice.psnr[p].toFixed(1)} dB`);
    const bytes = weights.transformer_bytes, full = (bytes * 16) / weights.effective_bits;
    say("memory", `${(bytes / 1e6).toFixed(2)} MB (16 bit: ${(full / 1e6).toFixed(1)} MB)`);
    const score = painted ? null : choice.score;
    say("score", score ? `${interval(score)}, full precision ${interval(data.score)}, ${score.n} prompts` : "not scored");
    let note = trouble;
    if (painted) {
      const [mine, theirs] = [painted, choice.bits].map((rows) => predictedError(data, weights, rows)), { agreement } = weights;
      note = mine === null ? "Your policy. No errors of single roundings are stored for this model, so nothing is predicted."
        : `Your policy. Predicted error of its activations: ${(mine / theirs).toFixed(3)} × the stored policy's, to first order, ` +
          `each rounding as if it were alone. ` + (agreement ? `How far to trust this: its rank correlation with the measured error is ` +
          `${agreement.rank_correlation.toFixed(2)} over the ${agreement.policies} policies stored for these weights.` : "");
    }
    say("note", note);
  }

  function draw() {
    const now = state(), { data, setting, choice, index, p, painted, bits, live } = now;
    const width = Math.max(280, Math.min(el.clientWidth || 640, 760));
    beam = setting.beam ?? beam;
    el.classList.toggle("broad", width >= 640); // the frontier beside the pictures, or above them: in sight while it is dragged
    control("model").value = models.indexOf(data);
    control("model").disabled = models.length === 1;
    Object.entries(KEYS).forEach(([key, name], i) => {
      const values = offered(data, setting, i);
      options(key, values.map(name), values.indexOf(setting[key]));
    });
    options("prompt", data.prompts.map((prompt) => prompt.text), p);
    const budget = control("budget"), text = `${choice.budget.toFixed(2)} bits`;
    [budget.max, budget.value, budget.nextElementSibling.textContent] = [setting.choices.length - 1, index, text];
    budget.setAttribute("aria-valuetext", text);
    facts(now);

    const shown = live || { full: data.prompts[p].image, image: choice.images[p], text: data.prompts[p].text };
    const bare = `W${setting.w_bits}A${(live ? averages(data, bits).average : choice.average_bits).toFixed(2)}`;
    const name = live ? `${bare}, live: ${shown.text}` : painted ? `${bare}, before your changes` : bare;
    say("name", name);
    for (const [picture, what] of [["full", "full precision"], ["quantized", name], ["difference", "difference"]])
      find(`[data-picture=${picture}]`).setAttribute("aria-label", `${shown.text}: ${what}`);
    if (pictures !== shown.full + shown.image) {
      pictures = shown.full + shown.image;
      drawPictures.update(shown.full, shown.image, data.frames);
    }
    drawPolicy({ data, bits, colors: model.get("colors"), width });
    const room = find("[data-figure=front]").clientWidth || width;
    drawFront({ setting, index, width: room, painted: painted && averages(data, bits).average });
    find("[data-do=reset]").hidden = !painted;
  }

  const drawPictures = pictureFigure(find);
  const drawPolicy = policyFigure(find("[data-figure=policy]"), (cells, digit, done) => {
    const { choice, bits } = state(), rows = bits.map((row) => [...row]);
    for (const [t, l] of cells) rows[t][l] = digit;
    const made = rows.map((row) => row.join("")), changed = String(made) !== String(choice.bits);
    draft = done ? null : made;
    if (done) change({ live: null, painted: changed ? made : [] });
    else draw();
  }, () => {
    draft = null;
    draw();
  });
  const drawFront = frontFigure(find("[data-figure=front]"), (budget) => go({ budget }));

  control("budget").addEventListener("input", () => go({ budget: Number(control("budget").value) }));
  control("model").addEventListener("change", async () => {
    const to = Number(control("model").value), turn = ++asked;
    try {
      if (models[to].load) models[to] = await models[to].load(); // a page has the data of one model at first
      if (turn === asked) go({ model: to, prompt: 0, ...nearest(models[to], models[to].settings) });
    } catch (error) {
      trouble = `${models[to].name} cannot be shown: ${error.message}`;
      draw();
    }
  });
  control("prompt").addEventListener("change", () => change({ live: null, prompt: Number(control("prompt").value) }));
  Object.keys(KEYS).forEach((key, i) => control(key).addEventListener("change", () => {
    const { data, setting } = state();
    choose(i, offered(data, setting, i)[Number(control(key).value)]);
  }));
  find("[data-do=reset]").addEventListener("click", () => go({}));
  find("[data-do=download]").addEventListener("click", () => {
    const { data, setting, bits } = state(), link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([policyFile(data, bits)], { type: "application/json" }));
    link.download = `${data.name}-policy-w${setting.w_bits}a${averages(data, bits).average.toFixed(2)}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // Both forms ask the kernel for a picture: of the policy shown, or of one that it is to search for.
  const status = find("form output");
  const forms = {
    live: ({ bits }) => ({ bits }),
    search: () => ({ budget: Number(control("wanted").value), beam: Number(control("width").value) }),
  };
  for (const [kind, what] of Object.entries(forms)) {
    const form = find(`form.${kind}`);
    form.hidden = !model.get("can_run");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const now = state(), { text, seed } = now.data.prompts[now.p], number = (model.get("request").number || 0) + 1;
      change({ request: { number, text: control("text").value.trim() || text, seed, ...what(now) } });
    });
  }
  model.on("change:status", () => { status.textContent = model.get("status"); });
  for (const name of ["model", "setting", "budget", "prompt", "painted", "live"]) model.on(`change:${name}`, () => draw());
  draw(); // at once: the observer's first call comes a moment after the lists can be touched
  const resized = new ResizeObserver(() => draw());
  resized.observe(el);
  return () => { // the widget is closed
    resized.disconnect();
    drawPictures.stop();
  };
}

export default { render };
