// Keeps the live page up to date, and sends corrections and requests to forget. It has no parts from outside.
"use strict";

const SILENCE = 45000; // ms without a sign of life from the server, which sends one every 15 s
const FIRST_WAIT = 1000;
const LONGEST_WAIT = 15000; // ms between two attempts to reach the server
const narrow = matchMedia("(max-width: 760px)");
const byId = (name) => document.getElementById(name);
const sleep = (time) => new Promise((done) => setTimeout(done, time));

// ---- requests, with a token where the server wants one -------------------------------------------------------

let asking = null;

async function request(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem("streamcl-token");
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    const answer = await fetch(path, { ...options, headers, credentials: "same-origin" });
    if (answer.status !== 401 || !(await newToken(token))) return answer;
  }
}

function newToken(refused) {
  asking ??= ask("token", {
    fill: () => {
      byId("token").value = "";
      if (refused) byId("token-reason").textContent = "The token was not accepted. Try another one.";
    },
    read: () => byId("token").value.trim(),
  }).then((token) => {
    asking = null;
    if (token) sessionStorage.setItem("streamcl-token", token);
    return token !== null;
  });
  return asking;
}

async function reasonOf(answer) {
  try {
    return (await answer.json()).detail || answer.statusText;
  } catch {
    return answer.statusText;
  }
}

async function post(path, content, done) {
  try {
    const answer = await request(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(content),
    });
    if (answer.status === 403) say("You may not do this: " + (await reasonOf(answer)));
    else say(answer.ok ? done : await reasonOf(answer));
    return answer.ok;
  } catch {
    say("The server cannot be reached.");
    return false;
  }
}

// ---- dialogs and messages ------------------------------------------------------------------------------------

function ask(name, { fill, read }) {
  const dialog = byId(`dialog-${name}`);
  fill();
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((done) =>
    dialog.addEventListener("close", () => done(dialog.returnValue === "ok" ? read() : null), { once: true }),
  );
}

let hiding = 0;

function say(text) {
  const message = byId("message");
  message.textContent = text;
  message.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => (message.hidden = true), 8000);
}

// ---- parts of the page ---------------------------------------------------------------------------------------

const postponed = new Map();
let allowed = new Set(); // what whoever looks may see and do

function setPart(name, html) {
  const place = document.querySelector(`[data-part="${CSS.escape(name)}"]`);
  if (!place) return;
  const active = place.contains(document.activeElement) ? document.activeElement : null;
  if (active && active.matches("button, input, select")) {
    postponed.set(name, html); // whoever is about to press a button finds it where it was
    return;
  }
  const open = [...place.querySelectorAll("details[open][id]")].map((each) => each.id);
  const scrolled = [...place.querySelectorAll(".wide")].map((each) => [each.scrollLeft, each.scrollTop]);
  const focused = active && [...place.querySelectorAll("a, summary, .wide")].indexOf(active);
  place.innerHTML = html;
  for (const id of open) byId(id)?.setAttribute("open", "");
  place.querySelectorAll(".wide").forEach((each, at) => scrolled[at] && each.scrollTo(...scrolled[at]));
  if (active) place.querySelectorAll("a, summary, .wide")[focused]?.focus({ preventScroll: true });
  for (const each of place.querySelectorAll("[data-needs]")) each.hidden = !allowed.has(each.dataset.needs);
  writeTimes(place);
  showImages(place);
  if (name === "title") document.title = `${place.textContent} – streamcl`;
  if (name === "health") announce(place);
  const section = place.closest("section");
  if (section) section.hidden = ![...section.querySelectorAll("[data-part]")].some((each) => each.innerHTML);
}

document.addEventListener("focusout", () =>
  setTimeout(() => {
    for (const [name, html] of [...postponed]) {
      postponed.delete(name);
      setPart(name, html);
    }
  }, 0),
);

function writeTimes(place) {
  const today = new Date().toDateString();
  for (const each of place.querySelectorAll("time")) {
    const moment = new Date(each.dateTime);
    const clock = moment.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
    const day = moment.toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
    each.textContent = moment.toDateString() === today ? clock : `${day}, ${clock}`;
  }
}

let announced = null;

function announce(place) {
  const state = place.querySelector(".health")?.classList[1];
  if (announced !== null && state !== announced) byId("announcement").textContent = `The run is ${state}.`;
  announced = state;
}

function setClasses(names) {
  const options = (place) => place.replaceChildren(...names.map((name) => new Option(name, name)));
  options(byId("class-names"));
  const chosen = byId("forget-class").value;
  options(byId("forget-class"));
  if (names.includes(chosen)) byId("forget-class").value = chosen;
}

// ---- charts and images ---------------------------------------------------------------------------------------

const charts = new Map();

async function showChart(name) {
  const place = document.querySelector(`[data-chart="${CSS.escape(name)}"]`);
  const size = narrow.matches ? "narrow" : "wide";
  try {
    const answer = await request(`/page/charts/${encodeURIComponent(name)}.svg?size=${size}`);
    if (!place || !answer.ok) return;
    const drawn = new DOMParser().parseFromString(await answer.text(), "image/svg+xml");
    const svg = document.importNode(drawn.documentElement, true);
    svg.setAttribute("aria-hidden", "true"); // the figure has a name, and the table below the values
    if (svg.nodeName === "svg") place.replaceChildren(svg);
  } catch {
    // the next update tries again
  }
}

narrow.addEventListener("change", () => [...charts.keys()].forEach(showChart));

const pictures = new Map(); // address -> promise of the address of its blob

function showImages(place) {
  if (place.dataset.part !== "images") return;
  const wanted = new Set();
  for (const image of place.querySelectorAll("img[data-src]")) {
    const source = image.dataset.src;
    wanted.add(source);
    if (!pictures.has(source)) pictures.set(source, picture(source));
    pictures.get(source).then((address) => {
      if (address) image.src = address;
      else image.closest("li").hidden = true;
    });
  }
  for (const [source, address] of pictures) {
    if (!wanted.has(source)) {
      pictures.delete(source);
      address.then((each) => each && URL.revokeObjectURL(each));
    }
  }
}

async function picture(source) {
  try {
    const answer = await request(source);
    return answer.ok ? URL.createObjectURL(await answer.blob()) : null;
  } catch {
    return null;
  }
}

// ---- updates -------------------------------------------------------------------------------------------------

function apply(update) {
  if (update.allowed) allowed = new Set(update.allowed);
  if (update.classes) setClasses(update.classes);
  for (const [name, html] of Object.entries(update.parts ?? {})) setPart(name, html);
  for (const [name, version] of Object.entries(update.charts ?? {})) {
    if (charts.get(name) !== version) showChart(name);
    charts.set(name, version);
  }
}

function connection(state, text) {
  byId("connection").dataset.state = state;
  byId("connection").textContent = text;
}

async function readUpdates(stop) {
  const answer = await request("/v1/events", { signal: stop.signal });
  if (!answer.ok) {
    connection("lost", answer.status === 403 ? "not allowed" : `not connected: ${await reasonOf(answer)}`);
    return false;
  }
  connection("connected", "connected");
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const silent = setTimeout(() => stop.abort(), SILENCE);
    const { value, done } = await reader.read().finally(() => clearTimeout(silent));
    if (done) return true;
    text += value;
    const messages = text.split("\n\n");
    text = messages.pop();
    for (const message of messages) {
      const data = message.split("\n").filter((line) => line.startsWith("data: "));
      if (data.length) apply(JSON.parse(data.map((line) => line.slice(6)).join("\n")));
    }
  }
}

function whenVisible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
}

async function follow() {
  let wait = FIRST_WAIT;
  for (;;) {
    await whenVisible();
    const stop = new AbortController();
    const leave = () => document.hidden && stop.abort(); // a page that nobody sees costs nothing
    document.addEventListener("visibilitychange", leave);
    let reached = false;
    try {
      reached = await readUpdates(stop);
    } catch {
      reached = byId("connection").dataset.state === "connected";
    }
    document.removeEventListener("visibilitychange", leave);
    if (byId("connection").dataset.state !== "lost") connection("lost", "not connected, trying again");
    wait = reached ? FIRST_WAIT : Math.min(2 * wait, LONGEST_WAIT);
    if (!document.hidden) await sleep(wait);
  }
}

// ---- what a person does --------------------------------------------------------------------------------------

async function correct(record, label) {
  await post("/v1/labels", { labels: [{ id: record, label }] }, `Label sent: ${label}.`);
}

async function otherLabel(record) {
  const label = await ask("label", {
    fill: () => {
      byId("label-record").textContent = record;
      byId("label").value = "";
    },
    read: () => byId("label").value.trim(),
  });
  if (label) await correct(record, label);
}

async function forgetClass() {
  const label = await ask("forget", {
    fill: () => (byId("forget-sure").checked = false),
    read: () => byId("forget-class").value,
  });
  if (label) await post("/v1/forget", { label }, "The request has been received; its state is shown below.");
}

async function download(link) {
  const answer = await request(link.href, { headers: { Accept: "application/json" } });
  if (!answer.ok) return say(await reasonOf(answer));
  const saved = document.createElement("a");
  saved.href = URL.createObjectURL(await answer.blob());
  saved.download = `receipt-${decodeURIComponent(link.pathname.split("/").pop())}.json`;
  saved.click();
  setTimeout(() => URL.revokeObjectURL(saved.href), 10000);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-record], button[data-action]");
  const link = event.target.closest("a[data-receipt]");
  if (button?.dataset.action === "forget") forgetClass();
  else if (button?.dataset.action === "cancel") button.closest("dialog").close(); // no submit: Enter would press it
  else if (button?.dataset.label !== undefined) correct(button.dataset.record, button.dataset.label);
  else if (button?.dataset.record !== undefined) otherLabel(button.dataset.record);
  else if (link && sessionStorage.getItem("streamcl-token")) {
    event.preventDefault(); // a link cannot carry the token
    download(link);
  }
});

follow();
