// Numbers and times as people read them. Pure functions; sizes are binary (KiB, MiB, GiB), rates of bytes too.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
export const GIB = 2 ** 30;
const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
export const NOTHING = "–"; // where there is no figure

/** The index into UNITS that suits `bytes`. */
function unitOf(bytes) {
  const size = Math.abs(bytes);
  let unit = 0;
  while (unit < UNITS.length - 1 && size >= 1024 ** (unit + 1) * 0.9995) unit += 1;
  return unit;
}

function digitsFor(value) {
  const size = Math.abs(value);
  return size >= 100 ? 0 : size >= 10 ? 1 : 2;
}

/** [number, unit] of a size: [“1.50”, “GiB”]. */
export function splitBytes(bytes) {
  if (!Number.isFinite(bytes)) return [NOTHING, ""];
  const unit = unitOf(bytes);
  const value = bytes / 1024 ** unit;
  return [unit === 0 ? String(Math.round(value)) : value.toFixed(digitsFor(value)), UNITS[unit]];
}

export function bytes(value) {
  return splitBytes(value).join(" ").trim();
}

export function byteRate(value) {
  if (value === 0) return "0";
  return Number.isFinite(value) ? `${bytes(value)}/s` : NOTHING;
}

/** The exact count, for titles: “5,368,709,120 bytes”. */
export function exactBytes(value) {
  return Number.isFinite(value) ? `${whole.format(value)} bytes` : NOTHING;
}

/**
 * Parts and their total in one unit, rounded so that the parts as shown sum to the total as shown.
 * What rounding leaves over goes to the parts that lost most by it. Returns {parts, total, unit}, texts.
 */
export function addingUp(parts, digits = 2) {
  const sum = parts.reduce((a, b) => a + b, 0);
  const unit = unitOf(sum);
  const scale = 10 ** (unit === 0 ? 0 : digits);
  const scaled = parts.map((part) => (part / 1024 ** unit) * scale);
  const total = Math.round(scaled.reduce((a, b) => a + b, 0));
  const low = scaled.map(Math.floor);
  let left = total - low.reduce((a, b) => a + b, 0);
  const byLoss = scaled.map((value, i) => [value - low[i], i]).sort((a, b) => b[0] - a[0]);
  for (const [, i] of byLoss) {
    if (left <= 0) break;
    low[i] += 1;
    left -= 1;
  }
  const text = (value) => (value / scale).toFixed(unit === 0 ? 0 : digits);
  return { parts: low.map(text), total: text(total), unit: UNITS[unit] };
}

export function count(value) {
  if (!Number.isFinite(value)) return NOTHING;
  if (Math.abs(value) < 1e6) return whole.format(value);
  const power = Math.abs(value) >= 1e9 ? 9 : 6;
  return `${(value / 10 ** power).toFixed(2)} ${power === 9 ? "G" : "M"}`;
}

/** A rate of things: two significant digits under 10. */
export function perSecond(value) {
  if (!Number.isFinite(value)) return NOTHING;
  if (value === 0) return "0";
  return value < 10 ? value.toFixed(value < 1 ? 2 : 1) : count(value);
}

export function share(value) {
  if (!Number.isFinite(value)) return NOTHING;
  const percent = value * 100;
  return `${percent > 0 && percent < 1 ? "<1" : Math.round(percent)}%`;
}

export function seconds(value) {
  if (!Number.isFinite(value)) return NOTHING;
  if (value === 0) return "0";
  if (value < 1e-3) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${(value * 1e3).toFixed(digitsFor(value * 1e3) > 1 ? 1 : 0)} ms`;
  return `${value.toFixed(digitsFor(value))} s`;
}

/** How long something has lasted: “3 d 4 h”, “12 min”, “8 s”. */
export function duration(ms) {
  if (!Number.isFinite(ms) || ms < 0) return NOTHING;
  const s = Math.floor(ms / 1000);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

const two = (n) => String(n).padStart(2, "0");

/** Local time of day, “14:03:22”. */
export function clock(ms) {
  if (!Number.isFinite(ms)) return NOTHING;
  const date = new Date(ms);
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

/**
 * A name from outside as one line of harmless text: control and direction characters become visible, and it is no
 * longer than `most`. An empty name is said to be so.
 */
export function nameText(name, most = 80) {
  const text = String(name ?? "").replace(
    /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/gu,
    (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`,
  );
  if (text === "") return "(no name)";
  const points = Array.from(text);
  return points.length > most ? `${points.slice(0, most - 1).join("")}…` : text;
}

/** About `wanted` round values from 0 to at most `max`, 0 and one more at least; binary steps for bytes. */
export function niceTicks(max, wanted, binary) {
  if (!(max > 0)) return [0];
  const base = binary ? 1024 ** Math.floor(Math.log(max / wanted) / Math.log(1024)) : 10 ** Math.floor(Math.log10(max / wanted));
  const steps = binary ? [1, 2, 5, 10, 20, 50, 128, 256, 512, 1024] : [1, 2, 2.5, 5, 10];
  const few = Math.max(0, steps.findIndex((s) => max / (base * s) <= wanted));
  const step = base * (base * steps[few] > max && few > 0 ? steps[few - 1] : steps[few]);
  const out = [];
  for (let value = 0; value <= max * 1.0001; value += step) out.push(value);
  return out;
}

/** Round instants in [from, to], for a time axis; ms. */
export function timeTicks(from, to, wanted) {
  const choices = [5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600].map((s) => s * 1000);
  const step = choices.find((s) => (to - from) / s <= wanted) ?? choices[choices.length - 1];
  const out = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) out.push(at);
  return out;
}

/** A size on an axis: no more digits than it has, “512 MiB”, “2.5 GiB”, “0”. */
export function tickBytes(value) {
  if (value === 0) return "0";
  const unit = unitOf(value);
  return `${Number((value / 1024 ** unit).toFixed(2))} ${UNITS[unit]}`;
}
