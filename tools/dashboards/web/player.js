// A recording on the page: opening, the slider, playing.

import { $, setText } from "./dom.js";
import * as format from "./format.js";
import { readRecording } from "./recording.js";

const FRAME_MS = 100; // playing redraws no more often

export class Player {
  #recording = null;
  #time = 0;
  #playing = false;
  #last = 0;
  #frame = 0;
  #on;

  /** on: {opened(), moved(recording, time), closed(), failed(sentence)} */
  constructor(on) {
    this.#on = on;
    $("open").addEventListener("click", () => $("file").click());
    $("file").addEventListener("change", () => this.#open($("file").files[0]));
    $("play").addEventListener("click", () => this.#play(!this.#playing));
    $("seek").addEventListener("input", () => this.#go(this.#recording.begin + Number($("seek").value) * 1000));
    $("live").addEventListener("click", () => this.close());
    this.#takeDrops();
  }

  #takeDrops() {
    const withFiles = (event) => event.dataTransfer?.types.includes("Files");
    window.addEventListener("dragover", (event) => {
      if (!withFiles(event)) return;
      event.preventDefault();
      $("drop").hidden = false;
    });
    window.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) $("drop").hidden = true;
    });
    window.addEventListener("drop", (event) => {
      if (!withFiles(event)) return;
      event.preventDefault();
      $("drop").hidden = true;
      this.#open(event.dataTransfer.files[0]);
    });
  }

  async #open(file) {
    $("file").value = "";
    if (file === undefined) return;
    try {
      setText($("open"), "Reading…");
      const recording = await readRecording(file, { progress: (done) => setText($("open"), `Reading ${format.share(done)}`) });
      this.#show(file, recording);
    } catch (error) {
      this.#on.failed(error.message);
    } finally {
      setText($("open"), "Open recording");
    }
  }

  #show(file, recording) {
    this.#play(false);
    this.#recording = recording;
    const bad = recording.unreadable > 0 ? ` · ${recording.unreadable} lines could not be read` : "";
    setText($("player-name"), `${format.nameText(file.name, 60)} · ${format.count(recording.count)} samples${bad}`);
    $("player-name").title = $("player-name").textContent;
    $("seek").max = String((recording.end - recording.begin) / 1000);
    $("seek").step = recording.end - recording.begin < 60_000 ? "0.1" : "1";
    $("player").hidden = false;
    this.#on.opened();
    this.#go(recording.begin);
    $("play").focus();
  }

  close() {
    this.#play(false);
    this.#recording = null;
    $("player").hidden = true;
    this.#on.closed();
    $("open").focus();
  }

  #go(time) {
    const { begin, end } = this.#recording;
    this.#time = Math.min(end, Math.max(begin, time));
    $("seek").value = String((this.#time - begin) / 1000);
    const text = `${format.clock(this.#time)}, ${format.duration(this.#time - begin)} of ${format.duration(end - begin)}`;
    setText($("seek-text"), text);
    $("seek").setAttribute("aria-valuetext", text);
    this.#on.moved(this.#recording, this.#time);
    if (this.#time >= end) this.#play(false);
  }

  #play(on) {
    if (on && this.#time >= this.#recording.end) this.#time = this.#recording.begin;
    this.#playing = on;
    setText($("play"), on ? "Pause" : "Play");
    cancelAnimationFrame(this.#frame);
    this.#last = performance.now();
    if (on) this.#frame = requestAnimationFrame((now) => this.#run(now));
  }

  #run(now) {
    if (!this.#playing) return;
    const passed = now - this.#last;
    if (passed >= FRAME_MS) {
      this.#last = now;
      this.#go(this.#time + Math.min(passed, 1000) * Number($("speed").value));
    }
    if (this.#playing) this.#frame = requestAnimationFrame((next) => this.#run(next));
  }
}
