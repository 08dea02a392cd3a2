// What the page knows and how regions are counted. Every name is text: nothing here writes markup.
const REGIONS = ["discarded", "hard", "important"];
const MEANING = [
  "never drawn",
  "the softened true label replaces the teacher's",
  "the teacher's soft label, unchanged",
];

// An element with attributes and children; a string becomes text.
const element = (name, attributes = {}, ...children) => {
  const made = SVG.has(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
};
const SVG = new Set("svg g rect line path circle text tspan image title polygon".split(" "));
const $ = (id) => document.getElementById(id);
const name = (words, attributes = {}) => element("bdi", attributes, words);
const key = (region) =>
  element("span", { class: "region" }, element("span", { class: `key r${region}` }), REGIONS[region]);

// As Python writes it: a tie goes to the even digit, and at one decimal only .25 is one that
// toFixed decides otherwise.
const percent = (part, total) => {
  if (!total) return "n/a";
  const value = 100 * (part / total);
  const whole = Math.floor(value);
  return `${value - whole === 0.25 ? `${whole}.2` : value.toFixed(1)}\u00a0%`;
};
const count = (value) => value.toLocaleString("en-US");

async function unpack() {
  if (!("DecompressionStream" in globalThis)) throw new Error("it needs a browser of 2023 or later");
  const packed = atob($("data").textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// Counts by cell as running sums: what lies in the cells up to c is sums[c].
const running = (counts) => {
  let total = 0;
  return counts.map((n) => (total += n));
};

class Cut {
  // Three places among the positions; see ferkd/study/inspector/tables.py for the cells.
  constructor(data) {
    this.data = data;
    this.positions = data.positions;
    this.places = [...data.start];
    this.sums = Object.fromEntries(
      ["crops", "known", "right", "highest", "lowest"].map((of) => [of, running(data[of])])
    );
    this.listeners = [];
  }

  get values() {
    return this.places.map((place) => this.positions[place]);
  }

  // Moves scalpel 0, 1 or 2; it pushes those in its way.
  move(which, place) {
    const last = this.positions.length - 1;
    place = Math.min(last, Math.max(0, place));
    this.places = this.places.map((other, i) =>
      i === which ? place : i < which ? Math.min(other, place) : Math.max(other, place)
    );
    if (this.data.scalpels.length === 2) this.places[1] = this.places[0];
    this.changed();
  }

  reset() {
    this.places = [...this.data.start];
    this.changed();
  }

  changed() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      for (const listener of this.listeners) listener();
    });
  }

  // The position nearest to a score.
  nearest(value) {
    let low = 0;
    let high = this.positions.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.positions[middle] <= value) low = middle;
      else high = middle;
    }
    return value - this.positions[low] <= this.positions[high] - value ? low : high;
  }

  region(cell) {
    const [low, middle, top] = this.places;
    if (cell === 0) return 2;
    if (cell <= 2 * low || cell >= 2 * top + 2) return 0;
    return cell <= 2 * middle ? 1 : 2;
  }

  // [discarded, hard, important] of a table of running sums.
  split(sums) {
    const [low, middle, top] = this.places;
    const total = sums[sums.length - 1];
    const discarded = sums[2 * low] - sums[0] + total - sums[2 * top + 1];
    const hard = sums[2 * middle] - sums[2 * low];
    return [discarded, hard, total - discarded - hard];
  }

  // The same of a class's cells: cell, crops, cell, crops, ...
  splitOf(cells) {
    const found = [0, 0, 0];
    for (let i = 0; i < cells.length; i += 2) found[this.region(cells[i])] += cells[i + 1];
    return found;
  }

  // Images all of whose crops are discarded, and whether there may be more: some whose crops lie
  // below and above and none between, which these tables do not tell.
  kept() {
    const [low, , top] = this.places;
    const { highest, lowest } = this.sums;
    const images = highest[2 * low] + lowest[lowest.length - 1] - lowest[2 * top + 1];
    const below = this.sums.crops[2 * low] - this.sums.crops[0];
    const above = this.sums.crops[this.sums.crops.length - 1] - this.sums.crops[2 * top + 1];
    return { images, more: below > 0 && above > 0 };
  }
}
