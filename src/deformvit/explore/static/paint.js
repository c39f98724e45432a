// ---- drawing --------------------------------------------------------------------------------------------------------

const COLOURS = ["#ff4d6d", "#4cc9f0", "#ffd166", "#80ed99", "#c77dff", "#ff9f1c"];
const DRAWN = 60;  // keys: more of them would hide the picture, and the strongest tell most
const FRAME = 0.1;  // around the image, in sides of it: alike for all layers and scales, so that the picture stays in place

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

function swatches(pane) {  // which colour is which group, where the grid lies, and what hollow points are
  const layer = layerOf(pane), list = [];
  const entry = (text, colour) => {
    const item = document.createElement("span"), swatch = document.createElement("i");
    swatch.style.background = colour;
    item.append(swatch, text);
    list.push(item);
  };
  groupsShown(pane).forEach((group) => entry(`group ${group + 1}`, COLOURS[group % COLOURS.length]));
  const far = groupsShown(pane).flatMap((group) => layer.deformed[group]).filter((point) => beyond(point, pane.view)).length;
  if (list.length && layer.shift) entry(`grid ${layer.shift} pixels up and left: embeddings overlap`, "#fff");
  if (far) {
    entry(`${far} ${far === 1 ? "point lies" : "points lie"} farther out`, "none");
    list.at(-1).firstChild.className = "hollow";
  }
  return list;
}

function beyond([y, x], { height, width }) {  // outside the frame
  return y < -FRAME * height || y > (1 + FRAME) * height || x < -FRAME * width || x > (1 + FRAME) * width;
}

function paint(context, pane, size) {
  const { view, bitmap, answer } = pane, layer = layerOf(pane);
  const unit = size / (view.width * (1 + 2 * FRAME)), tall = size * view.height / view.width, edge = size / 110;
  const place = ([y, x]) => [[x, view.width, size], [y, view.height, tall]].map(([at, side, most]) =>
    Math.min(Math.max((at + FRAME * side) * unit, edge), most - edge));
  const dot = (point, radius, fill) => {
    context.save();
    context.beginPath();
    context.arc(...place(point), radius, 0, 7);
    context.fillStyle = fill;
    if (beyond(point, view)) {
      context.globalAlpha *= 0.3;
      context.fill();
      context.globalAlpha = 1;
      context.strokeStyle = fill;
    } else {
      context.fill();
    }
    context.stroke();
    context.restore();
  };
  const corner = place([0, 0]), sides = [view.width * unit, view.height * unit];
  context.fillStyle = "#22272e";
  context.fillRect(0, 0, size, tall);
  context.imageSmoothingEnabled = bitmap.naturalWidth > 64;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, ...corner, ...sides);
  if (!layer) return;
  const attending = $("attention").checked && answer;
  if (attending) {
    context.fillStyle = "rgba(0, 0, 0, 0.45)";
    context.fillRect(...corner, ...sides);
  }
  context.strokeStyle = "rgba(0, 0, 0, 0.75)";
  context.lineWidth = Math.max(size / 700, 0.7);
  const groups = groupsShown(pane), points = layer.reference ? layer.reference.length * groups.length : 1;
  const small = Math.min(Math.max(size / (9 * Math.sqrt(points)), size / 400), size / 90);
  const colour = (group) => COLOURS[group % COLOURS.length];
  if ($("arrows").checked) groups.forEach((group) => layer.deformed[group].forEach((to, n) =>
    arrow(context, place(layer.reference[n]), place(to), small, colour(group), !$("deformed").checked)));
  if ($("reference").checked && layer.reference) layer.reference.forEach((point) => dot(point, 0.7 * small, "#fff"));
  if ($("deformed").checked) groups.forEach((group) => layer.deformed[group].forEach((point) => dot(point, small, colour(group))));
  if (!attending) return;
  const keys = chosen(pane).sort((a, b) => a[2] - b[2]).slice(-DRAWN), strongest = keys.at(-1);
  const most = strongest ? Math.max(strongest[2], 1e-12) : 1;
  const reach = Math.max(...keys.map((key) => Math.abs(key[3])), 1e-6);
  const largest = size / Math.max(3.2 * Math.sqrt(keys.length), 18);
  const coloured = $("bias").checked && answer.bias;
  context.globalAlpha = 0.8;
  for (const [y, x, weight, bias, set] of keys) {
    const radius = largest * Math.sqrt(weight / most);
    if (radius >= size / 900) dot([y, x], radius, coloured ? diverging(bias / reach) : colour(set));
  }
  context.globalAlpha = 1;
  if (strongest) ring(context, place(strongest), largest, size / 250);
  if (coloured) legend(context, size, tall, reach);
  star(context, place(answer.at), size / 38);
}

function ring(context, [x, y], radius, wide) {  // around the strongest key
  context.save();
  context.beginPath();
  context.arc(x, y, radius + wide, 0, 7);
  context.strokeStyle = "#fff";
  context.lineWidth = wide;
  context.stroke();
  context.restore();
}

function arrow(context, from, to, size, colour, headed) {  // a moved point is its arrow's head, if it is drawn
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  if (length < 1) return;
  const [dx, dy] = [(to[0] - from[0]) / length, (to[1] - from[1]) / length], head = Math.min(size * 1.8, length / 2);
  context.save();
  context.lineCap = context.lineJoin = "round";
  for (const [stroke, wide] of [["rgba(0, 0, 0, 0.6)", size * 0.7], [colour, size * 0.35]]) {
    context.strokeStyle = stroke;
    context.lineWidth = Math.max(wide, 0.8);
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    if (headed) {
      context.moveTo(to[0] - head * (dx + 0.5 * dy), to[1] - head * (dy - 0.5 * dx));
      context.lineTo(...to);
      context.lineTo(to[0] - head * (dx - 0.5 * dy), to[1] - head * (dy + 0.5 * dx));
    }
    context.stroke();
  }
  context.restore();
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
  if (!$("attention").checked) return "Switch on the attention of the ★ and click the picture to see what a position reads.";
  const [height, width] = layer.map, query = pane.answer ? pane.answer.query : queryOf(pane);
  const where = `★ at row ${Math.floor(query / width) + 1}, column ${query % width + 1} of ${height} × ${width}`;
  if (!pane.answer) {
    return `${where}. ` + (pane.scale === 1 ? "This file holds no attention of this layer." :
      "This file holds attention at full deformation only; “deformvit explore” computes it at any.");
  }
  const keys = chosen(pane).sort((a, b) => b[2] - a[2]);
  if (!keys.length) return `${where}. No keys of this head are in this group.`;
  const total = keys.reduce((sum, key) => sum + key[2], 0) || 1, few = Math.min(10, keys.length);
  const mass = keys.slice(0, few).reduce((sum, key) => sum + key[2], 0), [best] = keys;
  const bias = pane.answer.bias ? `, with a position bias of ${best[3].toFixed(2)}` : "";
  return `${where}. ${few} of its ${keys.length} keys have ${(100 * mass / total).toFixed(0)} % of the attention; ` +
    `the strongest, ringed, has ${(100 * best[2] / total).toFixed(1)} %${bias}.` +
    (keys.length > DRAWN ? ` The ${DRAWN} strongest are drawn.` : "");
}
