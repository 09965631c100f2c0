// The message in hand: its bytes, its bits, and what can be done with it.

import { button, byId, chooser, el, show } from "./dom.js";
import { hexOf } from "./ladder.js";

const OPCODES = ["CLIENT_HELLO", "SERVER_CHALLENGE", "CLIENT_DATA", "SERVER_AGGR_RESPONSE", "KEY_DESYNC_ERROR", "TERMINATE"];

export class Hand {
  constructor(type) {
    this.type = type;
    this.at = 0; // the byte that is chosen
    this.body = byId("hand-body");
    this.bytes = el("div", { class: "bytes-in-hand" });
    this.bits = el("div", { class: "bits", role: "group", "aria-label": "Bits" });
    this.actions = el("div", { class: "actions" });
    this.edits = el("div", { class: "edits" });
    this.more = el("details", { class: "more" });
    this.body.append(this.actions, this.bits, this.bytes, this.edits, this.more);
    this.bytes.addEventListener("keydown", (event) => this.move(event));
    byId("hand").addEventListener("keydown", (event) => this.shortcut(event));
  }

  update(table) {
    const hand = table.hand;
    this.table = table;
    if (hand?.number !== this.hand?.number || hand?.bytes.size !== this.hand?.bytes.size) this.at = 0;
    this.hand = hand;
    byId("hand-title").textContent = hand ? `In your hand: ${hand.name}` : "Your hand is empty";
    this.showActions(table);
    show(this.bytes, [hand?.bytes, hand?.changed], () => this.makeBytes());
    this.showBits();
    show(this.edits, hand?.bytes.fields.slice(0, 4), () => (hand ? this.makeEdits(hand) : []));
    show(this.more, [table.tapes, table.held, table.waiting, table.came], () => this.makeMore(table));
  }

  showActions(table) {
    const has = Boolean(table.hand);
    const act = (text, line, title, isPossible = has, props = {}) =>
      button(text, () => this.type(line), { title, "data-key": text, "aria-disabled": isPossible ? null : "true", ...props });
    show(this.actions, [has, table.undo, table.auto, table.connected], () => [
      act("Forward", "forward", "F", has, { class: "main" }),
      act("Drop", "drop", "D"),
      act("Hold", "hold", "H"),
      act("Reflect", "reflect", "R"),
      act("Undo", "undo", "Ctrl-Z", table.undo, { "aria-keyshortcuts": "Control+Z" }),
      act("Forward all", table.auto ? "auto off" : "auto", "whatever comes", true, { "aria-pressed": String(table.auto) }),
      act("Cut", "cut", "both sides, without a farewell", table.connected),
      act("New session", "session", "of the client", !table.connected),
    ]);
  }

  makeBytes() {
    if (!this.hand) return el("p", { class: "soft" }, "A message that an end sends stops here.");
    const changed = new Set(this.hand.changed);
    return this.hand.bytes.fields.map((field, number) =>
      el(
        "div",
        { class: `field f${number % 8}` },
        el("span", { class: "name" }, field.name, field.says ? el("span", { class: "soft" }, ` ${field.says}`) : ""),
        el(
          "span",
          { class: "row-of-bytes" },
          hexOf(field.hex).map((byte, place) => {
            const at = field.at + place;
            return button(byte, () => this.choose(at), {
              class: `byte${changed.has(at) ? " changed" : ""}`,
              tabindex: at === this.at ? "0" : "-1",
              "data-at": at,
              "aria-pressed": String(at === this.at),
              "aria-label": `byte ${at}, ${byte}, ${field.name}${changed.has(at) ? ", changed" : ""}`,
            });
          }),
          field.size > field.hex.length / 2 ? el("span", { class: "soft" }, ` and ${field.size - field.hex.length / 2} more bytes`) : "",
        ),
      ),
    );
  }

  byte(at) {
    return this.bytes.querySelector(`[data-at="${at}"]`);
  }

  choose(at, focus = false) {
    const old = this.byte(this.at);
    const chosen = this.byte(at);
    if (!chosen) return;
    old?.setAttribute("tabindex", "-1");
    old?.setAttribute("aria-pressed", "false");
    chosen.setAttribute("tabindex", "0");
    chosen.setAttribute("aria-pressed", "true");
    this.at = at;
    this.showBits();
    if (focus) chosen.focus();
  }

  showBits() {
    const chosen = this.byte(this.at);
    show(this.bits, [this.at, chosen?.textContent], () => {
      if (!chosen) return [];
      const value = parseInt(chosen.textContent, 16);
      return [
        el("span", { class: "which" }, `byte ${this.at}: ${chosen.textContent} `),
        ...[7, 6, 5, 4, 3, 2, 1, 0].map((bit) =>
          button(String((value >> bit) & 1), () => this.flip(bit), {
            class: "bit",
            "data-bit": bit,
            "aria-label": `flip bit ${bit}, now ${(value >> bit) & 1}`,
          }),
        ),
      ];
    });
  }

  flip(bit) {
    this.type(`flip ${this.at}.${bit}`);
  }

  // In the bytes: arrows move, digits flip bits.
  move(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -16, ArrowDown: 16 };
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in steps) this.choose(this.at + steps[event.key], true);
    else if (event.key === "Home") this.choose(0, true);
    else if (event.key === "End") this.choose(this.hand.bytes.size - 1, true);
    else if (/^[0-7]$/.test(event.key)) this.flip(Number(event.key));
    else return;
    event.preventDefault();
  }

  // Letters, while the focus is in this section and not in a field.
  shortcut(event) {
    const commands = { f: "forward", d: "drop", h: "hold", r: "reflect" };
    const isTyping = event.target.closest("input, select, textarea");
    if (isTyping || event.ctrlKey || event.altKey || event.metaKey || !(event.key in commands) || !this.hand) return;
    this.type(commands[event.key]);
    event.preventDefault();
  }

  makeEdits(hand) {
    const value = Object.fromEntries(hand.bytes.fields.map((field) => [field.name, parseInt(field.hex, 16)]));
    const number = (name, field, most) =>
      el(
        "label",
        {},
        `${name} `,
        el("input", {
          type: "number",
          min: 0,
          max: most,
          value: value[name],
          "aria-label": name,
          onchange: (event) => this.type(`edit ${field}=${event.target.value}`),
        }),
      );
    const opcodes = [...OPCODES.map((name) => [name, name]), ["0", "0"]];
    const opcode = hand.bytes.fields[0]?.says.replace(/^\d+: /, "");
    if (!OPCODES.includes(opcode)) opcodes.unshift([opcode, `${value.opcode}`]);
    return el(
      "fieldset",
      {},
      el("legend", {}, "Header"),
      el("label", {}, "opcode ", chooser("opcode", opcodes, (name) => this.type(`edit opcode=${name}`), opcode)),
      number("client id", "client_id", 255),
      number("round", "round", 4294967295),
      el(
        "label",
        {},
        "direction ",
        chooser("direction", [["C2S", "C2S"], ["S2C", "S2C"]], (way) => this.type(`edit direction=${way}`), value.direction ? "S2C" : "C2S"),
      ),
    );
  }

  makeMore(table) {
    const tapes = Object.entries(table.tapes);
    const messages = tapes.flatMap(([name, titles]) => titles.map((title, at) => [`${name} ${at + 1}`, `${name} ${at + 1}: ${title}`]));
    const choices = tapes.flatMap(([name]) => ["server", "client"].map((to) => [`${name} ${to}`, `${name}, to the ${to}`]));
    const pick = el("select", { "aria-label": "message of a recording" }, messages.map(([value, text]) => el("option", { value }, text)));
    const tape = el("select", { "aria-label": "recording" }, choices.map(([value, text]) => el("option", { value }, text)));
    const until = el("select", { "aria-label": "forward until" }, [...OPCODES, "end"].map((value) => el("option", { value }, value)));
    const name = el("input", { "aria-label": "name of the recording", value: "mine", pattern: "\\w+" });
    const hex = el("input", { "aria-label": "bytes in hexadecimal", placeholder: "3c01\u2026", spellcheck: "false" });
    return [
      el("summary", {}, "Recordings, held messages, bytes of your own"),
      el("p", {}, button("Splice in its place", () => this.type(`splice ${pick.value}`)), pick),
      el("p", {}, button("Play a recording", () => this.type(`play ${tape.value}`)), tape),
      el("p", {}, button("Record this connection", () => this.type(`record ${name.value}`)), name),
      el("p", {}, button("Forward until", () => this.type(`until ${until.value}`)), until),
      el("p", {}, button("Send bytes to the server", () => this.type(`inject ${hex.value}`)), hex),
      table.held.length
        ? el("p", {}, "Put aside: ", table.held.map((item) => button(`Release ${item.name}`, () => this.type(`release ${item.number}`))))
        : el("p", { class: "soft" }, "Nothing is put aside."),
      table.waiting.length ? el("p", { class: "soft" }, `Behind it wait: ${table.waiting.join("; ")}`) : null,
    ];
  }
}
