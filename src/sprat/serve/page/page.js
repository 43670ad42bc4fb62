// A picture is sent to the server as soon as it is chosen; a newer one replaces it.

const byId = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const unseen = /(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu; // including bidirectional overrides
const visible = (name) =>
  name.replace(unseen, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
const toggle = byId("toggle"); // absent if the model cannot be explained
const seenAlone = byId("seen").alt;
let asking = new AbortController();
let asked = null; // the picture, its name and, once available, the response

async function ask(picture, name) {
  asked = { picture, name };
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  show(picture);
  say("Classifying …");
  const form = new FormData();
  form.append("images", picture, name);
  try {
    const where = wantsWhere() ? "&where=true" : "";
    const response = await fetch(`/predict?top=10&seen=true${where}`, { method: "POST", body: form, signal });
    const nothing = { error: `The server answered with status ${response.status}.` };
    const answer = await response.json().catch(() => nothing);
    if (signal.aborted) return;
    if (response.ok) tell(answer);
    else fail(answer.error);
  } catch {
    if (!signal.aborted) fail("The server cannot be reached. Check that it is still running.");
  }
}

function show(picture) {
  const shown = byId("shown");
  URL.revokeObjectURL(shown.src);
  shown.src = URL.createObjectURL(picture);
  shown.hidden = false;
  byId("prompt").hidden = true;
  byId("frame").classList.add("full");
  byId("seen").hidden = true;
  explain({});
  byId("frame").scrollIntoView({ block: "nearest" });
}

function say(words) {
  byId("error").textContent = "";
  byId("status").textContent = words;
}

function wantsWhere() {
  return toggle?.getAttribute("aria-pressed") === "true";
}

function explain({ predictions, seen, where, map }) {
  if (!toggle) return;
  const shown = wantsWhere() && map;
  if (seen) byId("seen").src = shown ? map : seen;
  const words = shown ? `Evidence for ${visible(predictions[0].class)}: ${where}.` : "";
  byId("seen").alt = shown ? `${seenAlone}, in grey, with a map. ${words}` : seenAlone;
  byId("where").textContent = words;
  byId("legend").hidden = !shown;
}

function tell({ pictures: [answer], milliseconds }) {
  const { predictions, seen } = answer;
  if (wantsWhere() && !answer.map) { // pressed meanwhile
    ask(asked.picture, asked.name);
    return;
  }
  asked.answer = answer;
  byId("seen").src = seen;
  byId("seen").hidden = false;
  explain(answer);
  const best = document.createElement("strong");
  best.textContent = visible(predictions[0].class);
  say("");
  byId("status").append(
    best, ` ${percent(predictions[0].probability)}, in ${Math.max(1, Math.round(milliseconds))} ms`
  );
  byId("rows").replaceChildren(...predictions.map(row));
}

function row(prediction, place) {
  const tr = document.createElement("tr");
  const name = document.createElement("th");
  const cell = document.createElement("td");
  const bar = document.createElement("span");
  name.scope = "row";
  name.textContent = visible(prediction.class);
  bar.className = "bar";
  bar.style.setProperty("--share", prediction.probability);
  cell.append(bar, percent(prediction.probability));
  tr.append(name, cell);
  tr.classList.toggle("first", place === 0);
  return tr;
}

function fail(words) {
  byId("status").textContent = "";
  byId("error").textContent = words;
  for (const tr of byId("rows").rows) {
    tr.className = "";
    tr.cells[1].textContent = "–";
  }
}

function take(files) {
  if (files.length) ask(files[0], files[0].name);
  else fail("There was no file. Drop or paste a picture.");
}

toggle?.addEventListener("click", () => {
  toggle.setAttribute("aria-pressed", String(!wantsWhere()));
  if (!asked) return;
  if (asked.answer && wantsWhere() && !asked.answer.map) ask(asked.picture, asked.name);
  else if (asked.answer) explain(asked.answer);
});
byId("shown").addEventListener("error", () => {
  byId("shown").hidden = true;
  byId("prompt").textContent = "Your browser cannot show this file.";
  byId("prompt").hidden = false;
});
for (const id of ["file", "camera"]) {
  byId(id).addEventListener("change", ({ target }) => {
    if (target.files.length) take(target.files);
    target.value = ""; // else choosing the same file again would be no change
  });
}
document.addEventListener("paste", ({ clipboardData }) => take(clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files);
});
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", async () => {
    const name = `${button.dataset.sample}.png`;
    try {
      const response = await fetch(`/samples/${name}`);
      ask(await response.blob(), name);
    } catch {
      fail("The server cannot be reached. Check that it is still running.");
    }
  });
}
