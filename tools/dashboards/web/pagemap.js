// The page map of one device on a canvas: a cell stands for some pages of one job. Its colour is the job's, as strong
// as the share of its pages that is on the device; a bar at its foot says how much of it is dirty, a frame that its
// pages are moving, a dot that it lies on disk. Pages that were never written are nowhere. Only cells that changed are
// drawn again.

import { nameText } from "./format.js";
import { ink, mix, slotColour } from "./palette.js";

const LEVELS = 8;
const UNWRITTEN = LEVELS + 1;
const ON_DISK = LEVELS + 2; // none of it is on the device, and most of it is on disk
const SMALLEST = 4; // of a cell with its gap, in CSS pixels
const LARGEST = 24;

/**
 * Columns, rows and size of `count` cells that fill as much of width x height as whole pixels and nearly square cells
 * let them; taller than the room where they do not fit.
 */
export function layout(count, width, height) {
  let best = null;
  for (let wide = SMALLEST; wide <= LARGEST; wide += 1) {
    const columns = Math.max(1, Math.floor(width / wide));
    const rows = Math.ceil(count / columns);
    const high = Math.min(LARGEST, Math.floor(height / rows), Math.round(wide * 1.5));
    if (high < SMALLEST || high < wide * 0.66) continue;
    if (best === null || wide * high > best.wide * best.high) best = { columns, rows, wide, high };
  }
  if (best !== null) return best;
  const columns = Math.max(1, Math.floor(width / SMALLEST));
  return { columns, rows: Math.ceil(count / columns), wide: SMALLEST, high: SMALLEST };
}

/** How many pages each cell has: as many as there are a cell, but the last of a job may have fewer. */
export function pagesOf(map, i) {
  const [job, resident, , host, streaming] = map.cells[i];
  const known = resident + host + streaming;
  const last = i + 1 === map.cells.length || map.cells[i + 1][0] !== job;
  return last ? Math.max(1, known) : Math.max(known, map.pages_per_cell);
}

/** What of a cell of `pages` pages is seen, as one number; equal numbers look the same. */
export function lookOf(cell, pages) {
  const [job, resident, dirty, host, streaming, disk = 0] = cell;
  const here = resident + streaming;
  const away = disk * 2 > host ? ON_DISK : 0;
  const level = here + host === 0 ? UNWRITTEN : here === 0 ? away : Math.max(1, Math.round((here / pages) * LEVELS));
  const foot = dirty === 0 ? 0 : Math.max(1, Math.round((Math.min(dirty, pages) / pages) * LEVELS));
  return job * 512 + level * 32 + Math.min(foot, LEVELS) * 2 + (streaming > 0 ? 1 : 0);
}

export class PageMap {
  #canvas;
  #context;
  #looks = new Int32Array(0); // as drawn; -1: not drawn
  #place = { wide: 0, high: 0, columns: 1, rows: 0 };
  #drawn = ""; // what a change of redraws everything
  #map = null;
  #fills = [];
  #cursor = -1;
  #told;

  /** told(text, {x, y, wide, high}): the cell under pointer or cursor and where it is; nulls when none. */
  constructor(canvas, told) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { alpha: false });
    this.#told = told;
    canvas.addEventListener("pointermove", (event) => this.#point(event));
    canvas.addEventListener("pointerleave", () => this.#select(-1));
    canvas.addEventListener("blur", () => this.#select(-1));
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  /** view: {theme, colours, focus}; map: one device of the page map; width, height: the room there is. */
  update(map, view, width, height) {
    this.#map = map;
    const scale = window.devicePixelRatio || 1;
    const cells = map.cells;
    const place = layout(cells.length, width, height);
    const key = [view.theme, view.focus, scale, place.wide, place.high, place.columns, place.rows, width, ...map.jobs, ...map.jobs.map((name) => view.colours.slot(name))].join("\u0001");
    if (key !== this.#drawn) this.#prepare(key, map, view, place, width, scale);
    if (this.#looks.length !== cells.length) this.#looks = new Int32Array(cells.length).fill(-1);
    let changed = 0;
    for (let i = 0; i < cells.length; i += 1) {
      const look = lookOf(cells[i], pagesOf(map, i));
      if (look === this.#looks[i]) continue;
      this.#looks[i] = look;
      this.#draw(i, cells[i][0], look, scale);
      changed += 1;
    }
    if (this.#cursor >= 0) this.#select(Math.min(this.#cursor, cells.length - 1));
    return changed;
  }

  #prepare(key, map, view, place, width, scale) {
    this.#drawn = key;
    this.#place = place;
    this.#canvas.width = Math.round(width * scale);
    this.#canvas.height = Math.round(place.rows * place.high * scale);
    this.#canvas.style.width = `${width}px`;
    this.#canvas.style.height = `${place.rows * place.high}px`;
    const colours = ink(view.theme);
    this.#context.fillStyle = colours.panel;
    this.#context.fillRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#looks = new Int32Array(map.cells.length).fill(-1);
    this.#fills = map.jobs.map((name) => {
      const strength = view.focus !== null && view.focus !== name ? 0.25 : 1;
      const colour = slotColour(view.theme, view.colours.slot(name));
      const level = (i) => mix(colour, colours.panel, strength * (i === 0 ? 0.24 : 0.35 + (0.65 * i) / LEVELS));
      const levels = [...Array.from({ length: LEVELS + 1 }, (_, i) => level(i)), mix(colour, colours.panel, strength * 0.07), mix(colour, colours.panel, strength * 0.14)];
      return { levels, dot: mix(colour, colours.panel, strength * 0.8), dirty: mix(mix(colours.text, colour, 0.7), colours.panel, strength), moving: mix(colours.text, colours.panel, strength) };
    });
  }

  #draw(i, job, look, scale) {
    const { wide, high, columns } = this.#place;
    const gap = Math.min(wide, high) >= 6 ? 1 : 0.5;
    const left = Math.round((i % columns) * wide * scale);
    const top = Math.round(Math.floor(i / columns) * high * scale);
    const across = Math.round((wide - gap) * scale);
    const down = Math.round((high - gap) * scale);
    const level = (look >> 5) & 15;
    const foot = (look >> 1) & 15;
    const context = this.#context;
    const fills = this.#fills[job];
    if (fills === undefined) return; // a job that the map does not name
    context.fillStyle = fills.levels[level];
    context.fillRect(left, top, across, down);
    if (level === ON_DISK) {
      const size = Math.max(1, Math.round(Math.min(across, down) * 0.36));
      context.fillStyle = fills.dot;
      context.fillRect(left + ((across - size) >> 1), top + ((down - size) >> 1), size, size);
    }
    if (foot > 0) {
      const thick = Math.max(1, Math.round(down * 0.17));
      context.fillStyle = fills.dirty;
      context.fillRect(left, top + down - thick, Math.max(thick, Math.round((across * foot) / LEVELS)), thick);
    }
    if ((look & 1) === 1) {
      const pen = Math.max(1, Math.round(scale));
      context.strokeStyle = fills.moving;
      context.lineWidth = pen;
      context.strokeRect(left + pen / 2, top + pen / 2, across - pen, down - pen);
    }
  }

  /** The cell in words. */
  textOf(i) {
    const map = this.#map;
    const [job, resident, dirty, host, streaming, disk = 0] = map.cells[i];
    const first = map.cells.findIndex((cell) => cell[0] === job);
    const moving = streaming > 0 ? `, ${streaming} moving` : "";
    const unwritten = Math.max(0, pagesOf(map, i) - resident - host - streaming);
    return `${nameText(map.jobs[job], 40)}, cell ${i - first + 1}: ${resident} pages on the device, ${dirty} dirty${moving}, ${host - disk} on the host${disk > 0 ? `, ${disk} on disk` : ""}${unwritten > 0 ? `, ${unwritten} never written` : ""}`;
  }

  #point(event) {
    const box = this.#canvas.getBoundingClientRect();
    const { wide, high, columns } = this.#place;
    const column = Math.floor((event.clientX - box.left) / wide);
    const i = Math.floor((event.clientY - box.top) / high) * columns + column;
    this.#select(column >= 0 && column < columns && i < (this.#map?.cells.length ?? 0) ? i : -1);
  }

  #key(event) {
    const { columns } = this.#place;
    const last = (this.#map?.cells.length ?? 0) - 1;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -last - 1, End: last + 1 };
    if (last < 0 || (steps[event.key] === undefined && event.key !== "Escape")) return;
    event.preventDefault();
    if (event.key === "Escape") this.#select(-1);
    else this.#select(Math.min(last, Math.max(0, this.#cursor + steps[event.key])));
  }

  #select(i) {
    this.#cursor = i;
    if (i < 0 || this.#map === null) {
      this.#told(null, null);
      return;
    }
    const { wide, high, columns } = this.#place;
    this.#told(this.textOf(i), { x: (i % columns) * wide, y: Math.floor(i / columns) * high, wide, high });
  }
}
