// The page: takes figures from the daemon or a recording, and draws what changed, at most once a frame and never while
// it is hidden. It only reads; there is nothing here that could change a job.

import { $, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";
import { bucketsFor, isMany, spanFor } from "./history.js";
import { drawLedger } from "./ledger.js";
import { Maps } from "./maps.js";
import { Model } from "./model.js";
import { JobColours } from "./palette.js";
import { makePanels } from "./panels.js";
import { Player } from "./player.js";
import { LiveSource } from "./source.js";
import { JobTable, drawEvents, spoken } from "./tables.js";

/* global Chart */
const TOGETHER_MS = 60;
const MANY_JOBS_MS = 2000; // between two drawings of what came by itself, with many jobs
const light = window.matchMedia("(prefers-color-scheme: light)");
const store = (() => {
  try {
    return window.localStorage;
  } catch {
    return null; // forbidden: nothing is remembered
  }
})();

const live = new Model();
const taped = new Model(); // of the recording
// What all drawing reads. end: the newest instant shown; chosen: UUIDs; focus: a job's name or null.
const view = {
  model: live, colours: new JobColours(store), theme: "dark", span: 300_000, end: 0, chosen: new Set(), focus: null,
  byKind: false, shownSpan: 60_000, sizes: new Map(),
};
let device = ""; // "": all
let connection = { mode: "connecting", since: 0 };
let pagesText = null; // the newest page map, parsed when it is drawn
let sizeNumber = 0;
let asked = false;
let arriving = 0; // a timer
let drawn = 0; // when, by performance.now()

function invalidate() {
  if (asked || document.hidden) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    drawn = performance.now();
    draw();
  });
}

// What comes together, a status and its page map, is drawn together. What somebody asks for is drawn at once.
function news() {
  if (arriving !== 0 || document.hidden) return;
  const rest = isMany(view.model.jobs.length) ? drawn + MANY_JOBS_MS - performance.now() : 0;
  arriving = setTimeout(() => {
    arriving = 0;
    invalidate();
  }, Math.max(TOGETHER_MS, rest));
}

function say(text) {
  if (text !== "") setText($("said"), text);
}

function focusOn(name) {
  view.focus = view.focus === name ? null : name;
  invalidate();
}

Chart.defaults.font.family = getComputedStyle(document.documentElement).fontFamily;
Chart.defaults.font.size = 11;
const roots = Object.fromEntries(["device", "host", "transfer", "time", "evict"].map((name) => [name, $(`panel-${name}`)]));
const panels = makePanels(roots, view, { focus: focusOn, changed: invalidate });
const jobs = new JobTable($("jobs"), focusOn, invalidate);
const maps = new Maps(say);

function choose() {
  const { model } = view;
  const uuids = model.devices.map((one) => one.uuid);
  if (device !== "" && !uuids.includes(device)) device = "";
  view.chosen = new Set(device === "" ? uuids : [device]);
  const select = $("device");
  const labels = uuids.map((uuid) => model.label(uuid)).join("\u0001");
  $("device-pick").hidden = uuids.length < 2;
  if (select.dataset.labels !== labels) {
    select.dataset.labels = labels;
    select.replaceChildren(new Option("All", ""), ...uuids.map((uuid) => new Option(model.label(uuid), uuid)));
  }
  select.value = device;
}

function takePages() {
  if (pagesText === null) return;
  try {
    live.setPages(JSON.parse(pagesText));
  } catch {
    // cut off: the next is whole
  }
  pagesText = null;
}

function draw() {
  const { model } = view;
  drawState();
  if (model.snapshot === null) return;
  takePages();
  choose();
  if (view.focus !== null && !model.knows(view.focus)) view.focus = null;
  view.colours.meet(model.jobs.map((row) => row.name));
  view.end = model.time;
  drawLedger(view);
  view.shownSpan = spanFor(model.history, view.end, view.span);
  const { every } = bucketsFor(view.shownSpan, model.jobs.length);
  const known = model.jobs.map((row) => row.key).join("\u0001");
  const key = [model === taped ? view.end : Math.ceil(view.end / every), view.shownSpan, view.theme, view.focus, view.byKind, device, known, sizeNumber, model === taped].join("\u0002");
  for (const panel of panels) panel.draw(view, key);
  maps.draw(view);
  jobs.draw(view);
  drawEvents(view);
  const used = model.totals(view.chosen);
  const title = `${format.bytes(used.used)} of ${format.bytes(used.budget)} · bitpager`;
  if (document.title !== title) document.title = title;
}

const WORDS = {
  connecting: () => "Connecting",
  live: () => "Live",
  polling: () => "Polling: the stream does not come",
  offline: ({ since }) => (since > 0 ? `Disconnected since ${format.clock(since)}` : "No answer from the daemon"),
};

function drawState() {
  const recording = view.model === taped;
  const mode = recording ? "recording" : connection.mode;
  const draining = mode === "live" && live.snapshot?.draining === true;
  setText($("state-text"), recording ? "Recording" : draining ? "Live · draining, takes no new work" : WORDS[mode](connection));
  setAttribute($("state"), "data-mode", draining ? "draining" : mode);
  setAttribute(document.body, "data-mode", mode);
  $("retry").hidden = mode !== "offline";
  setText($("jobs-empty"), recording ? "No job at this moment of the recording." : "No job is attached. A job appears with its first bitpager optimizer or 4-bit weight; BITPAGER_JOB names it.");
}

const source = new LiveSource({
  status: (body) => {
    if (live.apply(body)) news();
  },
  pages: (text) => {
    pagesText = text;
    news();
  },
  event: (body) => {
    if (live.addEvent(body) && view.model === live) say(spoken(body));
    news();
  },
  events: (bodies) => {
    live.addEvents(bodies);
    news();
  },
  state: (state) => {
    connection = state;
    drawState();
  },
});

function notice(text) {
  $("notice").hidden = text === "";
  setText($("notice"), text);
}

new Player({
  opened: () => {
    taped.reset();
    view.model = taped;
    notice("");
  },
  moved: (tape, time) => {
    tape.show(taped, time);
    invalidate();
  },
  closed: () => {
    view.model = live; // which has gone on
    taped.reset();
    invalidate();
  },
  failed: notice,
});

function applyTheme() {
  const chosen = document.documentElement.dataset.theme;
  view.theme = chosen ?? (light.matches ? "light" : "dark");
  const other = view.theme === "dark" ? "light" : "dark";
  setText($("theme"), other === "light" ? "Light" : "Dark");
  setAttribute($("theme"), "aria-label", `Switch to the ${other} theme`);
  invalidate();
}

$("theme").addEventListener("click", () => {
  const other = view.theme === "dark" ? "light" : "dark";
  const systems = light.matches ? "light" : "dark";
  try {
    if (other === systems) store?.removeItem("bitpager.theme");
    else store?.setItem("bitpager.theme", other);
  } catch {
    // not remembered
  }
  if (other === systems) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = other;
  applyTheme();
});
light.addEventListener("change", applyTheme);
for (const button of document.querySelectorAll("[data-span]")) {
  button.addEventListener("click", () => {
    view.span = Number(button.dataset.span) * 1000;
    for (const other of document.querySelectorAll("[data-span]")) other.setAttribute("aria-pressed", String(other === button));
    invalidate();
  });
}
$("device").addEventListener("change", () => {
  device = $("device").value;
  invalidate();
});
$("retry").addEventListener("click", () => source.retry());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && view.focus !== null) focusOn(view.focus);
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  source.retry();
  invalidate();
});
new ResizeObserver(() => {
  view.sizes.clear();
  sizeNumber += 1;
  invalidate();
}).observe($("maps"));

applyTheme();
source.start();
