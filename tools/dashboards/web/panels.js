// The five charts: what each shows, its heading, legend and table.

import { ChartPanel } from "./charts.js";
import { each, make, setAttribute, setStyle, setText } from "./dom.js";
import * as format from "./format.js";
import { BUFFERS, KINDS, seriesKey } from "./model.js";
import { REASONS, ink, reasonColour, slotColour } from "./palette.js";

const KIND_NAMES = { optimizer_state: "optimizer states", quantized_weight: "quantized weights", [BUFFERS]: "buffers" };
const KIND_SLOTS = { optimizer_state: 0, quantized_weight: 1, [BUFFERS]: 9 };

/** Keys of the history's series of one field, by their last part: job, kind or reason. */
function grouped(view, field) {
  const groups = new Map();
  for (const key of view.model.history.keys) {
    const [name, device, ...rest] = key.split("\u0001");
    const last = rest.join("\u0001");
    if (name !== field || !view.chosen.has(device)) continue;
    if (!groups.has(last)) groups.set(last, []);
    groups.get(last).push(key);
  }
  return groups;
}

const devicesOf = (view, field) => [...view.chosen].map((uuid) => seriesKey(field, uuid));

/** A stacked area for each job, or each kind, of a field. */
function areas(view, field, { how = "last", sign = 1, stack = field, byKind = false } = {}) {
  const groups = grouped(view, byKind ? `${field}Kind` : field);
  const names = byKind ? [...KINDS, BUFFERS].filter((kind) => groups.has(kind)) : [...groups.keys()];
  return names.map((name) => ({
    id: `${field}\u0001${name}`, label: byKind ? KIND_NAMES[name] : format.nameText(name, 40), keys: groups.get(name), how, sign,
    stack, area: true, name: byKind ? null : name, colour: slotColour(view.theme, byKind ? KIND_SLOTS[name] : view.colours.slot(name)),
    dim: !byKind && view.focus !== null && view.focus !== name,
  }));
}

/** sum / count of two fields of the chosen devices, bucket by bucket. */
function meanOf(view, field) {
  return (range, out) => {
    const { history } = view.model;
    const sums = history.buckets(devicesOf(view, `${field}Sum`), { ...range, how: "mean", absent: NaN });
    const counts = history.buckets(devicesOf(view, `${field}Count`), { ...range, how: "mean", absent: NaN });
    for (let i = 0; i < out.length; i += 1) out[i] = sums[i] / counts[i];
  };
}

/** The worst device's value in each bucket. */
function worstOf(view, field) {
  return (range, out) => {
    out.fill(NaN);
    for (const key of devicesOf(view, field)) {
      const one = view.model.history.buckets([key], { ...range, how: "max", absent: NaN });
      for (let i = 0; i < out.length; i += 1) if (!(one[i] <= out[i]) && !Number.isNaN(one[i])) out[i] = one[i];
    }
  };
}

const footerTotal = (items) => (items.length > 1 ? `total  ${format.bytes(items.reduce((sum, item) => sum + item.parsed.y, 0))}` : "");

const DEVICE = {
  least: 2 ** 20, footer: footerTotal,
  series: (view) => areas(view, "resident", { byKind: view.byKind }),
  limits: (view) => {
    const { budget, used } = view.model.totals(view.chosen);
    return budget > 0 ? [{ value: budget, label: "budget", fit: used > budget * 0.3 }] : [];
  },
};

const HOST_TITLE = "Committed on the host";

// Where there is a disk, it hangs below the host.
const HOST = {
  least: 2 ** 20, textOf: (value) => format.bytes(Math.abs(value)), tick: (value) => format.tickBytes(Math.abs(value)),
  mirroredFor: (view) => view.model.hasDisk(view.chosen),
  title: (view) => (view.model.hasDisk(view.chosen) ? "Committed: ↑ host, ↓ disk" : HOST_TITLE),
  note: (view) => (view.model.hasDisk(view.chosen) ? "" : "for every page of every job, and its buffers"),
  series: (view) => {
    const host = areas(view, "host", { byKind: view.byKind });
    if (!view.model.hasDisk(view.chosen)) return host;
    const disk = areas(view, "disk", { byKind: view.byKind, sign: -1 });
    return [["↑", host], ["↓", disk]].flatMap(([arrow, parts]) => parts.map((one) => ({ ...one, label: `${arrow} ${one.label}` })));
  },
  footer: (items) => [["host", 1], ["disk", -1]]
    .map(([tier, sign]) => [tier, items.filter((item) => item.parsed.y * sign > 0)])
    .filter(([, parts]) => parts.length > 1)
    .map(([tier, parts]) => `total on ${tier}  ${format.bytes(Math.abs(parts.reduce((sum, item) => sum + item.parsed.y, 0)))}`),
  limits: (view) => {
    const { hostBudget, hostUsed, diskBudget, diskUsed } = view.model.totals(view.chosen);
    const host = { value: hostBudget, label: "budget", fit: hostUsed > hostBudget * 0.3 };
    const disk = { value: -diskBudget, label: "disk budget", fit: diskUsed > diskBudget * 0.3 };
    return [host, disk].filter(({ value }) => value !== 0);
  },
};

const TRANSFER = {
  mirrored: true, least: 2 ** 20, textOf: (value) => format.byteRate(Math.abs(value)), tick: (value) => format.tickBytes(Math.abs(value)),
  series: (view) => [...areas(view, "in", { how: "mean" }), ...areas(view, "out", { how: "mean", sign: -1 })]
    .map((one) => ({ ...one, label: `${one.stack === "in" ? "↑" : "↓"} ${one.label}` })),
  limits: (view) => {
    const { linkIn, linkOut, inRate, outRate } = view.model.totals(view.chosen);
    return [[linkIn, "link to device", inRate, true], [-linkOut, "link to host", outRate, false]]
      .filter(([value]) => value !== 0)
      .map(([value, label, rate, below]) => ({ value, label, below, fit: rate > Math.abs(value) * 0.25 }));
  },
};

const TIME = {
  note: () => "dotted: 95th percentile",
  stacked: false, binary: false, least: 0.001, textOf: format.seconds, tick: format.seconds,
  series: (view) => [["step", 0], ["stall", 1]].flatMap(([what, slot]) => {
    const colour = slotColour(view.theme, slot);
    return [
      { id: `${what}P95`, label: `${what} p95`, legend: null, colour, dash: [2, 3], width: 1.25, compute: worstOf(view, `${what}P95`) },
      { id: what, label: `${what} mean`, legend: what, colour, width: 2, compute: meanOf(view, what) },
    ];
  }),
};

const EVICT = {
  binary: false, second: true, least: 1, textOf: (value, set) => (set.yAxisID === "y2" ? format.share(value) : `${format.perSecond(value)} pages/s`),
  tick: (value) => (value < 10 ? String(Number(value.toFixed(1))) : format.count(value)),
  series: (view) => {
    const groups = grouped(view, "evictions");
    const seen = REASONS.filter((reason) => groups.get(reason)?.some((key) => everPositive(view.model.history, key)));
    const bars = seen.map((reason) => ({
      id: `evict ${reason}`, label: reason, colour: reasonColour(view.theme, reason), keys: groups.get(reason), how: "mean",
      area: true, stepped: "middle", stack: "evictions",
    }));
    const line = { id: "pressure", label: "pressure", legend: null, colour: ink(view.theme).text, width: 1.25, axis: "y2", compute: worstOf(view, "pressure") };
    return [...bars, line];
  },
};

function everPositive(history, key) {
  for (let i = history.length - 1; i >= 0; i -= 1) if (history.value(key, i) > 0) return true;
  return false;
}

/** One chart with its heading, legend, a button for its table, and what is said when there is nothing to draw. */
class Panel {
  #chart;
  #title;
  #heading;
  #legend = make("div", { className: "legend" });
  #note = make("p", { className: "note" });
  #plot;
  #empty;
  #table = make("div", { className: "chart-table", hidden: true, tabIndex: 0 });
  #drawn = "";
  #described = 0;
  #how;

  constructor(root, title, how, { extra = [], wide = false, focus, changed, empty, unit }) {
    this.#title = title;
    this.#how = how;
    const heading = (this.#heading = make("h2", { id: `${root.id}-title` }, title));
    const canvas = make("canvas", { role: "img" });
    this.#empty = make("p", { className: "empty" }, empty);
    this.#plot = make("div", { className: "plot" }, canvas, this.#empty);
    const toggle = make("button", { type: "button", className: "small-button", ariaPressed: "false", ariaLabel: `${title} as a table`, title: "As a table" });
    toggle.addEventListener("click", () => {
      const shown = this.#table.hidden;
      this.#table.hidden = !shown;
      this.#plot.hidden = shown;
      toggle.setAttribute("aria-pressed", String(shown));
      this.#drawn = "";
      changed();
    });
    const rows = make("tbody");
    const heads = ["", "now", "mean", "largest"].map((text) => make("th", { scope: "col" }, text === "" ? unit : text));
    this.#table.append(make("table", {}, make("caption", { className: "unseen" }, title), make("thead", {}, make("tr", {}, ...heads)), rows));
    this.rows = rows;
    this.focus = focus;
    root.setAttribute("aria-labelledby", heading.id);
    const top = make("div", { className: "line" }, heading, ...extra, ...(wide ? [this.#legend] : []), toggle);
    root.append(top, ...(wide ? [] : [make("div", { className: "under" }, this.#note, this.#legend)]), this.#plot, this.#table);
    this.#chart = new ChartPanel(canvas, how);
  }

  /** Draws when there is something new to see: a new bucket, another choice, another size. */
  draw(view, key) {
    if (key === this.#drawn) return;
    this.#drawn = key;
    const series = this.#how.series(view);
    const title = this.#how.title?.(view) ?? this.#title;
    setText(this.#heading, title);
    const any = series.some((one) => one.keys === undefined || one.keys.length > 0);
    this.#empty.hidden = any && view.model.history.length > 1;
    this.#chart.update(view);
    this.#drawLegend(view, series);
    const rows = this.#chart.rows();
    if (!this.#table.hidden) {
      each(this.rows, rows, () => make("tr", {}, make("th", { scope: "row" }), make("td"), make("td"), make("td")),
        (node, texts) => texts.forEach((text, i) => setText(node.children[i], text)));
    }
    if (view.end - this.#described > 10_000 || view.end < this.#described) {
      this.#described = view.end;
      this.#chart.describe(title);
    }
  }

  #drawLegend(view, series) {
    if (this.#how.note) setText(this.#note, this.#how.note(view));
    if (this.#how.legend === false) return;
    each(this.#legend, series.filter((item) => item.legend !== null).map((item) => ({ ...item, label: item.legend ?? item.label })),
      () => make("button", { type: "button" }, make("i", { className: "swatch" }), make("span")),
      (node, item) => {
        setStyle(node.firstChild, "backgroundColor", item.colour);
        setAttribute(node.firstChild, "class", item.area ? "swatch" : "swatch stroke");
        setText(node.lastChild, item.label);
        const job = typeof item.name === "string";
        node.disabled = !job;
        node.onclick = job ? () => this.focus(item.name) : null;
        setAttribute(node, "aria-pressed", job ? view.focus === item.name : null);
      });
  }
}

/** All charts, into their figures. The switch in the first sets view.byKind. */
export function makePanels(roots, view, { focus, changed }) {
  const buttons = [["Jobs", false], ["Kinds", true]].map(([text, byKind]) => {
    const button = make("button", { type: "button", ariaPressed: String(byKind === view.byKind) }, text);
    button.addEventListener("click", () => {
      view.byKind = byKind;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      changed();
    });
    return button;
  });
  const by = make("div", { className: "segments small", role: "group", ariaLabel: "Memory by" }, ...buttons);
  const common = { focus, changed };
  const rates = (now) => {
    const totals = now.model.totals(now.chosen);
    const way = (arrow, rate, link) => `${arrow} ${format.byteRate(totals.known ? rate : NaN)}${link > 0 ? ` (${format.share(rate / link)} of link)` : ""}`;
    const up = way("↑", totals.inRate, totals.linkIn);
    const down = way("↓", totals.outRate, totals.linkOut);
    return `${up}   ${up.endsWith("link)") ? down.replace(" of link", "") : down}`;
  };
  const host = { ...HOST, legend: false };
  return [
    new Panel(roots.device, "On the device", DEVICE, { ...common, extra: [by], wide: true, unit: "device memory", empty: "No job has pages on a device yet. Memory appears here, stacked by job, as soon as one steps." }),
    new Panel(roots.host, HOST_TITLE, host, { ...common, unit: "host memory", empty: "No job has committed host memory yet." }),
    new Panel(roots.transfer, "Transfers", { ...TRANSFER, legend: false, note: rates }, { ...common, unit: "transfer rate", empty: "Nothing has moved yet." }),
    new Panel(roots.time, "Step and stall time", TIME, { ...common, unit: "time", empty: "No step has run yet." }),
    new Panel(roots.evict, "Evictions by reason, pressure (line)", EVICT, { ...common, unit: "pages that left", empty: "No page has left a device yet." }),
  ];
}
