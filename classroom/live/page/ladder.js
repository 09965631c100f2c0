// Rows of messages: those that pass now, and those of a finished log, in the same way.

import { button, claimLinks, el } from "./dom.js";

const SIGNS = { accepted: "\u2713" };
const BLOCK = 25; // rows
const SHORT = 4; // bytes of a field that are shown in a row

export const hexOf = (hex, from = 0, to = hex.length / 2) => {
  const found = [];
  for (let at = from; at < to && at * 2 < hex.length; at++) found.push(hex.slice(at * 2, at * 2 + 2));
  return found;
};

// A field in a row: its first bytes in its colour, and its length if there are more.
function chip(field, number, other) {
  const isLong = field.size > SHORT;
  const bytes = hexOf(field.hex, 0, Math.min(field.size, SHORT)).join("");
  const touched = other && other.hex !== field.hex;
  const rest = field.name === "ciphertext" ? ` ${field.size} bytes` : "";
  return el(
    "span",
    { class: `chip f${number % 8}${touched ? " touched" : ""}`, title: `${field.name} ${field.says}`.trim() },
    el("span", { class: "hidden" }, `${field.name} `),
    isLong ? `${bytes}\u2026${rest}` : bytes,
  );
}

function chips(view, other) {
  const before = Object.fromEntries((other?.fields ?? []).map((field) => [field.name, field]));
  return el(
    "span",
    { class: "chips" },
    view.fields.map((field, number) => chip(field, number, other && (before[field.name] ?? { hex: "" }))),
  );
}

// The nine steps of receiving, up to the one that refused, and the claims that it defends.
export function refusal(name, facts) {
  const known = facts.errors[name];
  const step = known?.step ?? 0;
  const steps = step
    ? el(
        "ol",
        { class: "steps", "aria-label": `Steps of receiving; step ${step}, ${facts.steps[step - 1]}, refused it` },
        facts.steps.map((text, at) =>
          el(
            "li",
            { class: at + 1 < step ? "good" : at + 1 === step ? "bad" : "unseen" },
            `${at + 1} ${text}`,
            at + 1 < step ? " \u2713" : at + 1 === step ? " \u2717" : "",
          ),
        ),
      )
    : null;
  const claims = known?.claims.length ? el("span", { class: "claims" }, "claims ", ...claimLinks(known.claims)) : null;
  return [steps, claims].filter(Boolean);
}

function half(row, kind, facts) {
  const side = (kind === "in") === (row.to === "server") ? "left" : "right";
  const way = row.to === "server" ? "rightwards" : "leftwards";
  const view = kind === "in" ? row.sent : (row.got ?? row.sent);
  const isOther = kind === "on" && row.got;
  const cell = el("div", { class: `half ${kind} ${side} ${way}${kind === "on" && row.touched ? " touched" : ""}` });
  if (!view) return cell;
  const parts = [el("span", { class: "title" }, view.title)];
  if (kind === "on" && row.verdict) {
    const isGood = row.verdict === "accepted";
    parts.push(
      el(
        "strong",
        { class: `verdict ${isGood ? "held" : "refused"}` },
        `${SIGNS[row.verdict] ?? "\u2717"} ${isGood ? "accepted" : `refused: ${row.verdict}`}`,
      ),
    );
  }
  cell.append(el("span", { class: "head" }, ...parts), el("span", { class: "arrow", "aria-hidden": "true" }));
  if (kind === "in" || isOther || !row.in) cell.append(chips(view, isOther ? row.sent : null));
  const inside = row.inside?.[kind === "in" ? 0 : 1];
  if (inside && (kind === "in" || isOther || !row.in)) cell.append(el("span", { class: "inside" }, `inside: ${inside}`));
  if (kind === "on" && row.verdict && row.verdict !== "accepted") cell.append(...refusal(row.verdict, facts));
  return cell;
}

function bytesTable(row) {
  const versions = row.got ? [["sent", row.sent, row.got], ["arrived", row.got, row.sent]] : [["", row.sent, null]];
  return versions.map(([which, view, other]) =>
    el(
      "table",
      { class: "bytes" },
      el("caption", {}, `${which} ${view.title}, ${view.size} bytes`.trim()),
      el(
        "tbody",
        {},
        view.fields.map((field, number) => {
          const old = other?.fields.find((each) => each.name === field.name);
          const bytes = hexOf(field.hex);
          const olds = old ? hexOf(old.hex) : bytes;
          const shown = bytes.map((byte, at) => (other && olds[at] !== byte ? el("mark", {}, byte) : byte));
          return el(
            "tr",
            { class: `f${number % 8}` },
            el("th", { scope: "row" }, field.name),
            el("td", { class: "hex" }, ...shown.flatMap((part) => [part, " "]), field.size > bytes.length ? "\u2026" : ""),
            el("td", { class: "says" }, field.says),
          );
        }),
      ),
    ),
  );
}

const directions = (row) => {
  const from = row.to === "server" ? "client" : "server";
  return row.in ? `from the ${from} to the ${row.to}` : `to the ${row.to}`;
};

// Fill a list item with one row; `replay` is what its button does, if it has one.
export function fill(item, row, facts, replay = null) {
  if (row.note) {
    item.className = "note";
    item.replaceChildren(row.note);
    return;
  }
  const isOpen = item.querySelector("details")?.open ?? false;
  item.className = `row ${row.kind.replace(" ", "-")}${row.touched ? " touched" : ""}`;
  const name = row.number ? `#${row.number}` : `${row.id}`;
  const title = (row.sent ?? row.got)?.title ?? "";
  const detail = el(
    "details",
    { class: "detail", open: isOpen },
    el("summary", { "aria-label": `Message ${name}, ${title}, ${directions(row)}, ${row.words}: its bytes` }, `${name} ${row.kind}`),
  );
  const fillDetail = () => {
    if (detail.open && detail.childElementCount === 1 && row.sent) {
      const body = el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `Bytes of ${name}` }, ...bytesTable(row));
      const more = [el("p", { class: "soft" }, row.what ? `${row.words}: ${row.what}` : row.words)];
      if (replay && row.number) more.push(button(`Replay ${name}`, () => replay(row.number)));
      detail.append(el("div", { class: "opened" }, ...more, body));
    }
  };
  detail.addEventListener("toggle", fillDetail);
  fillDetail();
  const cells = [row.in ? half(row, "in", facts) : null, detail, row.on ? half(row, "on", facts) : null];
  item.replaceChildren(...cells.filter(Boolean));
}

// The ladder of what passes now; rows change in place. (The style sheet keeps its end in view.)
export class Ladder {
  constructor(place, replay) {
    this.place = place;
    this.replay = replay;
    this.items = new Map();
  }

  put(row, facts) {
    let item = this.items.get(row.id);
    if (!item) {
      item = el("li", { "data-at": row.at });
      this.items.set(row.id, item);
      this.block().append(item);
    }
    fill(item, row, facts, this.replay);
  }

  // Lists of some rows each: a browser skips those that are out of sight.
  block() {
    const last = this.place.lastElementChild;
    if (last && last.childElementCount < BLOCK) return last;
    const made = el("ol");
    this.place.append(made);
    return made;
  }

  clear() {
    this.items.clear();
    this.place.replaceChildren();
  }

  dropBefore(first) {
    for (const [id, item] of this.items) {
      if (id >= first) break;
      item.remove();
      this.items.delete(id);
      const oldest = this.place.firstElementChild;
      if (!oldest.childElementCount) oldest.remove();
    }
  }
}

// A whole run of a log or of the catalogue.
export function runView(run, facts) {
  const list = el("ol", { class: "ladder", tabindex: "0", "aria-label": `Messages of ${run.title ?? run.attack}` });
  for (const row of run.rows) {
    const item = el("li");
    fill(item, row, facts);
    list.append(item);
  }
  const verdict = run.verdict ? el("p", {}, el("strong", { class: `verdict ${run.verdict.kind}` }, run.verdict.words)) : null;
  return [
    el("h3", {}, run.title ?? run.attack),
    run.story ? el("p", {}, run.story) : null,
    verdict,
    run.rows.length ? list : el("p", { class: "soft" }, "No whole message of this attack went over the wire."),
    run.ended?.length ? el("p", { class: "soft" }, `How sessions ended: ${run.ended.join(", ")}`) : null,
    run.command ? el("p", {}, el("code", {}, run.command)) : null,
  ].filter(Boolean);
}
