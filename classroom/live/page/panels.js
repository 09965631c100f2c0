// The ends, the rules, the scoreboard, finished logs, the claims.

import { button, byId, chooser, claimLinks, el, show } from "./dom.js";
import { runView } from "./ladder.js";

const NAMES = { client: "Client", server: "Server" };
const SIGNS = { refused: "\u2713", "not prevented": "\u25cb", won: "\u2717", wrong: "?" };
const CLAIMS = { holds: "held", limited: "open" }; // by verdict; else nothing is claimed
const KINDS = { refused: "held", "not prevented": "open", won: "won", wrong: "wrong" };

function endCard(name, end, facts) {
  const refused = end.fate.replace(/^refused: /, "");
  const error = facts.errors[refused.split(":")[0]];
  return [
    el("h3", {}, NAMES[name]),
    el("p", { class: "state" }, el("strong", {}, end.state), el("span", { class: "soft" }, end.phase ? ` ${end.phase}, round ${end.round}` : "")),
    el(
      "ul",
      { class: "keys", "aria-label": `Names of the keys of the ${name}` },
      Object.entries(end.keys).map(([label, print]) => el("li", {}, el("span", { class: "soft" }, label), " ", el("code", {}, print))),
    ),
    end.fate ? el("p", { class: error?.step ? "fate refused" : "fate" }, end.fate, error?.claims.length ? [" ", ...claimLinks(error.claims)] : "") : null,
  ];
}

function number(value) {
  return typeof value === "number" ? String(Math.round(value * 1e6) / 1e6) : JSON.stringify(value);
}

export class Ends {
  update(ends, facts) {
    for (const name of ["client", "server"]) {
      show(byId(`end-${name}`), ends[name], () => endCard(name, ends[name], facts));
    }
    show(byId("end-adversary"), [ends.epoch, ends.score], () => [
      el("h3", {}, "You"),
      el(
        "p",
        {},
        el("strong", { class: `verdict ${ends.score.won ? "won" : "held"}` }, `${ends.score.won} won`),
        ` ${ends.score.genuine} accepted as sent, ${ends.score.refused} refused`,
      ),
      ends.epoch
        ? el(
            "p",
            { class: "epoch" },
            `epoch ${ends.epoch.number}: `,
            el("code", {}, Object.entries(ends.epoch).filter(([name]) => name !== "number").map(([name, value]) => `${name} ${number(value)}`).join("  ")),
          )
        : el("p", { class: "soft" }, "no epoch has closed yet"),
    ]);
  }
}

export class Rules {
  constructor(restart) {
    this.restart = restart;
    this.out = [];
    this.patient = true;
    this.timer = 0;
    byId("all-rules").addEventListener("click", () => this.restart([], this.patient));
    byId("documented").addEventListener("click", () => this.restart(this.documented, this.patient));
  }

  build(facts) {
    this.documented = facts.documented;
    byId("rule-list").replaceChildren(
      ...facts.rules.map((rule) =>
        el(
          "label",
          { class: "rule" },
          el("input", { type: "checkbox", role: "switch", "data-rule": rule.name, checked: true, onchange: () => this.changed() }),
          el("span", {}, el("strong", {}, rule.name), el("span", { class: "soft" }, ` without it: ${rule.without}`)),
        ),
      ),
    );
    this.boxes = [...byId("rule-list").querySelectorAll("input")];
  }

  // Several switches in a row bring new ends once.
  changed() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.timer = 0;
      this.restart(this.boxes.filter((box) => !box.checked).map((box) => box.dataset.rule), this.patient);
    }, 250);
  }

  update(state) {
    this.patient = state.patient;
    if (this.timer) return;
    const out = state.rules.flatMap((name) => (name === "documented" ? this.documented : [name]));
    this.out = out;
    for (const box of this.boxes) {
      box.checked = !out.includes(box.dataset.rule);
      box.closest("label").classList.toggle("off", !box.checked);
    }
    byId("rules-title").textContent = out.length ? `Rules: ${out.length} taken out` : "Rules: all in place";
  }
}

export class Attacks {
  constructor(send, shown) {
    this.send = send;
    this.shown = shown; // to be called when there is another run
    byId("stop").addEventListener("click", () => send({ stop: true }));
    byId("play-all").addEventListener("click", () => send({ play: this.facts.attacks.map((attack) => attack.name) }));
  }

  build(facts) {
    this.facts = facts;
    this.showBoard({});
  }

  update(state, rules) {
    byId("attack-rules").textContent = rules;
    byId("stop").disabled = !state.busy;
    byId("play-all").disabled = state.busy;
  }

  showBoard(board) {
    const columns = ["", ...Object.keys(board).filter(Boolean)];
    const open = new Set([...byId("board").querySelectorAll("details[open]")].map((each) => each.dataset.attack));
    show(byId("board"), board, () => [
      el("caption", {}, "Attacks, and how they ended under which rules"),
      el(
        "thead",
        {},
        el("tr", {}, ["attack", "all rules", ...columns.slice(1).map((names) => this.head(names))].map((name) => el("th", { scope: "col" }, name))),
      ),
      ...this.families().map(([family, attacks]) =>
        el(
          "tbody",
          {},
          el("tr", {}, el("th", { scope: "rowgroup", class: "family", colspan: columns.length + 1 }, family)),
          attacks.map((attack) => this.line(attack, columns, board, open.has(attack.name))),
        ),
      ),
    ]);
  }

  head(names) {
    const isDocumented = names === [...this.facts.documented].sort().join();
    return isDocumented ? "as documented" : `without ${names.replaceAll(",", ", ")}`;
  }

  families() {
    const found = new Map();
    for (const attack of this.facts.attacks) found.set(attack.family, [...(found.get(attack.family) ?? []), attack]);
    return [...found];
  }

  line(attack, columns, board, isOpen) {
    const rules = (names) =>
      el("li", {}, button(`without ${names.join(", ")}`, () => this.send({ rules: names, patient: true }), { title: "take these rules out" }));
    const details = attack.sets.length
      ? el(
          "details",
          { "data-attack": attack.name, open: isOpen },
          el("summary", { "aria-label": `Where ${attack.name} wins` }, "where it wins"),
          el("ul", {}, attack.sets.map(rules)),
        )
      : null;
    return el(
      "tr",
      {},
      el(
        "th",
        { scope: "row" },
        button(attack.name, () => this.play(attack.name), { "data-attack": attack.name }),
        details,
        el("p", { class: "story" }, attack.story),
      ),
      columns.map((name) => this.cell(board[name]?.[attack.name])),
    );
  }

  cell(result) {
    if (!result) return el("td", {}, "");
    return el("td", {}, el("span", { class: `verdict ${KINDS[result.kind]}` }, el("span", { "aria-hidden": "true" }, `${SIGNS[result.kind]} `), result.words));
  }

  // There is a verdict only when the attack is over.
  showRun(run) {
    const going = run.now ? [el("p", { class: "soft" }, `${run.now} is running`)] : [];
    byId("run").replaceChildren(...going, ...runView(run.now ? { ...run, verdict: null } : run, this.facts));
    this.shown();
    if (this.isAsked && run.verdict) byId("run").scrollIntoView(); // on a narrow page it stands above
    this.isAsked = false;
  }

  play(name) {
    this.isAsked = true;
    this.send({ play: [name] });
  }
}

export class Logs {
  constructor(shown) {
    this.shown = shown;
    this.reading = null; // a mark of what was asked for last: an older answer may come later
    byId("file").addEventListener("change", () => this.read());
    byId("protocol").addEventListener("change", () => this.read());
  }

  build(facts) {
    this.facts = facts;
    byId("protocol").append(...facts.protocols.map((name) => el("option", { value: name }, name === "classroom" ? "the lab's own" : name)));
  }

  take(files) {
    byId("file").files = files;
    location.hash = "logs";
    this.read();
  }

  async read() {
    const [file] = byId("file").files;
    if (!file) return;
    const reading = {};
    this.reading = reading;
    const note = byId("log-note");
    note.textContent = "reading \u2026";
    byId("log-runs").replaceChildren();
    byId("log-run").replaceChildren();
    this.shown();
    try {
      const query = new URLSearchParams({ protocol: byId("protocol").value });
      const answer = await fetch(`/log?${query}`, { method: "POST", body: file, headers: { "Content-Type": "text/plain" } });
      const log = answer.ok ? await answer.json() : { error: await answer.text() };
      if (this.reading !== reading) return;
      if (log.error) {
        note.textContent = log.error;
        return;
      }
      const left = log.count > log.runs.length ? `the first ${log.runs.length} are shown` : "";
      note.textContent = [`${log.count} ${log.count === 1 ? "run" : "runs"} of ${log.name}`, left, log.note].filter(Boolean).join("; ");
      const names = log.runs.map((run, at) => [String(at), `${run.title}: ${run.verdict.words}`]);
      const pick = chooser("Run", names, (at) => this.show(log.runs[at]), "0");
      byId("log-runs").replaceChildren(el("label", {}, "Run ", pick));
      this.show(log.runs[0]);
    } catch (error) {
      note.textContent = `the log cannot be read: ${error.message}`;
    }
  }

  show(run) {
    byId("log-run").replaceChildren(...runView(run, this.facts));
    this.shown();
  }
}

export function buildClaims(facts) {
  byId("claim-list").replaceChildren(
    ...facts.claims.map((claim) =>
      el(
        "div",
        { id: `claim-${claim.id}`, tabindex: "-1" },
        el("dt", {}, claim.id, " ", el("span", { class: `verdict ${CLAIMS[claim.verdict] ?? ""}` }, claim.verdict)),
        el("dd", {}, claim.claim.replaceAll("`", ""), claim.condition ? el("span", { class: "soft" }, ` (${claim.condition.replaceAll("`", "")})`) : ""),
      ),
    ),
  );
}
