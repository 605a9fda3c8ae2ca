// The view of one contig: what its call rests on, and its frames along the sequence.
"use strict";

const MOST_TILES = 1200; // windows beside each other; of a longer contig, neighbours share a tile
const FRAME_LANES = ["F1", "F2", "F3", "R1", "R2", "R3"];
const logit = p =>
    Math.log(Math.min(Math.max(p, 1e-6), 1 - 1e-6) / (1 - Math.min(Math.max(p, 1e-6), 1 - 1e-6)));

// Where a window of a contig begins, as sequences/windows.py lays them.
function windowStart(number, length, window) {
    const count = Math.ceil(length / window),
        surplus = count * window - length;
    const base = Math.floor(surplus / count),
        longer = Math.min(count - 1, surplus - base * (count - 1));
    return (number - 1) * (window - base) - Math.min(number - 1, longer);
}

// Windows with a score, in order, each with its frames. By both halves of the input or by one alone
// it has a score, and is viral by the original's rule: the best virus score is at least the best
// other score.
function windowsOf(frames, length, window) {
    const windows = [];
    for (const frame of frames) {
        if (windows.at(-1)?.number !== frame.window) {
            const start = windowStart(frame.window, length, window);
            windows.push({ number: frame.window, start, end: Math.min(start + window, length), frames: [] });
        }
        windows.at(-1).frames.push(frame);
    }
    for (const one of windows)
        for (const kind of ["both", "nucleotide", "protein"]) {
            const scores = one.frames.map(frame => frame[kind]);
            if (scores.includes(null)) continue;
            const most = Math.max(...scores),
                least = Math.min(...scores);
            one[kind] = {
                viral: most >= 1 - least,
                score: 1 / (1 + Math.exp(-(logit(most) + logit(least)) / 2)),
            };
        }
    // neighbours overlap: each is drawn up to the middle of what they share
    windows.forEach((one, i) => {
        const after = windows[i + 1];
        one.left ??= one.start;
        one.right = one.end;
        if (after?.number === one.number + 1) one.right = after.left = (one.end + after.start) / 2;
    });
    return windows;
}

const plural = (count, one) => `${number(count)} ${one}${count === 1 ? "" : "s"}`;

// One sentence on what the call rests on, and one on the halves of its input.
function sentences(contigs, row, windows) {
    const call = callOf(contigs, row),
        { criteria } = sampleOf(contigs, row);
    const scored = contigs.scored_windows[row],
        viral = contigs.viral_windows[row],
        score = contigs.score[row];
    const line = `the threshold of ${Number(criteria.min_score.toPrecision(4))}`;
    if (call === "no_call") {
        const why = {
            "too short":
                contigs.length[row] < 3
                    ? "less than three bases hold no codon to read."
                    : `${plural(contigs.length[row], "base")} are fewer than the ${number(criteria.min_length)} that a call takes.`,
            ambiguous: "no window has three A, C, G or T in a row, so nothing can be translated.",
            "no stop free frame": "all six reading frames of every window hold a stop codon.",
            "little evidence": `${plural(contigs.evidence_bp[row], "base")} of evidence are fewer than the ${number(criteria.min_evidence)} that a call takes.`,
        }[reasonOf(contigs, row)];
        return [`No call: ${why}`];
    }
    const strands = new Set();
    for (const one of windows ?? [])
        if (one.both.viral)
            for (const frame of one.frames) if (frame.both >= 0.5) strands.add(frame.frame[0].toUpperCase());
    const where =
        !viral || !strands.size
            ? ""
            : strands.size === 2
              ? ", on both strands"
              : strands.has("F")
                ? ", on the forward strand alone"
                : ", on the reverse strand alone";
    const by_rate = call === "other" && score >= criteria.min_score && criteria.max_fdr !== null;
    const against = by_rate
        ? `its FDR of ${rate(contigs.fdr[row])} is above the ${criteria.max_fdr} allowed`
        : `its score of ${share(score)} ${call === "virus" ? "reaches" : "stays below"} ${line}`;
    const said = [
        `${LABELS[call]}: ${number(viral)} of ${plural(scored, "scored window")} ${viral === 1 ? "is" : "are"} viral${where}; ${against}.`,
    ];
    const framed = windows?.filter(one => one.frames.some(frame => FRAME_LANES.includes(frame.frame))).length;
    if (windows && framed < windows.length)
        said.push(
            `${framed ? number(framed) : "None"} of the windows ${framed > 1 ? "have" : "has"} a stop-free frame; the other${windows.length - framed === 1 ? " was" : "s were"} read by the longest run of codons.`,
        );
    return said;
}

function facts(contigs, row) {
    const value = (name, text) => make("div", {}, make("dt", { text: name }), make("dd", { text }));
    const rows = [
        ["Length", `${number(contigs.length[row])} b`],
        ["Score", share(contigs.score[row]) || "none"],
        ["Probability", rate(contigs.probability[row])],
        ["FDR", rate(contigs.fdr[row])],
        ["Windows scored", `${number(contigs.scored_windows[row])} of ${number(contigs.windows[row])}`],
        ["Evidence", `${number(contigs.evidence_bp[row])} b`],
        ["Frames", number(contigs.frames[row])],
    ];
    return make("dl", { class: "pairs" }, ...rows.filter(([, text]) => text).map(pair => value(...pair)));
}

// Windows that are viral by both halves of the classifier's input, and by each alone.
function halves(windows) {
    if (!windows.length || !windows[0].nucleotide) return [];
    const bars = Object.entries({
        both: "Both together",
        nucleotide: "Nucleotides alone",
        protein: "Protein alone",
    }).map(([kind, label]) => {
        const viral = windows.filter(one => one[kind].viral).length;
        const bar = make("span", { class: "meter" }, make("i"));
        bar.firstChild.style.width = `${(100 * viral) / windows.length}%`;
        return make(
            "tr",
            {},
            make("th", { scope: "row", text: label }),
            make("td", {}, bar),
            make("td", { class: "num", text: `${number(viral)} of ${number(windows.length)}` }),
        );
    });
    const table = make(
        "table",
        { class: "halves" },
        make("caption", {
            text: "Windows that are viral by their nucleotides (DNABERT-S) and their protein (ESM-2), and with either hidden",
        }),
        make("tbody", {}, ...bars),
    );
    return [make("h3", { text: "What speaks for it" }), table];
}

const tint = score => {
    const far = Math.round(Math.abs(score - 0.5) * 200);
    return `color-mix(in oklab, var(--${score >= 0.5 ? "virus" : "other"}) ${far}%, var(--mid))`;
};

function map(windows, stretches, length, width) {
    const left = width < 520 ? 78 : 116,
        right = width - 6,
        scale = (right - left) / length;
    const lanes = [{ key: "both", label: "Windows", height: 18 }, { gap: 6 }];
    for (const frame of FRAME_LANES) lanes.push({ key: frame, label: frame, height: 11 });
    if (windows[0]?.nucleotide)
        lanes.push(
            { gap: 8 },
            { key: "nucleotide", label: width < 520 ? "Nucleotides" : "Nucleotides alone", height: 12 },
            { key: "protein", label: width < 520 ? "Protein" : "Protein alone", height: 12 },
        );
    if (stretches.length) lanes.push({ gap: 8 }, { key: "regions", label: "Regions", height: 10 });
    const svg = make("svg", {
        class: "map",
        role: "img",
        "aria-label": "Scores of the contig's windows and frames along its sequence",
    });
    const at = base => left + base * scale;
    const tile = (x0, x1, y, height, score, said) => {
        const rect = make(
            "rect",
            { x: at(x0).toFixed(2), y, width: Math.max((x1 - x0) * scale - 0.4, 0.8).toFixed(2), height },
            make("title", { text: said }),
        );
        rect.style.fill = tint(score);
        svg.append(rect);
    };
    const together = Math.ceil(windows.length / MOST_TILES);
    const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
    let y = 2;
    for (const { key, label, height, gap } of lanes) {
        if (gap) {
            y += gap;
            continue;
        }
        svg.append(make("text", { x: left - 8, y: y + height / 2 + 3.5, "text-anchor": "end", text: label }));
        svg.append(make("rect", { class: "lane", x: left, y, width: right - left, height }));
        for (let i = 0; i < windows.length && key !== "regions"; i += together) {
            const part = windows.slice(i, i + together);
            const place = `${number(part[0].start + 1)}–${number(part.at(-1).end)}`;
            if (FRAME_LANES.includes(key)) {
                const own = part.flatMap(one =>
                    one.frames.filter(frame => frame.frame.toUpperCase() === key),
                );
                if (!own.length) continue;
                const run = own.every(frame => frame.frame !== key);
                const score = mean(own.map(frame => frame.both));
                const said = `${place}, ${key}${run ? ", longest run" : ""}: ${score.toFixed(4)}`;
                if (run) tile(own[0].start, own.at(-1).end, y + height / 2 - 1.5, 3, score, said);
                else tile(part[0].left, part.at(-1).right, y, height, score, said);
            } else {
                const score = mean(part.map(one => one[key].score));
                const which =
                    part.length > 1
                        ? `windows ${part[0].number}–${part.at(-1).number}`
                        : `window ${part[0].number}`;
                tile(
                    part[0].left,
                    part.at(-1).right,
                    y,
                    height,
                    score,
                    `${which}, ${place}: ${score.toFixed(4)}`,
                );
            }
        }
        if (key === "regions")
            for (const [start, end, count, score] of stretches)
                svg.append(
                    make(
                        "rect",
                        {
                            class: "region",
                            x: at(start).toFixed(2),
                            y,
                            width: Math.max((end - start) * scale, 2).toFixed(2),
                            height,
                        },
                        make("title", {
                            text: `provirus ${number(start + 1)}–${number(end)}, ${count} windows, mean score ${score.toFixed(4)}`,
                        }),
                    ),
                );
        y += height + 2;
    }
    y += 3;
    const step = roundStep(length / Math.max(2, Math.floor((right - left) / 80)));
    svg.append(make("line", { class: "axis", x1: left, x2: right, y1: y, y2: y }));
    for (let base = 0; base <= length; base += step) {
        svg.append(make("line", { class: "axis", x1: at(base), x2: at(base), y1: y, y2: y + 4 }));
        svg.append(
            make("text", {
                x: at(base),
                y: y + 16,
                "text-anchor": !base ? "start" : at(base) > right - 16 ? "end" : "middle",
                text: baseLabel(base, step),
            }),
        );
    }
    y += 20;
    svg.setAttribute("viewBox", `0 0 ${width} ${y}`);
    svg.setAttribute("height", y);
    return { svg, together };
}

function roundStep(least) {
    const power = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
    return power * [1, 2, 5, 10].find(k => k * power >= least);
}

const baseLabel = (base, step) =>
    step >= 1e6 ? `${base / 1e6} Mb` : step >= 500 ? `${base / 1e3} kb` : number(base);

const TABLE_ROWS = 1000;

function windowTable(windows) {
    const head = [
        "Window",
        "From",
        "To",
        "Frames",
        "Score",
        ...(windows[0].nucleotide ? ["Nucleotides", "Protein"] : []),
    ];
    const rows = windows.slice(0, TABLE_ROWS).map(one => {
        const frames = one.frames.map(frame => `${frame.frame} ${frame.both.toFixed(4)}`).join(", ");
        const values = [
            number(one.number),
            number(one.start + 1),
            number(one.end),
            frames,
            one.both.score.toFixed(4),
        ];
        if (one.nucleotide) values.push(one.nucleotide.score.toFixed(4), one.protein.score.toFixed(4));
        return make(
            "tr",
            { class: one.both.viral ? "virus" : "other" },
            ...values.map((text, i) => make("td", { class: i === 3 ? "frames" : "num", text })),
        );
    });
    const table = make(
        "table",
        {},
        make(
            "thead",
            {},
            make(
                "tr",
                {},
                ...head.map((text, i) => make("th", { scope: "col", class: i === 3 ? "" : "num", text })),
            ),
        ),
        make("tbody", {}, ...rows),
    );
    const many =
        windows.length > TABLE_ROWS ? ` (the first ${number(TABLE_ROWS)} of ${number(windows.length)})` : "";
    return make(
        "details",
        {},
        make("summary", { text: `Windows as a table${many}` }),
        make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Windows" }, table),
    );
}

const legend = () =>
    make(
        "p",
        { class: "legend", "aria-hidden": true },
        make("span", { text: "other 0" }),
        make("i"),
        make("span", { text: "1 virus" }),
    );

// Fill the dialog's body with a contig; what is drawn anew when its width changes is returned.
async function showContig(body, contigs, row) {
    const rows = contigs.view_rows[row];
    const [frames, stretches] = await Promise.all([
        rows ? readFrames(contigs.view_at[row], rows) : null,
        readRegions(row),
    ]);
    const windows = frames && windowsOf(frames, contigs.length[row], sampleOf(contigs, row).window);
    const [first, ...rest] = sentences(contigs, row, windows);
    if (stretches.length)
        rest.unshift(
            `Within it, viral: ${stretches.map(([start, end, count]) => `${number(start + 1)}–${number(end)} (${plural(count, "window")})`).join(", ")}.`,
        );
    body.replaceChildren(
        make("p", { class: "says", text: first }),
        ...rest.map(text => make("p", { class: "dim", text })),
        facts(contigs, row),
    );
    if (!windows) {
        if (contigs.scored_windows[row])
            body.append(
                make("p", {
                    class: "dim",
                    text: `This page holds the frames of ${number(about.views)} contigs, this one's not; they are in frames.parquet and windows.tsv beside contigs.tsv.`,
                }),
            );
        return () => {};
    }
    const place = make("div", { class: "map-place" });
    body.append(
        make("div", { class: "headed" }, make("h3", { text: "Along the sequence" }), legend()),
        place,
    );
    const note = make("p", { class: "dim small" });
    body.append(note, ...halves(windows), windowTable(windows));
    const draw = () => {
        const { svg, together } = map(
            windows,
            stretches,
            contigs.length[row],
            Math.max(place.clientWidth, 300),
        );
        place.replaceChildren(svg);
        const notes = ["F and R are the reading frames of the two strands."];
        if (frames.some(frame => !FRAME_LANES.includes(frame.frame)))
            notes.push("A thin mark is the longest run of codons in a window without a stop-free frame.");
        if (together > 1) notes.push(`Each mark is the mean of ${together} neighbouring windows.`);
        note.textContent = notes.join(" ");
    };
    draw();
    return draw;
}
