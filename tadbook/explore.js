/* Interactive figures, without a library and without a network. explore(root, kind, data) fills an empty <div> with
   native controls (so that a keyboard works) and a picture; explore.py writes the data that it needs. */
function explore(root, kind, data) {
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  let numbered = 0;
  const labelled = (text, control) => {
    control.id = `${root.id}-${++numbered}`;
    return make("label", { for: control.id }, make("span", {}, text), control);
  };
  const select = (options) =>
    make("select", {}, ...options.map(([value, text]) => make("option", { value }, text)));
  const slider = (low, high, step, value) => make("input", { type: "range", min: low, max: high, step, value });
  const percent = (value, digits = 0) => `${(100 * value).toFixed(digits)} %`;
  /* Round numbers, about five, from below low to above high. */
  const ticks = (low, high) => {
    const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= raw);
    const first = Math.floor(low / step), count = Math.ceil(high / step) - first;
    return Array.from({ length: count + 1 }, (_, i) => Number(((first + i) * step).toPrecision(6)));
  };
  const status = make("p", { "aria-live": "polite", class: "said" });
  const stage = make("div", { class: "stage" });
  const controls = make("div", { class: "controls" });
  const show = (...parts) => {
    controls.append(...parts);
    root.append(controls, status, stage);
  };

  /* One tile of a picture that holds all images in rows; its position goes by per cent, so any size will do. */
  const tile = (sprite, number, side, name) => {
    const { columns, rows } = data.sprites[sprite];
    const at = (place, count) => (count > 1 ? (100 * place) / (count - 1) : 0);
    const x = at(number % columns, columns), y = at(Math.floor(number / columns), rows);
    const style = `width:${side}px;height:${side}px;background-size:${columns * 100}% ${rows * 100}%;` +
      `background-position:${x}% ${y}%`;
    return make("span", { class: `tile sprite-${sprite}`, role: "img", "aria-label": name, style });
  };
  if (data.sprites) {
    const rules = data.sprites.map(
      ({ source }, i) => `#${root.id} .sprite-${i} { background-image: url(${source}); }`
    );
    root.append(make("style", {}, rules.join("\n")));
  }
  const bars = (title, values, names, mark = {}) => {
    const rows = values.map((value, k) =>
      make(
        "div", { class: "bar", role: "listitem" },
        make("span", { class: "name" }, names[k]),
        make("span", { class: "track" }, make("span", { class: "fill", style: `width:${100 * value}%` })),
        make("span", { class: "value" }, value.toFixed(2) + (mark[k] ? ` ${mark[k]}` : ""))
      )
    );
    const list = make("div", { role: "list", "aria-label": title }, ...rows);
    return make("div", { class: "bars" }, make("div", { class: "title" }, title), list);
  };

  const kinds = {
    /* Transition matrices that grow with the rate: T = (1 − r) I + r · target, for rows that flip at all. */
    noise() {
      const kind = select(Object.keys(data.targets).map((name) => [name, name]));
      const rate = slider(0, 0.9, 0.05, data.rate);
      const draw = () => {
        const r = Number(rate.value), target = data.targets[kind.value], K = data.names.length;
        const T = target.map((row, i) => row.map((p, j) => (1 - r) * (i === j) + r * p));
        const head = make("tr", {}, make("td"), ...data.names.map((n) => make("th", { scope: "col" }, n)));
        const rows = T.map((row, i) =>
          make(
            "tr", {}, make("th", { scope: "row" }, data.names[i]),
            ...row.map((p) => {
              const dark = p > 0.82 ? " dark" : "";
              const mix = [11, 92, 143].map((part) => Math.round(255 - p * (255 - part)));
              const style = `background-color:rgb(${mix.join(",")})`;
              return make("td", { class: `cell${dark}`, style }, p >= 0.005 ? p.toFixed(2).replace(/^0/, "") : "·");
            })
          )
        );
        stage.replaceChildren(make("table", { class: "matrix", "aria-label": "transition matrix" }, head, ...rows));
        const wrong = 1 - T.reduce((sum, row, i) => sum + row[i], 0) / K;
        const column = (j) => T.map((row) => row[j]);
        const share = (j) => T[j][j] / column(j).reduce((a, b) => a + b, 0);
        const lead = (j) => T[j][j] - Math.max(...column(j).filter((_, i) => i !== j));
        const all = [...Array(K).keys()];
        const worst = all.reduce((a, b) => (lead(b) < lead(a) ? b : a));
        const rival = column(worst).map((p, i) => (i === worst ? -1 : p));
        status.textContent =
          `Rate ${percent(r)}: ${percent(wrong)} of all labels are wrong, if classes are equally large. Hardest column: ` +
          `of what is labelled ${data.names[worst]}, ${percent(share(worst))} is ${data.names[worst]}, and the strongest ` +
          `rival, ${data.names[rival.indexOf(Math.max(...rival))]}, has ` +
          `${percent(Math.max(...rival) / column(worst).reduce((a, b) => a + b, 0))}.`;
      };
      kind.oninput = rate.oninput = draw;
      show(labelled("noise", kind), labelled("rate", rate));
      draw();
    },

    /* Samples by space, class, truth and trust, a page at a time. */
    samples() {
      const any = [["", "all"]], size = 24;
      const space = select([...any, ...data.spaces.map((name, i) => [i, name])]);
      const noisy = select([...any, ...data.names.map((name, k) => [k, name])]);
      const truth = select([...any, ["right", "noisy label right"], ["wrong", "noisy label wrong"]]);
      const order = select([["up", "least trusted first"], ["down", "most trusted first"]]);
      const back = make("button", { type: "button" }, "previous"), on = make("button", { type: "button" }, "next");
      let first = 0;
      const draw = () => {
        const fits = (i) =>
          (space.value === "" || data.space[i] === Number(space.value)) &&
          (noisy.value === "" || data.noisy[i] === Number(noisy.value)) &&
          (truth.value === "" || (data.noisy[i] === data.true[i]) === (truth.value === "right"));
        const sign = order.value === "up" ? 1 : -1;
        const found = data.trust.map((_, i) => i).filter(fits).sort((a, b) => sign * (data.trust[a] - data.trust[b]));
        first = Math.min(Math.max(0, first), Math.max(0, Math.ceil(found.length / size) - 1) * size);
        const page = found.slice(first, first + size);
        back.disabled = first === 0;
        on.disabled = first + size >= found.length;
        const share = (of) => (found.length ? percent(found.filter(of).length / found.length) : "–");
        status.textContent = found.length
          ? `${first + 1} to ${first + page.length} of ${found.length} samples. Of them all, ` +
            `${share((i) => data.noisy[i] === data.true[i])} have a right noisy label, and ` +
            `${share((i) => data.label[i] === data.true[i])} a right refined label.`
          : "No sample fits.";
        stage.replaceChildren(
          ...page.map((i) => {
            const [g, now, t] = [data.noisy[i], data.label[i], data.true[i]].map((k) => data.names[k]);
            const words = [`noisy ${g}`, ...(now === g ? [] : [`refined ${now}`]), `true ${t}`, `trust ${data.trust[i].toFixed(2)}`];
            const wrong = now === t ? "" : " wrong";
            return make(
              "div", { class: `sample${wrong}` }, tile(0, i, 56, words.join(", ")),
              ...words.map((word) => make("span", {}, word)), ...(wrong ? [make("strong", {}, "✗ wrong")] : [])
            );
          })
        );
      };
      const restart = () => { first = 0; draw(); };
      for (const control of [space, noisy, truth, order]) control.oninput = restart;
      back.onclick = () => { first -= size; draw(); };
      on.onclick = () => { first += size; draw(); };
      show(labelled("space", space), labelled("noisy label", noisy), labelled("truth", truth), labelled("order", order), back, on);
      draw();
    },

    /* q(y) ∝ p(y | x) T[y, noisy label]^a for one sample, with a and T to choose. */
    posterior() {
      const captions = data.noisy.map((g, i) => [i, `${i + 1}: noisy ${data.names[g]}, true ${data.names[data.true[i]]}`]);
      const sample = select(captions), a = slider(0, 1.5, 0.05, data.a);
      const flips = select(Object.keys(data.transitions).map((name) => [name, name]));
      const softmax = (logs) => {
        const top = Math.max(...logs), parts = logs.map((v) => Math.exp(v - top)), sum = parts.reduce((x, y) => x + y, 0);
        return parts.map((v) => v / sum);
      };
      const draw = () => {
        const i = Number(sample.value), g = data.noisy[i], exponent = Number(a.value);
        const T = data.transitions[flips.value].map((row) => row[g]);
        const image = softmax(data.log_p[i]);
        const q = softmax(data.log_p[i].map((v, y) => v + exponent * Math.log(Math.max(T[y], 1e-12))));
        const best = q.indexOf(Math.max(...q)), mark = { [data.true[i]]: "← true" };
        stage.replaceChildren(
          make("div", { class: "sample" }, tile(0, i, 96, captions[i][1]), make("span", {}, `noisy ${data.names[g]}`),
            make("span", {}, `true ${data.names[data.true[i]]}`)),
          bars("predicted: p(y|x)", image, data.names), bars(`noisy label: T[y, ${data.names[g]}]`, T, data.names),
          bars("both: q(y)", q, data.names, mark)
        );
        const right = best === data.true[i] ? "which is right" : `which is wrong: it is ${data.names[data.true[i]]}`;
        status.textContent =
          `a = ${exponent.toFixed(2)}. Trust in the noisy label ${data.names[g]}: ${q[g].toFixed(2)}. ` +
          `Most likely true label: ${data.names[best]} with ${q[best].toFixed(2)}, ${right}.`;
      };
      sample.oninput = a.oninput = flips.oninput = draw;
      show(labelled("sample", sample), labelled("exponent a of T", a), labelled("T", flips));
      draw();
    },

    /* Distilled images: sets side by side, one class at a time, or one image of every class. */
    images() {
      const groups = Object.keys(data.groups);
      const group = select(groups.map((name) => [name, name]));
      const shown = select([]);
      const fill = () => {
        const { names } = data.groups[group.value], kept = shown.value;
        shown.replaceChildren(
          make("option", { value: "" }, "one of every class"),
          ...names.map((name, k) => make("option", { value: k }, `class ${name}`))
        );
        if (kept !== "" && Number(kept) < names.length) shown.value = kept;
      };
      const draw = () => {
        const { names, blocks } = data.groups[group.value];
        const side = 44;
        stage.replaceChildren(
          ...blocks.map(({ title, note, sprite, ipc }) => {
            const numbers = shown.value === ""
              ? names.map((_, k) => k * ipc) : [...Array(ipc).keys()].map((n) => Number(shown.value) * ipc + n);
            const tiles = numbers.map((n) => tile(sprite, n, side, `${title}, class ${names[Math.floor(n / ipc)]}, image ${(n % ipc) + 1}`));
            return make("div", { class: "block" }, make("div", { class: "title" }, title),
              make("div", { class: "tiles" }, ...tiles), make("div", { class: "note" }, note || ""));
          })
        );
        const what = shown.value === "" ? "the first image of every class" : `all images of class ${names[Number(shown.value)]}`;
        status.textContent = `${groups.length > 1 ? group.value + ": " : ""}${what}, in each of ${blocks.length} sets.`;
      };
      group.oninput = () => { fill(); draw(); };
      shown.oninput = draw;
      fill();
      show(...(groups.length > 1 ? [labelled("data and noise", group)] : []), labelled("images", shown));
      draw();
    },

    /* Runs as points: accuracy against what is chosen, one group of settings at a time. */
    runs() {
      const group = select([...new Set(data.rows.map((row) => row.group))].map((name) => [name, name]));
      const along = select(Object.entries(data.axes));
      const svg = (tag, attributes, ...children) => {
        const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
        for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
        node.append(...children);
        return node;
      };
      const W = 640, H = 320, left = 52, bottom = 44, top = 12, right = 150;
      const shapes = ["M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0", "M-5 -5H5V5H-5Z", "M0 -6L6 5H-6Z", "M0 -7L6 0L0 7L-6 0Z", "M-6 -5H6L0 6Z",
        "M-2 -6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z", "M-5 -3L-3 -5L0 -2L3 -5L5 -3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0Z",
        "M-6 0L-3 -6H3L6 0L3 6H-3Z"];
      const draw = () => {
        const rows = data.rows.filter((row) => row.group === group.value && row[along.value] !== null);
        const most = Math.max(...rows.map((row) => row[along.value])) * 1.06 || 1;
        const ends = (sign) => rows.map((row) => 100 * (row.accuracy + sign * (row.half ?? 0)));
        const low = Math.max(0, Math.min(...ends(-1))), high = Math.min(100, Math.max(...ends(1), low + 1));
        const across = ticks(0, most).filter((t) => t <= most), up = ticks(low, high);
        const [floor, ceiling] = [up[0] / 100, up.at(-1) / 100];
        const x = (value) => left + (value / most) * (W - left - right);
        const y = (value) => top + ((ceiling - value) / (ceiling - floor)) * (H - top - bottom);
        const text = (content, attributes) => svg("text", attributes, content);
        const grid = [
          ...up.flatMap((t) => [
            svg("line", { x1: left, x2: W - right, y1: y(t / 100), y2: y(t / 100), class: "grid" }),
            text(t, { x: left - 8, y: y(t / 100) + 4, "text-anchor": "end" }),
          ]),
          ...across.map((t) => text(t, { x: x(t), y: H - bottom + 18, "text-anchor": "middle" })),
        ];
        const tell = (row) =>
          `${row.arm}, ${row.method}, ${row.ipc} images a class, seed ${row.seed}: accuracy ${percent(row.accuracy, 1)}` +
          `${row.half === null ? "" : ` ± ${(100 * row.half).toFixed(1)}`}, ${data.axes[along.value]} ${Number(row[along.value].toPrecision(3))}.`;
        const points = rows.map((row) => {
          const { colour, shape } = data.styles[row.arm];
          const half = row.half === null ? [] : [svg("line", { x1: 0, x2: 0, y1: y(row.half) - y(0), y2: y(0) - y(row.half), class: "half" })];
          const point = svg("g", { class: "point", tabindex: 0, role: "img", "aria-label": tell(row),
            transform: `translate(${x(row[along.value])} ${y(row.accuracy)})` }, ...half,
            svg("path", { d: shapes[shape % shapes.length], fill: colour }));
          point.onfocus = point.onmouseenter = () => { status.textContent = tell(row); };
          return point;
        });
        const arms = [...new Set(rows.map((row) => row.arm))];
        const legend = arms.map((arm, i) => svg("g", { transform: `translate(${W - right + 18} ${top + 14 + 22 * i})` },
          svg("path", { d: shapes[data.styles[arm].shape % shapes.length], fill: data.styles[arm].colour, class: "key" }),
          text(arm, { x: 12, y: 4 })));
        stage.replaceChildren(svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": "test accuracy of every run" },
          ...grid, text("test accuracy (%)", { x: 14, y: H / 2, transform: `rotate(-90 14 ${H / 2})`, "text-anchor": "middle" }),
          text(data.axes[along.value], { x: (left + W - right) / 2, y: H - 6, "text-anchor": "middle" }), ...points, ...legend));
        status.textContent =
          `${group.value}: ${rows.length} runs along ${data.axes[along.value]}. ` +
          "Go to a point, by pointer or Tab, to read it here.";
      };
      group.oninput = along.oninput = draw;
      show(labelled("data and noise", group), labelled("along", along));
      draw();
    },
  };
  kinds[kind]();
}
