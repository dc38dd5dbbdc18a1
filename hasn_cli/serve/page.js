
const data = JSON.parse(at("data").textContent);
const group = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const UPLOADS = 2; // at a time
const THUMB = 560; // pixels
const ENDINGS = new Set(data.endings); // of files that the server reads
const SHOWN = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/avif", "image/bmp"]; // by every browser
const LOSSLESS = ["png", "tif"];
const OPEN = ["queued", "uploading", "waiting", "running"]; // states of a picture that is not over

const entries = []; // one for each picture, in the order in which they were added
const byJob = new Map(); // the server's id → entry
const early = new Map(); // news of jobs whose id is not known yet
let events = null;
let shown = null; // the entry in the viewer
let sending = 0;

// --- words -------------------------------------------------------------------------------------------------------

const bytes = (count) => (count < 1e6 ? `${number(count / 1e3)} kB` : `${number(count / 1e6, 1)} MB`);
const seconds = (count) => (count < 10 ? `${number(count, 2)} s` : count < 60 ? `${number(count, 1)} s` :
  `${Math.floor(count / 60)}:${String(Math.round(count % 60)).padStart(2, "0")} min`);
const many = (count) => (count === 1 ? "1 picture" : `${count} pictures`);
const inWords = (hint) => hint?.replace(/format=(\w+)/g, "the format $1").replace(/^use the/, "choose the") ?? "";
const withoutName = (error, name) => (error?.startsWith(`${name}: `) ? error.slice(name.length + 2) : error);
const say = (text) => { at("live").textContent = text; };
const ending = (name) => name.split(".").pop().toLowerCase();

function stateWords(entry) {
  const job = entry.job;
  switch (entry.state) {
    case "queued": return entry.note || "Waiting to be sent";
    case "uploading": return `Sending, ${Math.round(entry.sent * 100)} %`;
    case "waiting": return "Waiting";
    case "running": return job?.target_size ? `Computing, ${Math.round(job.progress * 100)} %` : "Opening";
    case "done": return [job.type.replace("image/", "").replace("x-", "").toUpperCase(), bytes(job.bytes), seconds(job.seconds),
      ...job.notices].join(" · ");
    case "cancelled": return "Cancelled";
    default: return entry.error;
  }
}

// --- adding pictures ---------------------------------------------------------------------------------------------

function settings() {
  const chosen = { scale: at("scale").value, weights: at("weights").value };
  if (at("format").value) chosen.format = at("format").value;
  if (at("quality").value && !at("quality").disabled) chosen.quality = at("quality").value;
  if (at("strip").checked) chosen.strip = "true";
  return chosen;
}

function add(files, { pickOut = false } = {}) {
  const wanted = files.filter(({ name }) => !pickOut || (ENDINGS.has(ending(name)) && !name.split("/").pop().startsWith(".")));
  const left = files.length - wanted.length;
  if (!wanted.length) {
    if (files.length) say("There are no pictures among these files.");
    complain(files.length ? "There are no pictures among these files." : "");
    return;
  }
  complain("");
  if (!at("quality").checkValidity()) at("quality").value = "";
  for (const { file, name } of wanted) {
    const entry = { file, name, state: "queued", settings: settings(), sent: 0, job: null, viewable: null };
    entries.push(entry);
    makeCard(entry);
    thumbs.push(entry);
  }
  listen();
  say(`${many(wanted.length)} added.${left ? ` ${left} other files were left out.` : ""}`);
  drawThumbs();
  send();
  summarise();
}

const plain = (list) => [...list].map((file) => ({ file, name: file.webkitRelativePath || file.name }));

// The files of what was dropped, with those in folders.
async function dropped(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const roots = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile()); // now: later they are gone
  const found = [];
  let inFolder = false;
  const walk = async (entry, path) => {
    if (entry instanceof File) found.push({ file: entry, name: entry.name });
    else if (entry.isFile) {
      const file = await new Promise((give) => entry.file(give, () => give(null)));
      if (file) found.push({ file, name: path + entry.name });
    } else {
      inFolder = true;
      const reader = entry.createReader();
      for (;;) {
        const some = await new Promise((give) => reader.readEntries(give, () => give([])));
        if (!some.length) break;
        for (const below of some) await walk(below, `${path}${entry.name}/`);
      }
    }
  };
  for (const root of roots) if (root) await walk(root, "");
  return [found, inFolder];
}

// --- sending and hearing -----------------------------------------------------------------------------------------

function send() {
  while (sending < UPLOADS) {
    const entry = entries.find((one) => one.state === "queued" && !(one.notBefore > Date.now()));
    if (!entry) return;
    sending += 1;
    upload(entry).finally(() => {
      sending -= 1;
      send();
    });
  }
}

async function upload(entry) {
  change(entry, { state: "uploading", sent: 0, note: "" });
  if (entry.file.size > data.upload) {
    change(entry, { state: "failed", error: `The file is larger than ${bytes(data.upload)}, the limit of this server.` });
    return;
  }
  const wishes = new URLSearchParams({ ...entry.settings, name: entry.name, group });
  const answer = await new Promise((give) => {
    const request = new XMLHttpRequest();
    entry.request = request;
    request.open("POST", `/jobs?${wishes}`);
    request.responseType = "json";
    request.upload.onprogress = (event) => change(entry, { sent: event.loaded / event.total });
    request.onloadend = () => give({ status: request.status, content: request.response, retry: request.getResponseHeader("Retry-After") });
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(entry.file);
  });
  entry.request = null;
  const { status, content, retry } = answer;
  if (status === 202) {
    if (entry.state === "cancelled" || entry.removed) {
      forget(content.id);
      return;
    }
    byJob.set(content.id, entry);
    hear(early.get(content.id) ?? content);
    early.delete(content.id);
  } else if (entry.state === "cancelled" || entry.removed) {
    return;
  } else if (status === 429) {
    const pause = Number(retry) || 5;
    change(entry, { state: "queued", note: "Waiting for a place in the queue", notBefore: Date.now() + 1000 * pause });
    setTimeout(send, 1000 * pause + 50);
  } else if (status === 0) {
    change(entry, { state: "failed", error: "It could not be sent. Is the server still running?" });
  } else {
    change(entry, { state: "failed", error: content?.error ?? `The server answered ${status}.`, hint: inWords(content?.hint) });
  }
}

function listen() {
  if (events) return;
  events = new EventSource(`/groups/${group}/events`);
  events.addEventListener("job", (event) => hear(JSON.parse(event.data)));
  events.onerror = () => complain("The server does not answer. This page tries again until it does.");
  events.onopen = () => {
    complain("");
    for (const entry of entries) if (entry.job && OPEN.includes(entry.state)) askAbout(entry);
  };
}

async function askAbout(entry) {
  const answer = await fetch(`/jobs/${entry.job.id}`).catch(() => null);
  if (answer?.ok) hear(await answer.json());
  else if (answer?.status === 404) change(entry, { state: "failed", error: "The server was started again, and knows nothing of it." });
}

function hear(job) {
  const entry = byJob.get(job.id);
  if (!entry) {
    early.set(job.id, job);
    return;
  }
  const was = entry.state;
  if (was === "cancelled" && job.state !== "cancelled") return;
  change(entry, { job, state: job.state, error: withoutName(job.error, entry.name), hint: inWords(job.hint) });
  if (entry.viewable === false) serverThumb(entry);
  if (was !== entry.state && entry.state === "failed") say(`${entry.name} failed: ${entry.error}`);
  if (was !== entry.state && entry.state === "done") {
    const open = entries.filter((one) => OPEN.includes(one.state)).length;
    say(open ? `${entry.name} is done.` : `${entry.name} is done, and so are all pictures.`);
    if (!shown && entries.length === 1) open_(entry, { quietly: true });
  }
}

const forget = (id) => fetch(`/jobs/${id}`, { method: "DELETE" }).catch(() => {});

function cancel(entry) {
  entry.request?.abort();
  if (entry.job) forget(entry.job.id);
  change(entry, { state: "cancelled" });
}

function again(entry) {
  if (entry.job) {
    byJob.delete(entry.job.id);
    forget(entry.job.id);
  }
  if (shown === entry) close();
  change(entry, { state: "queued", settings: settings(), job: null, error: null, hint: "", sent: 0 });
  send();
}

function remove(entry) {
  entry.removed = true;
  entry.request?.abort();
  if (entry.job) {
    byJob.delete(entry.job.id);
    forget(entry.job.id);
  }
  if (entry.url) URL.revokeObjectURL(entry.url);
  if (shown === entry) close();
  entries.splice(entries.indexOf(entry), 1);
  entry.card.remove();
  summarise();
}

function symbol(path) {
  const space = "http://www.w3.org/2000/svg";
  const drawn = document.createElementNS(space, "svg");
  drawn.setAttribute("viewBox", "0 0 20 20");
  drawn.setAttribute("aria-hidden", "true");
  drawn.append(document.createElementNS(space, "path"));
  drawn.firstChild.setAttribute("d", path);
  return drawn;
}

// --- cards -------------------------------------------------------------------------------------------------------

function makeCard(entry) {
  const parts = {
    thumb: make("button", { type: "button", className: "thumb", disabled: true }),
    blank: make("span", { className: "blank", textContent: ending(entry.name).toUpperCase().slice(0, 5) }),
    size: make("span", { className: "size", hidden: true }),
    progress: make("progress", { max: 1, value: 0 }),
    name: make("p", { className: "name", textContent: entry.name, title: entry.name }),
    state: make("p", { className: "state" }),
    hint: make("p", { className: "hint", hidden: true }),
    compare: make("button", { type: "button", textContent: "Compare" }),
    save: make("a", { className: "button", textContent: "Download" }),
    again: make("button", { type: "button" }),
    cancel: make("button", { type: "button", textContent: "Cancel" }),
    remove: make("button", { type: "button", className: "symbol", title: "Remove" }, symbol("m5 5 10 10M15 5 5 15")),
  };
  parts.thumb.append(parts.blank, parts.size);
  parts.progress.setAttribute("aria-label", `Progress of ${entry.name}`);
  for (const act of ["compare", "save", "cancel", "remove"]) {
    parts[act].setAttribute("aria-label", `${parts[act].textContent || parts[act].title}: ${entry.name}`);
  }
  parts.thumb.setAttribute("aria-label", `Before and after: ${entry.name}`);
  parts.thumb.addEventListener("click", () => open_(entry));
  parts.compare.addEventListener("click", () => open_(entry));
  parts.again.addEventListener("click", () => again(entry));
  parts.cancel.addEventListener("click", () => cancel(entry));
  parts.remove.addEventListener("click", () => remove(entry));
  entry.parts = parts;
  entry.card = make("li", { className: "card" }, parts.thumb, parts.progress,
    make("div", { className: "words" }, parts.name, parts.state, parts.hint),
    make("div", { className: "acts" }, parts.compare, parts.save, parts.again, parts.cancel, parts.remove));
  at("list").append(entry.card);
  drawCard(entry);
}

function change(entry, news) {
  const was = entry.state;
  Object.assign(entry, news);
  drawCard(entry);
  if (was !== entry.state) summarise();
}

function drawCard(entry) {
  const { parts, state, job } = entry;
  const focused = document.activeElement;
  const done = state === "done";
  const open = OPEN.includes(state);
  entry.card.className = `card ${state}`;
  parts.state.replaceChildren(
    make("span", { className: "dims", textContent: done ? `${pixels(job.target_size)} · ` : "" }), stateWords(entry));
  parts.hint.hidden = !(state === "failed" && entry.hint);
  parts.hint.textContent = entry.hint ?? "";
  parts.progress.hidden = !open;
  parts.progress.value = state === "running" ? job.progress : 0;
  parts.thumb.disabled = !done;
  parts.size.hidden = !job?.target_size;
  if (job?.target_size) parts.size.textContent = done ? pixels(job.target_size) : `${pixels(job.size)} → ${pixels(job.target_size)}`;
  parts.compare.hidden = parts.save.hidden = !done;
  if (done && parts.save.getAttribute("href") === null) {
    parts.save.href = `${job.result}?keep=true`;
    parts.save.download = job.result_name.split("/").pop();
  } else if (!done) {
    parts.save.removeAttribute("href");
  }
  parts.again.hidden = open;
  const words = done ? "Again, with the settings above" : "Try again";
  parts.again.replaceChildren(done ? symbol("M16 10a6 6 0 1 1-1.8-4.3L16 7.5M16 3.5v4h-4") : words);
  parts.again.classList.toggle("symbol", done);
  parts.again.title = done ? words : "";
  parts.again.setAttribute("aria-label", `${words}: ${entry.name}`);
  parts.cancel.hidden = !open;
  parts.remove.hidden = open;
  if (focused?.hidden && entry.card.contains(focused)) (done ? parts.compare : open ? parts.cancel : parts.again).focus();
}

function summarise() {
  const count = (...states) => entries.filter((entry) => states.includes(entry.state)).length;
  const done = count("done");
  const open = count(...OPEN);
  const parts = [done && `${done} done`, count("running") && `${count("running")} being computed`,
    count("queued", "uploading", "waiting") && `${count("queued", "uploading", "waiting")} waiting`,
    count("failed") && `${count("failed")} failed`, count("cancelled") && `${count("cancelled")} cancelled`];
  at("summary").textContent = parts.filter(Boolean).join(", ");
  at("queue").hidden = !entries.length;
  document.body.classList.toggle("busy", entries.length > 0);
  at("zip").hidden = done < 2;
  at("zip").href = `/groups/${group}/zip`;
  at("stop").hidden = open < 2;
  at("clear").hidden = open > 0 || entries.length < 2;
  document.title = open ? `${done} of ${entries.length} – hasn` : "hasn";
}

function complain(text) {
  at("problem").textContent = text;
  at("problem").hidden = !text;
}

// --- thumbnails, one after the other, so that large photos do not fill the memory ----------------------------------

const thumbs = [];
let drawing = false;

async function drawThumbs() {
  if (drawing) return;
  drawing = true;
  for (let entry = thumbs.shift(); entry; entry = thumbs.shift()) {
    try {
      const whole = await createImageBitmap(entry.file, { resizeWidth: THUMB, resizeQuality: "medium" });
      const canvas = make("canvas", { width: whole.width, height: whole.height });
      canvas.getContext("2d").drawImage(whole, 0, 0);
      whole.close();
      entry.viewable = true;
      entry.parts.blank.replaceWith(canvas);
    } catch {
      entry.viewable = false; // this browser cannot show the format, or the file is broken
      serverThumb(entry);
    }
  }
  drawing = false;
}

function serverThumb(entry) {
  if (entry.thumbed || !entry.job?.size) return; // the server could not open it, or not yet
  entry.thumbed = true;
  const image = make("img", { alt: "" });
  image.addEventListener("load", () => entry.parts.blank.replaceWith(image));
  image.src = `/jobs/${entry.job.id}/preview/input`;
}

// --- before and after --------------------------------------------------------------------------------------------

function open_(entry, { quietly = false } = {}) {
  const job = entry.job;
  if (entry.state !== "done") return;
  shown = entry;
  for (const other of entries) other.card.setAttribute("aria-current", other === entry);
  at("viewer").hidden = false;
  at("viewer-title").textContent = entry.name;
  at("shown-facts").replaceChildren(make("b", { textContent: pixels(job.size) }), " → ",
    make("b", { textContent: pixels(job.target_size) }), ` pixels, ${seconds(job.seconds)}${job.weights ? `; ${job.weights}` : ""}`);
  at("shown-save").href = entry.parts.save.href;
  at("shown-save").download = entry.parts.save.download;
  entry.url ??= entry.viewable ? URL.createObjectURL(entry.file) : null;
  viewer.begin(job.target_size);
  viewer.show(0, { src: entry.url ?? `/jobs/${job.id}/preview/input`, alt: `${entry.name}, before`, label: "Before" });
  const after = SHOWN.includes(job.type) ? `${job.result}?keep=true` : `/jobs/${job.id}/preview/result`;
  viewer.show(1, { src: after, alt: `${entry.name}, after`, label: "After" });
  if (quietly) return;
  at("viewer").scrollIntoView({ block: "start", behavior: "smooth" });
  at("handle").focus({ preventScroll: true });
}

function close() {
  const card = shown?.card;
  shown = null;
  at("viewer").hidden = true;
  card?.setAttribute("aria-current", "false");
  if (card?.isConnected) card.querySelector("button:not([hidden]):not(:disabled)")?.focus();
}

for (const side of ["left", "right"]) {
  at(`image-${side}`).addEventListener("error", () => {
    at("shown-facts").textContent = "This picture cannot be shown here, but it can be downloaded.";
  });
}
at("close").addEventListener("click", close);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.fullscreenElement && shown) close();
});

// --- the desk ----------------------------------------------------------------------------------------------------

for (const [button, input] of [["choose", "files"], ["choose-folder", "folder"]]) {
  at(button).addEventListener("click", () => at(input).click());
  at(input).addEventListener("change", () => {
    add(plain(at(input).files), { pickOut: input === "folder" });
    at(input).value = "";
  });
}

let depth = 0; // of elements that the dragged files are over
const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragenter", (event) => {
  if (!holdsFiles(event)) return;
  depth += 1;
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!holdsFiles(event)) return;
  depth = Math.max(0, depth - 1);
  document.body.classList.toggle("dragging", depth > 0);
});
document.addEventListener("dragover", (event) => { if (holdsFiles(event)) event.preventDefault(); });
document.addEventListener("drop", async (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("dragging");
  const [files, inFolder] = await dropped(event.dataTransfer);
  add(files, { pickOut: inFolder });
});

document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) add(files.map((file) => ({ file, name: file.name === "image.png" ? "pasted.png" : file.name })));
});

at("stop").addEventListener("click", () => entries.filter((entry) => OPEN.includes(entry.state)).forEach(cancel));
at("clear").addEventListener("click", () => {
  [...entries].forEach(remove);
  at("choose").focus();
});
window.addEventListener("beforeunload", (event) => {
  if (entries.some((entry) => OPEN.includes(entry.state))) event.preventDefault();
});

// --- settings, which this browser remembers ------------------------------------------------------------------------

const FIELDS = ["scale", "format", "quality", "weights", "strip"];
const WORDS = { auto: "Automatic", clean: "Clean pictures", photo: "Compressed photos" };

if (/Mac|iPhone|iPad/.test(navigator.platform)) at("paste-key").textContent = "⌘";
at("weights").append(...data.weights.map((name) => new Option(WORDS[name] ?? name, name)));
at("weights").closest("label").hidden = data.weights.length < 2;
at("files").accept = data.endings.map((one) => `.${one}`).join();

function remember() {
  at("quality").disabled = LOSSLESS.includes(at("format").value);
  const values = Object.fromEntries(FIELDS.map((name) => [name, name === "strip" ? at(name).checked : at(name).value]));
  try { localStorage.setItem("hasn", JSON.stringify(values)); } catch { /* a browser may forbid it */ }
}

try {
  const values = JSON.parse(localStorage.getItem("hasn")) ?? {};
  for (const name of FIELDS) {
    if (name === "strip") at(name).checked = values.strip === true;
    else if (name in values) at(name).value = values[name];
    if (at(name).tagName === "SELECT" && at(name).selectedIndex < 0) at(name).selectedIndex = name === "scale" ? 2 : 0;
  }
} catch { /* nothing usable was stored */ }
remember();
at("settings").addEventListener("change", remember);
at("settings").addEventListener("submit", (event) => event.preventDefault());
