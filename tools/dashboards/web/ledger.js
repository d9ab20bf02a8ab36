// The totals at the top: what the daemon holds and where it is, as sums that come out on the page as they do in bytes.

import { $, each, make, setAttribute, setStyle, setText } from "./dom.js";
import * as format from "./format.js";
import { slotColour } from "./palette.js";

// Answers that say “not now”; no errors.
const RESULTS = new Set(["full", "pending", "not_resident"]);

/** “5.21 used + 2.79 free = 8.00 GiB budget”, and its first part as the figure above, and the exact bytes as a title. */
function sum(node, parts, whole, figure = null) {
  const { parts: texts, total, unit } = format.addingUp(parts.map(([, value]) => value));
  if (figure !== null) {
    setText($(`${figure}-used`), texts[0]);
    setText($(`${figure}-of`), `${unit} of ${total} ${unit}`);
  }
  setText(node, `${parts.map(([label], i) => `${texts[i]} ${label}`).join(" + ")} = ${total} ${unit} ${whole}`);
  setAttribute(node, "title", parts.map(([label, value]) => `${label}: ${format.exactBytes(value)}`).join("\n"));
}

/** A bar of the jobs' parts of `whole`; `moving` is what is taken and no job's yet. */
function bar(node, parts, moving, whole, view) {
  const items = [...parts].filter(([, value]) => value > 0).map(([name, value]) => ({ name, value }));
  if (moving > 0) items.push({ name: null, value: moving });
  each(node, items, () => make("i"), (piece, { name, value }) => {
    setStyle(piece, "width", `${((value / whole) * 100).toFixed(2)}%`);
    setAttribute(piece, "class", name === null ? "moving" : null);
    const dim = view.focus !== null && view.focus !== name;
    setStyle(piece, "backgroundColor", name === null ? "" : slotColour(view.theme, view.colours.slot(name)));
    setStyle(piece, "opacity", dim ? "0.25" : "");
    setAttribute(piece, "title", `${name === null ? "moving" : format.nameText(name)}: ${format.bytes(value)}`);
  });
  const words = items.map(({ name, value }) => `${name === null ? "moving" : format.nameText(name, 40)} ${format.bytes(value)}`);
  setAttribute(node, "aria-label", words.length > 0 ? words.join(", ") : "empty");
}

const sumValues = (map) => [...map.values()].reduce((a, b) => a + b, 0);

function pressure(value) {
  const chip = $("pressure");
  setText(chip, `pressure ${format.share(value)}`);
  setAttribute(chip, "title", "How near the free memory is to the watermark that pages leave free; at 100% pages have to go.");
  setAttribute(chip, "data-level", value >= 0.99 ? "alarm" : value >= 0.5 ? "warn" : null);
}

function tiles(totals) {
  const known = (value) => (totals.known ? value : NaN);
  const items = [
    ["To device", ...format.splitBytes(known(totals.inRate)), "/s"],
    ["To host", ...format.splitBytes(known(totals.outRate)), "/s"],
    ["Steps", format.perSecond(known(totals.stepRate)), "", "/s"],
    ["Stalled", format.share(totals.sessions > 0 ? known(totals.stall) / totals.sessions : NaN), "", " of time"],
    ["Saved vs 32-bit", ...format.splitBytes(totals.saved32), ""],
    ["Saved vs 16-bit", ...format.splitBytes(totals.saved16), ""],
    ["Evicted", format.perSecond(known(totals.evictRate)), "", " pages/s"],
    ["Sessions", format.count(totals.sessions), "", ` in ${format.count(totals.jobs)} job${totals.jobs === 1 ? "" : "s"}`],
  ];
  each($("tiles"), items,
    () => make("div", {}, make("dt"), make("dd", {}, make("span"), make("small"))),
    (node, [label, value, unit, per]) => {
      const [name, figure] = node.children;
      setText(name, label);
      setText(figure.children[0], value);
      setText(figure.children[1], value === format.NOTHING ? "" : `${unit === "" ? "" : ` ${unit}`}${per}`);
      setAttribute(node, "title", label);
    });
}

/** “2 errors · 3 full”, with all codes in the title. */
function errors(codes) {
  const counts = Object.entries(codes ?? {}).filter(([, count]) => count > 0);
  const failed = counts.filter(([code]) => !RESULTS.has(code)).reduce((sum, [, count]) => sum + count, 0);
  const results = counts.filter(([code]) => RESULTS.has(code)).map(([code, count]) => `${format.count(count)} ${code.replace("_", " ")}`);
  const text = failed === 0 ? "no errors" : `${format.count(failed)} error${failed === 1 ? "" : "s"}`;
  setText($("errors"), [text, ...results].join(" · "));
  setAttribute($("errors"), "data-level", failed > 0 ? "alarm" : null);
  const all = counts.map(([code, count]) => `${format.nameText(code)}: ${format.count(count)}`);
  setAttribute($("errors"), "title", all.length > 0 ? all.join("\n") : "replies and completions that failed, by code");
}

function facts(snapshot) {
  const parts = [`bitpagerd ${format.nameText(snapshot.version, 30)}`, `up ${format.duration(snapshot.uptime_ms)}`];
  setText($("facts"), parts.join(" · "));
  setAttribute($("facts"), "title", `process ${snapshot.pid}, ${format.nameText(snapshot.policy, 20)} policy, ${format.nameText(snapshot.socket)}, pages of ${format.bytes(snapshot.page_bytes)}`);
}

export function drawLedger(view) {
  const { model } = view;
  const totals = model.totals(view.chosen);
  facts(model.snapshot);
  const held = sumValues(totals.resident);
  const states = [["dirty", totals.dirty], ["leased", totals.leased], ["shared", totals.shared]].filter(([, value]) => value > 0);
  setText($("device-note"), states.map(([label, value]) => `${format.bytes(value)} ${label}`).join(" · "));
  setAttribute($("device-used"), "data-bytes", totals.used);
  bar($("device-bar"), totals.resident, totals.used - held, Math.max(totals.budget, totals.used), view);
  sum($("device-sum"), [["used", totals.used], ["free", Math.max(0, totals.budget - totals.used)]], "budget", "device");
  const others = totals.cardTotal - totals.cardFree - totals.own;
  $("card-sum").hidden = !(totals.cardTotal > 0);
  if (totals.cardTotal > 0) sum($("card-sum"), [["ours", totals.own], ["others", Math.max(0, others)], ["free", totals.cardFree]], "memory");
  pressure(totals.pressure);
  setAttribute($("host-used"), "data-bytes", totals.hostUsed);
  bar($("host-bar"), totals.host, totals.hostUsed - sumValues(totals.host), Math.max(totals.hostBudget, totals.hostUsed), view);
  sum($("host-sum"), [["committed", totals.hostUsed], ["free", Math.max(0, totals.hostBudget - totals.hostUsed)]], "budget", "host");
  setText($("host-kinds"), totals.hostUsed > 0 ? `${format.bytes(totals.hostPages)} pages · ${format.bytes(totals.hostUsed - totals.hostPages)} buffers` : "");
  const pages = totals.hostPages + sumValues(totals.disk);
  setText($("host-note"), pages > 0 ? `${format.share(Math.max(0, pages - held) / pages)} of the pages are not on a device now` : "");
  $("disk").hidden = !model.hasDisk(view.chosen);
  setAttribute($("disk"), "data-bytes", totals.diskUsed);
  bar($("disk-bar"), totals.disk, totals.diskUsed - sumValues(totals.disk), Math.max(totals.diskBudget, totals.diskUsed), view);
  sum($("disk-sum"), [["on disk", totals.diskUsed], ["free", Math.max(0, totals.diskBudget - totals.diskUsed)]], "budget");
  tiles(totals);
  errors(model.snapshot.errors);
}
