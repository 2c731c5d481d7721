// The bit-budget explorer. One ES module for two hosts: anywidget with a kernel, and a plain page without one.
// model: { get(name), set(name, value), save_changes(), on("change:name", callback) }; see explorer.py for the names.
const NS = "http://www.w3.org/2000/svg";
const TIMES = 4; // the difference picture is brightened so much

const CSS = `
.adatsq-explorer { font: 14px/1.4 system-ui, sans-serif; color: inherit; max-width: 760px; }
.adatsq-explorer .controls { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 4px 24px; }
.adatsq-explorer label { display: flex; gap: 8px; align-items: center; margin: 0; }
.adatsq-explorer label > span { min-width: 7.5em; }
.adatsq-explorer input[type=range] { flex: 1; min-width: 80px; accent-color: #D55E00; }
.adatsq-explorer output, .adatsq-explorer .facts b { font-variant-numeric: tabular-nums; }
.adatsq-explorer label output { min-width: 4em; }
.adatsq-explorer select, .adatsq-explorer input[type=text] { flex: 1; min-width: 0; font: inherit; color: inherit;
  background: transparent; border: 1px solid #8888; border-radius: 4px; padding: 2px 4px; }
.adatsq-explorer option { color: black; background: white; }
.adatsq-explorer button { font: inherit; }
.adatsq-explorer .facts { display: flex; flex-wrap: wrap; gap: 2px 20px; margin: 10px 0; }
.adatsq-explorer .pictures { display: flex; flex-wrap: wrap; gap: 12px; }
.adatsq-explorer figure { margin: 0 0 12px; padding: 0; max-width: none; }
.adatsq-explorer figcaption { font-size: 12px; line-height: 1.4; text-align: left; color: inherit; padding: 2px 0; }
.adatsq-explorer canvas { width: 150px; height: 150px; image-rendering: pixelated; display: block; }
.adatsq-explorer svg { width: 100%; display: block; }
.adatsq-explorer svg text { fill: currentColor; font-size: 11px; }
.adatsq-explorer :focus-visible { outline: 2px solid #0072B2; outline-offset: 2px; }
.adatsq-explorer .key { display: inline-block; width: 10px; height: 10px; border: 1px solid #8888; margin: 0 4px 0 10px; }
.adatsq-explorer .readout { min-height: 2.8em; }
`;

const FRAME = `
<div class="controls">
  <label><span>activation budget</span><input type="range" name="budget" min="0" step="1"><output></output></label>
  <label><span>temperature τ</span><input type="range" name="tau" min="0" step="1"><output></output></label>
  <label><span>weight bits</span><select name="w_bits"></select></label>
  <label><span>prompt</span><select name="prompt"></select></label>
</div>
<form class="live" hidden>
  <label><span>another prompt</span><input type="text" name="text"><button>run live</button><output></output></label>
</form>
<div class="facts" aria-live="polite">
  <span>average activation bits <b data-value="average"></b></span>
  <span>weighted by multiplications <b data-value="weighted"></b></span>
  <span>accumulated error <b data-value="error"></b></span>
  <span>PSNR <b data-value="psnr"></b></span>
</div>
<div class="pictures">
  <figure><canvas data-picture="full" role="img"></canvas><figcaption>full precision</figcaption></figure>
  <figure><canvas data-picture="quantized" role="img"></canvas><figcaption data-value="name"></figcaption></figure>
  <figure><canvas data-picture="difference" role="img"></canvas><figcaption>difference × ${TIMES}</figcaption></figure>
</div>
<figure data-figure="policy"></figure>
<figure data-figure="front"></figure>`;

function svg(tag, attributes, parent, text) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

const shortName = (layer) =>
  layer.replace("single_transformer_blocks.", "single ").replace("transformer_blocks.", "double ").replace(".", " ");
const blockOf = (layer) => shortName(layer).split(" ").slice(0, 2).join(" ");
const tauName = (tau) => (tau === null ? "∞ (uniform)" : String(tau));

// ---- the policy: timesteps from left to right, layers from top to bottom -------------------------------------------

function drawPolicy(figure, data, choice, colors, place) {
  const { layers, timesteps, fisher } = data, T = timesteps.length, L = layers.length;
  const left = 70, top = 20, width = 540, cell = { x: width / T, y: 5 }, height = L * cell.y;
  const used = [...new Set(choice.bits.join(""))].sort();
  const share = (b) => choice.bits.join("").split(b).length - 1;
  const label = used.map((b) => `${b} bits ${Math.round((100 * share(b)) / (T * L))} %`).join(", ");
  figure.innerHTML = `<figcaption><b>Activation bits</b> of every layer at every step:
    ${used.map((b) => `<span class="key" style="background:${colors[b]}"></span>${b} bits,
    ${Math.round((100 * share(b)) / (T * L))} %`).join("")}</figcaption>`;
  const s = svg("svg", { viewBox: `0 0 ${left + width + 20} ${top + height + 34}`, tabindex: 0, role: "group",
    "aria-label": `policy, ${T} steps by ${L} layers: ${label}. Arrow keys move through it.` }, figure);
  for (const b of used) {
    let d = "";
    choice.bits.forEach((row, t) => [...row].forEach((digit, l) => {
      if (digit === b) d += `M${left + t * cell.x} ${top + l * cell.y}h${cell.x}v${cell.y}h${-cell.x}z`;
    }));
    svg("path", { d, fill: colors[b], "shape-rendering": "crispEdges" }, s);
  }
  layers.forEach((layer, l) => {
    if (l > 0 && blockOf(layer) === blockOf(layers[l - 1])) return;
    svg("text", { x: left - 6, y: top + l * cell.y + 10, "text-anchor": "end" }, s, blockOf(layer));
    if (l > 0) svg("path", { d: `M${left} ${top + l * cell.y}h${width}`, stroke: "white", "stroke-width": 1 }, s);
  });
  for (const t of new Set([0, 1, 2, 3, 4].map((i) => Math.round((i * (T - 1)) / 4))))
    svg("text", { x: left + (t + 0.5) * cell.x, y: top + height + 13, "text-anchor": "middle" }, s, timesteps[t].toFixed(2));
  svg("text", { x: left + width / 2, y: top + height + 29, "text-anchor": "middle" }, s, "timestep, from noise to image");
  const mark = svg("rect", { width: cell.x, height: cell.y, fill: "none", stroke: "#D55E00", "stroke-width": 2 }, s);
  const readout = document.createElement("figcaption");
  readout.className = "readout";
  readout.setAttribute("aria-live", "polite");
  figure.append(readout);

  function point() {
    const t = (place.t = Math.min(Math.max(place.t, 0), T - 1)), l = (place.l = Math.min(Math.max(place.l, 0), L - 1));
    mark.setAttribute("x", left + t * cell.x);
    mark.setAttribute("y", top + l * cell.y);
    const rank = 1 + fisher[t].filter((value) => value > fisher[t][l]).length;
    readout.textContent = `step ${t + 1} of ${T}, ${shortName(layers[l])}: ${choice.bits[t][l]} bits. ` +
      `Fisher score ${fisher[t][l].toExponential(1)}, rank ${rank} of ${L} at this step.`;
  }
  s.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(s.getScreenCTM().inverse());
    place.t = Math.floor((at.x - left) / cell.x);
    place.l = Math.floor((at.y - top) / cell.y);
    point();
  });
  s.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation(); // JupyterLab would move to another cell
    place.t += move[0];
    place.l += move[1];
    point();
  });
  point();
}

// ---- the frontier: average bits against accumulated error ----------------------------------------------------------

function drawFront(figure, setting, choice) {
  figure.innerHTML = `<figcaption><b>Pareto frontier</b>: every complete path, the best of them, uniform bits (squares),
    and the policy above (orange)</figcaption>`;
  const all = [...setting.paths, ...setting.uniform], xs = all.map((p) => p[0]), ys = all.map((p) => Math.log10(p[1]));
  const box = { left: 70, top: 12, width: 540, height: 190 };
  const range = (v) => [Math.min(...v), Math.max(...v)].map((x, i, [a, b]) => x + (i ? 1 : -1) * 0.06 * (b - a || 1));
  const [x0, x1] = range(xs), [y0, y1] = range(ys);
  const X = (x) => box.left + (box.width * (x - x0)) / (x1 - x0);
  const Y = (error) => box.top + (box.height * (y1 - Math.log10(error))) / (y1 - y0);
  const s = svg("svg", { viewBox: `0 0 640 ${box.top + box.height + 40}`, role: "img", "aria-label":
    `Pareto frontier of ${setting.front.length} paths; chosen: ${choice.average_bits.toFixed(2)} bits, error ${choice.error}` }, figure);
  svg("path", { d: `M${box.left} ${box.top}v${box.height}h${box.width}`, fill: "none", stroke: "currentColor" }, s);
  const step = x1 - x0 > 1 ? 0.5 : 0.1;
  for (let x = Math.ceil(x0 / step); x * step <= x1; x++)
    svg("text", { x: X(x * step), y: box.top + box.height + 15, "text-anchor": "middle" }, s, (x * step).toFixed(1));
  for (let i = 0; i <= 3; i++) {
    const error = 10 ** (y0 + ((y1 - y0) * (i + 0.5)) / 4);
    svg("text", { x: box.left - 6, y: Y(error) + 4, "text-anchor": "end" }, s, error.toPrecision(2));
  }
  svg("text", { x: box.left + box.width / 2, y: box.top + box.height + 33, "text-anchor": "middle" }, s, "average activation bits");
  svg("text", { transform: `translate(14 ${box.top + box.height / 2}) rotate(-90)`, "text-anchor": "middle" }, s, "accumulated error");
  for (const [x, y] of setting.paths) svg("circle", { cx: X(x), cy: Y(y), r: 2.5, fill: "#8888" }, s);
  const corners = setting.front.map(([x, y], i) => (i ? `H${X(x)}V${Y(y)}` : `M${X(x)} ${Y(y)}`));
  svg("path", { d: corners.join(""), fill: "none", stroke: "#0072B2", "stroke-width": 1.5 }, s);
  for (const [x, y] of setting.front) svg("circle", { cx: X(x), cy: Y(y), r: 3, fill: "#0072B2" }, s);
  for (const [x, y] of setting.uniform) {
    svg("rect", { x: X(x) - 4, y: Y(y) - 4, width: 8, height: 8, fill: "none", stroke: "currentColor", "stroke-width": 1.5 }, s);
    svg("text", { x: X(x) + 8, y: Y(y) - 4 }, s, `all ${x}`);
  }
  svg("circle", { cx: X(choice.average_bits), cy: Y(choice.error), r: 6, fill: "#D55E00", stroke: "white" }, s);
}

// ---- pictures ------------------------------------------------------------------------------------------------------

async function decode(base64) {
  const image = new Image();
  image.src = `data:image/png;base64,${base64}`;
  await image.decode();
  return image;
}

async function drawPictures(find, full, quantized, isCurrent) {
  const [a, b] = await Promise.all([decode(full), decode(quantized)]);
  if (!isCurrent()) return; // another choice was made meanwhile
  const pixels = [["full", a], ["quantized", b]].map(([name, image]) => {
    const canvas = find(`[data-picture=${name}]`), context = canvas.getContext("2d", { willReadFrequently: true });
    [canvas.width, canvas.height] = [image.width, image.height];
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, image.width, image.height);
  });
  const canvas = find("[data-picture=difference]"), [p, q] = pixels;
  [canvas.width, canvas.height] = [p.width, p.height];
  const difference = new ImageData(p.width, p.height);
  difference.data.forEach((_, i) => {
    difference.data[i] = i % 4 === 3 ? 255 : TIMES * Math.abs(p.data[i] - q.data[i]);
  });
  canvas.getContext("2d").putImageData(difference, 0, 0);
}

// ---- the whole -----------------------------------------------------------------------------------------------------

function render({ model, el }) {
  el.classList.add("adatsq-explorer");
  el.setAttribute("role", "group");
  el.setAttribute("aria-label", "Bit-budget explorer");
  el.innerHTML = `<style>${CSS}</style>${FRAME}`;
  const find = (selector) => el.querySelector(selector), stored = model.get("data");
  const controls = Object.fromEntries(["budget", "tau", "w_bits", "prompt"].map((name) => [name, find(`[name=${name}]`)]));
  const place = { t: 0, l: 0 }; // the cell of the heat map that is read out
  let drawn = 0;

  controls.budget.max = stored.budgets.length - 1;
  controls.tau.max = stored.taus.length - 1;
  stored.w_bits.forEach((bits, i) => controls.w_bits.add(new Option(`${bits} bits`, i)));
  stored.prompts.forEach((prompt, i) => controls.prompt.add(new Option(prompt.text, i)));

  function draw() {
    const at = Object.fromEntries(Object.keys(controls).map((name) => [name, model.get(name)]));
    for (const name in controls) controls[name].value = at[name];
    const show = (name, text) => {
      controls[name].nextElementSibling.textContent = text;
      controls[name].setAttribute("aria-valuetext", text);
    };
    show("budget", `${stored.budgets[at.budget].toFixed(2)} bits`);
    show("tau", tauName(stored.taus[at.tau]));

    const live = model.get("live"); // one setting, one choice, one prompt, in the form of the stored data
    const data = live || stored, p = live ? 0 : at.prompt;
    const setting = live ? live.settings[0]
      : stored.settings.find((s) => s.w_bits === stored.w_bits[at.w_bits] && s.tau === stored.taus[at.tau]);
    const choice = setting.choices[live ? 0 : at.budget], prompt = data.prompts[p], name =
      `W${setting.w_bits}A${choice.average_bits.toFixed(2)}`;
    find("[data-value=average]").textContent = choice.average_bits.toFixed(3);
    find("[data-value=weighted]").textContent = choice.flop_weighted_bits.toFixed(3);
    find("[data-value=error]").textContent = choice.error.toPrecision(3);
    find("[data-value=psnr]").textContent = `${choice.psnr[p].toFixed(1)} dB`;
    find("[data-value=name]").textContent = live ? `${name}, live: ${prompt.text}` : name;
    for (const [picture, text] of [["full", "full precision"], ["quantized", name], ["difference", "difference"]])
      find(`[data-picture=${picture}]`).setAttribute("aria-label", `${prompt.text}: ${text}`);
    const turn = ++drawn;
    drawPictures(find, prompt.image, choice.images[p], () => turn === drawn);
    drawPolicy(find("[data-figure=policy]"), data, choice, model.get("colors"), place);
    drawFront(find("[data-figure=front]"), setting, choice);
  }

  for (const name in controls) {
    controls[name].addEventListener("input", () => {
      model.set("live", null); // back to what is stored
      model.set(name, Number(controls[name].value));
      model.save_changes();
      draw();
    });
    model.on(`change:${name}`, draw);
  }
  const form = find("form"), status = find("form output");
  form.hidden = !model.get("can_run");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = find("[name=text]").value.trim() || stored.prompts[model.get("prompt")].text;
    model.set("request", { number: (model.get("request").number || 0) + 1, text });
    model.save_changes();
  });
  model.on("change:status", () => { status.textContent = model.get("status"); });
  model.on("change:live", draw);
  draw();
}

export default { render };
