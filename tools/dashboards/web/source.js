// Where live figures come from: the daemon's event stream, and while that does not come, its status by polling. Says
// what the connection is at each change, so that stale figures are never taken for live ones.

const SILENCE_MS = 8_000; // the daemon tells its status once a second
const POLL_MS = 2_000;
const STREAM_AGAIN_MS = 15_000; // while polling works
const LONGEST_WAIT_MS = 10_000;
const FAILURES_BEFORE_POLL = 2;
export const CELLS = 1024;

const get = (path) => fetch(path, { cache: "no-store", signal: AbortSignal.timeout(5000) });

/** The wait before the n-th attempt, n from 1. */
export function backoff(n) {
  return Math.min(LONGEST_WAIT_MS, 1000 * 2 ** Math.max(0, n - 1));
}

/**
 * take: {status(object), pages(text), event(object), events(list), state({mode, since})}; mode is "connecting", "live", "polling"
 * or "offline"; since is when the figures were last fresh, ms, or 0 where they never were.
 */
export class LiveSource {
  #take;
  #stream = null;
  #timer = 0;
  #failures = 0;
  #heard = 0; // when the stream last said something
  #fresh = 0; // when figures last came, by either way
  #mode = "";
  #place = ""; // id of the last event that streams have brought: the next one goes on there

  constructor(take) {
    this.#take = take;
    window.addEventListener("online", () => this.retry());
  }

  start() {
    this.#say("connecting");
    this.#open();
    setInterval(() => this.#check(), 2000);
  }

  /** Tries at once when there is no stream. */
  retry() {
    if (this.#mode === "live" || this.#mode === "connecting") return;
    clearTimeout(this.#timer);
    this.#open();
  }

  #say(mode) {
    if (mode === this.#mode) return;
    this.#mode = mode;
    this.#take.state({ mode, since: this.#fresh });
  }

  #shut() {
    this.#stream?.close();
    this.#stream = null;
  }

  #open() {
    this.#shut();
    this.#events();
    const place = this.#place === "" ? "" : `&last_event_id=${this.#place}`;
    const stream = new EventSource(`api/stream?cells=${CELLS}${place}`);
    this.#stream = stream;
    this.#heard = Date.now();
    const on = (name, take) =>
      stream.addEventListener(name, (message) => {
        if (stream !== this.#stream) return;
        this.#heard = Date.now();
        if (/^[0-9]{1,20}$/.test(message.lastEventId)) this.#place = message.lastEventId;
        take(message.data);
      });
    on("status", (text) => this.#status(text));
    on("pages", (text) => this.#take.pages(text));
    on("event", (text) => this.#parsed(text, this.#take.event));
    stream.addEventListener("error", () => {
      if (stream === this.#stream) this.#fail();
    });
  }

  #parsed(text, take) {
    let body;
    try {
      body = JSON.parse(text);
    } catch {
      return false; // a message that is cut off: the next one is whole
    }
    take(body);
    return true;
  }

  #status(text) {
    if (!this.#parsed(text, this.#take.status)) return;
    this.#failures = 0;
    this.#fresh = Date.now();
    clearTimeout(this.#timer);
    this.#say("live");
  }

  #check() {
    if (this.#stream !== null && Date.now() - this.#heard > SILENCE_MS) this.#fail();
  }

  #fail() {
    this.#shut();
    this.#failures += 1;
    if (this.#mode === "live" || this.#mode === "connecting") this.#say("offline");
    clearTimeout(this.#timer);
    if (this.#failures >= FAILURES_BEFORE_POLL) this.#poll(Date.now() + STREAM_AGAIN_MS);
    else this.#timer = setTimeout(() => this.#open(), backoff(this.#failures));
  }

  /** Polls until `streamAt`, then tries the stream again; on an error it is tried after the usual wait. */
  async #poll(streamAt) {
    const answered = await this.#ask();
    if (this.#stream !== null) return;
    this.#say(answered ? "polling" : "offline");
    const again = answered && Date.now() < streamAt;
    const next = again ? () => this.#poll(streamAt) : () => this.#open();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(next, again ? POLL_MS : answered ? 0 : backoff(this.#failures));
  }

  /** What the daemon remembers of before. */
  async #events() {
    try {
      const answer = await get("api/events");
      const body = answer.ok ? await answer.json() : null;
      if (Array.isArray(body?.events)) this.#take.events(body.events);
    } catch {
      // what follows says that there is no connection
    }
  }

  async #ask() {
    try {
      const status = await get("api/status");
      if (!status.ok) return false;
      const body = await status.json();
      this.#fresh = Date.now();
      this.#take.status(body);
      const pages = await get(`api/pages?cells=${CELLS}`);
      if (pages.ok) this.#take.pages(await pages.text());
      await this.#events();
      return true;
    } catch {
      return false;
    }
  }
}
