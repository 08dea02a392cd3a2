// Figures, tables and lines to copy; all follow the scalpels.
const CLASSES = 12; // rows shown before all are asked for

function verdict(cut) {
  const split = cut.split(cut.sums.crops);
  const total = split[0] + split[1] + split[2];
  const words = [`${percent(split[0], total)} of the crops are discarded`];
  if (split[1]) words.push(`${percent(split[1], total)} are hard`);
  words.push(`${percent(split[2], total)} keep their soft label`);
  const known = cut.split(cut.sums.known);
  const right = cut.split(cut.sums.right);
  let line = `${words.slice(0, -1).join(", ")} and ${words[words.length - 1]}.`;
  if (known[1] + known[2]) {
    line += ` The teacher is right on ${percent(right[1] + right[2], known[1] + known[2])} of what is kept`;
    line += known[0] ? ` and on ${percent(right[0], known[0])} of what is discarded.` : ".";
  }
  return line;
}

function regionRows(cut) {
  const split = cut.split(cut.sums.crops);
  const total = split[0] + split[1] + split[2];
  const known = cut.split(cut.sums.known);
  const right = cut.split(cut.sums.right);
  return REGIONS.map((_, region) =>
    element("tr", { "data-region": REGIONS[region] },
      element("th", { scope: "row" }, key(region), element("small", {}, MEANING[region])),
      element("td", { class: "share" }, percent(split[region], total)),
      element("td", {}, count(split[region])),
      element("td", { class: "right" }, percent(right[region], known[region]))));
}

function keptLine(cut) {
  const { images, more } = cut.kept();
  if (!images) return "";
  const split = cut.split(cut.sums.crops);
  const never = split[0] / (split[0] + split[1] + split[2]) - images / cut.data.total;
  const least = more ? "at least " : "";
  const most = more ? "at most " : "";
  return `By these scores nothing would be left of ${least}${count(images)} ${images === 1 ? "image" : "images"}; ` +
    `they are kept whole, so training never draws ${most}${percent(Math.max(0, never), 1)} of all crops.`;
}

// Numbers beside the scalpels: exact entry, and what a thumb cannot place.
function numberFields(cut) {
  const fields = cut.data.scalpels.map((which) => {
    const input = element("input", { type: "number", min: 0, max: 1, step: "any", inputmode: "decimal", id: `number-${NAMES[which]}`,
      onchange: () => {
        const value = Number.parseFloat(input.value);
        if (Number.isFinite(value)) cut.move(which, cut.nearest(value));
        cut.changed();
      } });
    input.which = which;
    const nudge = (by, words) => element("button", { type: "button", class: "plain", "aria-label": `T ${NAMES[which]} ${words}`, onclick: () => cut.move(which, cut.places[which] + by) }, by < 0 ? "−" : "+");
    return element("div", { class: "field" },
      element("label", { for: input.id }, "T", element("sub", {}, NAMES[which])), nudge(-1, "lower"), input, nudge(1, "higher"));
  });
  const reset = element("button", { type: "button", class: "plain", id: "reset", onclick: () => cut.reset() }, `Back to ${cut.data.rule}`);
  $("numbers").append(...fields, reset);
  return () => {
    for (const field of fields) {
      const input = field.querySelector("input");
      if (document.activeElement !== input) input.value = Number(cut.values[input.which].toFixed(4));
    }
    reset.disabled = cut.places.every((place, i) => place === cut.data.start[i]);
  };
}

function lines(cut) {
  const { use } = cut.data;
  const shown = () => {
    const [low, middle, top] = cut.values;
    return {
      recipe: `regions: {thresholds: [${low}, ${middle}, ${top}]${use.settings}}`,
      train: `ferkd train ${use.recipe} --set ${use.store_setting} --set "regions.thresholds=[${low}, ${middle}, ${top}]"${use.sets}`,
      inspect: `ferkd inspect ${use.inspect} --thresholds ${low},${middle},${top}${use.options}`,
    };
  };
  const titles = { recipe: "in a recipe", train: "as a command", inspect: "this store by these thresholds" };
  const codes = Object.fromEntries(Object.keys(titles).map((of) => [of, element("code", { id: `line-${of}` })]));
  $("lines").append(...Object.entries(titles).map(([of, title]) =>
    element("div", { class: "line-to-copy" },
      element("span", {}, title),
      element("pre", { tabindex: 0 }, codes[of]),
      element("button", { type: "button", class: "plain", "data-copy": of, onclick: (event) => copy(event.currentTarget, codes[of]) }, "Copy"))));
  return () => {
    for (const [of, words] of Object.entries(shown())) codes[of].textContent = words;
  };
}

async function copy(button, code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    getSelection().selectAllChildren(code); // where a page may not reach the clipboard by itself
    if (!document.execCommand("copy")) {
      button.textContent = "Selected";
      return;
    }
    getSelection().removeAllRanges();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function classTable(cut, gallery) {
  const { classes } = cut.data;
  let shown = CLASSES;
  let order = "discarded";
  let part = "";
  const search = element("input", { type: "search", id: "class-search", "aria-label": "find a class", placeholder: "find a class", oninput: () => { part = search.value.toLowerCase(); draw(); } });
  const sort = element("select", { id: "class-order", onchange: () => { order = sort.value; draw(); } },
    ...[["discarded", "most discarded first"], ["right", "teacher least right first"], ["class", "by number"]].map(([value, words]) => element("option", { value }, words)));
  $("class-tools").append(element("label", {}, element("span", {}, "order"), sort), ...(classes.length > CLASSES ? [search] : []));
  $("all-classes").addEventListener("click", () => { shown = Infinity; draw(); });
  const head = element("thead", {}, element("tr", {}, ...["class", "", "discarded", "hard", "important", "teacher right"].map((words, i) => element("th", { scope: "col", class: i === 1 ? "bars" : null }, words))));
  const body = element("tbody");
  $("class-table").append(element("table", { class: "numbers", id: "by-class" }, head, body));
  const draw = () => {
    const rows = classes.filter((entry) => entry.name.toLowerCase().includes(part)).map((entry) => {
      const split = cut.splitOf(entry.cells);
      return { entry, split, total: split[0] + split[1] + split[2] };
    });
    if (order === "discarded") rows.sort((a, b) => b.split[0] / b.total - a.split[0] / a.total);
    if (order === "right") rows.sort((a, b) => (a.entry.right ?? 2) - (b.entry.right ?? 2));
    body.replaceChildren(...rows.slice(0, shown).map(({ entry, split, total }) =>
      element("tr", { "data-class": entry.class },
        element("th", { scope: "row" }, gallery
          ? element("button", { type: "button", class: "link", onclick: () => { gallery.filter("cls", String(entry.class)); $("images").scrollIntoView(); } }, name(entry.name))
          : name(entry.name)),
        element("td", { class: "bars" }, element("span", { class: "stack", "aria-hidden": "true" }, ...split.map((n, r) => {
          const bar = element("span", { class: `r${r}` });
          bar.style.flexGrow = n;
          return bar;
        }))),
        ...split.map((n) => element("td", {}, percent(n, total))),
        element("td", {}, entry.right === null ? "n/a" : percent(entry.right, 1)))));
    $("all-classes").hidden = rows.length <= shown;
    $("all-classes").textContent = `Show all ${count(rows.length)} classes`;
  };
  cut.listeners.push(draw);
}

function doubts(data, gallery) {
  if (!data.suspicious.length) return;
  $("doubted").hidden = false;
  const open = async (row) => {
    const item = await gallery?.source.one(row);
    if (item) gallery.viewer.open(item);
  };
  const rows = data.suspicious.map((entry) =>
    element("tr", { "data-row": entry.row },
      element("th", { scope: "row" }, gallery
        ? element("button", { type: "button", class: "link", onclick: () => open(entry.row) }, name(entry.id))
        : name(entry.id)),
      element("td", {}, name(entry.labelled)),
      element("td", {}, name(entry.teacher_says)),
      element("td", {}, `${entry.mean_probability.toFixed(2)} against ${entry.probability_of_label.toFixed(2)}`),
      element("td", {}, `${Math.round(100 * entry.crops_that_say_so)} %`)));
  const titles = ["image", "labelled", "teacher says", "probability", "crops that say so"];
  rows.forEach((row) => [...row.children].forEach((cell, i) => i && cell.setAttribute("data-title", titles[i])));
  $("doubts").append(element("table", { class: "cards" },
    element("thead", {}, element("tr", {}, ...titles.map((words) => element("th", { scope: "col" }, words)))), element("tbody", {}, ...rows)));
  $("doubts").append(
    element("p", {}, `All ${count(data.denied)} images that the teacher contradicts:`),
    element("pre", { tabindex: 0 }, element("code", {}, `ferkd inspect ${data.use.store} --suspicious suspicious.csv`))
  );
}

async function start() {
  const data = $("data").textContent ? await unpack() : await (await asked("data")).json();
  const cut = new Cut(data);
  const gallery = data.serve || data.images.length ? new Gallery(data, cut, data.serve ? new Served(data, cut) : new Embedded(data, cut)) : null;
  new Chart(cut, $("chart"));
  const numbers = numberFields(cut);
  const toCopy = lines(cut);
  classTable(cut, gallery);
  doubts(data, gallery);
  let said;
  cut.listeners.push(() => {
    $("verdict").textContent = verdict(cut);
    $("regions").tBodies[0].replaceChildren(...regionRows(cut));
    $("kept").textContent = keptLine(cut);
    numbers();
    toCopy();
    clearTimeout(said);
    said = setTimeout(() => ($("status").textContent = verdict(cut)), 500);
  });
  if (gallery) {
    $("images").hidden = false;
    $("images-note").textContent = data.images_note;
    await gallery.load(0);
  }
  cut.changed();
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  const note = element("p", { class: "warning" }, `This page cannot be shown: ${error.message}`);
  document.querySelector("header").append(note);
});
