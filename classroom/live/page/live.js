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

const ladder = new Ladder(byId("ladder"), (number) => type(`replay ${number}`));
const hand = new Hand(type);
const ends = new Ends();
const rules = new Rules((names, patient) => send({ rules: names, patient }));
const attacks = new Attacks(send);
const logs = new Logs();

const switches = el("p", { class: "switches" });
byId("ends").before(switches);

function showSwitches(state) {
  show(switches, [state.inside, state.patient], () => [
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
  ladder.dropBefore(state.first);
  ends.update(state.ends, table, facts);
  hand.update(table);
  rules.update(state);
  attacks.update(state);
  showSwitches(state);
  const out = rules.out.length ? `without ${rules.out.join(", ")}` : "all rules in place";
  const text = `${table.connected ? `connection ${table.connection}` : "no connection"}, ${out}`;
  if (byId("status").textContent !== text) byId("status").textContent = text;
}

function showSaid(lines) {
  const list = byId("said");
  list.append(
    ...lines.slice(-MOST_LINES).map((line) => {
      const kind = line.startsWith("YOU WIN") ? "win" : / refused /.test(line) ? "refusal" : line.startsWith("> ") ? "typed" : "";
      return el("p", { class: kind }, line);
    }),
  );
  while (list.childElementCount > MOST_LINES) list.firstElementChild.remove();
  list.scrollTop = list.scrollHeight;
}

function showScript(text) {
  byId("script").textContent = text;
}

// What came since the last picture is shown with the next one: the newest form of each row and of the
// rest. A picture takes no longer than PICTURE_MS; what is left goes into the one after it.
const PICTURE_MS = 8;
const waiting = { rows: new Map(), said: [] };
let isAsked = false;

// The lab tells everything: at first, and again after a lost connection.
function begin(found) {
  waiting.facts = null;
  document.body.classList.remove("gone");
  ladder.clear();
  byId("said").replaceChildren();
  if (facts) return;
  facts = found;
  rules.build(facts);
  attacks.build(facts);
  logs.build(facts);
  buildClaims(facts);
}

function drawRows() {
  const end = performance.now() + PICTURE_MS;
  for (const [id, row] of waiting.rows) {
    waiting.rows.delete(id);
    ladder.put(row, facts);
    if (performance.now() > end) break;
  }
}

function draw() {
  isAsked = false;
  if (waiting.facts) begin(waiting.facts);
  if (waiting.rows.size) drawRows();
  const { state, said, script, board, run } = waiting;
  Object.assign(waiting, { state: null, said: [], script: null, board: null, run: null });
  if (state) showState(state);
  if (said.length) showSaid(said);
  if (script) showScript(script);
  if (board) attacks.showBoard(board);
  if (run) attacks.showRun(run);
  if (waiting.rows.size) ask();
}

function ask() {
  if (!isAsked) requestAnimationFrame(draw);
  isAsked = true;
}

function hear(event) {
  const { rows = [], said = [], ...rest } = JSON.parse(event.data);
  for (const row of rows) waiting.rows.set(row.id, row);
  waiting.said.push(...said);
  Object.assign(waiting, rest);
  ask();
}

function connect() {
  socket = new WebSocket(`ws://${location.host}/ws`);
  socket.addEventListener("message", hear);
  socket.addEventListener("close", () => {
    byId("status").textContent = "the lab is gone; start it again: python3 run.py live";
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
  const address = URL.createObjectURL(new Blob([byId("script").textContent], { type: "text/plain" }));
  el("a", { href: address, download: "scene.txt" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
});

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest("input:not([type=checkbox]), textarea");
  if (event.key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey && !isTyping) {
    event.preventDefault();
    type("undo");
  }
});

connect();
