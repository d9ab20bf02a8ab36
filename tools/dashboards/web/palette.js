// Colours. Jobs have sixteen, in two themes; the first eight stay apart for every kind of colour blindness
// (OKLab distance of 0.09 and more under Machado's matrices), and a job keeps its own for as long as it is known.

const JOBS = {
  dark: ["#4ba9fc", "#e69a24", "#c2eaff", "#ad411a", "#f0e867", "#7f6acf", "#4e9885", "#d6adb9",
    "#4060b3", "#bba886", "#80c7f6", "#c86cb9", "#8c8214", "#aaa1d2", "#4f7d7c", "#ecc6b5"],
  light: ["#5f71de", "#bf6a00", "#2c3651", "#883900", "#bbb111", "#443aa7", "#00ac89", "#fb87d8",
    "#22bafb", "#622309", "#087783", "#bb3d78", "#746843", "#9e83bf", "#51945b", "#714255"],
};

// What a chart draws that is no job's.
const INK = {
  dark: { panel: "#14181f", text: "#d9e0ea", muted: "#8e9bad", grid: "#232b36", line: "#3a4657", alarm: "#ff8d7a" },
  light: { panel: "#ffffff", text: "#1c2530", muted: "#5a6675", grid: "#e9edf2", line: "#b9c3cf", alarm: "#b3261e" },
};

export const SLOTS = 16;
const STRONG = 8;
const REMEMBERED = 64;
const STORE = "bitpager.colours";

export const REASONS = ["demand", "prefetch", "share", "limit", "command", "pressure", "closing"];
const REASON_SLOTS = { demand: 0, prefetch: 2, share: 5, limit: 4, command: 7, pressure: 3, closing: 9 };

export const ink = (theme) => INK[theme];
export const slotColour = (theme, slot) => JOBS[theme][slot % SLOTS];
export const reasonColour = (theme, reason) => JOBS[theme][REASON_SLOTS[reason] ?? 14];
export const allColours = (theme) => JOBS[theme].slice();

function hash(text) {
  let h = 2166136261;
  for (let i = 0; i < text.length; i += 1) h = Math.imul(h ^ text.charCodeAt(i), 16777619);
  return h >>> 0;
}

/** Which slot each job has. A name's own slot follows from the name; where it is taken, the next free one. */
export class JobColours {
  #slots = new Map();
  #storage;

  constructor(storage) {
    this.#storage = storage;
    try {
      for (const [name, slot] of JSON.parse(storage?.getItem(STORE) ?? "[]").slice(0, REMEMBERED)) {
        if (typeof name === "string" && Number.isInteger(slot)) this.#slots.set(name, Math.abs(slot) % SLOTS);
      }
    } catch {
      this.#slots.clear(); // what is stored was not ours
    }
  }

  /** Gives slots to those of `names` that have none. Slots of jobs that are not in `names` count as free. */
  meet(names) {
    const taken = new Set();
    const without = [];
    for (const name of new Set(names)) {
      const slot = this.#slots.get(name);
      if (slot === undefined || taken.has(slot)) without.push(name);
      else taken.add(slot);
    }
    for (const name of without) {
      const slot = this.#free(name, taken);
      taken.add(slot);
      this.#slots.set(name, slot);
    }
    if (without.length > 0) this.#keep();
  }

  slot(name) {
    return this.#slots.get(name) ?? hash(name) % SLOTS;
  }

  #free(name, taken) {
    const first = hash(name) % STRONG;
    for (let i = 0; i < STRONG; i += 1) if (!taken.has((first + i) % STRONG)) return (first + i) % STRONG;
    for (let slot = STRONG; slot < SLOTS; slot += 1) if (!taken.has(slot)) return slot;
    return hash(name) % SLOTS;
  }

  #keep() {
    while (this.#slots.size > REMEMBERED) this.#slots.delete(this.#slots.keys().next().value);
    try {
      this.#storage?.setItem(STORE, JSON.stringify([...this.#slots]));
    } catch {
      // A full or forbidden store costs the colours after a reload, no more.
    }
  }
}

/** “#rrggbb” at `alpha` over `under`, as an opaque colour: canvas fills stay cheap. */
export function mix(colour, under, alpha) {
  const part = (text, at) => Number.parseInt(text.slice(at, at + 2), 16);
  const one = (at) => Math.round(part(colour, at) * alpha + part(under, at) * (1 - alpha));
  return `#${[1, 3, 5].map((at) => one(at).toString(16).padStart(2, "0")).join("")}`;
}
