// The last quarter of an hour in typed arrays: one ring of instants and, for each series, one of values. NaN says
// “not there”. Pure: no clock, no page.

export const CAPACITY = 900;

/** A ring of samples. A series is made by its first value and goes once the ring holds none of its values. */
export class History {
  #capacity;
  #times;
  #series = new Map(); // key -> {values: Float64Array, left: samples until all of it is NaN}
  #head = 0;
  #count = 0;

  constructor(capacity = CAPACITY) {
    this.#capacity = capacity;
    this.#times = new Float64Array(capacity);
  }

  get length() {
    return this.#count;
  }

  get keys() {
    return this.#series.keys();
  }

  clear() {
    this.#series.clear();
    this.#head = this.#count = 0;
  }

  /** Adds a sample: time in ms, later than the last, and a Map of key -> number. */
  push(time, values) {
    const at = this.#head;
    this.#times[at] = time;
    for (const [key, series] of this.#series) {
      series.values[at] = NaN;
      series.left -= 1;
      if (series.left <= 0 && !values.has(key)) this.#series.delete(key);
    }
    for (const [key, value] of values) {
      let series = this.#series.get(key);
      if (series === undefined) {
        series = { values: new Float64Array(this.#capacity).fill(NaN), left: 0 };
        this.#series.set(key, series);
      }
      series.values[at] = value;
      series.left = this.#capacity;
    }
    this.#head = (at + 1) % this.#capacity;
    this.#count = Math.min(this.#count + 1, this.#capacity);
  }

  /** The place in the ring of the i-th sample, 0 the oldest. */
  #place(i) {
    return (this.#head - this.#count + i + this.#capacity) % this.#capacity;
  }

  time(i) {
    return this.#times[this.#place(i)];
  }

  value(key, i) {
    const series = this.#series.get(key);
    return series === undefined ? NaN : series.values[this.#place(i)];
  }

  /**
   * The sums of some series in buckets of `width` ms that end at `end`, `buckets` of them, into `out`.
   * `how` is "last" for levels, "mean" for rates, "max". A bucket between two samples that are at most `gap` ms
   * apart repeats the earlier; any other without a sample is NaN. In a sample, series that are not there count as
   * nothing; `absent` is what a sample gives in which none is.
   */
  buckets(keys, { end, width, buckets, how = "last", gap = 3500, absent = 0, out = new Float64Array(buckets) }) {
    out.fill(NaN);
    const rings = keys.map((key) => this.#series.get(key)?.values).filter((values) => values !== undefined);
    const start = end - width * buckets;
    const seen = new Uint16Array(buckets);
    let lastTime = -Infinity;
    let lastBucket = -1;
    for (let i = 0; i < this.#count; i += 1) {
      const place = this.#place(i);
      const time = this.#times[place];
      if (time < start - gap) continue;
      const bucket = Math.floor((time - start) / width);
      if (bucket >= buckets) break;
      if (lastBucket >= 0 && time - lastTime <= gap) {
        for (let b = lastBucket + 1; b < bucket; b += 1) out[b] = out[lastBucket];
      }
      if (bucket >= 0) {
        const value = sumAt(rings, place, absent);
        out[bucket] = joined(out[bucket], seen[bucket], value, how);
        if (!Number.isNaN(value)) seen[bucket] += 1;
      }
      lastTime = time;
      lastBucket = bucket;
    }
    for (let b = lastBucket + 1; lastBucket >= 0 && b < buckets; b += 1) {
      if (start + b * width - lastTime <= gap) out[b] = out[lastBucket];
    }
    return out;
  }
}

function sumAt(rings, place, absent) {
  let sum = 0;
  let any = false;
  for (const values of rings) {
    const value = values[place];
    if (Number.isNaN(value)) continue;
    sum += value;
    any = true;
  }
  return any ? sum : absent;
}

function joined(before, times, value, how) {
  if (times === 0 || Number.isNaN(before)) return value;
  if (Number.isNaN(value)) return before;
  if (how === "mean") return before + (value - before) / (times + 1);
  return how === "max" ? Math.max(before, value) : value;
}

const MANY = 8;

/** Whether so many jobs are drawn less often, so that what a tab costs stays about the same. */
export const isMany = (jobs) => jobs > MANY;

/**
 * {width, buckets, every} for a span, for charts of so many jobs: width of a bucket and how often charts are redrawn, in
 * ms. With many jobs buckets are wider, and two of them come at once.
 */
export function bucketsFor(span_ms, jobs = 0) {
  const most = isMany(jobs) ? 90 : 200;
  const widths = isMany(jobs) ? [2000, 5000, 10000] : [1000, 2000, 5000, 10000];
  const width = widths.find((w) => span_ms / w <= most) ?? 10000;
  return { width, buckets: Math.ceil(span_ms / width), every: isMany(jobs) ? 2 * width : width };
}

/** The span to show: no more than `wanted`, and not much more than there is; grows in few steps. */
export function spanFor(history, end, wanted) {
  const there = history.length > 0 ? end - history.time(0) : 0;
  return Math.min(wanted, [60_000, 120_000, 180_000, 300_000, 600_000].find((span) => there <= span) ?? wanted);
}

/**
 * What a histogram's counts became between two reads: {count, mean, p95} in seconds; NaN where nothing was counted.
 * The quantile lies within its bucket in proportion; beyond the last bound it is that bound.
 */
export function histogramChange(before, now) {
  const none = { count: 0, mean: NaN, p95: NaN };
  if (!now || !Array.isArray(now.counts) || !Array.isArray(now.bounds_s)) return none;
  const old = Array.isArray(before?.counts) && before.count <= now.count ? before : null;
  const count = now.count - (old?.count ?? 0);
  if (!(count > 0)) return none;
  const mean = Math.max(0, (now.sum_s - (old?.sum_s ?? 0)) / count);
  let rest = 0.95 * count;
  let p95 = now.bounds_s[now.bounds_s.length - 1];
  for (let i = 0; i < now.bounds_s.length; i += 1) {
    const here = now.counts[i] - (old?.counts[i] ?? 0);
    if (rest <= here && here > 0) {
      const low = i > 0 ? now.bounds_s[i - 1] : 0;
      p95 = low + (now.bounds_s[i] - low) * (rest / here);
      break;
    }
    rest -= here;
  }
  return { count, mean, p95 };
}
