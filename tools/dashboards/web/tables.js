// The table of jobs, which sorts, and the list of events.

import { $, each, make, setAttribute, setStyle, setText } from "./dom.js";
import * as format from "./format.js";
import { slotColour } from "./palette.js";

const sizeOr = (value, none) => (value > 0 ? format.bytes(value) : none);

/** id, heading, what to sort by, what to show, what the heading means. */
export const COLUMNS = [
  ["name", "Job", (row) => row.name.toLowerCase(), null, "name of the job"],
  ["gpu", "Device", (row, view) => view.model.label(row.device), (row, view) => view.model.label(row.device), "where its pages go"],
  ["sessions", "Sess.", (row) => row.sessions, (row) => row.state || format.count(row.sessions), "connected processes; lingers: none, its pages are kept; ends: its last frames are on their way out"],
  ["resident", "Resident", (row) => row.resident, null, "bytes on the device, against what the job has in all"],
  ["host", "Host", (row) => row.host, (row) => sizeOr(row.host, "0"), "host memory committed for its pages"],
  ["disk", "Disk", (row) => row.disk, (row) => sizeOr(row.disk, "0"), "disk committed for its pages"],
  ["buffers", "Buffers", (row) => row.buffers, (row) => sizeOr(row.buffers, "0"), "host memory for its parameters and gradients"],
  ["dirty", "Dirty", (row) => row.dirty, (row) => sizeOr(row.dirty, "0"), "resident bytes that the host has no copy of"],
  ["share", "Share", (row) => row.share, (row) => sizeOr(row.share, format.NOTHING), "fair share of the device now"],
  ["quota", "Quota", (row) => row.quota || Infinity, (row) => sizeOr(row.quota, "none"), "device quota"],
  ["weight", "Weight", (row) => row.weight, (row) => String(Number(row.weight.toFixed(2))), "priority: its share under contention"],
  ["stepRate", "Steps/s", (row) => row.stepRate, (row) => format.perSecond(row.stepRate), "over the last 10 s"],
  ["step", "Step", (row) => row.stepSeconds, (row) => format.seconds(row.stepSeconds), "time of a step: the mean over the last 10 s, or the last one's"],
  ["stall", "Stalled", (row) => row.stallShare, (row) => format.share(row.stallShare), "waiting for pages, of the last 10 s"],
  ["in", "In/s", (row) => row.inRate, (row) => sizeOr(row.inRate, Number.isFinite(row.inRate) ? "0" : format.NOTHING), "bytes to the device a second"],
  ["out", "Out/s", (row) => row.outRate, (row) => sizeOr(row.outRate, Number.isFinite(row.outRate) ? "0" : format.NOTHING), "bytes to the host a second"],
  ["evicted", "Evicted/s", (row) => row.evictRate, (row) => format.perSecond(row.evictRate), "pages that left the device a second"],
].map(([id, heading, key, text, title]) => ({ id, heading, key, text, title }));

const EXACT = new Set(["host", "disk", "buffers", "dirty"]); // the title has every byte

/** Rows in order; what has no figure comes last, equals by name. */
export function sorted(rows, column, descending, view) {
  const { key } = COLUMNS.find((one) => one.id === column);
  const missing = (value) => typeof value === "number" && Number.isNaN(value);
  return [...rows].sort((a, b) => {
    const [x, y] = [key(a, view), key(b, view)];
    if (missing(x) || missing(y)) return missing(x) - missing(y) || a.name.localeCompare(b.name);
    const order = x < y ? -1 : x > y ? 1 : 0;
    return (descending ? -order : order) || a.name.localeCompare(b.name) || (a.key < b.key ? -1 : 1);
  });
}

export class JobTable {
  #column = "resident";
  #descending = true;
  #heads;
  #body = make("tbody");
  #rows = []; // as shown
  #focus;

  /** focus(name): a job was chosen; changed(): to draw again. */
  constructor(table, focus, changed) {
    this.#focus = focus;
    const caption = make("caption", { className: "unseen" }, "Jobs. The headings sort; a job's name puts it in focus.");
    this.#heads = COLUMNS.map((column) => {
      const button = make("button", { type: "button", title: column.title }, column.heading);
      button.addEventListener("click", () => {
        this.#descending = this.#column === column.id ? !this.#descending : column.id !== "name" && column.id !== "gpu";
        this.#column = column.id;
        changed();
      });
      return make("th", { scope: "col", "data-column": column.id }, button);
    });
    table.append(caption, make("thead", {}, make("tr", {}, ...this.#heads)), this.#body);
  }

  draw(view) {
    COLUMNS.forEach((column, i) => {
      const order = this.#descending ? "descending" : "ascending";
      setAttribute(this.#heads[i], "aria-sort", column.id === this.#column ? order : "none");
    });
    const rows = view.model.jobs.filter((row) => view.chosen.has(row.device));
    setAttribute(this.#body.parentElement, "data-devices", view.model.devices.length);
    setAttribute(this.#body.parentElement, "data-disk", view.model.hasDisk(view.chosen) ? "1" : "0");
    this.#rows = sorted(rows, this.#column, this.#descending, view);
    each(this.#body, this.#rows, () => this.#create(), (node, row) => this.#fill(node, row, view));
    setText($("jobs-note"), rows.length === 0 ? "" : `${rows.length} · sorted by ${COLUMNS.find((c) => c.id === this.#column).heading.toLowerCase()}${view.focus === null ? "" : " · Esc shows all"}`);
    const empty = $("jobs-empty");
    empty.hidden = rows.length > 0;
    this.#body.parentElement.parentElement.hidden = rows.length === 0;
  }

  #create() {
    const node = make("tr");
    for (const column of COLUMNS) {
      const cell = column.id === "name" ? make("th", { scope: "row" }) : make("td");
      cell.dataset.column = column.id;
      if (column.id === "name") {
        const button = make("button", { type: "button", className: "name" }, make("i", { className: "swatch" }), make("span"));
        button.addEventListener("click", () => this.#focus(this.#rows[[...this.#body.children].indexOf(node)].name));
        cell.append(button);
      }
      if (column.id === "resident") {
        cell.className = "gauge";
        cell.append(make("span", { className: "meter", ariaHidden: "true" }, make("i")), make("span"));
      }
      node.append(cell);
    }
    return node;
  }

  #fill(node, row, view) {
    const colour = slotColour(view.theme, view.colours.slot(row.name));
    setAttribute(node, "data-focus", view.focus === row.name ? "true" : null);
    setAttribute(node, "data-faded", row.state === "" ? null : "true");
    setAttribute(node, "data-job", row.name);
    COLUMNS.forEach((column, i) => {
      const cell = node.children[i];
      if (column.id === "name") {
        const button = cell.firstChild;
        setStyle(button.firstChild, "backgroundColor", colour);
        setText(button.lastChild, format.nameText(row.name, 40));
        setAttribute(button, "aria-pressed", view.focus === row.name);
        setAttribute(button, "title", `${format.nameText(row.name, 200)}, user ${row.uid}${row.nonfinite > 0 ? `, ${row.nonfinite} blocks were not finite` : ""}`);
      } else if (column.id === "resident") {
        const all = row.host + row.disk;
        setStyle(cell.firstChild.firstChild, "width", `${all > 0 ? Math.min(100, (row.resident / all) * 100).toFixed(1) : 0}%`);
        setStyle(cell.firstChild.firstChild, "backgroundColor", colour);
        setText(cell.lastChild, format.bytes(row.resident));
        setAttribute(cell, "title", format.exactBytes(row.resident));
      } else {
        const text = column.text(row, view);
        setText(cell, text);
        if (EXACT.has(column.id)) setAttribute(cell, "title", format.exactBytes(row[column.id]));
        setAttribute(cell, "class", text === "0" || text === "none" || text === format.NOTHING || text === "0%" ? "zero" : null);
      }
    });
  }
}

const LEVELS = { killed: "alarm", error: "alarm", nonfinite: "alarm", pressure_over: "", pressure: "warn", limit: "warn", draining: "warn", expired: "warn" };
const SHOWN = 100;

export function drawEvents(view) {
  const events = view.model.events.slice(0, SHOWN);
  each($("events"), events,
    () => make("li", {}, make("time"), make("span", { className: "what" }), make("span", { className: "who" }), make("span", { className: "text" })),
    (node, event) => {
      const [time, what, who, text] = node.children;
      setAttribute(node, "data-level", LEVELS[event.name] || null);
      setAttribute(node, "data-event", String(event.name));
      setText(time, format.clock(event.time_unix_ms));
      setText(what, format.nameText(event.name, 24).replace(/_/g, " "));
      setText(who, event.job ? format.nameText(event.job, 60) : "");
      const size = event.bytes > 0 ? format.bytes(event.bytes) : "";
      const said = [size, event.text ? format.nameText(event.text, 200) : ""].filter((part) => part !== "").join(" · ");
      setText(text, said);
      setAttribute(text, "title", said);
    });
  $("events-empty").hidden = events.length > 0;
  $("events").hidden = events.length === 0;
}

/** An event worth saying aloud, "" for others. */
export function spoken(event) {
  if (event.name !== "killed" && event.name !== "error" && event.name !== "nonfinite") return "";
  return `${event.name}${event.job ? ` ${format.nameText(event.job, 40)}` : ""}: ${format.nameText(event.text, 120)}`;
}
