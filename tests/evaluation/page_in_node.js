// Runs the report page's own script without a browser: a document of a few elements, then clicks, then what stands there.
// node page_in_node.js PAGE.html
"use strict";
const fs = require("fs");
const page = fs.readFileSync(process.argv[2], "utf8");
const data = /<script id="data" type="application\/json">(.*?)<\/script>/s.exec(page)[1];
const script = /<script>\n(.*?)<\/script>/s.exec(page)[1];

class Element {
  constructor(name, text = "") { Object.assign(this, {name, textContent: text, dataset: {}, listeners: {}, children: [], attributes: {}}); }
  append(...more) { for (const one of more) { this.children = this.children.filter(child => child !== one); this.children.push(one); } }
  replaceChildren(...more) { this.children = more; }
  remove() { this.removed = true; }
  setAttribute(key, value) { this.attributes[key] = String(value); }
  addEventListener(kind, listener) { this.listeners[kind] = listener; }
  fire(kind) { this.listeners[kind](); }
  text() { return this.textContent + this.children.map(child => typeof child === "string" ? child : child.text()).join(" "); }
}

function table(values) {
  const heads = ["method", "score"].map(text => new Element("th", text));
  heads.forEach(head => { head.parentNode = {children: heads}; });
  const rows = values.map(value => ({cells: [new Element("td", "m"), new Element("td", value)]}));
  return {tHead: {rows: [{cells: heads}]}, tBodies: [{rows, append(...more) { this.rows = more; }}], heads};
}

const sorted = table(["9.5", "-", "10.0", "<1e-300", "1,000"]);
const places = {};
for (const name of ["one", "other", "which", "count", "list", "more", "differences"]) places[name] = new Element(name);
Object.assign(places.one, {value: 0});
places.which.value = "all";
const section = {dataset: {number: "0"}, querySelector: name => places[name.slice(1)]};
const plot = new Element("div");
const many = [...Array(40).keys()].map(n => ({name: `a ${n}`, method: `steps+of+one k=${n}`, x: 25, y: n}));
plot.dataset = {score: "accuracy", points: JSON.stringify([{name: "dense", method: "dense", x: 100, y: 80}, ...many])};
global.Option = class { constructor(text, value) { Object.assign(this, {text, value}); } };
global.document = {
  body: new Element("body"),
  getElementById: () => ({textContent: data}),
  createElement: name => new Element(name),
  createElementNS: (space, name) => new Element(name),
  querySelectorAll: name => ({"table.sortable": [sorted], ".plot": [plot], "section[data-number]": [section]})[name],
};
(0, eval)(script);

const column = () => sorted.tBodies[0].rows.map(row => row.cells[1].textContent);
const out = {ready: document.body.dataset.ready, drawn: plot.children[0].children.length, size: plot.children[0].attributes,
  words: plot.children[0].children.filter(one => one.name === "text").map(one => ({...one.attributes, text: one.textContent})), names: places.one.children.map(o => o.text)};
sorted.heads[1].fire("click"); out.down = column();
sorted.heads[1].fire("click"); out.up = column();
out.count = places.count.textContent; out.shown = places.list.children.length; out.first = places.list.children[0].text();
if (!places.more.hidden) places.more.fire("click");
out.more = places.list.children.length;
places.which.value = "won"; places.which.fire("change"); out.won = places.count.textContent;
places.which.value = "lost"; places.which.fire("change"); out.lost = places.count.textContent;
places.which.value = "all"; places.one.value = 1; places.one.fire("change"); out.itself = places.count.textContent;
console.log(JSON.stringify(out));
