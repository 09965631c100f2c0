// The page of the man in the middle: what the lab tells, shown; what the user does, told.

import { byId, el, show } from "./dom.js";
import { Hand } from "./hand.js";
import { Ladder } from "./ladder.js";
import { Attacks, Ends, Logs, Rules, buildClaims } from "./panels.js";

const MOST_LINES = 300;
const AGAIN_MS = 2000;
let socket = null;
let facts = null;

const send = (asked) => {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(asked));
};
const type = (line) => send({ type: line });

const ladder = new Ladder(byId("view"), byId("ladder"), (number) => type(`replay ${number}`));
const hand = new Hand(type);
const ends = new Ends();
const rules = new Rules((names, patient) => send({ rules: names, patient }));
const attacks = new Attacks(send, showLeft);
const logs = new Logs(showLeft);

function showSwitches(state) {
  show(byId("switches"), [state.inside, state.patient], () => [
    el(
      "label",
      {},
      el("input", { type: "checkbox", role: "switch", id: "inside", checked: state.inside, onchange: (event) => send({ inside: event.target.checked }) }),
      "look inside, as the key log does",
    ),
    el(
      "label",
      {},
      el("input", {
        type: "checkbox",
        role: "switch",
        id: "patient",
        checked: state.patient,
        onchange: (event) => send({ rules: state.rules, patient: event.target.checked }),
      }),
      "the ends wait for you",
    ),
  ]);
}

function showState(state) {
  const table = state.table;
  ends.update(state.ends, facts);
  hand.update(table);
  rules.update(state);
  showSwitches(state);
  const out = rules.out.length ? `without ${rules.out.join(", ")}` : "all rules in place";
  attacks.update(state, out);
  const text = `${table.connected ? `connection ${table.connection}` : "no connection"}, ${out}`;
  if (byId("status").textContent !== text) byId("status").textContent = text;
}

function showSaid(lines) {
  const list = byId("lines");
  list.append(
    ...lines.slice(-MOST_LINES).map((line) => {
      const kind = line.startsWith("YOU WIN") ? "win" : / refused /.test(line) ? "refusal" : line.startsWith("> ") ? "typed" : "";
      return el("p", { class: kind }, line);
    }),
  );
  while (list.childElementCount > MOST_LINES) list.firstElementChild.remove();
}

function showScript(text) {
  byId("commands").textContent = text;
}

// On the right is the panel that the address names; on the left the wire, or the run of that panel.

const RUNS = { attacks: "run", logs: "log-run" };
const target = () => document.getElementById(location.hash.slice(1));
const panelOf = (place) => place?.closest(".panel") ?? byId("hand");

function showLeft() {
  const run = byId(RUNS[panelOf(target()).id]);
  const shown = run?.childElementCount ? run : byId("wire");
  for (const each of byId("left").children) each.hidden = each !== shown;
}

function showPanel() {
  const panel = panelOf(target());
  for (const each of document.querySelectorAll(".panel")) each.hidden = each !== panel;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${panel.id}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  showLeft();
  target()?.scrollIntoView();
  target()?.focus({ preventScroll: true });
}

// The lab tells one picture at a time, and the next one after it has heard that this one is being
// drawn: all that has changed meanwhile, as it stands then. So a slow browser lags behind by no more.

// The lab tells everything: at first, and again after a lost connection.
function begin(found) {
  document.body.classList.remove("gone");
  ladder.clear();
  byId("lines").replaceChildren();
  if (facts) return;
  facts = found;
  ladder.build(facts);
  hand.build(facts);
  rules.build(facts);
  attacks.build(facts);
  logs.build(facts);
  buildClaims(facts);
  showPanel();
}

function draw(told) {
  send({ drawn: true });
  if (told.facts) begin(told.facts);
  if (told.rows) ladder.put(told.rows, told.first);
  if (told.state) showState(told.state);
  if (told.said) showSaid(told.said);
  if (told.script) showScript(told.script);
  if (told.board) attacks.showBoard(told.board);
  if (told.run) attacks.showRun(told.run);
}

function hear(event) {
  const told = JSON.parse(event.data);
  requestAnimationFrame(() => draw(told));
}

function connect() {
  socket = new WebSocket(`ws://${location.host}/ws`);
  socket.addEventListener("message", hear);
  socket.addEventListener("close", (event) => {
    byId("status").textContent = event.reason || "the lab is gone; start it again, and open its new address";
    document.body.classList.add("gone");
    setTimeout(connect, AGAIN_MS);
  });
}

byId("command").addEventListener("submit", (event) => {
  event.preventDefault();
  const line = byId("line");
  if (line.value.trim()) type(line.value);
  line.value = "";
});

byId("save").addEventListener("click", () => {
  const address = URL.createObjectURL(new Blob([byId("commands").textContent], { type: "text/plain" }));
  el("a", { href: address, download: "scene.txt" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
});

// A file that is dropped anywhere is a log to open: a browser would leave the page for it.
for (const name of ["dragover", "drop"]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    if (name === "drop") logs.take(event.dataTransfer.files);
  });
}

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest("input:not([type=checkbox]), textarea");
  if (event.key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey && !isTyping) {
    event.preventDefault();
    type("undo");
  }
});

window.addEventListener("hashchange", showPanel);
connect();
