// What the page knows: the newest snapshot as figures and rates, and the history of both. Pure: snapshots go in, from
// the daemon or a recording alike; times are the snapshots' own. Unknown keys are passed over, missing ones are no figure.

import { History, histogramChange } from "./history.js";
import { REASONS } from "./palette.js";

const RECENT_MS = 10_000; // over which steps a second are counted
const RATE_MS = 3_000; // likewise for bytes and evictions
const SPACING_MS = 500; // snapshots that come closer replace figures, and add nothing to the history
const MOST_EVENTS = 200;
export const KINDS = ["optimizer_state", "quantized_weight"];
export const BUFFERS = "buffers"; // what the host holds beside pages: slabs for parameters and gradients

const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : 0);
const list = (value) => (Array.isArray(value) ? value.filter((item) => typeof item === "object" && item !== null) : []);
const sumOf = (object) => Object.values(object ?? {}).reduce((sum, value) => sum + number(value), 0);
export const seriesKey = (...parts) => parts.join("\u0001");

const isCell = (cell) => Array.isArray(cell) && cell.length >= 5 && cell.every(Number.isFinite);
// An event has an id from version 2 of its schema on; a recording may be older.
const identityOf = (event) =>
  Number.isInteger(event.id) ? seriesKey("", event.id) : seriesKey(event.time_unix_ms, event.name, event.device, event.job, event.bytes, event.text);

/** The counters of a snapshot that rates come from. */
function countersOf(snapshot) {
  const jobs = new Map();
  for (const job of list(snapshot.jobs)) {
    jobs.set(seriesKey(job.device, job.id), {
      loaded: number(job.loaded_bytes), stored: number(job.stored_bytes), steps: number(job.steps),
      stall: number(job.stall_ns), took: job.step_ns, evicted: sumOf(job.evictions_by_reason),
    });
  }
  const devices = new Map();
  for (const device of list(snapshot.devices)) {
    devices.set(device.uuid, { evictions: { ...device.evictions_by_reason }, histograms: device.histograms ?? {} });
  }
  return { time: number(snapshot.time_unix_ms), jobs, devices };
}

/** How fast a counter of `now` has grown since the oldest of `recent` that is at most `window` old; NaN: not known. */
function rate(recent, now, window, read) {
  const last = read(now);
  for (const old of recent) {
    if (now.time - old.time > window + 500 || now.time <= old.time) continue;
    const first = read(old);
    if (first === undefined || last === undefined) continue;
    return Math.max(0, ((last - first) * 1000) / (now.time - old.time));
  }
  return NaN;
}

export class Model {
  history = new History();
  snapshot = null;
  jobs = []; // rows, see #rowOf
  events = []; // newest first
  pages = null; // the newest page map
  #recent = [];
  #pushed = -Infinity; // time of the history's last sample
  #labels = new Map();

  reset() {
    this.history.clear();
    this.snapshot = this.pages = null;
    this.jobs = [];
    this.events = [];
    this.#recent = [];
    this.#pushed = -Infinity;
  }

  get time() {
    return number(this.snapshot?.time_unix_ms);
  }

  get devices() {
    return list(this.snapshot?.devices);
  }

  /** Whether a job of this name is there, or was in the time that the history holds. */
  knows(name) {
    const end = seriesKey("", name);
    return this.jobs.some((row) => row.name === name) || [...this.history.keys].some((key) => key.endsWith(end));
  }

  /** Whether the daemon keeps pages on disk for a device of `chosen`. */
  hasDisk(chosen) {
    return this.devices.some((device) => chosen.has(device.uuid) && (device.disk_budget_bytes > 0 || device.disk_committed_bytes > 0));
  }

  /** “GPU 0”, “CPU”. */
  label(uuid) {
    return this.#labels.get(uuid) ?? "–";
  }

  /** Takes a snapshot; false when it is none. */
  apply(snapshot) {
    if (typeof snapshot !== "object" || snapshot === null || !Array.isArray(snapshot.devices)) return false;
    const before = this.snapshot;
    const time = number(snapshot.time_unix_ms);
    const restarted = before !== null && (before.pid !== snapshot.pid || number(snapshot.uptime_ms) < number(before.uptime_ms));
    if (restarted) this.#recent = [];
    if (time < this.#pushed - 5000) {
      this.history.clear(); // the daemon's clock was set back
      this.#recent = [];
      this.#pushed = -Infinity;
    }
    this.snapshot = snapshot;
    this.#name(snapshot);
    const now = countersOf(snapshot);
    this.jobs = list(snapshot.jobs).map((job) => this.#rowOf(job, now));
    if (time - this.#pushed >= SPACING_MS) {
      this.#pushed = time;
      this.history.push(time, this.#sample(snapshot, now));
      this.#recent = [...this.#recent.filter((old) => time - old.time <= RECENT_MS), now];
    }
    return true;
  }

  /** Takes a page map, or null; what is no map leaves none. */
  setPages(body) {
    const isMap = (map) => Array.isArray(map.cells) && Array.isArray(map.jobs) && map.cells.every(isCell);
    this.pages = body === null || !Array.isArray(body?.devices) ? null : { devices: list(body.devices).filter(isMap) };
  }

  /** Whether it was not there yet. */
  addEvent(event) {
    return this.addEvents([event]) > 0;
  }

  /** Adds those that are not there yet, and says how many: streams, and the daemon's own list, overlap. */
  addEvents(events) {
    const known = new Set(this.events.map(identityOf));
    const fresh = list(events).filter((event) => !known.has(identityOf(event)) && known.add(identityOf(event)));
    if (fresh.length === 0) return 0;
    this.events = [...fresh.reverse(), ...this.events].sort((a, b) => number(b.time_unix_ms) - number(a.time_unix_ms)).slice(0, MOST_EVENTS);
    return fresh.length;
  }

  #name(snapshot) {
    list(snapshot.devices).forEach((device, index) => {
      const number = /^[0-9]{1,4}$/.test(device.gpu) ? device.gpu : index;
      this.#labels.set(device.uuid, device.kind === "cpu" ? "CPU" : `GPU ${number}`);
    });
  }

  #rowOf(job, now) {
    const key = seriesKey(job.device, job.id);
    const of = (field) => (counters) => counters.jobs.get(key)?.[field];
    const grown = (field, window) => rate(this.#recent, now, window, of(field));
    const [stall, steps, took] = ["stall", "steps", "took"].map((field) => grown(field, RECENT_MS));
    return {
      key, name: String(job.name ?? ""), device: job.device, uid: number(job.uid), sessions: number(job.sessions),
      state: job.ending === true ? "ends" : job.lingering === true ? "lingers" : "", resident: number(job.resident_bytes), host: number(job.host_bytes), disk: number(job.disk_bytes), buffers: number(job.buffer_bytes),
      dirty: number(job.dirty_bytes), leased: number(job.leased_bytes), share: number(job.share_bytes),
      quota: number(job.device_quota_bytes), hostQuota: number(job.host_quota_bytes), weight: number(job.weight),
      kinds: job.bytes_by_kind ?? {}, steps: number(job.steps), nonfinite: number(job.nonfinite_blocks),
      faults: number(job.faults), shared: number(job.shared_bytes), saved: job.saved_bytes ?? {},
      stepSeconds: took > 0 && steps > 0 ? took / steps / 1e9 : job.step_ns_last > 0 ? job.step_ns_last / 1e9 : NaN,
      stallShare: stall / 1e9, // of each second of its sessions
      stepRate: steps, inRate: grown("loaded", RATE_MS), outRate: grown("stored", RATE_MS),
      evictRate: grown("evicted", RATE_MS),
    };
  }

  #sample(snapshot, now) {
    const out = new Map();
    const add = (value, ...parts) => {
      const key = seriesKey(...parts);
      out.set(key, (out.get(key) ?? 0) + value);
    };
    for (const job of list(snapshot.jobs)) {
      add(number(job.resident_bytes), "resident", job.device, job.name);
      add(number(job.host_bytes) + number(job.buffer_bytes), "host", job.device, job.name);
      if (job.disk_bytes > 0) add(number(job.disk_bytes), "disk", job.device, job.name);
      add(number(job.buffer_bytes), "hostKind", job.device, BUFFERS);
      for (const kind of KINDS) {
        add(number(job.resident_bytes_by_kind?.[kind]), "residentKind", job.device, kind);
        add(number((job.host_by_kind ?? job.bytes_by_kind)?.[kind]), "hostKind", job.device, kind);
        if (job.disk_by_kind?.[kind] > 0) add(number(job.disk_by_kind[kind]), "diskKind", job.device, kind);
      }
    }
    const last = this.#recent[this.#recent.length - 1];
    if (last !== undefined && now.time > last.time) this.#change(snapshot, last, now, add);
    for (const device of list(snapshot.devices)) {
      out.set(seriesKey("pressure", device.uuid), number(device.pressure_ratio));
    }
    return out;
  }

  /** Adds what grew since the last sample. */
  #change(snapshot, last, now, add) {
    const spent = (now.time - last.time) / 1000;
    for (const job of list(snapshot.jobs)) {
      const key = seriesKey(job.device, job.id);
      const [old, fresh] = [last.jobs.get(key), now.jobs.get(key)];
      if (old === undefined) continue;
      add(Math.max(0, fresh.loaded - old.loaded) / spent, "in", job.device, job.name);
      add(Math.max(0, fresh.stored - old.stored) / spent, "out", job.device, job.name);
    }
    for (const [uuid, fresh] of now.devices) {
      const old = last.devices.get(uuid);
      if (old === undefined) continue;
      for (const reason of REASONS) {
        const gone = Math.max(0, number(fresh.evictions[reason]) - number(old.evictions[reason]));
        add(gone / spent, "evictions", uuid, reason);
      }
      for (const what of ["step", "stall"]) {
        const change = histogramChange(old.histograms[what], fresh.histograms[what]);
        if (change.count === 0) continue;
        add(change.count, `${what}Count`, uuid);
        add(change.mean * change.count, `${what}Sum`, uuid);
        add(change.p95, `${what}P95`, uuid);
      }
    }
  }

  /** The newest figures of the devices in `chosen` (a Set of UUIDs) together. */
  totals(chosen) {
    const devices = this.devices.filter((device) => chosen.has(device.uuid));
    const rows = this.jobs.filter((row) => chosen.has(row.device));
    const sum = (items, read) => items.reduce((total, item) => total + number(read(item)), 0);
    const sumRates = (read) => rows.reduce((total, row) => total + (Number.isFinite(read(row)) ? read(row) : 0), 0);
    const known = rows.some((row) => Number.isFinite(row.inRate));
    const byName = (read) => {
      const parts = new Map();
      for (const row of rows) parts.set(row.name, (parts.get(row.name) ?? 0) + read(row));
      return parts;
    };
    return {
      budget: sum(devices, (d) => d.budget_bytes), used: sum(devices, (d) => d.used_bytes),
      free: sum(devices, (d) => d.free_bytes), resident: byName((row) => row.resident),
      hostBudget: sum(devices, (d) => d.host_budget_bytes), hostUsed: sum(devices, (d) => d.host_committed_bytes),
      host: byName((row) => row.host + row.buffers), hostPages: sum(rows, (row) => row.host),
      diskBudget: sum(devices, (d) => d.disk_budget_bytes), diskUsed: sum(devices, (d) => d.disk_committed_bytes),
      disk: byName((row) => row.disk), cardTotal: sum(devices, (d) => d.memory_total_bytes),
      cardFree: sum(devices, (d) => d.memory_free_bytes), own: sum(devices, (d) => d.own_bytes),
      pressure: devices.reduce((most, d) => Math.max(most, number(d.pressure_ratio)), 0),
      linkIn: sum(devices, (d) => d.link?.to_device_bytes_per_s), linkOut: sum(devices, (d) => d.link?.to_host_bytes_per_s),
      saved32: sum(rows, (row) => row.saved.states_32bit), saved16: sum(rows, (row) => row.saved.weights_16bit),
      shared: sum(rows, (row) => row.shared), dirty: sum(rows, (row) => row.dirty), leased: sum(rows, (row) => row.leased),
      sessions: sum(rows, (row) => row.sessions), jobs: rows.length, known,
      inRate: sumRates((row) => row.inRate), outRate: sumRates((row) => row.outRate),
      stepRate: sumRates((row) => row.stepRate), evictRate: sumRates((row) => row.evictRate),
      stall: sumRates((row) => row.stallShare),
    };
  }
}
