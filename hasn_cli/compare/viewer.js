"use strict";

// Two pictures of the same size in one frame, with a divider between them. `hasn compare` and `hasn serve` share this
// file, viewer.css and viewer.html.

const at = (id) => document.getElementById(id);
const clamp = (value, least, most) => Math.min(most, Math.max(least, value));
const pixelRatio = () => window.devicePixelRatio || 1;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const pixels = ([rows, columns]) => `${columns} × ${rows}`;

at("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

const viewer = (() => {
  const stage = at("stage");
  const handle = at("handle");
  const images = [at("image-left"), at("image-right")];
  const tags = [at("tag-left"), at("tag-right")];
  const labels = ["", ""];
  let [height, width] = [1, 1];

  // split: where the divider stands, 0 to 1 of the stage; scale: CSS pixels for one of the picture's;
  // x, y: the picture's top left corner in the stage, in CSS pixels
  const state = { split: 0.5, scale: 1, x: 0, y: 0, fitted: true };
  const LARGEST = 32;
  const SHARP_FROM = 2; // device pixels for one of the picture's: from here on its pixels are shown as squares

  // --- the stage -------------------------------------------------------------------------------------------------

  function fitScale() {
    const fit = Math.min(stage.clientWidth / width, stage.clientHeight / height);
    const whole = Math.floor(fit * pixelRatio()) / pixelRatio(); // a small picture: whole device pixels, so that it is sharp
    return fit * pixelRatio() >= SHARP_FROM ? Math.min(whole, LARGEST) : fit;
  }

  function draw() {
    if (!stage.clientWidth) return; // it is hidden
    if (state.fitted) state.scale = fitScale();
    const size = [width * state.scale, height * state.scale];
    const room = [stage.clientWidth, stage.clientHeight];
    const place = (position, axis) =>
      size[axis] <= room[axis] ? (room[axis] - size[axis]) / 2 : clamp(position, room[axis] - size[axis], 0);
    state.x = place(state.x, 0);
    state.y = place(state.y, 1);
    const snap = (value) => Math.round(value * pixelRatio()) / pixelRatio();
    for (const image of images) {
      image.style.width = `${size[0]}px`;
      image.style.height = `${size[1]}px`;
      image.style.transform = `translate(${snap(state.x)}px, ${snap(state.y)}px)`;
    }
    stage.style.setProperty("--split", `${state.split * 100}%`);
    stage.classList.toggle("sharp", state.scale * pixelRatio() >= SHARP_FROM - 0.01);
    stage.classList.toggle("zoomed", size[0] > room[0] + 1 || size[1] > room[1] + 1);
    stage.classList.toggle("fitted", !stage.classList.contains("zoomed"));
    at("zoom-now").value = `${Math.round(state.scale * pixelRatio() * 100)} %`;
    drawDivider();
  }

  function drawDivider() {
    const percent = Math.round(state.split * 100);
    handle.setAttribute("aria-valuenow", percent);
    handle.setAttribute("aria-valuetext", `${labels[0]} on ${percent} %, ${labels[1]} on ${100 - percent} %`);
    const edge = state.split * stage.clientWidth;
    tags[0].classList.toggle("away", edge < tags[0].offsetWidth + 20);
    tags[1].classList.toggle("away", stage.clientWidth - edge < tags[1].offsetWidth + 20);
  }

  function moveDivider(split) {
    state.split = clamp(split, 0, 1);
    draw();
  }

  // Zoom to `scale` with the stage's point (x, y) held where it is.
  function zoomTo(scale, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
    const least = Math.min(fitScale(), 1 / pixelRatio());
    const next = clamp(scale, least, LARGEST);
    state.fitted = false;
    state.x = x - ((x - state.x) / state.scale) * next;
    state.y = y - ((y - state.y) / state.scale) * next;
    state.scale = next;
    draw();
  }

  function fit() {
    state.fitted = true;
    draw();
  }

  // The next zoom in whole device pixels up or down: 50 %, 100 %, 200 %, 300 %, 400 %, 600 %, …
  function zoomStep(direction) {
    const steps = [0.125, 0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32].map((step) => step / pixelRatio());
    const next = direction > 0
      ? steps.find((step) => step > state.scale * 1.01)
      : steps.findLast((step) => step < state.scale * 0.99);
    if (next) zoomTo(next);
  }

  function pan(dx, dy) {
    if (state.fitted && !stage.classList.contains("zoomed")) return;
    state.x += dx;
    state.y += dy;
    draw();
  }

  // Show the square with its top left corner at (left, top) and that side, in pixels of the picture, in the middle.
  function goTo({ left, top, side }) {
    const scale = Math.max(2, Math.floor(Math.min(stage.clientWidth, stage.clientHeight) * pixelRatio() / side / 1.5));
    state.fitted = false;
    state.scale = Math.min(scale, 8) / pixelRatio();
    state.split = 0.5;
    state.x = stage.clientWidth / 2 - (left + side / 2) * state.scale;
    state.y = stage.clientHeight / 2 - (top + side / 2) * state.scale;
    draw();
    at("viewer").scrollIntoView({ block: "start", behavior: "smooth" });
    handle.focus({ preventScroll: true });
  }

  // Begin with pictures of another size, as [height, width].
  function begin(size) {
    [height, width] = size;
    Object.assign(state, { split: 0.5, x: 0, y: 0, fitted: true });
    stage.style.aspectRatio = `${width} / ${height}`;
    draw();
  }

  // Show a picture on a side: 0 is left, 1 is right.
  function show(side, { src, alt, label }) {
    images[side].src = src;
    images[side].alt = alt;
    tags[side].textContent = labels[side] = label;
    drawDivider();
  }

  // --- hands -----------------------------------------------------------------------------------------------------

  const pointers = new Map(); // id → last [x, y] in the stage
  let grip = null; // "divider", "picture" or "pinch"
  let travelled = 0; // since the last press, CSS pixels: two quick drags are no double-click

  const inStage = (event) => {
    const box = stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    pointers.set(event.pointerId, inStage(event));
    travelled = 0;
    stage.setPointerCapture(event.pointerId);
    const onDivider = handle.contains(event.target);
    if (pointers.size === 2) grip = "pinch";
    else grip = onDivider || !stage.classList.contains("zoomed") ? "divider" : "picture";
    (grip === "divider" ? handle : stage).focus({ preventScroll: true });
    stage.classList.toggle("held", grip === "picture");
    if (grip === "divider" && !onDivider) moveDivider(inStage(event)[0] / stage.clientWidth);
  });

  stage.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const now = inStage(event);
    travelled += Math.hypot(now[0] - last[0], now[1] - last[1]);
    if (grip === "divider") moveDivider(now[0] / stage.clientWidth);
    if (grip === "picture") pan(now[0] - last[0], now[1] - last[1]);
    if (grip === "pinch") pinch(event.pointerId, last, now);
    pointers.set(event.pointerId, now);
  });

  function pinch(id, last, now) {
    const other = [...pointers].find(([key]) => key !== id)?.[1];
    if (!other) return;
    const ratio = Math.hypot(now[0] - other[0], now[1] - other[1]) / Math.hypot(last[0] - other[0], last[1] - other[1]);
    if (Number.isFinite(ratio)) zoomTo(state.scale * ratio, (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  }

  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, (event) => {
      pointers.delete(event.pointerId);
      grip = null;
      stage.classList.remove("held");
    });
  }

  stage.addEventListener("dblclick", (event) => {
    if (travelled > 4) return;
    const [x, y] = inStage(event);
    if (state.fitted) zoomTo(Math.max(2 * state.scale, 2 / pixelRatio()), x, y);
    else fit();
  });

  stage.addEventListener("wheel", (event) => {
    const meant = event.ctrlKey || event.metaKey || document.fullscreenElement; // a bare wheel scrolls the page
    if (!meant) return;
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    zoomTo(state.scale * Math.exp(-clamp(event.deltaY * lines, -120, 120) / 300), ...inStage(event));
  }, { passive: false });

  handle.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 0.1 : 0.01;
    const moves = {
      ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1,
    };
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    moveDivider(Math.round((state.split + moves[event.key]) * 1000) / 1000);
  });

  stage.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 200 : 50;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (event.target !== stage || !(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    pan(...moves[event.key]);
  });

  function fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else at("viewer").requestFullscreen?.().catch(() => {});
  }

  const keys = {
    "+": () => zoomStep(1), "=": () => zoomStep(1), "-": () => zoomStep(-1), 0: fit,
    1: () => zoomTo(1 / pixelRatio()), f: fullScreen, F: fullScreen,
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !stage.clientWidth) return;
    if (["SELECT", "INPUT"].includes(event.target.tagName)) return;
    keys[event.key]?.();
  });

  at("zoom-in").addEventListener("click", () => zoomStep(1));
  at("zoom-out").addEventListener("click", () => zoomStep(-1));
  at("zoom-fit").addEventListener("click", fit);
  at("zoom-one").addEventListener("click", () => zoomTo(1 / pixelRatio()));
  at("full").addEventListener("click", fullScreen);
  new ResizeObserver(draw).observe(stage);

  return { begin, show, goTo, keys };
})();
