// The charts: Chart.js with everything off that costs time, fed from the history in buckets. One hairline goes through
// all of them at the instant under the pointer.

import * as format from "./format.js";
import { bucketsFor } from "./history.js";
import { ink, mix } from "./palette.js";

/* global Chart */
const FAINT = 0.14; // of jobs that are not the one in focus
const LARGEST_TOOLTIP = 10;
const UNUSED = { legend: false, title: false, subtitle: false, decimation: false }; // hidden ones work all the same
const shared = { time: null, from: null, charts: new Set(), asked: false };

function redrawOthers() {
  if (shared.asked) return;
  shared.asked = true;
  requestAnimationFrame(() => {
    shared.asked = false;
    for (const chart of shared.charts) if (chart !== shared.from) chart.draw();
  });
}

/** Draws the hairline, and lines across at limits. */
const overlay = {
  id: "overlay",
  afterEvent(chart, { event, inChartArea }) {
    const time = event.type === "mouseout" || !inChartArea ? null : chart.scales.x.getValueForPixel(event.x);
    if (time === shared.time) return;
    shared.time = time;
    shared.from = chart;
    redrawOthers();
  },
  afterDatasetsDraw(chart) {
    const { ctx, chartArea: area, scales } = chart;
    const colours = chart.bitpager.ink;
    ctx.save();
    ctx.font = `10px ${Chart.defaults.font.family}`;
    for (const { value, label, below = false } of chart.bitpager.limits) {
      const y = Math.round(scales.y.getPixelForValue(value)) + 0.5;
      if (y < area.top - 1 || y > area.bottom + 1) continue;
      line(ctx, [area.left, y, area.right, y], colours.muted, [4, 3]);
      ctx.fillStyle = colours.muted;
      ctx.textAlign = "right";
      ctx.fillText(label, area.right - 4, below ? y + 11 : y - 4);
    }
    if (shared.time !== null) {
      const x = Math.round(scales.x.getPixelForValue(shared.time)) + 0.5;
      if (x >= area.left && x <= area.right) line(ctx, [x, area.top, x, area.bottom], colours.muted, []);
    }
    ctx.restore();
  },
};

function line(ctx, [x0, y0, x1, y1], colour, dash) {
  ctx.strokeStyle = colour;
  ctx.lineWidth = 1;
  ctx.setLineDash(dash);
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
}

function tooltipOptions(panel) {
  return {
    mode: "index", intersect: false, displayColors: true, boxWidth: 8, boxHeight: 8, boxPadding: 4, padding: 8,
    cornerRadius: 6, caretSize: 0, borderWidth: 1, titleFont: { weight: "600" }, animation: false,
    itemSort: (a, b) => Math.abs(b.parsed.y) - Math.abs(a.parsed.y),
    filter: (item, index, items) => {
      const size = Math.abs(item.parsed.y);
      if (!Number.isFinite(size) || (size === 0 && items.length > 4)) return false;
      return items.filter((other) => Math.abs(other.parsed.y) > size).length < LARGEST_TOOLTIP;
    },
    callbacks: {
      title: (items) => (items.length > 0 ? format.clock(items[0].parsed.x) : ""),
      label: (item) => `${item.dataset.label}  ${panel.textOf(item.parsed.y, item.dataset)}`,
      footer: (items) => panel.footer(items),
    },
  };
}

function axisOptions(panel) {
  const small = { font: { size: 10.5 }, padding: 4, maxRotation: 0, autoSkip: false };
  const x = {
    type: "linear", min: 0, max: 1, grid: { drawBorder: false, drawTicks: false },
    ticks: { ...small, callback: (value) => panel.timeLabel(value) },
    afterBuildTicks: (axis) => {
      const edge = ((axis.max - axis.min) * 26) / Math.max(100, axis.width); // so that no label is cut
      const times = format.timeTicks(axis.min + edge, axis.max - edge, Math.max(2, axis.width / 80));
      panel.wholeMinutes = times.every((time) => time % 60_000 === 0);
      axis.ticks = times.map((value) => ({ value }));
    },
  };
  const y = {
    stacked: panel.stacked, min: 0, max: 1, grid: { drawBorder: false, drawTicks: false },
    ticks: { ...small, callback: (value) => panel.tick(value) },
    afterFit: (axis) => { axis.width = panel.axisWidth; },
    afterBuildTicks: (axis) => {
      const up = format.niceTicks(axis.max, panel.mirrored ? 2 : 4, panel.binary);
      axis.ticks = (panel.mirrored ? [...up.slice(1).map((v) => -v).reverse(), ...up] : up).map((value) => ({ value }));
    },
  };
  if (!panel.second) return { x, y };
  const y2 = {
    position: "right", min: 0, max: 1, grid: { display: false, drawBorder: false },
    ticks: { ...small, callback: (value) => format.share(value), color: undefined },
    afterFit: (axis) => { axis.width = 38; },
    afterBuildTicks: (axis) => { axis.ticks = [0, 0.5, 1].map((value) => ({ value })); },
  };
  return { x, y, y2 };
}

/**
 * One chart. What differs is in `how`:
 *   series(view) -> [{id, label, colour, keys, how, absent, sign, stack, area, dash, axis, dim}], the lowest first
 *   limits(view) -> [{value, label}], lines across
 *   textOf, tick: figures as text; binary, stacked, mirrored: the value axis; mirroredFor(view): instead of mirrored
 */
export class ChartPanel {
  stacked = true;
  mirrored = false;
  binary = true;
  second = false;
  axisWidth = 58;
  wholeMinutes = true; // of the instants that the time axis names
  #canvas;
  #chart;
  #sets = new Map(); // id -> dataset, kept so that Chart.js keeps its elements
  #series = [];

  constructor(canvas, how) {
    Object.assign(this, { limits: () => [], footer: () => "", textOf: format.bytes, tick: format.tickBytes }, how);
    this.#canvas = canvas;
    this.#chart = new Chart(canvas, {
      type: "line",
      data: { datasets: [] },
      plugins: [overlay, { id: "facts", beforeInit: (chart) => { chart.bitpager = { ink: ink("dark"), limits: [] }; } }],
      options: {
        animation: false, responsive: true, maintainAspectRatio: false, parsing: false, normalized: true,
        interaction: { mode: "index", axis: "x", intersect: false }, layout: { padding: { top: 6, right: 6 } },
        events: ["mousemove", "mouseout", "touchstart", "touchmove"],
        elements: { point: { radius: 0, hoverRadius: 0, hitRadius: 0 }, line: { borderWidth: 1, tension: 0 } },
        plugins: { ...UNUSED, tooltip: tooltipOptions(this) }, scales: axisOptions(this),
      },
    });
    shared.charts.add(this.#chart);
  }

  timeLabel(value) {
    const text = format.clock(value);
    return this.wholeMinutes ? text.slice(0, 5) : text;
  }

  /** Draws view: {model, chosen, shownSpan, theme, colours, focus, end}. */
  update(view) {
    const { width, buckets } = bucketsFor(view.shownSpan, view.model.jobs.length);
    const end = Math.ceil(view.end / width) * width;
    if (this.mirroredFor) this.mirrored = this.mirroredFor(view);
    this.#series = this.series(view);
    const sets = this.#series.map((one, i) => this.#fill(one, view, { end, width, buckets }, this.#series[i - 1]?.stack));
    this.#sets = new Map(sets.map((set) => [set.id, set]));
    const chart = this.#chart;
    chart.data.datasets = sets;
    chart.bitpager = { ink: ink(view.theme), limits: this.limits(view) };
    this.#scale(view, end);
    chart.update("none");
  }

  #fill(one, view, range, below) {
    const set = this.#sets.get(one.id) ?? { id: one.id, data: [], values: new Float64Array(range.buckets) };
    if (set.values.length !== range.buckets) set.values = new Float64Array(range.buckets);
    if (one.compute) one.compute(range, set.values);
    else view.model.history.buckets(one.keys, { ...range, how: one.how, absent: one.absent ?? 0, out: set.values });
    const sign = one.sign ?? 1;
    set.data.length = range.buckets;
    for (let i = 0; i < range.buckets; i += 1) {
      const x = range.end - range.width * (range.buckets - i - 0.5);
      const y = set.values[i] * sign;
      if (set.data[i] === undefined) set.data[i] = { x, y };
      else Object.assign(set.data[i], { x, y });
    }
    const panel = ink(view.theme).panel;
    Object.assign(set, {
      label: one.label, stack: one.stack ?? one.id, yAxisID: one.axis ?? "y", stepped: one.stepped ?? false,
      borderColor: one.dim ? mix(one.colour, panel, FAINT * 2) : one.colour, borderDash: one.dash ?? [],
      borderWidth: one.area ? 1 : (one.width ?? 1.5), fill: !one.area ? false : one.stack === below ? "-1" : "origin", order: one.area ? 1 : 0,
      backgroundColor: mix(one.colour, panel, one.dim ? FAINT : 0.62),
    });
    return set;
  }

  /** The largest stack in each bucket decides the value axis. */
  #highest() {
    const sums = new Map();
    let most = 0;
    for (const set of this.#chart.data.datasets) {
      if (set.yAxisID !== "y") continue;
      const stack = this.stacked ? set.stack : set.id;
      if (!sums.has(stack)) sums.set(stack, new Float64Array(set.values.length));
      const sum = sums.get(stack);
      for (let i = 0; i < sum.length; i += 1) {
        if (Number.isNaN(set.values[i])) continue;
        sum[i] += set.values[i];
        if (sum[i] > most) most = sum[i];
      }
    }
    return most;
  }

  #scale(view, end) {
    const { scales, plugins } = this.#chart.options;
    const colours = ink(view.theme);
    const most = Math.max(this.#highest(), ...this.#chart.bitpager.limits.filter((l) => l.fit).map((l) => Math.abs(l.value)));
    const ticks = format.niceTicks(most > 0 ? most : this.least, this.mirrored ? 2 : 4, this.binary);
    const step = ticks.length > 1 ? ticks[1] : 1;
    const room = this.#chart.bitpager.limits.some((l) => l.fit) ? 1.12 : 1.06;
    const top = most > 0 ? Math.max(most * room, ticks[ticks.length - 1]) : this.least;
    scales.y.max = top > ticks[ticks.length - 1] + step * 0.75 ? ticks[ticks.length - 1] + step : top;
    scales.y.min = this.mirrored ? -scales.y.max : 0;
    Object.assign(scales.x, { min: end - view.shownSpan, max: end });
    for (const scale of Object.values(scales)) {
      scale.grid.color = colours.grid;
      scale.ticks.color = colours.muted;
    }
    Object.assign(plugins.tooltip, {
      backgroundColor: mix(colours.grid, colours.panel, 0.6), titleColor: colours.text, bodyColor: colours.text,
      footerColor: colours.muted, borderColor: colours.line,
    });
  }

  /** [label, newest, mean, largest] of each series in what is shown; for the table beside the chart. */
  rows() {
    return this.#series.map((one) => {
      const values = this.#sets.get(one.id).values.filter((value) => !Number.isNaN(value));
      const text = (value) => this.textOf(value, this.#sets.get(one.id));
      if (values.length === 0) return [one.label, format.NOTHING, format.NOTHING, format.NOTHING];
      const mean = values.reduce((a, b) => a + b, 0) / values.length;
      return [one.label, text(values[values.length - 1]), text(mean), text(values.reduce((a, b) => Math.max(a, b)))];
    });
  }

  /** The chart in a sentence, for those who do not see it. */
  describe(title) {
    const parts = this.rows().slice(0, 8).map(([label, now]) => `${label} ${now}`);
    this.#canvas.setAttribute("aria-label", `${title}: ${parts.length > 0 ? parts.join(", ") : "nothing yet"}`);
  }
}
