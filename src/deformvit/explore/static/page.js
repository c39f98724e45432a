// ---- state ----------------------------------------------------------------------------------------------------------

const SWITCHES = ["reference", "arrows", "deformed", "attention", "bias"];
const state = {
  models: [], images: [], panes: [],
  image: null, compare: -1, layer: "", head: -1, group: -1, point: [0.5, 0.5], scale: 1,  // and the switches: in the address
};

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
  const same = layers.find((layer) => layer.label === state.layer);
  if (same) return same;
  const map = state.panes[0].view.layers.find((layer) => layer.label === state.layer)?.map;
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
  const slow = setTimeout(() => say("Computing…"), 600);
  try {
    for (const pane of state.panes) {
      const view = await source.view(image, pane.model, scale);
      if (view.picture !== pane.shown && (!pane.view || pane.image !== image || view.changes)) {
        pane.bitmap = await picture(view.picture);
        pane.shown = view.picture;
      }
      Object.assign(pane, { view, image, scale, answer: null });
    }
  } finally {
    clearTimeout(slow);
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
      const layer = layerOf(pane), query = queryOf(pane), key = [pane.image, pane.scale, layer.label, query].join();
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
    const { height, width } = pane.view;
    pane.element.style.setProperty("--ratio", width / height);
    pane.canvas.width = Math.round((pane.canvas.clientWidth || 400) * (window.devicePixelRatio || 1));
    pane.canvas.height = Math.round(pane.canvas.width * height / width);
    paint(pane.canvas.getContext("2d"), pane, pane.canvas.width);
    pane.groups.replaceChildren(...swatches(pane));
    pane.text.textContent = describe(pane);
    pane.size.textContent = `sees ${height} × ${width} pixels`;
  }
  remember();
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
  if (!state.panes[0].view) return;  // on its way
  const { layers, range, start } = state.panes[0].view;
  if (!layers.some((layer) => layer.label === state.layer)) state.layer = layers.length ? layers[start].label : "";
  options($("layer"), layers.map((layer) => [layer.label, `${layer.label} · ${layer.kind}`]), state.layer);
  const layer = layerOf(state.panes[0]), heads = layer ? layer.heads : 0, groups = layer && layer.deformed ? layer.deformed.length : 0;
  if (state.head >= heads) state.head = -1;
  if (state.group >= groups) state.group = -1;
  const numbered = (count, all) => [[-1, all], ...Array.from({ length: count }, (_, i) => [i, String(i + 1)])];
  options($("head"), numbered(heads, "all (mean)"), state.head);
  options($("group"), numbered(groups, groups ? "all" : "none"), state.group);
  $("group").disabled = !groups;
  const many = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  $("layer-facts").textContent = layer ? (layer.label.length > 24 ? `${layer.label}: ` : "") +  // paths may be wider than the menu
    `${layer.map.join(" × ")} positions, ${many(heads, "head")}` +
    (groups ? `, ${groups} × ${many(layer.reference.length, "point")}` : "") : "";
  const moves = layers.some((one) => one.deformed);
  $("scale").disabled = !moves;
  $("scale-text").textContent = !moves ? "none in this model" : range === null ? `${Math.round(100 * state.scale)} %` :
    `s = ${(range * state.scale).toFixed(2)} of ${range}`;
}

function showFound(pane) {
  const { verdict, range, layers } = pane.view, moves = layers.some((layer) => layer.deformed);
  const found = pane.view.found.map((entry) => ({ ...entry, texts: entry.texts.map((text) => text.replace(" %", "\u00a0%")) }));
  const make = (tag, text = "", kind = "") => Object.assign(document.createElement(tag), { textContent: text, className: kind });
  const names = moves ? [["Regular grid", range === null ? "0 %" : "s = 0"], ["Deformed", range === null ? "100 %" : `s = ${range}`]] : [["Prediction", ""]];
  const best = (scale) => found.reduce((a, b) => (b.values[scale] > a.values[scale] ? b : a));
  pane.cards.replaceChildren(...(found.length ? names : []).map(([name, s], i) => {
    const card = make("div", "", "card"), strongest = best(2 * i), value = make("span", strongest.texts[2 * i]);
    card.append(make("small", s ? `${name}, ${s}` : name), make("b", strongest.name), value);
    return card;
  }));
  pane.verdict.textContent = verdict || (found.length ? "" : "This model is a backbone: it predicts no classes.");
  const between = moves && pane.scale > 0 && pane.scale < 1;
  const heading = make("tr"), titles = moves ? [names[0][1], "now", names[1][1]] : [""];
  heading.append(make("th"), make("th"), ...titles.map((title, i) => make("th", i === 1 && !between ? "" : title)));
  pane.found.replaceChildren(...(found.length ? [heading] : []), ...found.map((entry) => {
    const line = make("tr"), name = make("th", entry.name), bars = make("td", "", "bars");
    for (const [kind, scale] of moves ? [["still", 0], ["now", 1]] : [["now", 1]]) {
      const bar = make("i", "", kind);
      bar.style.width = `${100 * entry.values[scale]}%`;
      bars.append(bar);
    }
    line.append(name, bars, ...titles.map((_, i) => make("td", i === 1 && !between ? "" : entry.texts[i])));
    return line;
  }));
}

function makePanes() {
  const models = state.compare < 0 ? [0] : [0, state.compare];
  state.panes = models.map((model) => {
    const pane = { model, view: null, answer: null };
    const make = (tag, kind) => Object.assign(document.createElement(tag), { className: kind });
    pane.element = make("figure", "pane");
    pane.title = make("h2", "");
    pane.size = make("small", "");
    pane.title.append(state.models[model], " ", pane.size);
    pane.canvas = make("canvas", "");
    pane.canvas.tabIndex = 0;
    pane.canvas.setAttribute("role", "application");
    pane.canvas.setAttribute("aria-label", `Image seen by ${state.models[model]}; arrow keys move the ★`);
    pane.groups = make("p", "groups");
    pane.text = make("p", "answer");
    pane.cards = make("div", "cards");
    pane.verdict = make("p", "verdict");
    pane.found = make("table", "found");
    const picture = make("div", "picture"), reading = make("div", "reading");
    picture.append(pane.canvas, pane.groups);
    reading.append(pane.cards, pane.verdict, pane.found, pane.text);
    pane.element.append(pane.title, picture, reading);
    const point = (event) => {
      if (!pane.view) return;
      const box = pane.canvas.getBoundingClientRect();
      const share = (value) => Math.min(Math.max(value * (1 + 2 * FRAME) - FRAME, 0), 1);
      state.point = [share((event.clientY - box.top) / box.height), share((event.clientX - box.left) / box.width)];
      answerNewest();
    };
    pane.canvas.addEventListener("pointerdown", (event) => { pane.canvas.setPointerCapture(event.pointerId); point(event); });
    pane.canvas.addEventListener("pointermove", (event) => { if (event.buttons & 1) point(event); });
    return pane;
  });
  $("panes").classList.toggle("one", models.length === 1);
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
  canvas.height = Math.max(...heights) + 5.8 * text;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  panes.forEach((pane, i) => {
    const layer = layerOf(pane), { found, layers } = pane.view, moves = layers.some((one) => one.deformed);
    const [best] = found.slice().sort((one, other) => other.values[1] - one.values[1]), said = best ? `: ${best.name} ${best.texts[1]}` : "";
    const write = (words, size, y, weight = 400) => {
      context.font = `${weight} ${size * text}px system-ui, sans-serif`;
      context.fillText(words, 6, y, wide - 12);
    };
    context.save();
    context.translate(i * (wide + 20), 0);
    context.fillStyle = "#111";
    write(state.models[pane.model] + said, 1, 1.2 * text, 600);
    const head = state.head < 0 ? "all heads" : `head ${state.head + 1}`;
    write((layer ? `${layer.label}, ${layer.kind}, ${head}` : "") + (moves ? `; ${$("scale-text").textContent}` : ""), 0.8, 2.3 * text);
    context.fillStyle = "#444";
    write(pane.view.verdict, 0.7, heights[i] + 3.9 * text);
    if ($("attention").checked) write(describe(pane), 0.7, heights[i] + (pane.view.verdict ? 5.1 : 3.9) * text);
    context.translate(0, 2.8 * text);
    context.beginPath();
    context.rect(0, 0, wide, heights[i]);
    context.clip();
    paint(context, pane, wide);
    context.restore();
  });
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    const name = (state.images.find((image) => image.id === state.image)?.name || "image").replace(/\.[^.]*$/, "");
    link.download = `${name}_${state.layer.replace(/[^\w-]+/g, "-") || "model"}.png`;
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
  $("image").addEventListener("change", () => { state.image = $("image").value; say(""); load(); });
  $("compare").addEventListener("change", () => {
    state.compare = Number($("compare").value);
    makePanes();
    load();
  });
  $("open").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => { open($("file").files[0]); $("file").value = ""; });
  $("download").addEventListener("click", download);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("resize", draw);
  window.addEventListener("hashchange", arrive);  // a person changed the address
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

async function arrive() {  // where the address leads
  const missing = restore();
  $("scale").value = state.scale;
  state.scale = Number($("scale").value);
  options($("compare"), [[-1, "nothing"], ...state.models.map((name, i) => [i, name]).slice(1)], state.compare);
  makePanes();
  listImages();
  say(missing, missing !== "");
  if (state.image === null) say(`${missing} Open an image, drop one here, or paste one.`.trim(), missing !== "");
  await load();
}

async function start() {
  const known = await source.known();
  Object.assign(state, known, { image: known.images.length ? known.images[0].id : null, compare: known.models.length > 1 ? 1 : -1 });
  $("compare-label").hidden = state.models.length < 2;
  if (inside) {
    $("open").hidden = true;
    $("scale").step = 1 / 8;
    SWITCHES.forEach((id) => { $(id).checked = inside.show.includes(id); });
  }
  listen();
  await arrive();
}

start().catch((error) => say(error.message, true));
