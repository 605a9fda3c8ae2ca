// The data of the page: compressed columns, unpacked when they are needed. See pagedata.py.
"use strict";

const about = JSON.parse(document.getElementById("about").textContent);
const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };

async function unpack(name) {
    const text = atob(document.getElementById(`data-${name}`).textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
}

function columnsOf(buffer, kinds, rows) {
    const columns = {};
    let at = 0;
    for (const [name, kind] of Object.entries(kinds)) {
        columns[name] = new ARRAYS[kind](buffer, at, rows);
        at += columns[name].byteLength;
    }
    return columns;
}

// All contigs, the best first: their names and one array a column.
async function readContigs() {
    const [names, numbers] = await Promise.all([unpack("names"), unpack("contigs")]);
    const contigs = columnsOf(numbers, about.contig_columns, about.contigs);
    contigs.names = about.contigs ? new TextDecoder().decode(names).split("\n") : [];
    // of a float32 the digits from the seventh on are noise, which would lie below a round threshold
    for (const name of ["score", "mean_virus_score", "max_virus_score", "probability", "fdr"])
        contigs[name] = Float64Array.from(contigs[name], value => Math.round(value * 1e6) / 1e6);
    return contigs;
}

const frameBlocks = new Map();

async function frameBlock(number) {
    const rows = Math.min(about.frame_rows, about.frames - number * about.frame_rows);
    const block = columnsOf(await unpack(`frames${number}`), about.frame_columns, rows);
    for (const name of ["window", "start"])
        for (let i = 1; i < rows; i++) block[name][i] += block[name][i - 1];
    return block;
}

// The scored frames of a contig as objects; scores are from 0 to 1, null where not known.
async function readFrames(first, rows) {
    const found = [];
    for (let at = first; at < first + rows;) {
        const number = Math.floor(at / about.frame_rows);
        if (!frameBlocks.has(number)) frameBlocks.set(number, frameBlock(number));
        const block = await frameBlocks.get(number);
        const end = Math.min((number + 1) * about.frame_rows, first + rows);
        const score = (name, i) => (block[name][i] === 0xffff ? null : block[name][i] / 10000);
        for (let i = at % about.frame_rows; at < end; i++, at++)
            found.push({
                window: block.window[i],
                start: block.start[i],
                end: block.start[i] + block.span[i],
                frame: about.frame_names[block.frame[i]],
                both: score("both", i),
                nucleotide: score("nucleotide", i),
                protein: score("protein", i),
            });
    }
    return found;
}

let regions = null;

// Viral stretches within a contig: [start, end, windows, score] each.
async function readRegions(row) {
    regions ??= unpack("regions").then(buffer => JSON.parse(new TextDecoder().decode(buffer)));
    return (await regions)[row] ?? [];
}

const whole = new Intl.NumberFormat("en-US");
const number = value => whole.format(value);
const share = value => (Number.isNaN(value) ? "" : value.toFixed(4));
const rate = value => (Number.isNaN(value) ? "" : value < 0.001 ? "<0.001" : value.toFixed(3));
const LABELS = about.labels;
const callOf = (contigs, row) => about.calls[contigs.call[row]];
const reasonOf = (contigs, row) => (about.reasons[contigs.reason[row]] ?? "").replaceAll("_", " ");
const sampleOf = (contigs, row) => about.samples[contigs.sample[row]];

const SVG = document.createRange().createContextualFragment("<svg></svg>").firstChild.namespaceURI;
const SVG_TAGS = ["svg", "rect", "line", "text", "title"];

// An element with attributes and children; text stays text.
function make(tag, { text, ...attributes } = {}, ...children) {
    const element = SVG_TAGS.includes(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes))
        if (value !== null) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    element.append(...children);
    return element;
}

const chip = call => make("span", { class: `chip ${call}`, text: LABELS[call] });
