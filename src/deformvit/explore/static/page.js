"use strict";
// The page's whole behaviour. Data come from the server it was loaded from, or from the file itself; both give the same
// views and answers (view.py). All places are [y, x] in pixels of what the network saw.

const COLOURS = ["#ff4d6d", "#4cc9f0", "#ffd166", "#80ed99", "#c77dff", "#ff9f1c"];
const SWITCHES = ["reference", "arrows", "deformed", "attention", "bias"];
const $ = (id) => document.getElementById(id);
const inside = JSON.parse($("data").textContent);

// ---- where data come from -------------------------------------------------------------------------------------------

const server = {
  async known() { return ask("api/known"); },
  async view(image, model, scale) {
    const where = `image=${image}&model=${model}&scale=${scale}`;
    const found = await ask(`api/view?${where}`);
    return { ...found, picture: `api/picture?${where}` };
  },
  async answer(image, model, scale, layer, query) {
    return ask(`api/attention?image=${image}&model=${model}&scale=${scale}&layer=${layer}&query=${query}`);
  },
  async open(file) {
    const headers = { "X-Deformvit": "1", "Content-Type": "application/octet-stream" };
    return ask(`api/image?name=${encodeURIComponent(file.name || "pasted")}`, { method: "POST", body: file, headers });
  },
};

async function ask(path, options) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer; is `deformvit explore` still running?");
  }
  const body = await reply.json().catch(() => ({ error: `the server answered with ${reply.status}` }));
  if (!reply.ok) throw new Error(body.error || `the server answered with ${reply.status}`);
  return body;
}

const file = {
  async known() { return { models: inside.models, images: inside.images.map((image, id) => ({ id, name: image.name })) }; },
  async view(image, model, scale) {
    const view = inside.images[image].views[model];
    if (scale === 1 || !view.scaled.length) return view;
    const near = view.scaled.reduce((a, b) => (Math.abs(b.scale - scale) < Math.abs(a.scale - scale) ? b : a));
    const layers = view.layers.map((layer, i) => ({ ...layer, deformed: near.deformed[i] }));
    return { ...view, layers, found: near.found };
  },
  async answer(image, model, scale, index, query) {
    const layer = inside.images[image].views[model].layers[index];
    const stored = layer.attention;
    if (!stored || scale !== 1) return null;
    const [height, width] = layer.map;
    const snap = (value, length) => Math.min(Math.round(value / stored.every), Math.ceil(length / stored.every) - 1);
    const row = snap(Math.floor(query / width), height), col = snap(query % width, width);
    const entry = row * Math.ceil(width / stored.every) + col;
    const heads = layer.heads, count = stored.number;
    const bytes = unpack(stored, "weights", Uint8Array), highest = unpack(stored, "highest", Float32Array);
    const range = (length) => Array.from({ length }, (_, i) => i);
    const weights = range(heads).map((m) => range(count).map(
      (n) => highest[entry * heads + m] * (bytes[(entry * heads + m) * count + n] / 255) ** 2));
    let bias = null;
    if (stored.bias) {
      const levels = unpack(stored, "bias", Uint8Array), [low, high] = stored.bias_range;
      bias = range(heads).map((m) => range(count).map((n) => low + (high - low) * levels[(entry * heads + m) * count + n] / 255));
    }
    let keys = layer.deformed || stored.shared;
    if (stored.keys) {
      const places = unpack(stored, "keys", Float32Array), sets = Math.max(...stored.set) + 1;
      keys = range(sets).map((s) => range(count).map((n) => {
        const at = 2 * ((entry * sets + s) * count + n);
        return [places[at], places[at + 1]];
      }));
    }
    const at = [layer.first[0] + row * stored.every * layer.step[0], layer.first[1] + col * stored.every * layer.step[1]];
    return { query: row * stored.every * width + col * stored.every, at, keys, set: stored.set, weights, bias };
  },
};

function unpack(stored, name, kind) {
  const ready = `${name} unpacked`;
  if (!stored[ready]) {
    const text = atob(stored[name]), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    stored[ready] = new kind(bytes.buffer);
  }
  return stored[ready];
}

const source = inside ? file : server;

// ---- state ----------------------------------------------------------------------------------------------------------

const state = { models: [], images: [], image: null, layer: "", head: -1, group: -1, point: [0.5, 0.5], scale: 1, panes: [] };

// Runs the newest call; what came while it ran is dropped but for the last. Twenty clicks a second ask what can be answered.
function newest(work) {
  let running = false, waiting = null;
  return async function call(...words) {
    if (running) { waiting = words; return; }
    running = true;
    try { await work(...words); } catch (error) { say(error.message, true); }
    running = false;
    if (waiting) { const next = waiting; waiting = null; call(...next); }
  };
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

function layerOf(pane) {
  const layers = pane.view ? pane.view.layers : [];
  const same = layers.find((layer) => layer.name === state.layer);
  if (same) return same;
  const map = state.panes[0].view.layers.find((layer) => layer.name === state.layer)?.map;
  return layers.filter((layer) => map && layer.map.join() === map.join()).pop() || layers[layers.length - 1];
}

function queryOf(pane) {  // the layer's query nearest to the chosen point
  const layer = layerOf(pane), view = pane.view;
  const cell = (axis, length) => {
    const pixel = state.point[axis] * (axis ? view.width : view.height);
    return Math.min(Math.max(Math.round((pixel - layer.first[axis]) / layer.step[axis]), 0), length - 1);
  };
  return cell(0, layer.map[0]) * layer.map[1] + cell(1, layer.map[1]);
}

// ---- loading --------------------------------------------------------------------------------------------------------

const load = newest(async () => {
  if (state.image === null) return;
  const { image, scale } = state;
  for (const pane of state.panes) {
    const view = await source.view(image, pane.model, scale);
    if (view.picture !== pane.shown && (!pane.view || pane.image !== image || view.changes)) {
      pane.bitmap = await picture(view.picture);
      pane.shown = view.picture;
    }
    Object.assign(pane, { view, image, scale, answer: null });
  }
  if (image !== state.image || scale !== state.scale || state.panes.some((pane) => !pane.view)) return;  // asked anew meanwhile
  fillChoices();
  if ($("status").classList.contains("bad") === false) say(state.images.find((entry) => entry.id === image)?.name || "");
  state.panes.forEach(showFound);
  await answers();
});

function picture(url) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => failed(new Error("the picture cannot be shown"));
    image.src = url;
  });
}

async function answers() {
  if ($("attention").checked || $("bias").checked) {
    for (const pane of state.panes) {
      if (!pane.view || !pane.view.layers.length) continue;
      const layer = layerOf(pane), query = queryOf(pane), key = [pane.image, pane.scale, layer.name, query].join();
      if (pane.key === key && pane.answer) continue;
      const answer = await source.answer(pane.image, pane.model, pane.scale, pane.view.layers.indexOf(layer), query);
      Object.assign(pane, { answer, key });
    }
  }
  draw();
}
const answerNewest = newest(answers);

function draw() {
  for (const pane of state.panes) {
    if (!pane.view) continue;
    const width = pane.canvas.clientWidth || 400, ratio = window.devicePixelRatio || 1;
    const margin = marginOf(), { height: h, width: w } = pane.view;
    pane.canvas.width = Math.round(width * ratio);
    pane.canvas.height = Math.round((width * ratio * h) / w);
    paint(pane.canvas.getContext("2d"), pane, pane.canvas.width, margin);
    pane.text.textContent = describe(pane);
  }
}

function marginOf() {  // how far points leave the image, in sides of it: alike in all panes, which are compared
  let far = 0.02;
  for (const pane of state.panes.filter((one) => one.view)) {
    const layer = layerOf(pane), { height, width } = pane.view;
    for (const group of (layer && layer.deformed) || []) {
      for (const [y, x] of group) far = Math.max(far, -y / height, y / height - 1, -x / width, x / width - 1);
    }
  }
  return Math.min(far + 0.02, 0.33);
}

// ---- drawing --------------------------------------------------------------------------------------------------------

function chosen(pane) {  // the weights, biases and keys of the chosen head or of all, as [y, x, weight, bias, set]
  const { answer } = pane, found = [];
  if (!answer) return found;
  const heads = answer.weights.length;
  if (state.head >= 0 && state.head < heads) {
    const set = answer.set[state.head];
    answer.keys[set].forEach(([y, x], n) => found.push(
      [y, x, answer.weights[state.head][n], answer.bias ? answer.bias[state.head][n] : 0, set]));
  } else {
    answer.keys.forEach((keys, set) => {
      const members = answer.set.flatMap((s, m) => (s === set ? [m] : []));
      keys.forEach(([y, x], n) => found.push([
        y, x, members.reduce((sum, m) => sum + answer.weights[m][n], 0) / heads,
        answer.bias ? members.reduce((sum, m) => sum + answer.bias[m][n], 0) / members.length : 0, set]));
    });
  }
  return found.filter((key) => state.group < 0 || key[4] === state.group);
}

function groupsShown(pane) {
  const layer = layerOf(pane);
  if (!layer || !layer.deformed) return [];
  if (state.group >= 0) return [state.group].filter((group) => group < layer.deformed.length);
  const perGroup = layer.heads / layer.deformed.length;
  if (state.head >= 0) return [Math.floor(state.head / perGroup)].filter((group) => group < layer.deformed.length);
  return layer.deformed.map((_, group) => group);
}

function paint(context, pane, size, margin) {
  const { view, bitmap, answer } = pane, layer = layerOf(pane);
  const unit = size / (view.width * (1 + 2 * margin)), tall = size * view.height / view.width;
  const place = ([y, x]) => [(x + margin * view.width) * unit, (y + margin * view.height) * unit];
  const dot = ([y, x], radius, fill) => {
    const [left, top] = place([y, x]);
    context.beginPath();
    context.arc(left, top, radius, 0, 7);
    context.fillStyle = fill;
    context.fill();
    context.stroke();
  };
  context.fillStyle = "#222";
  context.fillRect(0, 0, size, tall);
  context.imageSmoothingEnabled = bitmap.naturalWidth > 64;
  context.drawImage(bitmap, ...place([0, 0]), view.width * unit, view.height * unit);
  if (!layer) return;
  const attending = $("attention").checked && answer;
  if (attending) {
    context.fillStyle = "rgba(0, 0, 0, 0.45)";
    context.fillRect(...place([0, 0]), view.width * unit, view.height * unit);
  }
  context.strokeStyle = "rgba(0, 0, 0, 0.75)";
  context.lineWidth = Math.max(size / 700, 0.7);
  const groups = groupsShown(pane), points = layer.reference ? layer.reference.length * groups.length : 1;
  const small = Math.min(Math.max(size / (14 * Math.sqrt(points)), size / 400), size / 90);
  if ($("arrows").checked) groups.forEach((group) => layer.deformed[group].forEach((to, n) =>
    arrow(context, place(layer.reference[n]), place(to), small, COLOURS[group % COLOURS.length])));
  if ($("reference").checked && layer.reference) layer.reference.forEach((point) => dot(point, 0.7 * small, "#fff"));
  if ($("deformed").checked) groups.forEach((group) => layer.deformed[group].forEach((point) =>
    dot(point, small, COLOURS[group % COLOURS.length])));
  const keys = chosen(pane);
  if (attending) {
    const most = Math.max(...keys.map((key) => key[2]), 1e-12);
    const reach = Math.max(...keys.map((key) => Math.abs(key[3])), 1e-6);
    const largest = size / Math.min(Math.max(Math.sqrt(keys.length) * 1.6, 14), 34);
    const coloured = $("bias").checked && answer.bias;
    context.globalAlpha = 0.85;
    for (const [y, x, weight, bias, set] of keys.slice().sort((a, b) => a[2] - b[2])) {
      const radius = largest * Math.sqrt(weight / most);
      if (radius < size / 900) continue;
      dot([y, x], radius, coloured ? diverging(bias / reach) : COLOURS[set % COLOURS.length]);
    }
    context.globalAlpha = 1;
    if (coloured) legend(context, size, tall, reach);
    star(context, place(answer.at), size / 38);
  } else {
    const query = queryOf(pane);
    const at = [0, 1].map((a) => layer.first[a] + layer.step[a] * (a ? query % layer.map[1] : Math.floor(query / layer.map[1])));
    star(context, place(at), size / 38);
  }
}

function arrow(context, from, to, size, colour) {
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  if (length < 1) return;
  const [dx, dy] = [(to[0] - from[0]) / length, (to[1] - from[1]) / length], head = Math.min(size * 1.5, length / 2);
  for (const [stroke, wide] of [["rgba(0, 0, 0, 0.6)", size * 0.7], [colour, size * 0.35]]) {
    context.save();
    context.strokeStyle = stroke;
    context.lineWidth = Math.max(wide, 0.8);
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.moveTo(to[0] - head * (dx + 0.6 * dy), to[1] - head * (dy - 0.6 * dx));
    context.lineTo(...to);
    context.lineTo(to[0] - head * (dx - 0.6 * dy), to[1] - head * (dy + 0.6 * dx));
    context.stroke();
    context.restore();
  }
}

function star(context, [x, y], size) {
  context.beginPath();
  for (let i = 0; i < 10; i++) {
    const radius = i % 2 ? size * 0.42 : size, angle = Math.PI * (i / 5 - 0.5);
    context.lineTo(x + radius * Math.cos(angle), y + radius * Math.sin(angle));
  }
  context.closePath();
  context.fillStyle = "#fff";
  context.fill();
  context.stroke();
}

function diverging(t) {  // blue for -1, white for 0, red for 1
  const strong = Math.round(255 * (1 - Math.min(Math.abs(t), 1)));
  return t < 0 ? `rgb(${strong}, ${Math.round(strong + (255 - strong) * 0.4)}, 255)` : `rgb(255, ${Math.round(strong * 0.95)}, ${strong})`;
}

function legend(context, size, tall, reach) {
  const [wide, high, left, top] = [size * 0.3, size / 60, size * 0.68, tall - size / 25];
  for (let i = 0; i < 60; i++) {
    context.fillStyle = diverging(i / 29.5 - 1);
    context.fillRect(left + wide * i / 60, top, wide / 60 + 1, high);
  }
  context.fillStyle = "#fff";
  context.font = `${Math.round(size / 38)}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.fillText(`bias from -${reach.toFixed(2)} to ${reach.toFixed(2)}`, left + wide / 2, top - size / 90);
  context.textAlign = "start";
}

function describe(pane) {
  const layer = layerOf(pane);
  if (!layer) return "This model has no attention layers that can be shown.";
  const [height, width] = layer.map, query = pane.answer ? pane.answer.query : queryOf(pane);
  const where = `Query at row ${Math.floor(query / width) + 1}, column ${query % width + 1} of ${height} × ${width}`;
  if (!$("attention").checked) return `${where}.`;
  if (!pane.answer) {
    return `${where}. ` + (pane.scale === 1 ? "This file holds no attention of this layer." :
      "This file holds attention at full offsets only; `deformvit explore` computes it at any.");
  }
  const keys = chosen(pane).sort((a, b) => b[2] - a[2]);
  if (!keys.length) return `${where}. No keys of this head are in this group.`;
  const total = keys.reduce((sum, key) => sum + key[2], 0) || 1, few = Math.min(10, keys.length);
  const mass = keys.slice(0, few).reduce((sum, key) => sum + key[2], 0), [best] = keys;
  const bias = pane.answer.bias ? `, bias ${best[3].toFixed(2)}` : "";
  return `${where}. ${few} of ${keys.length} keys have ${(100 * mass / total).toFixed(0)} % of the attention; the strongest, ` +
    `${(100 * best[2] / total).toFixed(1)} %${bias}, lies at (${best[0].toFixed(0)}, ${best[1].toFixed(0)}).`;
}

// ---- controls -------------------------------------------------------------------------------------------------------

function options(select, entries, value) {
  const wanted = entries.map(([key, text]) => `${key}\n${text}`).join("\n\n");
  if (select.dataset.holds !== wanted) {
    select.replaceChildren(...entries.map(([key, text]) => new Option(text, key)));
    select.dataset.holds = wanted;
  }
  select.value = String(value);
}

function fillChoices() {
  const { layers, range } = state.panes[0].view;
  if (!layers.some((layer) => layer.name === state.layer)) {
    const moving = layers.filter((layer) => layer.deformed), pool = moving.length ? moving : layers;
    const last = pool[pool.length - 1];  // the last layer of the stage before the last says most
    state.layer = (pool.filter((layer) => layer.map[0] > last.map[0]).pop() || last || { name: "" }).name;
  }
  options($("layer"), layers.map((layer) => [layer.name, `${layer.label} · ${layer.kind} · ${layer.map.join(" × ")}`]), state.layer);
  const layer = layerOf(state.panes[0]), heads = layer ? layer.heads : 0, groups = layer && layer.deformed ? layer.deformed.length : 0;
  if (state.head >= heads) state.head = -1;
  if (state.group >= groups) state.group = -1;
  const numbered = (count, all) => [[-1, all], ...Array.from({ length: count }, (_, i) => [i, String(i + 1)])];
  options($("head"), numbered(heads, "all (mean)"), state.head);
  options($("group"), numbered(groups, groups ? "all" : "none"), state.group);
  $("group").disabled = !groups;
  const moves = layers.some((one) => one.deformed);
  $("scale").disabled = !moves;
  $("scale-text").textContent = !moves ? "none in this model" : range === null ? `${Math.round(100 * state.scale)} % of their length` :
    `s = ${(range * state.scale).toFixed(2)} of ${range}`;
}

function showFound(pane) {
  pane.found.replaceChildren(...pane.view.found.slice(0, 8).map((entry) => {
    const line = document.createElement("li"), [name, bar, text] = ["span", "div", "span"].map((tag) => document.createElement(tag));
    name.textContent = name.title = entry.name;
    text.textContent = entry.text;
    bar.className = "bar";
    bar.append(document.createElement("i"));
    bar.firstChild.style.width = `${100 * entry.value}%`;
    line.append(name, bar, text);
    return line;
  }));
}

function makePanes(models) {
  state.panes = models.map((model) => {
    const pane = { model, view: null, answer: null };
    const element = document.createElement("figure");
    element.className = "pane";
    pane.title = document.createElement("h2");
    pane.title.textContent = state.models[model];
    pane.canvas = document.createElement("canvas");
    pane.canvas.tabIndex = 0;
    pane.canvas.setAttribute("role", "application");
    pane.canvas.setAttribute("aria-label", `Image seen by ${state.models[model]}; arrow keys move the query`);
    pane.text = document.createElement("p");
    pane.text.className = "answer";
    pane.found = document.createElement("ol");
    pane.found.className = "found";
    element.append(pane.title, pane.canvas, pane.text, pane.found);
    const point = (event) => {
      if (!pane.view) return;
      const box = pane.canvas.getBoundingClientRect(), margin = marginOf();
      const share = (value) => Math.min(Math.max(value * (1 + 2 * margin) - margin, 0), 1);
      state.point = [share((event.clientY - box.top) / box.height), share((event.clientX - box.left) / box.width)];
      answerNewest();
    };
    pane.canvas.addEventListener("pointerdown", (event) => { pane.canvas.setPointerCapture(event.pointerId); point(event); });
    pane.canvas.addEventListener("pointermove", (event) => { if (event.buttons & 1) point(event); });
    pane.element = element;
    return pane;
  });
  $("panes").replaceChildren(...state.panes.map((pane) => pane.element));
}

function listImages() {
  options($("image"), state.images.map((image) => [image.id, image.name]), state.image);
}

async function open(chosenFile) {
  if (!chosenFile || inside) return;
  say(`Opening ${chosenFile.name || "image"}…`);
  try {
    const { id, name } = await source.open(chosenFile);
    state.images = (await source.known()).images;
    if (!state.images.some((image) => image.id === id)) state.images.push({ id, name });
    state.image = id;
    listImages();
    say(name);
    await load();
  } catch (error) {
    say(error.message, true);
  }
}

function download() {
  const wide = 1000, panes = state.panes.filter((pane) => pane.view), text = 26;
  const heights = panes.map((pane) => wide * pane.view.height / pane.view.width);
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
  canvas.width = wide * panes.length + 20 * (panes.length - 1);
  canvas.height = Math.max(...heights) + 4.6 * text;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  panes.forEach((pane, i) => {
    const layer = layerOf(pane), [best] = pane.view.found;
    context.save();
    context.translate(i * (wide + 20), 0);
    context.fillStyle = "#111";
    context.font = `600 ${text}px system-ui, sans-serif`;
    context.fillText(state.models[pane.model] + (best ? `: ${best.name} ${best.text}` : ""), 6, 1.2 * text, wide - 12);
    context.font = `${0.8 * text}px system-ui, sans-serif`;
    const head = state.head < 0 ? "all heads" : `head ${state.head + 1}`;
    if (layer) context.fillText(`${layer.label}, ${layer.kind}, ${head}; offsets × ${state.scale}`, 6, 2.3 * text, wide - 12);
    context.translate(0, 2.8 * text);
    context.beginPath();
    context.rect(0, 0, wide, heights[i]);
    context.clip();
    paint(context, pane, wide, marginOf());
    context.restore();
    context.fillStyle = "#444";
    context.font = `${0.62 * text}px system-ui, sans-serif`;
    context.fillText(describe(pane), i * (wide + 20) + 6, heights[i] + 3.9 * text, wide - 12);
  });
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    const name = (state.images.find((image) => image.id === state.image)?.name || "image").replace(/\.[^.]*$/, "");
    link.download = `${name}_${state.layer.replaceAll(".", "-") || "model"}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, "image/png");
}

function cycle(select, step) {
  if (!select.options.length || select.disabled) return;
  select.selectedIndex = (select.selectedIndex + step + select.options.length) % select.options.length;
  select.dispatchEvent(new Event("change"));
}

function slide(step) {
  $("scale").value = Number($("scale").value) + step;
  $("scale").dispatchEvent(new Event("input"));
}

function moveQuery(down, right) {
  const [pane] = state.panes, layer = pane.view && layerOf(pane);
  if (!layer) return;
  const query = queryOf(pane), [height, width] = layer.map;
  const row = Math.min(Math.max(Math.floor(query / width) + down, 0), height - 1), col = Math.min(Math.max(query % width + right, 0), width - 1);
  state.point = [(layer.first[0] + row * layer.step[0]) / pane.view.height, (layer.first[1] + col * layer.step[1]) / pane.view.width];
  answerNewest();
}

function listen() {
  $("layer").addEventListener("change", () => { state.layer = $("layer").value; state.head = state.group = -1; fillChoices(); answerNewest(); });
  $("head").addEventListener("change", () => { state.head = Number($("head").value); draw(); });
  $("group").addEventListener("change", () => { state.group = Number($("group").value); draw(); });
  for (const id of SWITCHES) $(id).addEventListener("change", () => answerNewest());
  $("scale").addEventListener("input", () => { state.scale = Number($("scale").value); fillChoices(); load(); });
  $("image").addEventListener("change", () => { state.image = Number($("image").value); say(""); load(); });
  $("compare").addEventListener("change", () => {
    const other = Number($("compare").value);
    makePanes(other < 0 ? [0] : [0, other]);
    load();
  });
  $("open").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => { open($("file").files[0]); $("file").value = ""; });
  $("download").addEventListener("click", download);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("resize", draw);
  document.addEventListener("dragover", (event) => { event.preventDefault(); if (!inside) document.body.classList.add("dropping"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    open(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => open(event.clipboardData.files[0]));
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("select, input[type=range]");
    if (event.ctrlKey || event.metaKey || event.altKey || (typing && event.key.startsWith("Arrow"))) return;
    if (event.target.closest("select")) return;  // letters choose an option there
    const back = event.shiftKey ? -1 : 1;
    const actions = {
      ArrowUp: () => moveQuery(-1, 0), ArrowDown: () => moveQuery(1, 0), ArrowLeft: () => moveQuery(0, -1), ArrowRight: () => moveQuery(0, 1),
      l: () => cycle($("layer"), back), h: () => cycle($("head"), back), g: () => cycle($("group"), back),
      "+": () => slide(0.05), "=": () => slide(0.05), "-": () => slide(-0.05),
      r: () => $("reference").click(), a: () => $("arrows").click(), d: () => $("deformed").click(), t: () => $("attention").click(),
      b: () => $("bias").click(),
    };
    const action = actions[event.key] || actions[event.key.toLowerCase()];
    if (action) { event.preventDefault(); action(); }
  });
}

async function start() {
  const known = await source.known();
  Object.assign(state, known, { image: known.images.length ? known.images[0].id : null });
  if (inside) $("open").hidden = true;
  if (inside && inside.show.length) SWITCHES.forEach((id) => { $(id).checked = inside.show.includes(id); });
  options($("compare"), [[-1, "nothing"], ...state.models.map((name, i) => [i, name]).slice(1)], state.models.length > 1 ? 1 : -1);
  $("compare-label").hidden = state.models.length < 2;
  makePanes(state.models.length > 1 ? [0, 1] : [0]);
  listImages();
  listen();
  if (state.image === null) say("Open an image, drop one here, or paste one.");
  await load();
}

start().catch((error) => say(error.message, true));
