
const data = JSON.parse(at("data").textContent);
const [height, width] = data.size;
const picks = [at("pick-left"), at("pick-right")];
const sides = [0, 1]; // the views that are shown left and right

// --- which views stand beside each other -------------------------------------------------------------------------

function show(side, index) {
  sides[side] = index;
  const view = data.views[index];
  viewer.show(side, { src: view.image, alt: `${data.name}, ${view.label}`, label: view.label });
  picks[side].value = index;
  at("legend").hidden = !sides.some((shown) => data.views[shown].isError);
}

function swap() {
  const [left, right] = sides;
  show(0, right);
  show(1, left);
}

// --- the rest of the page ----------------------------------------------------------------------------------------

function writeFacts() {
  at("name").textContent = data.name;
  const strong = (text) => make("b", { textContent: text });
  const facts = [strong(pixels(data.lrSize)), ` ${data.source} → `, strong(pixels(data.srSize)),
    ` pixels, ×${number(data.factor, Number.isInteger(data.factor) ? 0 : 2)}`];
  if (data.isPart) {
    facts.push(`. Shown is the part of ${pixels(data.size)} at ${data.origin[1]}, ${data.origin[0]} where they differ most.`);
  }
  at("facts").append(...facts);
  at("about").textContent = data.about;
}

function writeSpots() {
  if (!data.spots.length) {
    at("spots").replaceWith(make("p", { className: "note", textContent: "Nowhere: the two pictures are equal." }));
    return;
  }
  const shown = data.views.filter((view) => !view.isError).slice(0, 4);
  at("spots").style.setProperty("--wide", `${4 + 8.5 * shown.length}rem`);
  data.spots.forEach((spot, index) => {
    const canvases = shown.map(() => make("canvas"));
    const where = `${index + 1}. at ${spot.left + data.origin[1]}, ${spot.top + data.origin[0]}; ` +
      `mean difference ${number(spot.difference, 1)} grey levels`;
    const button = make("button", { type: "button", className: "spot", title: "Show it above" },
      make("span", { className: "pair" }, ...canvases),
      make("span", { className: "what" }, ...shown.map((view) => make("span", { textContent: view.label }))),
      make("span", { className: "where", textContent: where }));
    button.addEventListener("click", () => viewer.goTo(spot));
    at("spots").append(make("li", {}, button));
    canvases.forEach((canvas, order) => {
      const paint = () => paintSpot(canvas, sources.get(shown[order]), spot);
      new ResizeObserver(paint).observe(canvas);
      sources.get(shown[order]).decode().then(paint, () => {});
    });
  });
}

// The square around the spot's middle that fills the canvas with each pixel as a whole number of device pixels.
function paintSpot(canvas, image, spot) {
  const side = Math.round(canvas.clientWidth * pixelRatio());
  if (!side || !image.complete) return;
  const ratio = Math.max(1, Math.round(side / spot.side));
  const seen = Math.min(side / ratio, width, height);
  const from = (start, length) => clamp(Math.round(start + spot.side / 2 - seen / 2), 0, length - seen);
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(image, from(spot.left, width), from(spot.top, height), seen, seen, 0, 0, side, side);
}

function writeFigures() {
  const rows = data.views.filter((view) => !view.isError);
  const columns = [["", (view) => view.label], ["", (view) => view.detail]];
  const figure = (title, key, digits, unit) => {
    if (rows.some((view) => view[key] != null)) {
      const text = (value) => (value === data.infinite ? "∞" : number(value, digits)) + unit;
      columns.push([title, (view) => (view[key] == null ? "" : text(view[key])), key]);
    }
  };
  figure("Time", "seconds", 2, " s");
  figure("Output", "speed", 2, " MP/s");
  figure("PSNR-Y", "psnr", 2, " dB");
  figure("SSIM-Y", "ssim", 4, "");
  const best = (key) => (["psnr", "ssim"].includes(key) ? Math.max(...rows.map((view) => view[key] ?? -1)) : NaN);
  const cell = ([, text, key], view, index) => make(index ? "td" : "th", {
    textContent: text(view), scope: index ? "" : "row",
    className: (key ? "number" : "") + (key && view[key] === best(key) ? " best" : ""),
  });
  const head = columns.map(([title, , key]) => make("th", { textContent: title, scope: "col", className: key ? "number" : "" }));
  at("figures").append(
    make("thead", {}, make("tr", {}, ...head)),
    make("tbody", {}, ...rows.map((view) => make("tr", {}, ...columns.map((column, index) => cell(column, view, index))))),
  );
}

// --- begin -------------------------------------------------------------------------------------------------------

const sources = new Map(data.views.map((view) => [view, Object.assign(new Image(), { src: view.image })]));

picks.forEach((pick, side) => {
  pick.append(...data.views.map((view, index) => new Option(view.label, index)));
  pick.addEventListener("change", () => show(side, Number(pick.value)));
});
at("swap").addEventListener("click", swap);
viewer.keys.s = viewer.keys.S = swap;
at("ramp").style.background = data.ramp.css;
at("ramp-end").textContent = data.ramp.end;
viewer.begin(data.size);
show(0, 0);
show(1, 1);
writeFacts();
writeSpots();
writeFigures();
