// A recording that `bitpager record` wrote: read line by line, kept as text, shown at any moment of it.

import { CAPACITY } from "./history.js";

export const MOST_BYTES = 512 * 2 ** 20;
const LONGEST_LINE = 32 * 2 ** 20;
const WINDOW_MS = CAPACITY * 1000;
const SPACING_MS = 500; // the model's own: closer snapshots need not be read

/** Index of the last entry with time <= t, -1 where none is. */
export function lastUpTo(entries, t) {
  let low = 0;
  let high = entries.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (entries[middle].time <= t) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Collects the lines of a recording. Lines that cannot be read are counted, not fatal: the last is often cut off. */
export class RecordingReader {
  status = []; // {time, text} in order of time
  pages = [];
  events = []; // {time, body}
  unreadable = 0;
  #first = true;

  /** Throws an Error with a sentence for people when the first line is no recording's. */
  line(text) {
    if (text.trim() === "") return;
    let entry;
    try {
      entry = JSON.parse(text);
    } catch {
      entry = null;
    }
    if (this.#first) {
      this.#first = false;
      if (entry?.bitpager_record === undefined) throw new Error("This file is no recording: `bitpager record FILE` writes one.");
      if (entry.bitpager_record !== 1) throw new Error(`This recording is of version ${Number(entry.bitpager_record)}; this page reads version 1.`);
      return;
    }
    const time = entry?.time_unix_ms;
    if (typeof time !== "number" || typeof entry.body !== "object" || entry.body === null) this.unreadable += 1;
    else if (entry.type === "status") this.status.push({ time, text });
    else if (entry.type === "pages") this.pages.push({ time, text });
    else if (entry.type === "event") this.events.push({ time, body: entry.body });
  }

  finish() {
    if (this.status.length === 0) throw new Error("This recording holds no status, so there is nothing to show.");
    for (const entries of [this.status, this.pages, this.events]) entries.sort((a, b) => a.time - b.time);
    return new Recording(this);
  }
}

/** Reads a File. Rejects with a sentence for people. */
export async function readRecording(file, { progress = () => {} } = {}) {
  if (file.size > MOST_BYTES) throw new Error("This recording is larger than 512 MiB; record for a shorter time or at a longer interval.");
  const reader = new RecordingReader();
  const chunks = file.stream().pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let read = 0;
  for (;;) {
    const { done, value } = await chunks.read();
    if (done) break;
    read += value.length;
    if (rest.length > LONGEST_LINE) throw new Error("This file is no recording: it has lines of more than 32 MiB.");
    if (value.includes("\n")) {
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) reader.line(line);
    } else {
      rest += value;
    }
    progress(Math.min(1, read / file.size));
  }
  reader.line(rest);
  return reader.finish();
}

export class Recording {
  #status;
  #pages;
  #events;
  #shown = -1; // index of the snapshot that the model has last taken

  constructor({ status, pages, events, unreadable }) {
    this.#status = status;
    this.#pages = pages;
    this.#events = events;
    this.unreadable = unreadable;
    this.begin = status[0].time;
    this.end = status[status.length - 1].time;
    this.count = status.length;
  }

  /** Brings the model to the moment t, as if it had watched the quarter of an hour before. */
  show(model, t) {
    const target = Math.max(0, lastUpTo(this.#status, t));
    if (target < this.#shown || this.#shown < 0 || model.snapshot === null || this.#status[target].time - this.#status[this.#shown].time > 60_000) {
      model.reset();
      this.#shown = lastUpTo(this.#status, this.#status[target].time - WINDOW_MS);
    }
    let last = -Infinity;
    for (let i = this.#shown + 1; i <= target; i += 1) {
      if (i !== target && this.#status[i].time - last < SPACING_MS) continue;
      last = this.#status[i].time;
      model.apply(JSON.parse(this.#status[i].text).body);
    }
    this.#shown = target;
    const page = lastUpTo(this.#pages, t);
    model.setPages(page < 0 ? null : JSON.parse(this.#pages[page].text).body);
    const upTo = lastUpTo(this.#events, t) + 1;
    model.events = [];
    model.addEvents(this.#events.slice(Math.max(0, upTo - 200), upTo).map((entry) => entry.body));
  }
}
