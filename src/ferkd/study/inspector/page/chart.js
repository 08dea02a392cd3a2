// The histogram of confidence and the reliability below it, on one axis, with the three scalpels.
const LANE = 34; // of a scalpel's handle, pixels
const NAMES = ["L", "M", "T"];

class Chart {
  constructor(cut, root) {
    this.cut = cut;
    this.root = root;
    this.svg = element("svg", { class: "chart", role: "img", "aria-label": this.label() });
    this.handles = cut.data.scalpels.map((which) => this.handle(which));
    root.append(this.svg, ...this.handles);
    new ResizeObserver(() => this.draw()).observe(root);
    cut.listeners.push(() => this.draw());
  }

  label() {
    return "Histogram of the teacher's confidence over all crops, and its reliability below";
  }

  handle(which) {
    const { cut } = this;
    const made = element(
      "div",
      {
        class: "scalpel",
        role: "slider",
        tabindex: 0,
        "data-scalpel": NAMES[which],
        "aria-label": `threshold T ${NAMES[which]}`,
        "aria-valuemin": 0,
        "aria-valuemax": 1,
      },
      element("span", {}, "T", element("sub", {}, NAMES[which])),
      element("b", {})
    );
    made.which = which;
    made.addEventListener("pointerdown", (event) => {
      made.setPointerCapture(event.pointerId);
      made.focus({ preventScroll: true });
      const at = this.x(cut.values[which]);
      this.grip = event.clientX - at; // so that a scalpel does not jump when it is taken
      event.preventDefault();
    });
    made.addEventListener("pointermove", (event) => {
      if (!made.hasPointerCapture(event.pointerId)) return;
      const value = (event.clientX - this.grip - this.left) / (this.width - this.left - this.right);
      cut.move(which, cut.nearest(Math.min(1, Math.max(0, value))));
    });
    made.addEventListener("keydown", (event) => {
      const steps = {
        ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -25, PageUp: 25,
      };
      const place = cut.places[which];
      let to = null;
      if (event.key in steps) to = place + steps[event.key] * (event.shiftKey ? 10 : 1);
      if (event.key === "Home") to = 0;
      if (event.key === "End") to = cut.positions.length - 1;
      if (to === null || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      cut.move(which, to);
    });
    return made;
  }

  x(score) {
    return this.left + score * (this.width - this.left - this.right);
  }

  draw() {
    const { cut, svg } = this;
    this.width = this.root.clientWidth;
    if (!this.width) return;
    const narrow = this.width < 560;
    [this.left, this.right] = narrow ? [34, 12] : [52, 16];
    const lanes = LANE * this.handles.length;
    const tall = narrow ? 170 : 220;
    const curve = cut.data.curve;
    this.floor = lanes + tall;
    this.second = this.floor + 62;
    this.end = curve ? this.second + (narrow ? 130 : 150) : this.floor;
    const height = this.end + 42;
    svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    svg.setAttribute("height", height);
    svg.replaceChildren(
      ...this.shading(lanes, this.floor),
      ...(curve ? this.shading(this.second, this.end) : []),
      ...this.histogram(lanes, narrow),
      ...this.lines(),
      ...(curve ? this.reliability(curve, narrow) : []),
      ...this.axis(this.end, "score s of a crop: ", narrow),
      ...this.names(lanes)
    );
    this.place();
  }

  shading(top, floor) {
    return this.parts().map(([a, b, region]) =>
      element("rect", {
        class: `shade r${region}`, x: this.x(a), y: top, width: this.x(b) - this.x(a),
        height: floor - top,
      })
    );
  }

  // From score to score, a region.
  parts() {
    const [low, middle, top] = this.cut.values;
    return [[0, low, 0], [low, middle, 1], [middle, top, 2], [top, 1, 0]].filter(([a, b]) => b > a);
  }

  // What becomes of the crops between two scalpels, where there is room to say it.
  names(top) {
    return this.parts()
      .filter(([a, b]) => this.x(b) - this.x(a) > 76)
      .map(([a, b, region]) =>
        element(
          "text",
          { class: `name halo-text r${region}`, x: (this.x(a) + this.x(b)) / 2, y: top + 17, "text-anchor": "middle" },
          REGIONS[region]
        )
      );
  }

  histogram(top, narrow) {
    const { cut } = this;
    const bins = narrow ? 50 : 100;
    const total = cut.sums.crops[cut.sums.crops.length - 1] || 1;
    const stacks = Array.from({ length: bins }, () => [0, 0, 0]);
    let bin = 0;
    cut.data.crops.forEach((crops, cell) => {
      if (cell === 0) return;
      const from = cut.positions[Math.min(cut.positions.length - 1, (cell - 1) >> 1)];
      while (bin < bins - 1 && from >= (bin + 1) / bins - 1e-9) bin += 1;
      if (crops) stacks[bin][cut.region(cell)] += crops;
    });
    const sums = stacks.map((s) => s[0] + s[1] + s[2]);
    const tallest = Math.max(...sums, 1) / total;
    const y = (share) => this.floor - (this.floor - top - 26) * Math.sqrt(share / tallest);
    const parts = this.levels(tallest, y, narrow);
    stacks.forEach((stack, i) => {
      const x = this.x(i / bins);
      const width = this.x((i + 1) / bins) - x;
      let base = 0;
      stack.forEach((crops, region) => {
        if (!crops) return;
        const high = base + crops / total;
        parts.push(
          element(
            "rect",
            {
              class: `bar r${region}`, x: x + 0.4, y: y(high), width: Math.max(0.6, width - 0.8),
              height: Math.max(0.6, y(base) - y(high)),
            },
            element(
              "title", {},
              `${(i / bins).toFixed(2)}–${((i + 1) / bins).toFixed(2)}, ${REGIONS[region]}: ` +
                percent(crops, total)
            )
          )
        );
        base = high;
      });
    });
    return parts;
  }

  // Lines at shares of crops; heights grow with the square root, so that rare scores are seen.
  levels(tallest, y, narrow) {
    const parts = [];
    let last = Infinity;
    for (const level of [0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]) {
      if (level > 100 * tallest || last - y(level / 100) < 17) continue;
      last = y(level / 100);
      parts.push(element("line", { class: "grid", x1: this.left, x2: this.width - this.right, y1: last, y2: last }));
      parts.push(element("text", { class: "tick", x: this.left - 6, y: last + 3.5, "text-anchor": "end" }, `${level}`));
    }
    const words = narrow ? "% of crops, root scale" : "share of crops, %, on a root scale";
    parts.push(element("text", { class: "label", x: this.left, y: this.floor + 32 }, words));
    parts.push(...this.axis(this.floor, null, narrow));
    return parts;
  }

  axis(floor, title, narrow) {
    const parts = [element("line", { class: "axis", x1: this.left, x2: this.width - this.right, y1: floor, y2: floor })];
    for (const tick of narrow ? [0, 0.25, 0.5, 0.75, 1] : [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])
      parts.push(element("text", { class: "tick", x: this.x(tick), y: floor + 15, "text-anchor": tick === 0 ? "start" : tick === 1 ? "end" : "middle" }, `${tick}`));
    if (title)
      parts.push(element("text", { class: "label", x: this.width - this.right, y: floor + 33, "text-anchor": "end" }, title + this.cut.data.score));
    return parts;
  }

  reliability(curve, narrow) {
    const y = (rate) => this.end - (this.end - this.second) * rate;
    const points = (values) => curve.s.map((s, i) => `${this.x(s).toFixed(1)},${y(values[i]).toFixed(1)}`);
    const levels = [[0.5, narrow ? "right half of the time" : "the teacher is right half of the time"]];
    const { chance } = this.cut.data;
    if (chance < 0.4) levels.push([chance, "chance"]);
    const parts = [
      element("text", { class: "name", x: this.left, y: this.second - 7 },
        narrow ? "reliability r(s): teacher right, %" : "reliability r(s): how often the teacher's first class is the true one, %, with its 95 % band"),
    ];
    for (const [level, words] of levels) {
      parts.push(element("line", { class: "level", x1: this.left, x2: this.width - this.right, y1: y(level), y2: y(level) }));
      parts.push(element("text", { class: "tick halo-text", x: this.width - this.right - 4, y: y(level) - 4, "text-anchor": "end" }, words));
    }
    for (const level of [0, 0.5, 1])
      parts.push(element("text", { class: "tick", x: this.left - 6, y: y(level) + 3.5, "text-anchor": "end" }, `${100 * level}`));
    parts.push(element("polygon", { class: "band ink", points: [...points(curve.high), ...points(curve.low).reverse()].join(" ") }));
    parts.push(element("path", { class: "line ink", fill: "none", d: `M${points(curve.rate).join("L")}` }));
    return parts;
  }

  // Through both plots, and not through the words between them.
  lines() {
    const parts = this.cut.data.curve ? [[this.second, this.end]] : [];
    return this.handles.flatMap((handle, lane) => {
      const x = this.x(this.cut.values[handle.which]);
      return [[LANE * lane + LANE / 2, this.floor], ...parts].map(([y1, y2]) =>
        element("line", { class: "scalpel-line", x1: x, x2: x, y1, y2 })
      );
    });
  }

  place() {
    const [discarded, hard, important] = this.cut.split(this.cut.sums.crops);
    const total = discarded + hard + important;
    this.handles.forEach((handle, lane) => {
      const value = this.cut.values[handle.which];
      handle.querySelector("b").textContent = value.toFixed(3);
      handle.setAttribute("aria-valuenow", value);
      handle.setAttribute("aria-valuetext", `${value.toFixed(3)}: ${percent(discarded, total)} discarded, ${percent(hard, total)} hard`);
      const half = handle.offsetWidth / 2;
      const x = Math.min(this.width - half, Math.max(half, this.x(value)));
      handle.style.transform = `translate(${x - half}px, ${LANE * lane}px)`;
    });
  }
}
