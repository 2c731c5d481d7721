// The explorer's figures. Second of three parts of one module, see explorer_policy.js.
// Each is made once and keeps its svg, so that the keyboard's focus stays; update(now) draws it anew, in CSS pixels.
const NS = "http://www.w3.org/2000/svg";
const TIMES = 4; // the difference picture is brightened so much

function svg(tag, attributes, parent, text) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

// "layers.0.attention.to_q" is in block "layer 0"; Flux's blocks have names of their own.
const BLOCKS = { transformer_blocks: "double", single_transformer_blocks: "single", noise_refiner: "noise", context_refiner: "context" };
function blockOf(layer) {
  const [list, number] = layer.split(".");
  return `${BLOCKS[list] || list.replace(/s$/, "")} ${number}`;
}
const shortName = (layer) => `${blockOf(layer)} ${layer.split(".").slice(2).join(".")}`;

// Whole percents of these counts that add up to 100: the largest remainders are rounded up.
function percents(counts) {
  const total = counts.reduce((a, b) => a + b, 0), exact = counts.map((n) => (100 * n) / total), whole = exact.map(Math.floor);
  const order = exact.map((_, i) => i).sort((i, j) => exact[j] - whole[j] - (exact[i] - whole[i]));
  for (const i of order.slice(0, 100 - whole.reduce((a, b) => a + b, 0))) whole[i] += 1;
  return whole;
}

function inside(s, event) {
  return new DOMPoint(event.clientX, event.clientY).matrixTransform(s.getScreenCTM().inverse());
}

// JupyterLab has its own use for most keys.
function taken(event) {
  event.preventDefault();
  event.stopPropagation();
}

// ---- the policy: timesteps from left to right, layers from top to bottom -------------------------------------------

// paint(cells, digit, done): cells are [t, l]; done is false while a drag goes on. undo(): the drag was none.
function policyFigure(figure, paint, undo) {
  figure.innerHTML = `<figcaption><b>Activation bits</b> of every layer at every step:<span data-shares></span></figcaption>
    <div class="brush"><fieldset><legend>paint with</legend><span data-brushes></span></fieldset>
    <label><span>on</span><select data-reach><option value="cell">one cell</option>
    <option value="block">a block of layers, one step</option><option value="layer">a layer, all steps</option>
    <option value="step">a step, all layers</option></select></label></div>`;
  const readout = document.createElement("figcaption"), place = { t: 0, l: 0 }, group = Math.random().toString(36);
  readout.className = "readout";
  readout.setAttribute("aria-live", "polite");
  figure.append(readout); // above the map: below it, a tall map would push it out of sight
  const s = svg("svg", { tabindex: 0, role: "application", "aria-roledescription": "heat map" }, figure);
  let now = null, box = null, mark = null, last = null; // last: the cell of a drag under way
  const find = (selector) => figure.querySelector(selector), brush = () => find("[data-brush]:checked").value;
  const isNarrow = () => now.width < 480; // a phone's

  function brushes() {
    const made = ["", ...now.data.a_bits].map((bits, i) => `<label><input type="radio" name="${group}"
      data-brush="${bits}" value="${bits}" ${i ? "" : "checked"}>${bits ? `${bits} bits` : "nothing"}</label>`);
    find("[data-brushes]").innerHTML = made.join("");
    find("[data-brushes]").dataset.of = String(now.data.a_bits);
    if (isNarrow()) find("[data-reach]").value = "block"; // a finger hits no single cell
  }
  find("[data-reach]").addEventListener("change", () => point());
  s.style.touchAction = "pan-y"; // a finger paints from step to step; up and down it scrolls, with a brush too

  function cells(t, l) {
    const reach = find("[data-reach]").value, { layers, timesteps } = now.data;
    if (reach === "layer") return timesteps.map((_, i) => [i, l]);
    if (reach === "block") return layers.flatMap(([name], i) => (blockOf(name) === blockOf(layers[l][0]) ? [[t, i]] : []));
    return reach === "step" ? layers.map((_, i) => [t, i]) : [[t, l]];
  }

  function point() {
    const { layers, timesteps, fisher } = now.data, T = timesteps.length, L = layers.length;
    const t = (place.t = Math.min(Math.max(place.t, 0), T - 1)), l = (place.l = Math.min(Math.max(place.l, 0), L - 1));
    const [ts, ls] = [0, 1].map((i) => cells(t, l).map((cell) => cell[i])); // around all that a stroke would paint
    for (const [name, place, size, start] of [["x", ts, "width", box.left], ["y", ls, "height", box.top]]) {
      mark.setAttribute(name, start + Math.min(...place) * box[name]);
      mark.setAttribute(size, (Math.max(...place) - Math.min(...place) + 1) * box[name]);
    }
    const rank = 1 + fisher[t].filter((value) => value > fisher[t][l]).length;
    readout.textContent = `step ${t + 1} of ${T}, ${shortName(layers[l][0])}: ${now.bits[t][l]} bits. ` +
      `Fisher score ${fisher[t][l].toExponential(1)}, rank ${rank} of ${L} at this step.`;
  }

  function move(event) {
    const at = inside(s, event);
    place.t = Math.floor((at.x - box.left) / box.x);
    place.l = Math.floor((at.y - box.top) / box.y);
    point();
  }
  s.addEventListener("pointerdown", (event) => {
    move(event);
    if (!brush() || event.button) return;
    s.setPointerCapture(event.pointerId);
    last = { ...place };
    paint(cells(place.t, place.l), brush(), false);
  });
  s.addEventListener("pointermove", (event) => {
    move(event);
    if (!last) return;
    const far = Math.max(Math.abs(place.t - last.t), Math.abs(place.l - last.l)), line = [];
    for (let i = 1; i <= far; i++) {
      const between = (from, to) => Math.round(from + ((to - from) * i) / far);
      line.push(...cells(between(last.t, place.t), between(last.l, place.l)));
    }
    last = { ...place };
    if (far) paint(line, brush(), false);
  });
  for (const end of ["pointerup", "pointercancel"]) s.addEventListener(end, () => {
    if (last && end === "pointerup") paint([], brush(), true);
    else if (last) undo(); // the finger scrolls the page
    last = null;
  });
  s.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const end = { Home: 0, End: now.data.timesteps.length - 1 }[event.key];
    const stroke = [" ", "Enter"].includes(event.key); // without a brush too: a space would scroll the page
    const digit = now.data.a_bits.includes(Number(event.key)) ? event.key : stroke ? brush() : "";
    if (!step && end === undefined && !digit && !stroke) return;
    taken(event);
    if (step) [place.t, place.l] = [place.t + step[0], place.l + step[1]];
    if (end !== undefined) place.t = end;
    point();
    if (digit) paint(cells(place.t, place.l), digit, true);
    else if (event.shiftKey && brush()) paint(cells(place.t, place.l), brush(), true);
  });

  return (state) => {
    now = state;
    const { data, bits, colors, width } = now, { layers, timesteps } = data, T = timesteps.length, L = layers.length;
    if (find("[data-brushes]").dataset.of !== String(data.a_bits)) brushes();
    const left = 78, right = 20, y = isNarrow() ? Math.max(8, Math.round(400 / L)) : Math.max(5, Math.round(240 / L));
    box = { left, top: 4, x: (width - left - right) / T, y };
    const bottom = box.top + L * y, all = bits.join(""), used = [...new Set(all)].sort();
    const shares = percents(used.map((b) => all.split(b).length - 1)), share = (b, i) => `${b} bits, ${shares[i]} %`;
    find("[data-shares]").innerHTML =
      used.map((b, i) => `<span class="key" style="background:${colors[b]}"></span>${share(b, i)}`).join("");
    s.setAttribute("viewBox", `0 0 ${width} ${bottom + 34}`);
    s.setAttribute("aria-label", `policy, ${T} steps by ${L} layers: ${used.map(share).join("; ")}. Arrow keys move, ` +
      `${data.a_bits.join(", ")} set the bits, shift and an arrow key paints on.`);
    s.replaceChildren();
    for (const b of used) {
      let d = "";
      bits.forEach((row, t) => [...row].forEach((digit, l) => {
        if (digit === b) d += `M${left + t * box.x} ${box.top + l * y}h${box.x}v${y}h${-box.x}z`;
      }));
      svg("path", { d, fill: colors[b], "shape-rendering": "crispEdges", "data-bits": b }, s);
    }
    let above = -99;
    layers.forEach(([layer], l) => {
      if (l > 0 && blockOf(layer) === blockOf(layers[l - 1][0])) return;
      const at = box.top + l * y;
      if (at - above >= 12) svg("text", { x: left - 6, y: (above = at) + 10, "text-anchor": "end" }, s, blockOf(layer));
      if (l > 0) svg("path", { d: `M${left} ${at}H${width - right}`, stroke: "white", "stroke-width": 1 }, s);
    });
    const marks = width < 420 ? 2 : 4;
    for (const t of new Set(Array.from({ length: marks + 1 }, (_, i) => Math.round((i * (T - 1)) / marks))))
      svg("text", { x: left + (t + 0.5) * box.x, y: bottom + 13, "text-anchor": "middle" }, s, String(Number(timesteps[t].toPrecision(3))));
    svg("text", { x: (left + width - right) / 2, y: bottom + 29, "text-anchor": "middle" }, s, "timestep, from noise to image");
    mark = svg("rect", { fill: "none", stroke: "#D55E00", "stroke-width": 2 }, s);
    point();
  };
}

// ---- the frontier: average bits against accumulated error ----------------------------------------------------------

// choose(i): the i-th choice of the setting, by drag or arrow keys.
function frontFigure(figure, choose) {
  figure.innerHTML = `<figcaption><b>Pareto frontier.</b> Drag along it, or use the arrow keys.</figcaption>`;
  const s = svg("svg", { tabindex: 0, role: "slider", "aria-label": "choice on the Pareto frontier" }, figure);
  figure.insertAdjacentHTML("beforeend", `<figcaption>Grey: every complete path; blue: the best; rings: those with
    stored pictures; squares: fixed bits; orange: the one shown.</figcaption>`);
  let now = null, X = null, dragging = false;
  function nearest(event) {
    const { x } = inside(s, event), away = (choice) => Math.abs(X(choice.average_bits) - x);
    const { choices } = now.setting, least = Math.min(...choices.map(away)), same = away(choices[now.index]) <= least;
    if (!same) choose(choices.findIndex((choice) => away(choice) === least));
  }
  s.addEventListener("pointerdown", (event) => {
    s.setPointerCapture(event.pointerId);
    dragging = true;
    nearest(event);
  });
  s.addEventListener("pointermove", (event) => { if (dragging) nearest(event); });
  for (const end of ["pointerup", "pointercancel"]) s.addEventListener(end, () => { dragging = false; });
  s.addEventListener("keydown", (event) => {
    const { index, setting } = now, last = setting.choices.length - 1;
    const to = { ArrowLeft: index - 1, ArrowDown: index - 1, ArrowRight: index + 1, ArrowUp: index + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    taken(event);
    choose(Math.min(Math.max(to, 0), last));
  });

  return (state) => {
    now = state;
    const { setting, index, painted, width } = now, chosen = setting.choices[index];
    const all = [...setting.paths, ...setting.uniform], xs = all.map((p) => p[0]), ys = all.map((p) => Math.log10(p[1]));
    const box = { left: 66, top: 12, width: width - 90, height: 190 }, bottom = box.top + box.height;
    const range = (v) => [Math.min(...v), Math.max(...v)].map((x, i, [a, b]) => x + (i ? 1 : -1) * 0.06 * (b - a || 1));
    const [x0, x1] = range(painted === null ? xs : [...xs, painted]), [y0, y1] = range(ys);
    X = (x) => box.left + (box.width * (x - x0)) / (x1 - x0);
    const Y = (error) => box.top + (box.height * (y1 - Math.log10(error))) / (y1 - y0);
    s.setAttribute("viewBox", `0 0 ${width} ${bottom + 40}`);
    for (const [name, value] of Object.entries({ min: 0, max: setting.choices.length - 1, now: index,
      text: `budget ${chosen.budget} bits: ${chosen.average_bits.toFixed(3)} bits on average, error ${chosen.error.toPrecision(3)}` }))
      s.setAttribute(`aria-value${name}`, value);
    s.replaceChildren();
    svg("path", { d: `M${box.left} ${box.top}v${box.height}h${box.width}`, fill: "none", stroke: "currentColor" }, s);
    const step = x1 - x0 > 2.5 ? 1 : x1 - x0 > 0.7 ? 0.5 : 0.1;
    for (let x = Math.ceil(x0 / step); x * step <= x1; x++)
      svg("text", { x: X(x * step), y: bottom + 15, "text-anchor": "middle" }, s, (x * step).toFixed(1));
    for (let i = 0; i <= 3; i++) {
      const error = 10 ** (y0 + ((y1 - y0) * (i + 0.5)) / 4);
      svg("text", { x: box.left - 6, y: Y(error) + 4, "text-anchor": "end" }, s, error.toPrecision(2));
    }
    svg("text", { x: box.left + box.width / 2, y: bottom + 33, "text-anchor": "middle" }, s, "average activation bits");
    svg("text", { transform: `translate(14 ${box.top + box.height / 2}) rotate(-90)`, "text-anchor": "middle" }, s, "accumulated error");
    for (const [x, y] of setting.paths) svg("circle", { cx: X(x), cy: Y(y), r: 2.5, fill: "#8888" }, s);
    const corners = setting.front.map(([x, y], i) => (i ? `H${X(x)}V${Y(y)}` : `M${X(x)} ${Y(y)}`));
    svg("path", { d: corners.join(""), fill: "none", stroke: "#2A86C7", "stroke-width": 1.5 }, s);
    for (const [x, y] of setting.front) svg("circle", { cx: X(x), cy: Y(y), r: 3, fill: "#2A86C7" }, s);
    const rings = setting.choices.map((choice) => [X(choice.average_bits), Y(choice.error)]);
    for (const [x, y] of setting.uniform) {
      const places = [-6, 14, 4, -16, 24].flatMap((down) => [22.5, -22.5].map((right) => [X(x) + right, Y(y) + down]));
      const [middle, base] = places.find(([u, v]) => // of the words, about 28 by 11: the first that is inside and on no ring
        u - 14 > box.left && u + 14 < width && v > 10 && v < bottom - 2 &&
        rings.every(([a, b]) => Math.abs(a - u) > 14 + 8 || Math.abs(b - (v - 4)) > 7 + 8)) || places[0];
      svg("rect", { x: X(x) - 4, y: Y(y) - 4, width: 8, height: 8, fill: "none", stroke: "currentColor", "stroke-width": 1.5 }, s);
      svg("text", { x: middle, y: base, "text-anchor": "middle" }, s, `all ${x}`);
    }
    for (const [cx, cy] of rings) svg("circle", { cx, cy, r: 7, fill: "none", stroke: "#2A86C7", "stroke-width": 1.5 }, s);
    svg("circle", { cx: X(chosen.average_bits), cy: Y(chosen.error), r: 6, fill: "#D55E00", stroke: "white", "data-chosen": "" }, s);
    if (painted === null) return;
    svg("path", { d: `M${X(painted)} ${box.top}v${box.height}`, stroke: "#D55E00", "stroke-dasharray": "4 3", "data-painted": "" }, s);
    svg("text", { x: X(painted) + 4, y: box.top + 8, "text-anchor": "start" }, s, "yours");
  };
}

// ---- pictures ------------------------------------------------------------------------------------------------------

async function decode(base64) {
  const image = new Image();
  image.src = `data:image/${base64.startsWith("iVBOR") ? "png" : "webp"};base64,${base64}`;
  await image.decode();
  return image;
}

// Full precision, quantized and their difference; of a clip, whose frames are stored side by side, a frame at a time.
function pictureFigure(find) {
  const words = find("[data-clip]"), button = find("[data-do=play]"), less = matchMedia("(prefers-reduced-motion: reduce)");
  let images = {}, frames = 1, at = 0, timer = 0, drawn = 0, paused = less.matches;

  function show() {
    const frame = Math.min(at, frames - 1);
    for (const [name, image] of Object.entries(images)) {
      const canvas = find(`[data-picture=${name}]`);
      [canvas.width, canvas.height] = [image.width / frames, image.height];
      canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, -frame * canvas.width, 0);
    }
    words.hidden = frames === 1;
    find("[data-value=frame]").textContent = `frame ${frame + 1} of the ${frames} that are stored, from the clip's first to its last`;
  }
  function play() {
    clearInterval(timer);
    timer = frames > 1 && !paused && setInterval(() => {
      at = (at + 1) % (frames + 1); // the last one stays a little longer
      show();
    }, 500);
    button.textContent = paused ? "play" : "pause";
  }
  function pause(wanted) {
    paused = wanted;
    play();
  }
  button.addEventListener("click", () => pause(!paused));
  less.addEventListener("change", () => pause(less.matches));

  async function update(full, quantized, count) {
    const turn = ++drawn, [p, q] = (await Promise.all([decode(full), decode(quantized)])).map(pixels);
    if (turn !== drawn) return; // another choice was made meanwhile
    const difference = new ImageData(p.width, p.height);
    difference.data.forEach((_, i) => {
      difference.data[i] = i % 4 === 3 ? 255 : TIMES * Math.abs(p.data[i] - q.data[i]);
    });
    images = { full: p, quantized: q, difference };
    if (count !== frames) {
      [frames, at] = [count, 0];
      play();
    }
    show();
  }
  return { update, stop: () => pause(true) };
}

function pixels(image) {
  const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, image.width, image.height);
}
