// The page maps, one for each device that is chosen, and what is said of the cell under the pointer or the cursor.

import { $, make, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";
import { PageMap } from "./pagemap.js";

const MANY = 3; // from here on in two columns

class OneMap {
  node;
  #heading = make("h3");
  #canvas = make("canvas", { tabIndex: 0, role: "application", ariaRoleDescription: "page map" });
  #room;
  #tip = make("div", { className: "tip", hidden: true });
  #mark = make("div", { className: "cursor", hidden: true });
  #map;
  #said;

  constructor(said) {
    this.#said = said;
    this.#room = make("div", { className: "room" }, this.#canvas, this.#mark);
    this.node = make("div", { className: "one-map" }, this.#heading, this.#room, this.#tip);
    this.#map = new PageMap(this.#canvas, (text, cell) => this.#tell(text, cell));
  }

  #tell(text, cell) {
    this.#tip.hidden = this.#mark.hidden = text === null;
    if (text === null) return;
    const { x, y, wide, high } = cell;
    setText(this.#tip, text);
    Object.assign(this.#mark.style, { left: `${x - 1}px`, top: `${y - 1}px`, width: `${wide + 1}px`, height: `${high + 1}px` });
    const room = this.#room.getBoundingClientRect();
    const right = x > room.width / 2;
    Object.assign(this.#tip.style, {
      left: right ? "" : `${x}px`, right: right ? `${room.width - x - wide}px` : "",
      top: y > room.height / 2 ? "" : `${this.#room.offsetTop + y + high + 6}px`,
      bottom: y > room.height / 2 ? `${room.height - y + 6}px` : "",
    });
    if (document.activeElement === this.#canvas) this.#said(text);
  }

  draw(map, device, view, several) {
    this.#heading.hidden = !several;
    const { width, height } = view.sizes.get(this.node) ?? this.#measure(view);
    setText(this.#heading, several ? `${view.model.label(map.uuid)} · ${format.bytes(device?.used_bytes)} of ${format.bytes(device?.budget_bytes)}` : "");
    this.#map.update(map, view, width, height);
    const resident = map.cells.reduce((sum, cell) => sum + cell[1], 0);
    const dirty = map.cells.reduce((sum, cell) => sum + cell[2], 0);
    setAttribute(this.#canvas, "aria-label", `Page map of ${view.model.label(map.uuid)}: ${format.count(resident)} of ${format.count(map.pages)} pages on the device, ${format.count(dirty)} dirty. Arrow keys go through the cells.`);
  }

  #measure(view) {
    const size = { width: this.#room.clientWidth, height: this.#room.clientHeight };
    view.sizes.set(this.node, size);
    return size;
  }
}

export class Maps {
  #root = $("maps");
  #maps = new Map(); // UUID -> OneMap
  #said;
  #empty = make("p", { className: "empty" });

  constructor(said) {
    this.#said = said;
    this.#root.append(this.#empty);
  }

  draw(view) {
    const pages = view.model.pages;
    const shown = (pages?.devices ?? []).filter((map) => view.chosen.has(map.uuid) && map.cells.length > 0);
    const want = new Set(shown.map((map) => map.uuid));
    for (const [uuid, one] of this.#maps) {
      if (want.has(uuid)) continue;
      one.node.remove();
      this.#maps.delete(uuid);
      view.sizes.clear();
    }
    for (const map of shown) {
      if (this.#maps.has(map.uuid)) continue;
      this.#maps.set(map.uuid, new OneMap(this.#said));
      this.#root.append(this.#maps.get(map.uuid).node);
      view.sizes.clear();
    }
    this.#root.classList.toggle("many", shown.length >= MANY);
    if (this.#empty.hidden !== shown.length > 0) view.sizes.clear();
    this.#empty.hidden = shown.length > 0;
    for (const map of shown) {
      const device = view.model.devices.find((one) => one.uuid === map.uuid);
      this.#maps.get(map.uuid).draw(map, device, view, shown.length > 1);
    }
    setText(this.#empty, pages === null ? "No page map has come yet." : "No pages yet. Each cell will stand for some pages of one job.");
    const sizes = [...new Set(shown.map((map) => map.pages_per_cell))];
    const total = shown.reduce((sum, map) => sum + map.pages, 0);
    $("key-disk").hidden = !view.model.hasDisk(view.chosen);
    setText($("map-note"), shown.length === 0 ? "" : `${format.count(total)} pages of ${format.bytes(shown[0].page_bytes)}, ${sizes.map((n) => format.count(n)).join(" or ")} a cell`);
  }
}
