// Images with their crops: filters, tiles, and one image with all its crops and soft labels.
const TILE_CROPS = 8;
const PAGE = 24;

// Where images come from: those in the page, or a server that looks through the whole store.
class Embedded {
  constructor(data, cut) {
    Object.assign(this, { data, cut, all: data.images });
  }

  async page({ cls, region, word, order, offset }) {
    const { cut } = this;
    const shares = new Map();
    const share = (item) => {
      if (!shares.has(item)) shares.set(item, item.cells.filter((c) => cut.region(c) === 0).length);
      return shares.get(item);
    };
    const found = this.all.filter(
      (item) =>
        (cls === "" || item.given === Number(cls)) &&
        (region === "" || item.cells.some((c) => cut.region(c) === Number(region))) &&
        (word === "" || (item.given >= 0 && item.doubt > 0 === (word === "denies")))
    );
    if (order === "suspicious") found.sort((a, b) => doubt(b) - doubt(a));
    if (order === "discarded") found.sort((a, b) => share(b) - share(a));
    return { items: found.slice(offset, offset + PAGE), total: found.length };
  }

  async one(row) {
    return this.all.find((item) => item.row === row) ?? null;
  }

  src(item) {
    return item.src ?? null;
  }
}
const doubt = (item) => (item.given < 0 ? -Infinity : item.doubt);

class Served {
  constructor(data, cut) {
    Object.assign(this, { data, cut });
  }

  async page(query) {
    const words = new URLSearchParams({ ...query, count: PAGE, cut: this.cut.places.join(",") });
    return (await asked(`images?${words}`)).json();
  }

  async one(row) {
    return (await asked(`image/${row}`)).json();
  }

  src(item) {
    return this.data.pictured ? `picture/${item.row}` : null;
  }
}

async function asked(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}

const place = (boxes, i) => ({
  y: boxes[4 * i], x: boxes[4 * i + 1], height: boxes[4 * i + 2], width: boxes[4 * i + 3],
});

class Gallery {
  constructor(data, cut, source) {
    Object.assign(this, { data, cut, source, shown: [], query: 0 });
    this.filters = { cls: "", region: "", word: "", order: "" };
    this.form();
    $("more").addEventListener("click", () => this.load(this.shown.length));
    cut.listeners.push(() => this.recut());
    this.viewer = new Viewer(this);
  }

  form() {
    const { data } = this;
    const select = (title, of, options) => {
      const made = element("select", { id: `filter-${of}`, onchange: () => { this.filters[of] = made.value; this.load(0); } },
        ...options.map(([value, words]) => element("option", { value }, words)));
      return element("label", {}, element("span", {}, title), made);
    };
    const classes = data.classes.map((entry) => [String(entry.class), entry.name]);
    const known = data.classes.some((entry) => entry.class >= 0);
    $("filters").append(
      select("class", "cls", [["", "all"], ...classes]),
      select("with crops", "region", [["", "of any region"], ...REGIONS.map((r, i) => [String(i), r])]),
      ...(known ? [
        select("teacher", "word", [["", "says anything"], ["denies", "denies the label"], ["agrees", "agrees"]]),
      ] : []),
      select("order", "order", [["", "as in the store"], ...(known ? [["suspicious", "most suspicious first"]] : []), ["discarded", "most discarded first"]])
    );
    $("filters").addEventListener("submit", (event) => event.preventDefault());
  }

  filter(of, value) {
    $(`filter-${of}`).value = value;
    this.filters[of] = value;
    return this.load(0);
  }

  async load(offset) {
    const query = ++this.query;
    let found;
    try {
      found = await this.source.page({ ...this.filters, offset });
    } catch (error) {
      $("found").textContent = `The images cannot be shown: ${error.message}`;
      return;
    }
    if (query !== this.query) return; // another was asked since
    this.shown = offset ? [...this.shown, ...found.items] : found.items;
    const tiles = found.items.map((item) => this.tile(item));
    if (offset) $("tiles").append(...tiles);
    else $("tiles").replaceChildren(...tiles);
    const of = this.data.serve ? "" : ` of the ${count(this.data.images.length)} in this page`;
    $("found").textContent = found.total === 1 ? `1 image${of}` : `${count(found.total)} images${of}`;
    $("more").hidden = this.shown.length >= found.total;
  }

  recut() {
    if (this.filters.region || this.filters.order === "discarded") {
      clearTimeout(this.later);
      this.later = setTimeout(() => this.load(0), this.data.serve ? 250 : 60);
    } else {
      [...$("tiles").children].forEach((tile, i) => {
        const item = this.shown[i];
        const picture = tile.querySelector(".picture");
        picture.querySelector(".rects").replaceChildren(...this.rects(item, this.some(item)));
        picture.setAttribute("aria-label", this.words(item));
      });
    }
  }

  // Some crops of every region there is, so that a rare one is seen.
  some(item) {
    const queues = [[], [], []];
    item.cells.forEach((cell, i) => queues[this.cut.region(cell)].push(i));
    const wanted = this.filters.region === "" ? queues : [queues[Number(this.filters.region)]];
    const turns = wanted.flatMap((queue) => queue.map((i, turn) => [turn, i]));
    return turns.sort((a, b) => a[0] - b[0]).slice(0, TILE_CROPS).map(([, i]) => i);
  }

  tile(item) {
    const given = item.given < 0 ? "no ground truth" : this.data.names[item.given];
    const denied = item.given >= 0 && item.doubt > 0;
    return element("figure", { class: "tile" },
      element("button", { type: "button", "data-row": item.row, onclick: () => this.viewer.open(item) },
        this.picture(item, this.some(item))),
      element("figcaption", {}, element("b", {}, name(given)),
        denied ? element("span", { class: "denied" }, "teacher: ", name(this.data.names[item.other])) : null,
        name(item.id, { class: "file", title: item.id })));
  }

  // The image with crops as rectangles.
  picture(item, crops) {
    const src = this.source.src(item);
    return element("svg", { class: "picture", viewBox: `0 0 ${item.width} ${item.height}`, role: "img", "aria-label": this.words(item) },
      element("rect", { class: "blank", width: item.width, height: item.height }),
      src && element("image", { href: src, width: item.width, height: item.height, preserveAspectRatio: "none" }),
      element("g", { class: "rects" }, ...this.rects(item, crops)));
  }

  // Large ones below, so that each can be seen.
  rects(item, crops) {
    const area = (i) => item.boxes[4 * i + 2] * item.boxes[4 * i + 3];
    return [...crops].sort((a, b) => area(b) - area(a)).map((i) =>
      element("g", { class: `crop r${this.cut.region(item.cells[i])}`, "data-crop": i },
        element("rect", { class: "halo", ...place(item.boxes, i) }),
        element("rect", { class: "edge", ...place(item.boxes, i) })));
  }

  words(item) {
    const regions = item.cells.map((cell) => this.cut.region(cell));
    const counts = REGIONS.map((words, r) => `${regions.filter((of) => of === r).length} ${words}`);
    return `${item.id} with crops: ${counts.join(", ")}`;
  }
}

class Viewer {
  constructor(gallery) {
    this.gallery = gallery;
    this.dialog = $("viewer");
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.step(-1);
      if (event.key === "ArrowRight") this.step(1);
    });
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
  }

  open(item) {
    this.item = item;
    this.draw();
    if (!this.dialog.open) this.dialog.showModal();
    this.dialog.scrollTop = 0;
  }

  step(by) {
    const { shown } = this.gallery;
    const to = shown[shown.findIndex((item) => item.row === this.item.row) + by];
    if (to && shown.some((item) => item.row === this.item.row)) this.open(to);
  }

  draw() {
    const { item, gallery } = this;
    const { data, cut } = gallery;
    const names = data.names;
    const order = item.cells.map((_, i) => i).sort((a, b) => (item.scores[b] ?? 0) - (item.scores[a] ?? 0));
    const picture = gallery.picture(item, order);
    const light = (i) => {
      for (const crop of picture.querySelectorAll(".crop")) crop.classList.toggle("lit", crop.dataset.crop === String(i));
    };
    const facts = [];
    if (item.given >= 0)
      facts.push("labelled ", element("b", {}, name(names[item.given])), ` (mean probability ${item.p[0].toFixed(2)}); `);
    facts.push(item.given < 0 ? "the teacher says " : "the likeliest other class is ", element("b", {}, name(names[item.other])),
      ` (${item.p[1].toFixed(2)}), first in ${Math.round(100 * item.votes)}\u00a0% of the crops`);
    const at = gallery.shown.findIndex((other) => other.row === item.row);
    const button = (words, label, to, off) =>
      element("button", { type: "button", class: "plain", "aria-label": label, disabled: off, onclick: to }, words);
    this.dialog.replaceChildren(
      element("div", { class: "viewer-head" },
        element("h2", { id: "viewer-name" }, name(item.id)),
        element("span", { class: "viewer-buttons" },
          button("‹", "previous image", () => this.step(-1), at <= 0),
          button("›", "next image", () => this.step(1), at < 0 || at + 1 >= gallery.shown.length),
          button("Close", "close", () => this.dialog.close(), false))),
      element("p", {}, ...facts),
      element("div", { class: "viewer-body" },
        element("div", { class: "viewer-picture" }, picture, item.unread ? element("p", { class: "warning" }, item.unread) : null),
        element("ol", { class: "crops" }, ...order.map((i) => this.crop(item, i, names, cut, light))))
    );
  }

  crop(item, i, names, cut, light) {
    const region = cut.region(item.cells[i]);
    const src = this.gallery.source.src(item);
    const box = place(item.boxes, i);
    const view = element("svg", { class: "view", viewBox: `${box.x} ${box.y} ${box.width} ${box.height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      src && element("image", { href: src, width: item.width, height: item.height, preserveAspectRatio: "none",
        transform: item.flips[i] ? `translate(${2 * box.x + box.width} 0) scale(-1 1)` : null }));
    const labels = [];
    for (let n = 0; n < item.top[i].length; n += 2)
      labels.push(element("li", {}, element("meter", { min: 0, max: 1, value: item.top[i][n + 1] }), element("span", {}, item.top[i][n + 1].toFixed(2)), name(names[item.top[i][n]])));
    const score = item.scores[i] === null ? "n/a" : item.scores[i].toFixed(3);
    return element("li", { class: `r${region}` },
      element("button", { type: "button", class: "crop-button", "data-crop": i, "aria-label": `crop ${i}, ${REGIONS[region]}, score ${score}`,
        onclick: () => light(i), onfocus: () => light(i), onmouseenter: () => light(i) }, view),
      element("div", {}, element("p", {}, key(region), element("b", {}, score), item.flips[i] ? element("small", {}, "mirrored") : null), element("ol", {}, ...labels)));
  }
}
