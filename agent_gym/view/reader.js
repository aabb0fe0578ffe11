// Trajectories to read: a source, a list of its episodes, and the chosen one step by step. Nothing is parsed or drawn
// before it is chosen.

const FILTERS = [
  ["all", "all", () => true],
  ["passed", "passed", one => one.status === "passed"],
  ["failed", "failed", one => one.status === "failed"],
  ["none", "no verdict", one => one.status === "no verdict"],
  ["over", "over budget", one => one.over],
  ["credits", "with credits", one => one.steps?.some(step => step.u !== undefined)],
];
const MARKS = {passed: "\u2713", failed: "\u2717", "no verdict": "?"};

// Sources are {name, episodes: () -> list, count: of those that there are, if not all are in the page}.
function reader(sources) {
  let episodes = [], shown = [], filter = FILTERS[0][2], cut = "";
  const list = el("select", {size: 20, "aria-label": "Episodes", onchange: () => read(shown[list.selectedIndex])});
  const count = el("p", {class: "note", role: "status"}), article = el("article", {"aria-label": "The chosen episode"});
  const search = el("input", {type: "search", oninput: fill, placeholder: "task or text"});
  function load(i) {
    episodes = sources[i].episodes();
    cut = sources[i].count > episodes.length ? ` (the file has ${sources[i].count})` : "";
    fill();
  }
  function fill() {
    const text = search.value.toLowerCase();
    const has = one => !text || JSON.stringify(one).toLowerCase().includes(text);
    shown = episodes.filter(one => filter(one) && has(one));
    list.replaceChildren(...shown.map(one => el("option", {}, title(one))));
    count.textContent = `${shown.length} of ${episodes.length} episodes${cut}`;
    article.replaceChildren(el("p", {class: "muted"}, shown.length ? "Choose an episode." : "No such episode."));
  }
  function read(one) {
    article.replaceChildren(...episode(one));
  }
  load(0);
  return [
    el("div", {class: "choices"},
      choice("Episodes of", sources.map((source, i) => [i, source.name]), load),
      choice("Show", FILTERS, value => { filter = FILTERS.find(one => one[0] === value)[2]; fill(); }),
      labelled("Search", search)),
    el("div", {class: "reader"}, el("div", {}, list, count), article),
  ];
}

const title = one => `${MARKS[one.status]} ${one.task_id}${one.sample ? ` #${one.sample}` : ""}`;

function facts(pairs) {
  const there = pairs.filter(([, value]) => value != null && value !== "");
  return el("dl", {class: "facts"},
    there.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function episode(one) {
  const verdict = one.status === one.reason ? one.status : `${one.status}: ${words(one.reason)}`;
  const head = [
    el("h3", {}, title(one)),
    facts([
      ["verdict", el("span", {class: one.status}, verdict)],
      ["failure", one.failure && words(one.failure)], ["task type", one.task_type], ["difficulty", one.difficulty],
      ["calls it could do without", one.redundant_calls],
      ["cost", costs(one.cost) + (one.over ? " (over budget)" : "")],
      ["the oracle's", one.oracle_cost && costs(one.oracle_cost)],
    ]),
  ];
  if (!one.steps) return [...head, el("p", {class: "muted"}, "Its trajectory is not in the file.")];
  return [...head, el("pre", {}, one.request), el("ol", {class: "steps"}, one.steps.map((step, t) => el("li", {},
    el("div", {class: "head"},
      el("strong", {}, `${t + 1}. ${step.calls.map(call => call.name).join(", ") || "answer"}`),
      one.first_wrong_step === t ? el("span", {class: "tag wrong"}, "first wrong step") : null,
      step.calls.some(call => call.error) ? el("span", {class: "tag wrong"}, "error") : null,
      step.eliminated ? el("span", {class: "tag muted"}, "eliminated") : null,
      step.necessary ? el("span", {class: "tag"}, "the oracle needs it") : null,
      el("span", {class: "muted"}, `cost ${costs(step.cost)}`),
      isNumber(step.u) ? el("span", {class: "muted"}, `success credit ${exact(step.u)}`) : null,
      step.v?.some(isNumber) ? el("span", {class: "muted"},
        `cost credit ${costs(Object.fromEntries(CHANNELS.map((k, i) => [k, step.v[i]])))}`) : null),
    el("pre", {}, step.action),
    step.answer ? el("pre", {class: "answer"}, step.answer) : null)))];
}
