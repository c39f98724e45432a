// ---- the address: what is shown stands in its fragment, so that a reload or a link shows it again -------------------

function restore() {  // from the address; returns what it asks for that is not there, in words
  const asked = new URLSearchParams(location.hash.slice(1)), missing = [];
  const number = (name, low, high) => {
    const value = Number.parseFloat(asked.get(name));
    return value >= low && value <= high ? value : null;
  };
  if (asked.has("image")) {
    const image = state.images.find((entry) => entry.id === asked.get("image"));
    if (image) state.image = image.id;
    else missing.push(inside ? "The image of this address is not in this file." :
      "The image of this address is not open here: the server was started anew, or opened many others since. Please open it again.");
  }
  if (asked.has("compare")) {
    const model = state.models.indexOf(asked.get("compare"), 1);
    if (model < 0 && asked.get("compare")) missing.push(`The model ${asked.get("compare")} of this address is not loaded here.`);
    state.compare = model;
  }
  state.layer = asked.get("layer") ?? state.layer;
  state.head = (number("head", 0, 1e6) ?? 0) - 1;
  state.group = (number("group", 0, 1e6) ?? 0) - 1;
  state.point = [number("y", 0, 1) ?? state.point[0], number("x", 0, 1) ?? state.point[1]];
  state.scale = number("s", 0, 1) ?? state.scale;
  if (asked.has("show")) {
    const shown = asked.get("show").split(" ");
    SWITCHES.forEach((id) => { $(id).checked = shown.includes(id); });
  }
  return missing.join(" ");
}

let remembering = 0;
function remember() {  // after a moment: browsers refuse many changes of the address in a row
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    const [y, x] = state.point.map((share) => share.toFixed(4));
    const told = new URLSearchParams({
      image: state.image ?? "", layer: state.layer, head: state.head + 1, group: state.group + 1, y, x, s: state.scale,
      show: SWITCHES.filter((id) => $(id).checked).join(" "),
    });
    if (state.models.length > 1) told.set("compare", state.models[state.compare] ?? "");
    history.replaceState(null, "", `#${told}`);
  }, 200);
}
