// The table of contigs: filtered and sorted by row numbers; only the rows in sight are elements.
"use strict";

const ROW = 37; // height of a row, as in page.css
const SCREENS = 8; // rows beyond the edge that are kept ready

const COLUMNS = [
    { key: "name", title: "Contig" },
    { key: "sample", title: "Sample", when: () => about.samples.length > 1 },
    { key: "call", title: "Call" },
    { key: "length", title: "Length", numeric: true },
    { key: "score", title: "Score", numeric: true },
    { key: "fdr", title: "FDR", numeric: true, minor: true, when: () => about.samples.some(one => one.rule) },
    { key: "viral", title: "Viral windows", numeric: true, minor: true },
    { key: "evidence_bp", title: "Evidence", numeric: true, minor: true },
    { key: "frames", title: "Frames", numeric: true, minor: true },
].filter(column => !column.when || column.when());

class ContigTable {
    constructor(contigs, scroll, onChange) {
        this.contigs = contigs;
        this.scroll = scroll;
        this.onChange = onChange;
        this.lower = null;
        this.sorted = Uint32Array.from(contigs.names.keys());
        this.shown = this.sorted;
        this.sort = { key: "score", down: true };
        this.lines = new Map();
        this.head();
        this.virtual = new VirtualCore.Virtualizer({
            count: this.shown.length,
            estimateSize: () => ROW,
            overscan: SCREENS,
            getScrollElement: () => scroll,
            scrollToFn: VirtualCore.elementScroll,
            observeElementRect: VirtualCore.observeElementRect,
            observeElementOffset: VirtualCore.observeElementOffset,
            onChange: () => this.draw(),
        });
        this.virtual._didMount();
        this.virtual._willUpdate();
    }

    head() {
        const table = this.scroll.querySelector("table");
        this.body = table.tBodies[0];
        this.above = this.body.rows[0];
        this.below = this.body.rows[1];
        this.heads = new Map();
        for (const { key, title, numeric, minor } of COLUMNS) {
            const button = make("button", { type: "button", text: title });
            const cell = make(
                "th",
                { scope: "col", class: `c-${key}${numeric ? " num" : ""}${minor ? " minor" : ""}` },
                button,
            );
            button.addEventListener("click", () =>
                this.sortBy(key, this.sort.key === key ? !this.sort.down : Boolean(numeric)),
            );
            this.heads.set(key, cell);
        }
        table.tHead.rows[0].replaceChildren(...this.heads.values());
        this.heads.get("score").ariaSort = "descending";
        table.classList.toggle("reasons", this.contigs.call.includes(about.calls.indexOf("no_call")));
    }

    // What a column sorts by; NaN stands last, whichever way.
    values(key) {
        const { contigs } = this;
        if (key === "viral")
            return Float64Array.from(
                contigs.names,
                (_, row) => contigs.viral_windows[row] / contigs.scored_windows[row],
            );
        if (key !== "name") return contigs[key];
        if (!this.rank) {
            const order = Uint32Array.from(contigs.names.keys());
            const { compare } = new Intl.Collator("en", { numeric: true });
            order.sort((a, b) => compare(contigs.names[a], contigs.names[b]));
            this.rank = new Uint32Array(order.length);
            order.forEach((row, place) => (this.rank[row] = place));
        }
        return this.rank;
    }

    sortBy(key, down) {
        this.sort = { key, down };
        for (const [name, cell] of this.heads)
            cell.ariaSort = name === key ? (down ? "descending" : "ascending") : null;
        const values = this.values(key);
        const sign = down ? -1 : 1;
        this.sorted = Uint32Array.from(this.contigs.names.keys()).sort((a, b) => {
            const x = values[a],
                y = values[b];
            if (x !== x || y !== y) return (x !== x) - (y !== y) || a - b;
            return sign * (x - y) || a - b;
        });
        this.filter(this.wanted);
    }

    // wanted: text, call, sample (a number), and bounds of numbers; what is undefined allows all.
    filter(wanted = {}) {
        this.wanted = wanted;
        const { contigs } = this;
        const { call, sample, length_from = 0, length_to = Infinity, evidence_from = 0 } = wanted;
        const { score_from = -Infinity, score_below = Infinity } = wanted;
        const text = (wanted.text ?? "").toLowerCase();
        if (text) this.lower ??= contigs.names.map(name => name.toLowerCase());
        const asked = call ? about.calls.indexOf(call) : -1;
        const by_score = score_from > -Infinity || score_below < Infinity;
        this.shown = this.sorted.filter(
            row =>
                (asked < 0 || contigs.call[row] === asked) &&
                (sample === undefined || contigs.sample[row] === sample) &&
                contigs.length[row] >= length_from &&
                contigs.length[row] <= length_to &&
                contigs.evidence_bp[row] >= evidence_from &&
                (!by_score || (contigs.score[row] >= score_from && contigs.score[row] < score_below)) &&
                (!text || this.lower[row].includes(text)),
        );
        for (const line of this.lines.values()) line.remove();
        this.lines.clear();
        this.virtual.setOptions({ ...this.virtual.options, count: this.shown.length });
        this.scroll.scrollTop = 0;
        this.virtual._willUpdate();
        this.virtual.measure();
        this.draw();
        this.onChange(this);
    }

    draw() {
        const items = this.virtual.getVirtualItems();
        const inSight = new Set(items.map(item => item.index));
        for (const [index, line] of this.lines)
            if (!inSight.has(index)) {
                line.remove();
                this.lines.delete(index);
            }
        let next = this.below;
        for (const { index } of [...items].reverse()) {
            if (!this.lines.has(index)) this.lines.set(index, this.line(index));
            const line = this.lines.get(index);
            if (line.nextElementSibling !== next || line.parentNode !== this.body)
                this.body.insertBefore(line, next);
            next = line;
        }
        const last = items.at(-1);
        this.above.style.height = `${items.length ? items[0].index * ROW : 0}px`;
        this.below.style.height = `${last ? (this.shown.length - 1 - last.index) * ROW : 0}px`;
        this.body.parentNode.ariaRowCount = this.shown.length + 1;
    }

    line(index) {
        const { contigs } = this;
        const row = this.shown[index];
        const call = callOf(contigs, row);
        const name = contigs.names[row];
        const cells = {
            name: () => [make("a", { href: addressOf(contigs, row), title: name, text: name })],
            sample: () => [sampleOf(contigs, row).sample],
            call: () => [chip(call), make("span", { class: "dim", text: reasonOf(contigs, row) })],
            length: () => [number(contigs.length[row])],
            score: () => [share(contigs.score[row])],
            fdr: () => [rate(contigs.fdr[row])],
            viral: () => [
                contigs.scored_windows[row]
                    ? `${number(contigs.viral_windows[row])} of ${number(contigs.scored_windows[row])}`
                    : "",
            ],
            evidence_bp: () => [number(contigs.evidence_bp[row])],
            frames: () => [number(contigs.frames[row])],
        };
        const line = make("tr", { class: call, "aria-rowindex": index + 2 });
        for (const { key, numeric, minor } of COLUMNS) {
            const cell = make(
                key === "name" ? "th" : "td",
                { class: `c-${key}${numeric ? " num" : ""}${minor ? " minor" : ""}` },
                ...cells[key](),
            );
            if (key === "name") cell.scope = "row";
            if (key === "sample") cell.title = cell.textContent;
            if (key === "score" && !Number.isNaN(contigs.score[row]))
                cell.style.setProperty("--v", contigs.score[row]);
            line.append(cell);
        }
        line.addEventListener("click", event => {
            if (!event.target.closest("a") && !String(getSelection()))
                location.hash = addressOf(contigs, row);
        });
        line.dataset.index = index;
        return line;
    }

    // Put the focus on the contig of that place in the list.
    focus(index) {
        if (index < 0 || index >= this.shown.length) return;
        this.virtual.scrollToIndex(index);
        requestAnimationFrame(() => {
            this.draw();
            this.lines.get(index)?.querySelector("a").focus({ preventScroll: true });
        });
    }

    // The rows shown, as contigs.tsv has them.
    tsv() {
        const { contigs } = this;
        const names = [
            "length",
            "windows",
            "scored_windows",
            "frames",
            "evidence_bp",
            "viral_windows",
            "score",
            "probability",
            "fdr",
            "regions",
        ];
        const lines = [["sample", "contig", ...names, "call", "reason"].join("\t")];
        for (const row of this.shown) {
            const values = names.map(name => (Number.isNaN(contigs[name][row]) ? "" : contigs[name][row]));
            const reason = about.reasons[contigs.reason[row]] ?? "";
            lines.push(
                [
                    sampleOf(contigs, row).sample,
                    contigs.names[row],
                    ...values,
                    callOf(contigs, row),
                    reason,
                ].join("\t"),
            );
        }
        return `${lines.join("\n")}\n`;
    }
}

const addressOf = (contigs, row) =>
    `#contig/${encodeURIComponent(sampleOf(contigs, row).sample)}/${encodeURIComponent(contigs.names[row])}`;
